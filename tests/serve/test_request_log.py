"""The log of requests in C++: what stands in its files, and what becomes of them on a full disk and after a kill."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from livetrain.trainers.data.read.reader import Reader
from livetrain.trainers.data.read.source import Source
from tests.serve import built, vectors
from tests.serve.client import client

VECTORS = vectors.HERE
CASES = json.loads((VECTORS / "cases.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def program():
    folder = Path(pa.get_include()).parent
    libraries = [next(folder.glob(f"lib{name}.so.*"), None) for name in ("arrow", "parquet")]
    if None in libraries:
        pytest.skip("needs the Arrow and Parquet libraries of the pyarrow wheel")
    late = [f"-L{folder}", *(f"-l:{path.name}" for path in libraries), f"-Wl,-rpath,{folder}"]
    sources = [*built.WIRE, built.SERVE / "request_log.cpp"]
    here = Path(__file__).with_name("log_driver.cpp")
    return built.program("log_driver", [*sources, here], [f"-isystem{pa.get_include()}", *late])


@pytest.fixture
def run(program, tmp_path):
    """Give a log requests; what the program said, and its files."""

    def go(lines, rows=100, seconds=600, waiting=1000, share=1, limit=()):
        sent = []
        for place, line in enumerate(lines):
            if isinstance(line, str):
                sent.append(line)
            else:
                body, header = line
                path = tmp_path / f"request-{place}"
                path.write_bytes(body)
                sent.append(f"json {path}" if header is None else f"binary {header} {path}")
        log = tmp_path / "log"
        arguments = [VECTORS / "signature.json", log, rows, seconds, waiting, share, *limit]
        done = subprocess.run(
            [program, *map(str, arguments)], input="\n".join(sent), capture_output=True, text=True, check=False
        )
        return done, sorted(log.glob("rank/date=*/*.parquet")), sorted(log.rglob(".*"))

    return go


def _vector():
    return (VECTORS / "rank.request.bin").read_bytes(), CASES["rank"]["header"]


def _people(change=None):
    content = json.loads((VECTORS / "rank.people.json").read_text(encoding="utf-8"))
    return json.dumps({**content, **(change or {})}).encode(), None


def test_a_row_is_what_the_model_was_given_and_what_it_answered(run):
    content = json.loads((VECTORS / "rank.people.json").read_text(encoding="utf-8"))
    done, (file,), left = run([_vector(), _people({"request_id": "second", "channel": ["hot"] * 6})])
    assert (done.returncode, left) == (0, [])
    assert file.name.split("-")[1:] == ["here", "0.parquet"]
    first, second = pq.read_table(file).to_pylist()
    assert (first["request_id"], second["request_id"]) == ("vector-rank", "second")
    for row in (first, second):
        assert (row["model"], row["version"], row["fence"], row["delta"]) == ("din", "20261130", 7, 2)
        for name in vectors.USER:
            assert row[name] == content["user"][name], name
        for name in ("movie", "rate"):
            assert row[name] == content["candidates"][name], name
        assert row["tags"] == [each["ids"] for each in content["candidates"]["tags"]]
        assert row["tags.weights"] == [each["weights"] for each in content["candidates"]["tags"]]
        assert row["cover"] == content["candidates"]["cover"]
        assert row["scores.click"] == [0.5 + 0.25 * place for place in range(6)]
        assert (row["order"], row["stored"], row["prerank"]) == ([5, 4, 3, 2, 1, 0], ["history"], None)
    assert (first["channel"], second["channel"]) == (None, ["hot"] * 6)
    assert 1.7e12 < first["time"] <= second["time"] < 4e12


def test_livetrain_reads_a_log_as_data_of_requests(run, tmp_path):
    done, files, _ = run([_vector(), _people(), _vector()])
    assert done.returncode == 0
    table = pq.read_table(files[0])
    labels = pa.array([[0, 1, 0, 0, 1, 0]] * 3)  # as later events would tell them
    for split in ("train", "valid", "test"):
        (tmp_path / "data" / split).mkdir(parents=True)
        pq.write_table(table.append_column("label", labels), tmp_path / "data" / split / "part-0.parquet")
    recipe = vectors.recipe(tmp_path / "data").model_dump(mode="json", exclude_unset=True)
    recipe["data"] |= {"layout": "request", "candidates": 6, "batch_size": 12}
    recipe["features"]["tags"]["weights"] = "tags.weights"
    recipe = type(vectors.recipe(tmp_path)).model_validate(recipe)
    reader = Reader(Source.open(recipe, "test"), recipe, rank=0, world=1, shuffle=False)
    (batch,) = reader.batches(0)
    flat = batch.flat({})
    movie = flat.ids["movie"]
    wanted = CASES["rank"]["tensors"]
    assert movie.lengths().tolist() == wanted["lengths.movie"]["values"] * 3
    assert movie.values().tolist() == wanted["ids.movie"]["values"] * 3
    history = flat.ids["history"].values().tolist()
    own = wanted["ids.history"]["values"]
    assert history == own * 18
    assert np.isfinite(flat.ids["tags"].weights().numpy()).all()


def test_files_are_closed_by_rows_and_by_seconds_and_at_the_end(run):
    lines = [_vector()] * 5 + ["sleep 3500"] + [_vector()] * 2
    done, files, left = run(lines, rows=1_000_000, seconds=1)
    assert done.returncode == 0
    assert [pq.read_metadata(file).num_rows for file in files] == [5, 2]
    assert left == []


def test_a_kill_loses_the_open_file_and_no_other(run):
    lines = [_vector()] * 3 + ["sleep 3500"] + [_vector()] * 2 + ["sleep 300", "kill now"]
    done, files, _ = run(lines, seconds=1)
    assert done.returncode == -9
    assert [pq.read_metadata(file).num_rows for file in files] == [3]


def test_a_full_disk_loses_rows_and_holds_nobody_up(run):
    done, files, left = run([_vector()] * 20, limit=(100,))
    assert done.returncode == 0
    assert (files, left) == ([], [])
    assert "the log of requests loses" in done.stderr


def test_what_waits_is_bounded_and_the_rest_is_dropped(run):
    done, files, _ = run([_vector()] * 7, waiting=0)
    assert (json.loads(done.stdout)["dropped_before_the_end"], files) == (7, [])


def test_a_share_of_the_requests_is_logged(run):
    done, files, _ = run([_vector()] * 600, share=0.25)
    wanted = json.loads(done.stdout)["wanted"]
    assert 90 < wanted < 220  # 150 expected, five deviations
    assert sum(pq.read_metadata(file).num_rows for file in files) == wanted


def test_whose_a_feature_is_shows_where_there_are_several_candidates(run):
    content = json.loads((VECTORS / "rank.people.json").read_text(encoding="utf-8"))
    alone = {**content, "candidates": {name: column[:1] for name, column in content["candidates"].items()}}
    none = {**content, "candidates": {name: [] for name in content["candidates"]}}
    sent = [(json.dumps(each).encode(), None) for each in (alone, content, none)]
    done, (file,), _ = run(sent)
    assert done.returncode == 0
    found = pq.read_table(file).to_pylist()
    assert [row["user"] for row in found] == [content["user"]["user"]] * 3
    assert [len(row["movie"]) for row in found] == [1, 6, 0]


def test_one_candidate_per_request_is_a_list_of_one(run):
    content = json.loads((VECTORS / "rank.people.json").read_text(encoding="utf-8"))
    content["candidates"] = {name: column[:1] for name, column in content["candidates"].items()}
    _, (file,), _ = run([(json.dumps(content).encode(), None)])
    (row,) = pq.read_table(file).to_pylist()
    assert row["movie"] == content["candidates"]["movie"]
    assert row["user"] == [content["user"]["user"]]


def test_a_feature_that_becomes_the_candidates_begins_another_file(run):
    given = {"user": 5, "city": "Oslo", "history": [1], "rating": [1]}
    candidates = {"movie": [1, 2], "rate": [0.5, 1.5], "cover": [[1, 2, 3], None]}
    tags = [{"ids": [1], "weights": [0.5]}] * 2
    both = {**candidates, "tags": tags, "city": ["Oslo", "Tianjin"]}
    other = {name: value for name, value in given.items() if name != "city"}
    requests = ({"user": given, "candidates": {**candidates, "tags": tags}}, {"user": other, "candidates": both})
    first, second = ((json.dumps(each).encode(), None) for each in requests)
    lines = [first, "sleep 2500", second]
    done, files, _ = run(lines, seconds=1)
    assert done.returncode == 0
    first, second = (pq.read_table(file).to_pylist()[0] for file in files)
    assert first["city"] == client.hashed("Oslo")
    assert second["city"] == [client.hashed("Oslo"), client.hashed("Tianjin")]
    assert second["cover"] == [[1, 2, 3], None]
