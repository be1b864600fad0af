"""A pre-rank's cut: the module and the command keep the same, as a plain loop would; what survives is counted."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from livetrain.cli.main import app
from livetrain.configs.errors import BadInput
from livetrain.modules.serving.cut import Cut
from livetrain.trainers.recall.cut import Rules, cut
from livetrain.trainers.runtime import manifest


def slow(rows: list[tuple[float, bool, int]], places: int, regulars: int, most: int) -> list[int]:
    """Return what is kept of (score, regular, kind), by a loop over places."""
    left = sorted(range(len(rows)), key=lambda i: -rows[i][0])
    kept = [i for i in left if rows[i][1]][:regulars]
    for strict in (True, False):
        for i in left:
            alike = sum(rows[j][2] == rows[i][2] for j in kept)
            if i not in kept and len(kept) < places and not (strict and most and rows[i][2] >= 0 and alike >= most):
                kept.append(i)
    return sorted(kept, key=left.index)


candidates = st.lists(
    st.tuples(st.sampled_from([-1.0, 0.0, 0.5, 0.5, 2.0, 7.0]), st.booleans(), st.integers(-1, 2)), max_size=12
)
limits = st.tuples(st.integers(1, 8), st.integers(0, 4), st.integers(0, 3)).filter(lambda t: t[1] <= t[0])


def padded(requests: list[list], width: int) -> tuple[torch.Tensor, ...]:
    rows = [[*each, *[(9.0, True, 0)] * (width - len(each))] for each in requests]
    columns = [torch.tensor([[row[c] for row in each] for each in rows]) for c in range(3)]
    return *columns, torch.tensor([[i < len(each) for i in range(width)] for each in requests])


@given(st.lists(candidates, min_size=1, max_size=4), limits)
def test_the_module_keeps_what_a_loop_keeps(requests, limits):
    found = Cut(*limits)(*padded(requests, 13))
    for request, chosen in zip(requests, found.tolist(), strict=True):
        wanted = slow(request, *limits)
        assert chosen == wanted + [-1] * (limits[0] - len(wanted))


def test_it_is_scripted_and_takes_requests_smaller_than_the_cut():
    scripted = torch.jit.script(Cut(5, 1, 1))
    given = padded([[(1.0, False, 1), (2.0, False, 1)], [(3.0, True, -1)]], 3)
    assert scripted(*given).tolist() == [[1, 0, -1, -1, -1], [0, -1, -1, -1, -1]]
    for wrong in ((0, 0, 0), (3, 4, 0), (3, -1, 0), (3, 0, -1)):
        with pytest.raises(ValueError, match="places .* is 1 or more"):
            Cut(*wrong)


def write(folder, requests: list[list], files: int = 2) -> str:
    rows = [(f"r{n}", *row) for n, request in enumerate(requests) for row in request]
    rows += [(None, 9.0, True, 0)]  # of no request
    table = pa.table(
        {
            "request": [row[0] for row in rows],
            "score": pa.array([row[1] for row in rows], pa.float32()),
            "visits": [3 if row[2] else 0 for row in rows],
            "category": pa.array([None if row[3] < 0 else row[3] for row in rows], pa.int64()),
            "ranker": [float(-n) for n in range(len(rows))],
            "click": [n % 2 for n in range(len(rows))],
            "n": range(len(rows)),
        }
    )
    folder.mkdir(parents=True)
    for part, chunk in enumerate(np.array_split(np.arange(len(rows)), files)):
        pq.write_table(table.take(pa.array(chunk)), folder / f"{part}.parquet")
    return str(folder)


BY = {"regular": "visits", "kind": "category", "against": "ranker", "label": "click"}


@pytest.mark.parametrize("seed", range(4))
def test_the_command_keeps_what_the_module_keeps(tmp_path, seed):
    random = np.random.default_rng(seed)
    requests = [
        [(float(random.integers(0, 5)), bool(random.integers(0, 2)), int(random.integers(-1, 3))) for _ in range(size)]
        for size in random.integers(1, 30, 12)
    ]
    rules = Rules("request", "score", 6, regulars=2, most=2, top=3, **BY)
    found = cut(write(tmp_path / "scores", requests), tmp_path / "kept", rules)
    kept = pq.read_table(tmp_path / "kept/kept.parquet")
    first = np.cumsum([0, *map(len, requests)])
    wanted = [
        start + i for start, request in zip(first, requests, strict=False) for i in sorted(slow(request, 6, 2, 2))
    ]
    assert kept["n"].to_pylist() == wanted
    assert kept.column_names == ["request", "score", "visits", "category", "ranker", "click", "n"]
    assert found["kept"] == len(wanted)
    assert (found["requests"], found["rows"]) == (12, first[-1])
    alone = [start + i for start, request in zip(first, requests, strict=False) for i in slow(request, 6, 0, 0)]
    for by, chosen in (("rules", set(wanted)), ("score", set(alone))):
        tops = [
            np.mean([start + i in chosen for i in range(min(3, len(r)))])
            for start, r in zip(first, requests, strict=False)
        ]
        assert found[by]["ranker_top"] == pytest.approx(np.mean(tops))  # the ranker prefers the first rows
        assert found[by]["ranker_best"] == pytest.approx(np.mean([start in chosen for start in first[:-1]]))
        assert found[by]["taken"] == pytest.approx(np.mean([n in chosen for n in range(first[-1]) if n % 2]))
        flat = [row for request in requests for row in request]
        assert found[by]["regulars"] == pytest.approx(np.mean([n in chosen for n, row in enumerate(flat) if row[1]]))
        kinds = [
            {flat[n][2] for n in range(a, b) if n in chosen} - {-1} for a, b in zip(first, first[1:], strict=False)
        ]
        assert found[by]["kinds"] == pytest.approx(np.mean([len(each) for each in kinds]))
    assert -1 <= found["agreement"] <= 1
    assert json.loads((tmp_path / "kept/figures.json").read_text()) == found
    assert not manifest.damage(tmp_path / "kept", manifest.read(tmp_path / "kept"))


def test_rows_without_a_score_are_not_kept(tmp_path):
    data = write(tmp_path / "scores", [[(1.0, True, 0), (float("nan"), True, 1), (0.5, False, 2)]])
    cut(data, tmp_path / "kept", Rules("request", "score", 3, regular="visits", regulars=2))
    assert pq.read_table(tmp_path / "kept/kept.parquet")["n"].to_pylist() == [0, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep": 0}, "--keep, --top: 0 is less than 1"),
        ({"regular": None}, "--regular, --regulars: a column and a number of places go together"),
        ({"most": 0}, "--kind, --most: a column and a number of places go together"),
        ({"regulars": 9}, "--regulars, --most: of 6 places 9 for regulars"),
        ({"score": "scor"}, "has no column 'scor' .did you mean 'score'"),
        ({"score": "request"}, "column 'request' holds string, and a number is asked of it"),
    ],
)
def test_what_cannot_be_cut_is_named_and_nothing_is_written(tmp_path, changes, message):
    data = write(tmp_path / "scores", [[(1.0, True, 0)]])
    asked = {"group": "request", "score": "score", "keep": 6, "regulars": 2, "most": 2, **BY} | changes
    with pytest.raises(BadInput, match=message):
        cut(data, tmp_path / "kept", Rules(**asked))
    assert not (tmp_path / "kept").exists()


def test_the_command_line_shows_what_survives(tmp_path):
    data = write(tmp_path / "scores", [[(1.0, True, 0), (2.0, False, 1)]])
    asked = ["cut", data, "--out", str(tmp_path / "kept"), "--group", "request", "--score", "score", "--keep", "1"]
    found = CliRunner().invoke(app, [*asked, "--regular", "visits", "--regulars", "1", "--against", "ranker"])
    assert found.exit_code == 0, found.output
    assert "1 of 2 candidates of 1 requests are kept" in found.output
    again = CliRunner().invoke(app, asked)
    assert again.exit_code != 0


def test_what_is_not_a_number_counts_for_nothing(tmp_path):
    nan = float("nan")
    folder = tmp_path / "scores"
    folder.mkdir()
    table = pa.table(
        {
            "q": [1, 1, 1, 1],
            "score": [0.9, 0.8, 0.2, 0.1],
            "visits": [0.0, nan, 1.0, 0.0],
            "ranker": [nan, 3.0, 2.0, 1.0],
            "click": [nan, 0.0, 1.0, 0.0],
            "by_rules": [1, 2, 3, 4],
        }
    )
    pq.write_table(table, folder / "0.parquet")
    rules = Rules("q", "score", 2, regular="visits", regulars=1, against="ranker", top=1, label="click")
    found = cut(str(folder), tmp_path / "kept", rules)
    assert pq.read_table(tmp_path / "kept/kept.parquet")["by_rules"].to_pylist() == [1, 3]
    assert found["rules"] == {"ranker_top": 0, "ranker_best": 0, "taken": 1, "regulars": 1}
    assert found["agreement"] == pytest.approx(1)
    scores, none = torch.tensor([[nan, 0.1, 0.9]]), torch.zeros(1, 3, dtype=torch.bool)
    assert Cut(2)(scores, none, none.long()).tolist() == [[2, 1]]


def test_equal_scores_have_no_order(tmp_path):
    requests = [[(0.5, False, 0)] * 4, [(1.0, False, 0), (0.5, False, 0), (0.5, False, 0)]]
    found = cut(write(tmp_path / "scores", requests), tmp_path / "kept", Rules("request", "score", 2, against="ranker"))
    assert found["agreement"] == pytest.approx(np.corrcoef([3, 1.5, 1.5], [3, 2, 1])[0, 1])  # the first has none


def test_names_that_sql_takes_for_one_and_data_without_rows_are_refused(tmp_path):
    (tmp_path / "two").mkdir()
    pq.write_table(pa.table({"Q": [1], "q": [2], "score": [1.0]}), tmp_path / "two/0.parquet")
    with pytest.raises(BadInput, match="has columns that differ in capitals alone"):
        cut(str(tmp_path / "two"), tmp_path / "kept", Rules("q", "score", 1))
    (tmp_path / "none").mkdir()
    pq.write_table(pa.table({"q": pa.array([None], pa.int64()), "score": [1.0]}), tmp_path / "none/0.parquet")
    with pytest.raises(BadInput, match="has no row with a 'q'"):
        cut(str(tmp_path / "none"), tmp_path / "kept", Rules("q", "score", 1))
    assert not (tmp_path / "kept").exists()
