"""Published models: the pointer names a whole version or the one before, and never goes back but by a rollback."""

import contextlib
import json
import os
import queue
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from livetrain.configs.errors import BadInput
from livetrain.trainers.export import publish
from livetrain.trainers.runtime import manifest, place, reach
from tests import store

DAYS = [f"2022-05-0{day}" for day in range(1, 10)]


def made(folder: Path, content: bytes = bytes(range(256)) * 100) -> Path:
    """Write an export."""
    folder.mkdir(exist_ok=True)
    (folder / "model.pt").write_bytes(content)
    (folder / "signature.json").write_text("{}")
    files = {name: manifest.digest(folder / name) for name in ("model.pt", "signature.json")}
    manifest.commit(folder, files)
    return folder


@pytest.fixture
def export(tmp_path) -> Path:
    return made(tmp_path / "export")


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch) -> None:
    """What fails here fails for good."""
    monkeypatch.setattr(reach, "DEADLINE_S", 0.0)


def whole(where: str) -> str:
    """Return the folder that is served, having seen that it is whole."""
    pointer = publish.current(where)
    assert publish.damage(where, pointer) is None
    return pointer["folder"]


def folders(where: str) -> list[str]:
    return sorted(name for name, at in place.open_place(where).listed().items() if at is None and name[0] == "2")


def days(pointer: dict) -> list[tuple[str, bool]]:
    return [(each["version"], each.get("rejected", False)) for each in pointer["versions"]]


STEPS = ("read", "swap", "make", "put", "sync", "listed", "remove")


@contextlib.contextmanager
def before_each(step: Callable[[str, str], None]) -> Iterator[None]:
    """Call a function before each step of a publisher, with the step's name and what it is about."""

    def told(name: str, original: Callable) -> Callable:
        def call(self, *arguments):
            step(name, str(arguments[-1 if name == "put" else 0]) if arguments else "")
            return original(self, *arguments)

        return call

    with contextlib.ExitStack() as stack:
        for kind in (place.Folder, place.Bucket):
            for name in STEPS:
                stack.enter_context(mock.patch.object(kind, name, told(name, getattr(kind, name))))
        yield


def in_turns(actors: list[Callable[[], dict]], choose: Callable[[list[int]], int], after: Callable[[], None]) -> list:
    """Let publishers take their steps one at a time, in the order that is chosen; return what became of each."""
    arrived, here = queue.Queue(), threading.local()
    gates, results = [threading.Semaphore(0) for _ in actors], [None] * len(actors)

    def step(*_) -> None:
        if (number := getattr(here, "number", None)) is not None:
            arrived.put((number, True))
            gates[number].acquire()

    def act(number: int) -> None:
        here.number = number
        try:
            results[number] = actors[number]()
        except BadInput as error:
            results[number] = error
        finally:
            arrived.put((number, False))

    with before_each(step):
        threads = [threading.Thread(target=act, args=(number,), daemon=True) for number in range(len(actors))]
        for thread in threads:
            thread.start()
        waiting = {number for number, more in (arrived.get() for _ in actors) if more}
        while waiting:
            gates[choose(sorted(waiting))].release()
            number, more = arrived.get(timeout=300)  # an actor that waits for another inside a step ends the test
            waiting = waiting if more else waiting - {number}
            after()
        for thread in threads:
            thread.join()
    return results


def test_versions_follow_one_another(export, where):
    assert publish.current(where) is None
    first = publish.publish(export, where, "2022-05-08", 7, run="din-2022-05-08")
    assert first == publish.current(where)
    about = {"version": "2022-05-08", "folder": "2022-05-08.000001", "run": "din-2022-05-08"}
    assert first == {**about, "fence": 1, "versions": [about]}
    assert whole(where) == "2022-05-08.000001"
    second = publish.publish(export, where, "2022-05-09", 7)
    again = publish.publish(export, where, "2022-05-09", 7)
    assert [second["fence"], again["fence"]] == [2, 3]
    assert whole(where) == "2022-05-09.000003"


def test_a_folder_may_be_named_by_a_uri(export, tmp_path):
    pointer = publish.publish(export, f"file://{tmp_path / 'models'}", "2022-05-08", 7)
    assert pointer == publish.current(str(tmp_path / "models"))


def test_an_older_version_never_takes_the_place_of_a_newer(export, where):
    newer = publish.publish(export, where, "2022-05-09", 7)
    with pytest.raises(BadInput, match="version 2022-05-09 is published, and 2022-05-08 is older"):
        publish.publish(export, where, "2022-05-08", 7)
    assert publish.current(where) == newer
    assert folders(where) == ["2022-05-09.000001"]


def test_only_the_newest_versions_stay(export, where):
    for day in DAYS[:5]:
        pointer = publish.publish(export, where, day, 2)
    assert (
        folders(where) == [each["folder"] for each in pointer["versions"]] == ["2022-05-04.000004", "2022-05-05.000005"]
    )


@settings(deadline=None, max_examples=8, suppress_health_check=list(HealthCheck))
@given(
    days=st.lists(st.sampled_from(DAYS[2:5]), min_size=2, max_size=3),
    back=st.booleans(),
    keep=st.integers(1, 3),
    turns=st.randoms(use_true_random=False),
)
def test_whatever_the_order_of_steps_the_pointer_is_right(tmp_path_factory, days, back, keep, turns):
    """Publishers, and maybe a rollback, at once: the pointer only ever names a whole folder under a larger fence."""
    folder = tmp_path_factory.mktemp("racing")
    where = str(folder / "models")
    for number in (0, 1):
        publish.publish(made(folder / "export"), where, DAYS[number], 7, by="before")
    exports = [made(folder / f"export{number}", bytes([number]) * 1000) for number in range(len(days))]
    actors = [
        lambda export=export, day=day, number=number: publish.publish(export, where, day, keep, by=number)
        for number, (export, day) in enumerate(zip(exports, days, strict=True))
    ]
    seen = [publish.current(where)]

    def look() -> None:
        pointer = publish.current(where)
        if pointer != seen[-1]:
            assert pointer["fence"] > seen[-1]["fence"]
            seen.append(pointer)
        assert publish.damage(where, pointer) is None

    with mock.patch.object(os, "fsync"):  # which takes most of the time, and is not what this is about
        found = in_turns([*actors, *([lambda: publish.rollback(where)] if back else [])], turns.choice, look)
    done = [each for each in found if not isinstance(each, BadInput)]
    assert sorted(done, key=lambda each: each["fence"]) == seen[1:]  # each success was served, and nothing else
    assert folders(where) == sorted(each["folder"] for each in seen[-1]["versions"])
    assert all(publish.damage(where, each) is None for each in seen[-1]["versions"])
    for number, (day, result) in enumerate(zip(days, found, strict=False)):
        if isinstance(result, BadInput):
            assert re.search(
                rf"is published, and {day} is older|took back the versions up to .*, so {day} is", str(result)
            )
            assert publish.settled(seen[-1]) >= day
        else:
            model = Path(where) / result["folder"] / "model.pt"
            assert not model.exists() or model.read_bytes() == bytes([number]) * 1000
    if not any(each.get("rejected") for each in seen[-1]["versions"]) and not back:
        assert seen[-1]["version"] == max(days)


@pytest.mark.parametrize("theirs", ["2022-05-04", "2022-05-05", "2022-05-06"])
@pytest.mark.parametrize("at", [("put", "manifest.json"), ("swap", "current.json")])
def test_who_is_overtaken_publishes_after_the_other_or_says_that_it_lost(export, where, theirs, at):
    publish.publish(export, where, "2022-05-03", 1)
    others = []

    def step(name: str, about: str) -> None:
        if not others and (name, about.rpartition("/")[2]) == at:
            others.append(None)
            others.append(publish.publish(export, where, theirs, 1))

    lost = pytest.raises(
        BadInput, match=r"version 2022-05-06 is published, and 2022-05-05 is older; a model never goes"
    )
    with before_each(step), lost if theirs == "2022-05-06" else contextlib.nullcontext():
        publish.publish(export, where, "2022-05-05", 1)
    assert (others[1]["fence"], others[1]["folder"]) == (3, f"{theirs}.000003")
    pointer = publish.current(where)
    if theirs == "2022-05-06":
        assert pointer == others[1]
    else:
        assert (pointer["version"], pointer["fence"], pointer["folder"]) == ("2022-05-05", 4, "2022-05-05.000002")
    assert folders(where) == [whole(where)]


def test_threads_that_swap_lose_no_update(where):
    here = place.open_place(where)
    here.swap("sum", None, b"0 first")

    def add(number: int) -> None:
        for turn in range(5):
            while True:
                content, tag = here.read("sum")
                if here.swap("sum", tag, f"{int(content.split()[0]) + 1} {number} {turn}".encode()):
                    break

    threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert here.read("sum")[0].split()[0] == b"20"
    assert not here.swap("sum", None, b"0")


@pytest.mark.parametrize("at", [("make", ""), ("put", "model.pt"), ("put", "manifest.json"), ("swap", "current.json")])
def test_a_failure_leaves_the_pointer_on_the_whole_version_before(export, where, at):
    """Whichever step the storage gives up at."""
    before = publish.publish(export, where, "2022-05-08", 7)

    def fail(name: str, about: str) -> None:
        if name == at[0] and about.endswith(at[1]):
            raise OSError(28, "No space left on device")

    with before_each(fail), pytest.raises(BadInput, match=r"cannot be written \(.*No space left"):
        publish.publish(export, where, "2022-05-09", 7)
    assert publish.current(where) == before
    assert whole(where) == "2022-05-08.000001"
    if at[0] != "swap":  # a write that was not confirmed may come about later
        assert folders(where) == ["2022-05-08.000001"]
    assert publish.publish(export, where, "2022-05-09", 7)["fence"] == 3
    assert whole(where) == "2022-05-09.000003"


def test_files_and_folders_are_on_the_disk_before_the_pointer_names_them(export, tmp_path):
    synced, fsync, replace = [], os.fsync, Path.replace
    at_pointer = []

    def synced_first(draft: Path, target: Path) -> Path:
        at_pointer.append([*synced])
        return replace(draft, target)

    def sync(handle: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    where = tmp_path / "new" / "models"
    publish.publish(export, str(where), "2022-05-08", 7)
    with mock.patch.object(os, "fsync", sync), mock.patch.object(Path, "replace", synced_first):
        folder = where / publish.publish(export, str(where), "2022-05-09", 7)["folder"]
    names = ("model.pt", "signature.json", "manifest.json")
    assert {str(folder / name) for name in names} | {str(folder), str(where)} <= set(at_pointer[-1])
    assert synced[-1] in (str(where), str(where.parent))


def test_what_changes_while_it_is_copied_is_not_published(export, where):
    before = publish.publish(export, where, "2022-05-08", 7)

    def change(name: str, about: str) -> None:
        if name == "put" and about.endswith("model.pt"):
            (export / "model.pt").write_bytes(b"another night's")

    with before_each(change), pytest.raises(BadInput, match="model.pt is damaged: .*; it changed while it was copied"):
        publish.publish(export, where, "2022-05-09", 7)
    assert publish.current(where) == before
    assert folders(where) == [before["folder"]]


def test_a_place_that_deletes_nothing_still_gets_its_version(export, where):
    publish.publish(export, where, "2022-05-08", 1)
    with mock.patch.object(publish, "_prune", side_effect=OSError(13, "Permission denied")):
        assert publish.publish(export, where, "2022-05-09", 1) == publish.current(where)
    assert whole(where) == "2022-05-09.000002"


def test_what_a_killed_publisher_left_goes_once_it_is_old_and_not_before(export, where, monkeypatch):
    publish.publish(export, where, "2022-05-07", 7)

    def kill(name: str, about: str) -> None:
        if name == "swap" and about == "current.json":
            raise SystemExit

    with before_each(kill), pytest.raises(SystemExit):
        publish.publish(export, where, "2022-05-08", 7)
    last = publish.publish(export, where, "2022-05-09", 7)
    assert folders(where) == ["2022-05-07.000001", "2022-05-08.000002", "2022-05-09.000003"]
    monkeypatch.setattr(publish, "ABANDONED_S", -1)
    if "://" not in where:
        (Path(where) / "fences" / "somebody's").mkdir()  # is left alone
    publish.publish(export, where, "2022-05-09", 7)
    assert folders(where) == ["2022-05-07.000001", "2022-05-09.000003", "2022-05-09.000004"]
    fences = sorted(place.open_place(where).listed("fences"))
    assert [name for name in fences if name.isdecimal()] == ["000001", "000003", "000004"]
    assert publish.damage(where, last) is None


def test_who_has_been_at_it_for_too_long_gives_up_before_others_clear_it_away(export, where, monkeypatch):
    assert publish.LIMIT_S < publish.ABANDONED_S
    monkeypatch.setattr(publish, "LIMIT_S", -1)
    with pytest.raises(BadInput, match="copying it took more than"):
        publish.publish(export, where, "2022-05-08", 7)
    assert publish.current(where) is None
    assert folders(where) == []


def test_a_store_that_ignores_conditions_is_refused(export):
    with store.served(conditions=False) as where:
        with pytest.raises(BadInput, match=r"^s3://models/in/it: this storage ignores conditions on a write"):
            publish.publish(export, where, "2022-05-08", 7)
        assert publish.current(where) is None


def test_a_write_whose_answer_was_lost_is_known_again(bucket):
    """What a client does that gets no answer: it sends the write once more, which then meets itself."""
    here = place.open_place(bucket.replace("/in/it", "/twice"))
    put, sent = here._obstore.put, []

    def twice(*arguments, **options):
        sent.append(put(*arguments, **options))
        return put(*arguments, **options)

    with mock.patch.object(here._obstore, "put", twice):
        assert here.swap("object", None, b"mine")
        assert here.swap("object", here.read("object")[1], b"mine too")
    assert len(sent) == 2
    assert here.read("object")[0] == b"mine too"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("hdfs://head:8020/models", "hdfs cannot rule that out, so choose another place"),
        ("s3://models/din?retries=9", "'retries' is no option of this URI \\(known: endpoint_override, region, scheme"),
        ("gs://models/din?x=1", "'x' is no option of this URI; leave it out"),
        ("s3://", "s3: cannot be opened"),
        (
            "s3://k:word@models/d?scheme=http&endpoint_override=127.0.0.1:1",
            r"^s3://models/d cannot be read \(Generic S3",
        ),
    ],
)
def test_a_place_that_cannot_be_used_is_named(export, uri, message):
    with pytest.raises(BadInput, match=message) as error:
        publish.publish(export, uri, "2022-05-08", 7)
    assert len(str(error.value)) < 300
    assert "word" not in str(error.value)


def test_a_bucket_without_obstore_says_what_to_install(export):
    with (
        mock.patch.dict(sys.modules, {"obstore": None}),
        pytest.raises(BadInput, match=r"writing to a bucket needs obstore; pip install 'livetrain\[publish\]'"),
    ):
        publish.publish(export, "s3://models/din", "2022-05-08", 7)


def test_a_damaged_export_is_not_published(export, where):
    (export / "model.pt").write_bytes(b"")
    with pytest.raises(BadInput, match="model.pt is damaged: .*; export the run again"):
        publish.publish(export, where, "2022-05-08", 7)
    (export / manifest.MANIFEST).write_text("[]")
    with pytest.raises(BadInput, match="no export is here; export the run again"):
        publish.publish(export, where, "2022-05-08", 7)
    assert publish.current(where) is None


def test_what_happens_to_a_published_version_is_named(export, where):
    pointer = publish.publish(export, where, "2022-05-08", 7)
    here = place.open_place(where)
    (export / "other.pt").write_bytes(b"other")
    for name, words in (
        ("model.pt", "is damaged: 5 bytes"),
        ("manifest.json", "is not whole: its manifest.json is mis"),
    ):
        here.remove(f"{pointer['folder']}/{name}")
        assert "is missing" in publish.damage(where, pointer)
        here.put(export / "other.pt", f"{pointer['folder']}/{name}")
        assert words in publish.damage(where, pointer)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        json.dumps({"fence": "many", "folder": "x"}),
        "{}",
        json.dumps({"fence": 1, "version": "1", "folder": "../1.000001"}),
        json.dumps({"fence": 1, "version": "1", "folder": "1.000001", "versions": [{"version": "1"}]}),
        "[" * 100_000,
    ],
)
def test_a_pointer_of_others_is_not_replaced(export, tmp_path, content):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / publish.POINTER).write_text(content)
    with pytest.raises(BadInput, match=r"current.json is no pointer to a published model; choose another place"):
        publish.publish(export, str(tmp_path / "models"), "2022-05-08", 7)
    assert (tmp_path / "models" / publish.POINTER).read_text() == content


def test_a_rollback_goes_back_under_a_larger_fence_and_for_good(export, where):
    first, second, third = (publish.publish(export, where, day, 7, run=f"din-{day}") for day in DAYS[:3])
    back = publish.rollback(where)
    assert back == publish.current(where)
    assert (back["version"], back["folder"], back["run"], back["fence"]) == (
        DAYS[1],
        second["folder"],
        second["run"],
        4,
    )
    assert days(back) == [(DAYS[0], False), (DAYS[1], False), (DAYS[2], True)]
    assert whole(where) == second["folder"]
    for tried in (publish.replaced, lambda *of: publish.publish(export, *of, 7)):
        with pytest.raises(BadInput, match=f"took back the versions up to {DAYS[2]}, so {DAYS[2]} is not published"):
            tried(where, DAYS[2])
    assert publish.current(where) == back
    after = publish.publish(export, where, DAYS[3], 7)
    assert (after["fence"], days(after)[2:]) == (5, [(DAYS[2], True), (DAYS[3], False)])
    again = publish.rollback(where)  # passes over what was taken back
    assert (again["version"], again["fence"]) == (DAYS[1], 6)
    forward = publish.rollback(where, DAYS[2])  # but not where it is asked for
    assert days(forward)[2:] == [(DAYS[2], False), (DAYS[3], True)]
    assert publish.rollback(where, DAYS[0])["folder"] == first["folder"]
    assert publish.settled(publish.current(where)) == DAYS[3]
    assert third["folder"] in folders(where)


def test_what_was_taken_back_takes_no_good_versions_place(export, where):
    for day in DAYS[:3]:
        publish.publish(export, where, day, 2)
    publish.rollback(where)
    after = publish.publish(export, where, DAYS[3], 2)
    assert days(after) == [(DAYS[1], False), (DAYS[2], True), (DAYS[3], False)]
    assert days(publish.publish(export, where, DAYS[4], 2)) == [(DAYS[3], False), (DAYS[4], False)]
    assert folders(where) == [f"{DAYS[3]}.000005", f"{DAYS[4]}.000006"]


def test_of_one_version_the_last_that_was_published_is_gone_back_to(export, where):
    for day in (DAYS[0], DAYS[0], DAYS[1]):
        publish.publish(export, where, day, 7)
    assert publish.rollback(where)["folder"] == f"{DAYS[0]}.000002"
    assert publish.rollback(where, DAYS[1])["folder"] == f"{DAYS[1]}.000003"
    assert publish.rollback(where, DAYS[0])["folder"] == f"{DAYS[0]}.000002"


def test_a_rollback_checks_where_it_goes(export, where):
    with pytest.raises(BadInput, match="nothing is published here, as there is no current.json; name another place"):
        publish.rollback(where)
    first = publish.publish(export, where, DAYS[0], 7)
    with pytest.raises(BadInput, match=f"no version before {DAYS[0]} stays here"):
        publish.rollback(where)
    last = publish.publish(export, where, DAYS[1], 7)
    with pytest.raises(BadInput, match=f"--to: .* holds no version {DAYS[2]} beside the present one"):
        publish.rollback(where, DAYS[2])
    with pytest.raises(BadInput, match=f"--to: .* holds no version {DAYS[1]} beside the present one"):
        publish.rollback(where, DAYS[1])
    place.open_place(where).remove(f"{first['folder']}/model.pt")
    with pytest.raises(BadInput, match="model.pt is missing; choose another version with --to"):
        publish.rollback(where)
    assert publish.current(where) == last


def test_a_rollback_that_another_publisher_overtakes_says_so(export, where):
    for day in DAYS[:2]:
        publish.publish(export, where, day, 7)
    others = []

    def step(name: str, about: str) -> None:
        if not others and (name, about) == ("swap", "current.json"):
            others.append(None)
            others.append(publish.publish(export, where, DAYS[2], 7))

    with before_each(step), pytest.raises(BadInput, match="current.json was replaced by another publisher meanwhile"):
        publish.rollback(where)
    assert publish.current(where) == others[1]


def test_what_was_published_before_versions_were_listed_is_taken_over(export, where):
    pointer = publish.publish(export, where, DAYS[0], 7)
    here = place.open_place(where)
    old = {key: value for key, value in pointer.items() if key != "versions"}
    here.swap(publish.POINTER, here.read(publish.POINTER)[1], json.dumps(old).encode())
    assert publish.current(where) == pointer
    assert days(publish.publish(export, where, DAYS[1], 7)) == [(DAYS[0], False), (DAYS[1], False)]
