"""The format of deltas: what is written is read, and taking deltas in one after the other gives the last state."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from livetrain.modules.serving import deltas

DTYPES = [torch.float32, torch.float16, torch.int64, torch.uint8, torch.bool]


def written(folder, rows, values, whole):
    """Write a delta of one table, looked up twice, and of other tensors."""
    folder.mkdir()
    writer = deltas.Writer(folder)
    index = {"movie": writer.put(rows)}, {f"movie.{name}": writer.put(value) for name, value in values.items()}
    by_rows = {
        f"lookups.{number}.table.{name}": {"table": "movie", "values": f"movie.{name}"}
        for number in (0, 1)
        for name in values
    }
    files = {"model.pt": {"rows": by_rows, "whole": {name: writer.put(value) for name, value in whole.items()}}}
    writer.close(*index, files)
    return folder


def fresh(rows: int, dim: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    table, keys = torch.zeros(rows, dim), torch.zeros(rows, dtype=torch.int64)
    tables = {
        f"lookups.{number}.table.{name}": value for number in (0, 1) for name, value in (("w", table), ("k", keys))
    }
    return tables | {"dense.weight": torch.zeros(3, dtype=dtype), "dense.steps": torch.zeros((), dtype=torch.int64)}


@given(
    rows=st.integers(1, 30),
    dim=st.integers(1, 5),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**16),
    steps=st.integers(1, 6),
)
@settings(max_examples=30, deadline=None)
def test_deltas_in_order_give_the_last_state(tmp_path_factory, rows, dim, dtype, seed, steps):
    generator = torch.Generator().manual_seed(seed)
    folder, wanted, served = tmp_path_factory.mktemp("deltas"), fresh(rows, dim, dtype), fresh(rows, dim, dtype)
    for step in range(steps):
        touched = (torch.rand(rows, generator=generator) < 0.4).nonzero().squeeze(1)  # of some steps none
        wanted["lookups.0.table.w"][touched] = torch.rand(len(touched), dim, generator=generator)
        wanted["lookups.0.table.k"][touched] = torch.randint(-9, 9, (len(touched),), generator=generator)
        wanted["dense.weight"].copy_(torch.randint(0, 2, (3,), generator=generator))
        wanted["dense.steps"] += 1
        values = {name: wanted[f"lookups.0.table.{name}"][touched] for name in ("w", "k")}
        whole = {name: value for name, value in wanted.items() if name.startswith("dense")}
        delta = deltas.Delta(written(folder / str(step), touched, values, whole))
        deltas.apply(delta.changes({"model.pt": served}))
        assert delta.rows["movie"].tolist() == touched.tolist()
    assert all(torch.equal(served[name], value) for name, value in wanted.items())
    assert sum(about["at"] % 64 for about in places(folder / "0")) == 0


def places(folder) -> list[dict]:
    index = json.loads((folder / deltas.INDEX).read_text())
    return [*index["rows"].values(), *index["values"].values(), *index["files"]["model.pt"]["whole"].values()]


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("rows", "has 4 rows, and the delta has others"),
        ("dim", "'lookups.0.table.w' is not in the model as it is in the delta"),
        ("dtype", "'dense.weight' is not in the model as it is in the delta"),
        ("shape", "'dense.weight' is .3., and in the delta .2."),
        ("name", "'dense.other' is not in the model"),
        ("file", "user.pt is no part of this delta"),
        ("format", "is of format 2, and 1 is known"),
        ("short", "delta.bin is shorter"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, case, says):
    model = fresh(4, 2, torch.float32)
    rows = torch.tensor([1, 4 if case == "rows" else 3])
    values = {"k": torch.ones(2, dtype=torch.int64), "w": torch.ones(2, 3 if case == "dim" else 2)}
    whole = {
        "dense.other" if case == "name" else "dense.weight": torch.ones(
            2 if case == "shape" else 3, dtype=torch.float16 if case == "dtype" else torch.float32
        )
    }
    folder = written(tmp_path / "delta", rows, values, whole)
    if case == "format":
        (folder / deltas.INDEX).write_text(json.dumps({"format": 2}))
    if case == "short":
        (folder / deltas.NUMBERS).write_bytes((folder / deltas.NUMBERS).read_bytes()[:-8])
    with pytest.raises(ValueError, match=says):
        deltas.apply(deltas.Delta(folder).changes({"user.pt" if case == "file" else "model.pt": model}))
    assert not any(value.any() for value in model.values())
