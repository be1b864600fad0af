"""Indexes: built of a run and gated, searched while items come and go, and read outside Python."""

import json
import os
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import livetrain
from livetrain.cli import main as cli
from livetrain.configs.errors import BadInput
from livetrain.modules.recall.fitted import Table
from livetrain.trainers.export import publish
from livetrain.trainers.export.export import export
from livetrain.trainers.export.prediction import Predictor, weights_of
from livetrain.trainers.recall import build
from livetrain.trainers.recall.build import Asked
from livetrain.trainers.recall.index import KEYS, write_keys
from livetrain.trainers.recall.inverted import SearchedTable
from livetrain.trainers.recall.nearest import Nearest
from livetrain.trainers.recall.origin import newest, origin, vectors
from livetrain.trainers.runtime import manifest
from tests import indexes
from tests.wheels import ROOT

pytest.importorskip("faiss", reason="needs faiss-cpu, of the extra `index`")


def test_an_index_finds_what_the_run_finds(towers, tmp_path, capsys):
    where = tmp_path / "indexes"
    command = ["index", str(towers), "--out", str(where), "--kind", "exact"]
    assert not cli.app(command, standalone_mode=False)
    assert "recall@5 " in (said := capsys.readouterr().out.replace("\n", " "))
    assert "exact of 50 items, 8 numbers each" in said
    index, rows = livetrain.Index(where), pq.read_table(towers.parents[1] / "data/test")
    users = vectors(Predictor(weights_of(towers, vectors="user")), rows)
    items = newest([rows], "movie")
    made = vectors(Predictor(weights_of(towers, vectors="item")), items)
    keys, scores = index.search(users, 3)
    wanted = np.argsort(-(users @ made.T), axis=1)[:, :3]
    np.testing.assert_allclose(scores, np.take_along_axis(users @ made.T, wanted, 1), atol=1e-6)
    assert (items["movie"].to_numpy()[wanted] == keys).mean() > 0.99  # sums are rounded in another order
    assert index.about["recall"] >= 0.95
    assert (index.about["run"], index.about["queries"]) == ("towers", 250)


def test_a_published_model_gives_its_version(towers, tmp_path):
    export(towers, out=tmp_path / "export")
    publish.publish(tmp_path / "export", str(tmp_path / "models"), "2026-05-01", keep=2)
    found = origin(tmp_path / "models", towers.parent)
    pointer = build.build(found, str(tmp_path / "indexes"), Asked("hnsw", "int8", least=0.9), lambda text: None)
    assert pointer is not None
    assert pointer["folder"] == "2026-05-01.000001"
    assert (
        livetrain.Index(tmp_path / "indexes").about["weights"] == weights_of(towers, tmp_path / "export", "user").digest
    )
    catalogue = tmp_path / "items.parquet"
    pq.write_table(pq.read_table(towers.parents[1] / "data/test").slice(0, 20), catalogue)
    asked = Asked("exact", catalogue=str(catalogue))
    build.build(found, str(tmp_path / "indexes"), asked, lambda text: None)
    index = livetrain.Index(tmp_path / "indexes")
    assert sorted(index.keys) == sorted(set(pq.read_table(catalogue)["movie"].drop_null().to_pylist()))


def test_the_run_of_a_published_model_is_found_a_followers_too(tmp_path):
    export = tmp_path / "export"
    export.mkdir()
    for file in ("model.pt", "golden.json"):
        (export / file).write_bytes(b"1")
    (export / "signature.json").write_text(json.dumps({"run": "din-follow-2026-11-29"}))
    manifest.commit(export, {file.name: manifest.digest(file) for file in export.iterdir()})
    publish.publish(export, str(tmp_path / "models"), "1", keep=2, line="2026-11-29")
    with pytest.raises(BadInput, match=r"is of the run .*din-follow/2026-11-29, which is not there; .* --runs"):
        origin(tmp_path / "models", tmp_path / "runs")
    run = tmp_path / "runs/din-follow/2026-11-29"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("")
    assert origin(tmp_path / "models", tmp_path / "runs").run == run


def test_what_finds_too_little_is_not_published(towers, tmp_path, monkeypatch, capsys):
    made = Nearest.build
    monkeypatch.setattr(Nearest, "build", lambda rows, kind, how: made(-rows if kind == "hnsw" else rows, kind, how))
    command = ["index", str(towers), "--out", str(tmp_path / "indexes")]
    assert cli.app(command, standalone_mode=False) == 3
    assert "not published: recall@5 0.0" in capsys.readouterr().out
    assert not (tmp_path / "indexes").exists()


@pytest.mark.parametrize("content", ["nothing", "small"])
def test_what_finds_no_items_is_named(small_run, tmp_path, content):
    source = small_run if content == "small" else tmp_path
    wanted = "model.kind 'din' finds no items" if content == "small" else "holds neither a run nor published models"
    with pytest.raises(BadInput, match=wanted):
        build.build(origin(source, small_run.parent), str(tmp_path / "out"), Asked(), lambda text: None)


@pytest.fixture
def where(tmp_path) -> Path:
    """A published index of 200 items, 0 to 199."""
    return indexes.published(tmp_path / "in", "1", indexes.write(tmp_path / "1", indexes.unit(200, 8), np.arange(200)))


def test_items_go_off_the_air_and_come_back(where):
    index, user = livetrain.Index(where), indexes.unit(1, 8, 1)
    first = index.search(user, 200)[0][0].tolist()
    index.change(off=[first[0], first[2], 10**6])
    assert index.search(user, 3)[0].tolist() == [[first[1], first[3], first[4]]]
    index.change(on=[first[2]], off=np.array([first[1]]))
    assert index.search(user, 3)[0].tolist() == [[first[2], first[3], first[4]]]
    index.only([first[7], first[9], 10**6])
    keys, scores = index.search(user, 3)
    assert keys[0, :2].tolist() == [first[7], first[9]]
    assert np.isneginf(scores[0]).tolist() == [False, False, True]
    index.change(on=[first[0]], off=[first[7]])
    assert index.search(user, 2)[0].tolist() == [[first[0], first[9]]]
    index.only([])
    assert np.isneginf(index.search(user, 2)[1]).all()


def test_searches_see_all_of_a_change_or_nothing(where):
    """One thread swaps two items of which one is always on the air; no search finds both, or neither."""
    index, user = livetrain.Index(where), indexes.unit(1, 8, 1)
    one, other = index.search(user, 2)[0][0].tolist()
    index.change(off=[other])
    done, wrong = threading.Event(), []

    def search() -> None:
        while not done.is_set():
            found = {*index.search(np.repeat(user, 20, 0), 2)[0].ravel().tolist()}
            if len(found & {one, other}) != 1:
                wrong.append(found)

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(200):
        index.change(on=[other], off=[one])
        assert index.search(user, 1)[0].tolist() == [[other]]  # what a change has taken off is not found after it
        index.change(on=[one], off=[other])
        assert index.search(user, 1)[0].tolist() == [[one]]
    done.set()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_newer_version_is_taken_and_an_older_never(where, tmp_path):
    index = livetrain.Index(where)
    old = json.loads((where / "current.json").read_text())
    index.change(off=[501, 7])
    assert not index.refresh()
    names = np.array([500, 501, 502])
    indexes.published(where, "2", indexes.write(tmp_path / "2", np.eye(3, 8, dtype=np.float32), names))
    assert index.refresh()
    assert index.version == "2.000002"
    keys, scores = index.search(np.eye(8, dtype=np.float32)[1:2], 3)
    assert sorted(keys[0, :2]) == [500, 502]  # 501 stays off the air
    assert np.isneginf(scores[0, 2])
    (where / "current.json").write_text(json.dumps(old))
    assert not index.refresh()
    assert len(index) == 3
    (where / "2.000002" / KEYS).write_text("500\n501\n")
    with pytest.raises(BadInput, match="keys.txt is damaged"):
        livetrain.Index(where / "2.000002")


def test_keys_of_another_type_are_refused(where, tmp_path):
    """They would be found by no search, and a closed room would still be served."""
    index, user = livetrain.Index(where), indexes.unit(1, 8, 1)
    first = index.search(user, 2)[0][0].tolist()
    for wrong in ([str(first[0])], np.array([str(first[0])]), [first[1], float(first[0])], [True]):
        with pytest.raises(BadInput, match=r"off: .* and the index's keys are int64 \('movie'\)"):
            index.change(off=wrong)
        with pytest.raises(BadInput, match=r"keys: .* and the index's keys are int64"):
            index.only(wrong)
    with pytest.raises(BadInput, match=f"on, off: the item {first[0]} is in both"):
        index.change(on=[first[0]], off=first)
    assert index.search(user, 2)[0][0].tolist() == first  # nothing has changed
    index.change(off=[np.int64(first[0])])
    assert index.search(user, 1)[0].tolist() == [first[1:]]
    names = np.array(["a", "b", "c"], object)
    indexes.published(where, "2", indexes.write(tmp_path / "2", np.eye(3, 8, dtype=np.float32), names))
    with pytest.raises(BadInput, match="its items are string and what was put on the air or off it is int64"):
        index.refresh()
    index.change(on=[first[0]])
    assert index.refresh()  # nothing is off the air
    with pytest.raises(BadInput, match=r"off: 7 is int, and the index's keys are string"):
        index.change(off=["a", 7])
    with pytest.raises(BadInput, match="off: got the text 'abc', wanted a list of keys"):
        index.change(off="abc")


def test_a_wrong_question_is_named(where, tmp_path):
    index = livetrain.Index(where)
    with pytest.raises(BadInput, match="is asked by rows of 8 numbers"):
        index.search(np.zeros((1, 7), np.float32), 3)
    with pytest.raises(BadInput, match="no index is here; build one with"):
        livetrain.Index(tmp_path / "none")
    with pytest.raises(BadInput, match="holds a line's end"):
        write_keys(tmp_path / "keys", np.array(["a\nb"], object))


TABLE = Table(
    keys=np.array([3, 8]),
    offsets=np.array([0, 2, 3]),
    items=np.array([40, 50, 60]),
    places=np.array([0, 1, 1], np.int32),
    scores=np.array([1, 2, 5], np.float32),
    rest=np.zeros(0, np.float32),
)


def test_a_table_keeps_the_items_of_a_catalogue():
    keys, table = build._listed(TABLE, pa.chunked_array([[70, 50, 60]]))
    assert keys.to_pylist() == [50, 60, 70]
    assert (table.offsets.tolist(), table.places.tolist(), table.scores.tolist()) == ([0, 1, 2], [0, 0], [2, 5])


def compiled(out: Path, name: str, *words: str) -> Path:
    if not shutil.which("g++"):
        pytest.skip("there is no g++")
    command = ["g++", "-std=c++17", "-O0", str(ROOT / "examples" / f"{name}.cpp"), "-o", str(out / name), *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return out / name


def lines(program: Path, *words: object) -> list[list[str]]:
    done = subprocess.run([str(program), *map(str, words)], capture_output=True, text=True, check=True)
    return [line.split() for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_a_cpp_program_reads_a_table(tmp_path):
    SearchedTable(TABLE).write(tmp_path)
    write_keys(tmp_path / KEYS, TABLE.items)
    program = compiled(tmp_path, "inverted")
    assert lines(program, tmp_path, 5, "3", "8=0.5", "9=4") == [["50", "4.5"], ["40", "1"]]
    assert lines(program, tmp_path, 1, "3=-1", "8") == [["50", "3"]]
    SearchedTable(TABLE._replace(rest=np.array([0.5, 1], np.float32))).write(tmp_path)
    assert lines(program, tmp_path, 1, "3", "8") == [["50", "4.5"]]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["exact", "hnsw", "ivf_pq"])
def test_a_cpp_program_reads_an_index(tmp_path, kind):
    """Needs faiss's headers and library: LIVETRAIN_FAISS has the words for g++, or they are the system's."""
    words = os.environ.get("LIVETRAIN_FAISS", "-lfaiss -lopenblas").split()
    if not os.environ.get("LIVETRAIN_FAISS") and not Path("/usr/include/faiss").exists():
        pytest.skip("there is no faiss for C++ (libfaiss-dev)")
    effort = {"exact": 1, "hnsw": 2000, "ivf_pq": 8}[kind]  # a graph's so large that what versions do apart is not seen
    folder = indexes.write(tmp_path / "one", indexes.unit(10_000, 16), np.arange(10_000) * 7, kind, effort)
    queries, index = indexes.unit(5, 16, 1), livetrain.Index(folder)
    queries.tofile(tmp_path / "queries")
    program = compiled(tmp_path, "nearest", "-fopenmp", *words)
    gone = index.search(queries, 4)[0].ravel().tolist() + list(range(0, 70_000, 14))
    (tmp_path / "gone").write_text("".join(f"{key}\n" for key in gone))
    for options in ([], [tmp_path / "gone"]):
        index.change(off=gone if options else [])
        keys, scores = index.search(queries, 10)
        found = lines(program, folder, tmp_path / "queries", 10, *options)
        assert [[int(key) for key in line[::2]] for line in found] == keys.tolist()
        np.testing.assert_allclose([[float(score) for score in line[1::2]] for line in found], scores, rtol=1e-4)
