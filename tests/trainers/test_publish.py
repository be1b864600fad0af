"""Published models: the pointer names a whole version or the one before, and never goes back."""

import json
from pathlib import Path
from unittest import mock

import pytest

from configs.errors import BadInput
from trainers import manifest, publish


@pytest.fixture
def export(tmp_path) -> Path:
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "model.pt").write_bytes(bytes(range(256)) * 100)
    (folder / "signature.json").write_text("{}")
    manifest.commit(folder, {p.name: manifest.digest(p) for p in sorted(folder.iterdir())})
    return folder


@pytest.fixture(params=["", "file://"])
def where(request, tmp_path) -> str:
    return f"{request.param}{tmp_path / 'models'}"


def served(where: str) -> Path:
    return Path(where.removeprefix("file://")) / publish.current(where)["folder"]


def test_versions_follow_one_another(export, where):
    assert publish.current(where) is None
    first = publish.publish(export, where, "2022-05-08", 7, run="din-2022-05-08")
    assert first == publish.current(where)
    assert first == {"version": "2022-05-08", "fence": 1, "folder": "2022-05-08.000001", "run": "din-2022-05-08"}
    assert manifest.damage(served(where), manifest.read(served(where))) is None
    second = publish.publish(export, where, "2022-05-09", 7)
    again = publish.publish(export, where, "2022-05-09", 7)
    assert [second["fence"], again["fence"]] == [2, 3]
    assert served(where).name == "2022-05-09.000003"


def test_an_older_version_never_takes_the_place_of_a_newer(export, where):
    newer = publish.publish(export, where, "2022-05-09", 7)
    with pytest.raises(BadInput, match="version 2022-05-09 is published, and 2022-05-08 is older"):
        publish.publish(export, where, "2022-05-08", 7)
    assert publish.current(where) == newer


def test_only_the_newest_versions_stay(export, where):
    for day in range(1, 6):
        publish.publish(export, where, f"2022-05-0{day}", 2)
    folders = sorted(path.name for path in served(where).parent.iterdir() if path.is_dir())
    assert folders == ["2022-05-04.000004", "2022-05-05.000005"]


@pytest.mark.parametrize("at", [0, 1, 2, "pointer"])
def test_a_failure_leaves_the_pointer_on_the_whole_version_before(export, where, at):
    """Whichever file the storage gives up at."""
    before = publish.publish(export, where, "2022-05-08", 7)
    copies, copy = iter(range(9)), publish.fs.copy_files

    def failing(*arguments) -> None:
        if next(copies) == at:
            raise OSError(28, "No space left on device")
        copy(*arguments)

    with (
        mock.patch.object(publish.fs, "copy_files", failing),
        mock.patch.object(publish, "_write", side_effect=OSError(28, "No space left") if at == "pointer" else None),
        pytest.raises(BadInput, match=r"2022-05-09.000002 cannot be written \(.*No space left"),
    ):
        publish.publish(export, where, "2022-05-09", 7)
    assert publish.current(where) == before
    assert manifest.damage(served(where), manifest.read(served(where))) is None
    assert publish.publish(export, where, "2022-05-09", 7)["fence"] == 2
    assert manifest.damage(served(where), manifest.read(served(where))) is None


def test_a_place_that_deletes_nothing_still_gets_its_version(export, where):
    publish.publish(export, where, "2022-05-08", 1)
    with mock.patch.object(publish, "_prune", side_effect=OSError(13, "Permission denied")):
        assert publish.publish(export, where, "2022-05-09", 1) == publish.current(where)
    assert served(where).name == "2022-05-09.000002"


def test_a_damaged_export_is_not_published(export, where):
    (export / "model.pt").write_bytes(b"")
    with pytest.raises(BadInput, match="model.pt is damaged: .*; export the run again"):
        publish.publish(export, where, "2022-05-08", 7)
    (export / manifest.MANIFEST).unlink()
    with pytest.raises(BadInput, match="no export is here; export the run again"):
        publish.publish(export, where, "2022-05-08", 7)
    assert publish.current(where) is None


@pytest.mark.parametrize("content", ["", "[]", json.dumps({"fence": "many", "folder": "x"}), "{}"])
def test_a_pointer_of_others_is_not_replaced(export, tmp_path, content):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / publish.POINTER).write_text(content)
    with pytest.raises(BadInput, match=r"current.json is no pointer to a published model; choose another place"):
        publish.publish(export, str(tmp_path / "models"), "2022-05-08", 7)
    assert (tmp_path / "models" / publish.POINTER).read_text() == content
