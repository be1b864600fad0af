"""The command that kills a stream and its follower: a story of it, and what is not right is noticed."""

import json
import shutil

import pytest

from benchmarks import chaos_stream
from benchmarks.chaos_live import Place
from livetrain.trainers.runtime import manifest, run_folder, runlog

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def golden(tmp_path_factory) -> Place:
    return chaos_stream.prepare(tmp_path_factory.mktemp("chaos") / "work")


def test_who_is_killed_between_manifest_checkpoint_and_pointer_comes_to_the_same(golden):
    moments = ("minute", "checkpoint", "any", "publishing", "writing")
    kills = [chaos_stream.Kill(moment, 3.0 * (moment == "any"), "driver", moment == "minute") for moment in moments]
    tale = chaos_stream.tell(chaos_stream.Story(1, kills, 0, 180), golden.folder.parent, golden)
    assert tale.failures == []
    assert [kill["moment"] for kill in tale.kills] == list(moments)
    assert {kill["hit"] for kill in tale.kills} > {"minute", "checkpoint"}
    assert tale.joiner_kills == 2


def other_minute(place: Place) -> None:
    part = sorted(place.live.glob("date=*/time=*/lane=0/part-0.parquet"))[-1]
    part.write_bytes(part.read_bytes()[:-1])


def other_weights(place: Place) -> None:
    file = next(run_folder.committed(place.line)[-1].glob("*.distcp"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def learned_twice(place: Place) -> None:
    line = next(each for each in runlog.read(place.line) if each["kind"] == "increment")
    runlog.note(place.line, **{key: value for key, value in line.items() if key != "time"})


def other_position(place: Place) -> None:
    path = run_folder.committed(place.line)[-1] / manifest.MANIFEST
    content = json.loads(path.read_text())
    content["position"]["increments"] += 1
    manifest.write_json(path, content)


def published_before(place: Place) -> None:
    pointer = place.models / "current.json"
    pointer.write_text(pointer.read_text().replace("16-24-00Z", "16-23-30Z"))
    base = next(place.models.glob("20*"))
    base.rename(base.with_name(base.name.replace("16-24-00Z", "16-23-30Z")))


def leave_scratch(place: Place) -> None:
    (place.line / ".publish-host-1-00000000.scratch").mkdir()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (other_minute, "or other bytes"),
        (other_weights, "the checkpoint's numbers are not"),
        (learned_twice, "49 lines increment, not the other run's 48"),
        (other_position, "'increments': 49"),
        (published_before, "published: 2025-05-25T16-23-30Z, not 2025-05-25T16-24-00Z"),
        (leave_scratch, "left: "),
    ],
)
def test_what_is_not_right_is_noticed(golden, tmp_path, spoil, said):
    place = Place(tmp_path / "story")
    shutil.copytree(golden.folder, place.folder, symlinks=True)
    assert chaos_stream.OfStreams(place, golden).failures == []
    spoil(place)
    assert any(said in failure for failure in chaos_stream.OfStreams(place, golden).failures)
