"""Where tables lie: planned for GPUs without one, the same in every process, and behind a cache only what must be."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livetrain.cluster import doctor
from livetrain.configs.errors import BadInput
from livetrain.configs.load import load_recipe
from livetrain.configs.schema import Recipe
from livetrain.modules.model import Model
from livetrain.trainers.data.read.lookups import Looked
from livetrain.trainers.runtime import run_folder
from livetrain.trainers.train import memory, planning
from livetrain.trainers.train.layout.refusal import DoesNotFit
from livetrain.trainers.train.sharding import dry_plan
from tests import twins

ROOT = Path(__file__).parents[3]
GIB = 2**30


def recipe(name: str, *changes: str) -> Recipe:
    return load_recipe(str(ROOT / f"configs/recipes/{name}.yaml"), ["data.path=nowhere", *changes])


def placed(made_for: Recipe, world: int, device: str = "cuda") -> dict:
    return planning.placed(made_for, dry_plan(made_for, world, device))


def behind(where: dict) -> list[str]:
    return sorted(name for name, table in where.items() if table["kernel"] == planning.CACHED)


@pytest.mark.slow
def test_the_plan_is_the_same_for_every_hash_seed():
    say = (
        "import json; from tests.trainers.train.test_planning import placed, recipe; "
        "tight = recipe('mmoe_kuairand', 'cluster.topology.hbm_gb=.015'); "
        "print(json.dumps([placed(recipe('din_ml1m'), 8), placed(tight, 4)]))"
    )
    told = []
    for seed in range(8):
        environment = os.environ | {"PYTHONHASHSEED": str(seed)}
        done = subprocess.run(
            [sys.executable, "-c", say], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        told.append(json.loads(done.stdout.splitlines()[-1]))
    assert all(other == told[0] for other in told)
    assert (behind(told[0][0]), behind(told[0][1])) == ([], ["author", "user"])


def test_tables_that_fit_stay_in_gpu_memory():
    for world in (1, 8):
        assert behind(placed(recipe("din_ml1m"), world)) == []


# 1.9, 1.2 and .5 GiB of weights; b and c are asked for in their order of names where sizes are the same.
SIZES = {"a": 4_000_000, "b": 2_500_000, "c": 1_000_000}


def sized(hbm: float, **changes) -> Recipe:
    """Three tables used by one feature each, on GPUs of `hbm` GiB."""
    made = {
        "features": {name: {"type": "id", "table": name} for name in SIZES},
        "tables": {name: {"rows": rows, "dim": 128} for name, rows in SIZES.items()},
        "model": {"kind": "dnn", "units": [8]},
        "cluster__topology": {"hbm_gb": hbm, "ddr_gb": 64},
        "optimizers__sparse__kind": "sgd",
    }
    return twins.recipe(**(made | changes))


@pytest.mark.parametrize("world", [1, 2])
def test_the_largest_go_behind_the_cache_until_the_rest_fits(world):
    found = []
    for hbm in (12, 3.6, 2.2, 1.2):
        made_for = sized(hbm / world)
        cached = behind(placed(made_for, world))
        found.append(cached)
        assert cached == sorted(sorted(SIZES)[: len(cached)])  # the largest
        if cached:  # and no fewer would do
            least = cached[-1]
            forced = {f"tables__{name}__memory": "host" for name in cached[:-1]} | {f"tables__{least}__memory": "gpu"}
            rest = {f"tables__{name}__memory": "gpu" for name in SIZES if name not in cached}
            with pytest.raises(BadInput, match="no sharding plan fits"):
                dry_plan(sized(hbm / world, **forced, **rest), world, "cuda")
    assert found[0] == []
    assert len({len(cached) for cached in found}) == 4


def test_of_equal_tables_the_first_by_name_goes_first():
    equal = {f"tables__{name}__rows": 2_500_000 for name in SIZES}
    assert behind(placed(sized(4.2, **equal), 1)) == ["a"]


def test_what_is_asked_for_is_done():
    assert behind(placed(sized(80, tables__b__memory="host"), 1)) == ["b"]
    asked = sized(3, tables__a__memory="gpu", tables__c__memory="host")
    assert behind(placed(asked, 1)) == ["b", "c"]
    with pytest.raises(BadInput, match="tables: no sharding plan fits 1 worker of"):
        dry_plan(sized(1.5, tables__a__memory="gpu"), 1, "cuda")


TABLE = st.fixed_dictionaries(
    {"rows": st.integers(1, 4_000_000), "memory": st.sampled_from(["auto", "auto", "gpu", "host"])}
)


@settings(max_examples=25, deadline=None)
@given(st.lists(TABLE, min_size=3, max_size=3), st.floats(1.1, 8), st.integers(1, 3))
def test_behind_the_cache_is_what_is_asked_for_and_then_the_largest(tables, hbm, world):
    tables = {name: table | {"dim": 128} for name, table in zip(SIZES, tables, strict=True)}
    try:
        cached = behind(placed(sized(hbm / world, tables=tables), world))
    except BadInput:
        return
    assert all(
        (name in cached) == (table["memory"] == "host") for name, table in tables.items() if table["memory"] != "auto"
    )
    free = sorted((-table["rows"], name) for name, table in tables.items() if table["memory"] == "auto")
    moved = [name in cached for _, name in free]
    assert moved == sorted(moved, reverse=True)


def test_no_more_is_planned_than_may_fit(monkeypatch):
    tried, lay = [], planning.lay

    def laid(ways, room):
        tried.append(
            sorted(name for name, own in ways.items() if own[0].pieces[0].taken[0, 1] > own[0].pieces[0].taken[0, 0])
        )
        return lay(ways, room)

    monkeypatch.setattr(planning, "lay", laid)
    dry_plan(sized(1.4), 1, "cuda")
    assert tried == [["a", "b"]]  # with less behind a cache the weights alone would take more than there is


def test_on_cpus_nothing_is_behind_a_cache():
    assert behind(placed(sized(1.5, tables__a__memory="host"), 2, "cpu")) == []


@pytest.mark.parametrize("world", [1, 2, 3])
def test_rows_and_bytes_of_all_ranks_are_the_tables(world):
    shardings = {"a": "row_wise", "b": "table_wise", "c": "data_parallel"}
    changes = {f"tables__{name}__sharding": how for name, how in shardings.items()}
    where = placed(sized(80, **changes, tables__b__dtype="float16"), world)
    assert list(where) == ["a", "b", "c"]
    assert {name: table["sharding"] for name, table in where.items()} == shardings
    assert {name: table["kernel"] for name, table in where.items()} == {"a": "fused", "b": "fused", "c": "dense"}
    assert where["a"]["ranks"] == where["c"]["ranks"] == [*range(world)]
    assert len(where["b"]["ranks"]) == 1
    assert sum(where["a"]["rows"]) == SIZES["a"]
    assert sum(where["a"]["bytes"]) == SIZES["a"] * 128 * 4
    assert (where["b"]["rows"], where["b"]["bytes"]) == ([SIZES["b"]], [SIZES["b"] * 128 * 2])
    assert (where["c"]["rows"], where["c"]["bytes"]) == ([SIZES["c"]] * world, [SIZES["c"] * 128 * 4] * world)


def test_columns_of_a_table_on_one_rank_are_of_the_same_rows():
    where = placed(sized(80, tables__a__sharding="column_wise"), 2)
    assert max(where["a"]["rows"]) == SIZES["a"]
    assert sum(where["a"]["bytes"]) == SIZES["a"] * 128 * 4


def test_the_line_for_people():
    where = placed(sized(80, tables__a__memory="host", tables__a__sharding="row_wise"), 2)
    said = planning.in_words(where)
    assert said.startswith(
        "a row_wise on 2 ranks in host memory behind a GPU cache "
        "(fused_uvm_caching, up to 2,000,000 rows and 976.6 MiB per rank), b "
    )
    assert "host memory" not in said.partition("), b ")[2]
    many = {f"t{number}": where["b"] for number in range(15)}
    assert planning.in_words(many).endswith(" and 3 more")
    assert planning.in_words({}) == "there are no tables"


def test_the_doctor_plans_and_counts_what_lies_behind_a_cache(tmp_path):
    made_for, plans = sized(4.2, tables__a__cache=0.1), []
    said = doctor.tables_are_planned(made_for, 1, True, tmp_path, plans)
    assert said.startswith(
        "a table_wise on rank 0 in host memory behind a GPU cache (fused_uvm_caching, up to 4,000,00"
    )
    held = memory.per_rank(made_for, plans[0])
    assert held["host"]["weights"] == SIZES["a"] * 512
    assert held["gpu"]["weights"] == (SIZES["b"] + SIZES["c"]) * 512
    assert held["gpu"]["cache"] == SIZES["a"] * 512 // 10
    found = doctor.need(made_for, plans[0])
    assert found.gpu[0] > (SIZES["b"] + SIZES["c"]) * 512 + SIZES["a"] * 512 // 10


def agreed(made_for: Recipe) -> dict | str:
    """Plan on this group's ranks, none but the first of which may."""
    from livetrain.trainers.runtime import ranks

    def first_alone(*given):
        assert ranks.is_main()
        return planning.make(*given)

    try:
        return planning.placed(made_for, planning.agree(first_alone, made_for, "cuda"))
    except BadInput as error:
        return str(error), error.mends


def test_one_rank_plans_for_all(two_ranks):
    made_for = sized(2.2)
    assert two_ranks.run(agreed, made_for) == [placed(made_for, 2)] * 2


def test_where_nothing_fits_every_rank_is_told(two_ranks):
    first, second = two_ranks.run(agreed, sized(1.2, tables__a__memory="gpu"))
    assert first == second
    assert first[0].startswith("tables: no sharding plan fits 2 workers of cluster.topology (table a: ")
    assert first[1] == ("1 more GPU (cluster.workers: 3)", "tables.a.dtype: float16", "tables.a.memory: host")


def failed(made_for: Recipe) -> str:
    """Fail to plan, on this group's first rank alone."""

    def full(*given):
        raise OSError(28, "No space left on device")

    try:
        planning.agree(full, made_for, "cuda")
    except RuntimeError as error:
        return str(error)
    return "nothing was raised"


def test_where_planning_fails_otherwise_no_rank_waits_for_it(two_ranks):
    said = "rank 0 could not plan the tables: OSError: [Errno 28] No space left on device"
    assert two_ranks.run(failed, sized(2.2)) == [said] * 2


def test_what_every_rank_holds_is_what_lies_there():
    """Against the tables' rows, one by one."""
    shardings = {"a": "table_wise", "b": "row_wise", "c": "data_parallel"}
    asked = {f"tables__{name}__sharding": how for name, how in shardings.items()}
    made_for = sized(80, tables__a__memory="host", **asked)
    plan = dry_plan(made_for, 2, "cuda")
    held = memory.per_rank(made_for, plan)
    on = plan.tables["a"].ranks[0]
    a, b, c = (rows * 512 for rows in SIZES.values())
    assert held["gpu"]["weights"].tolist() == [b // 2 + c] * 2
    assert held["gpu"]["cache"].tolist() == [(rank == on) * round(a * 0.2) for rank in range(2)]
    assert held["host"]["weights"].tolist() == [(rank == on) * a for rank in range(2)]
    numbers = sum(p.numel() for p in Model(made_for, "meta", "meta").dense.parameters())
    assert held["gpu"]["dense part"].tolist() == [numbers * 4] * 2  # sgd has no state
    assert held["gpu"]["gradients"].tolist() == [c + numbers * 4] * 2
    copied = [(rank == on) * a + b // 2 + c + numbers * 4 for rank in range(2)]
    assert held["host"]["checkpoint copy"].tolist() == copied
    rows, read = made_for.data.batch_size // 2, 3 * 16
    assert held["host"]["batches"].tolist() == [(1 + made_for.data.prefetch) * rows * read] * 2
    assert held["host"]["windows"].tolist() == [10**9] * 2
    assert (held["gpu"]["activations"] >= rows * 2 * 4 * 3 * 128).all()
    everything = memory.per_rank(made_for, dry_plan(made_for, 2, "cpu"))
    assert everything["gpu"] == {}
    assert everything["host"]["activations"].tolist() == held["gpu"]["activations"].tolist()


def test_bytes_served_are_those_of_the_rows_looked_up():
    lookups = {"a": Looked(1.0, np.array([5]), np.array([0.5])), "b": Looked(0.25)}
    tables = {name: {"rows": 8, "dim": 4, "hash": "modulo", "sharding": "row_wise"} for name in "ab"}
    made_for = twins.recipe(
        features={name: {"type": "id", "table": name} for name in "ab"},
        tables=tables,
        model={"kind": "dnn", "units": [8]},
    )
    served = planning.served(made_for, dry_plan(made_for, 2, "cpu"), lookups)
    # Row 5 is looked up by half of the 48 rows, and of the others each row alike; of b one row in four looks up one.
    assert served.tolist() == [16 * (48 * 0.25 + 6), 16 * (48 * 0.75 + 6)]


def test_frequent_ids_decide_what_is_split():
    """Two equal tables on two ranks: by rows, unless one id is most of both and would make one rank busy with both."""
    made_for = sized(80, tables__a__hash="modulo", tables__b__hash="modulo")
    hot = {name: Looked(1.0, np.array([0]), np.array([0.9])) for name in "ab"}
    even = {name: Looked(1.0) for name in "ab"}
    none = {"c": Looked(0.0)}
    for lookups in (even | none, hot | none):
        served = planning.served(made_for, dry_plan(made_for, 2, "cuda", lookups), lookups)
        assert served.max() <= 1.05 * served.mean()
    plan = dry_plan(made_for, 2, "cuda", hot | none)
    assert [plan.tables[name].sharding for name in "ab"] == ["table_wise", "table_wise"]


def test_a_run_keeps_a_plan_for_each_number_of_ranks(tmp_path):
    made_for, asked = sized(80), []

    def lookups():
        asked.append(1)
        return {"a": Looked(1.0, np.array([0]), np.array([0.9]))}

    def of_run(recipe, world, device="cuda", found=lookups):
        return planning.of_run(tmp_path, found, recipe, world, device)

    first = of_run(made_for, 2)
    assert first == planning.make(made_for, 2, "cuda", lookups())
    assert of_run(made_for, 4).world == 4
    assert len(asked) == 3
    with mock.patch.object(planning, "make", side_effect=AssertionError):
        assert of_run(made_for, 2) == first
        assert of_run(made_for, 2, found=None) == first  # as an evaluation does
        for changed in (
            sized(80, tables__a__rows=5),
            sized(70),
            sized(80, data__batch_size=96),
            sized(80, data__prefetch=9),
        ):
            with pytest.raises(AssertionError):
                of_run(changed, 2)
        with pytest.raises(AssertionError):
            of_run(made_for, 2, "cpu")
    kept = (tmp_path / planning.NAME).read_text()
    assert of_run(made_for, 3, found=None).world == 3
    assert (tmp_path / planning.NAME).read_text() == kept


@pytest.mark.parametrize(
    ("hbm", "world", "changes", "said", "mends"),
    [
        (1.5, 1, {"tables__a__memory": "gpu"}, "table a: 1.9 GiB of 1.9 GiB, and the GPU memory of a worker has 1.3",
         ["1 more GPU (cluster.workers: 2)", "tables.a.memory: host"]),
        (3.3, 1, {f"tables__{name}__memory": "gpu" for name in SIZES}, "table a: 1.9 GiB of 3.6 GiB, and the GPU mem",
         ["1 more GPU (cluster.workers: 2)", "tables.a.dtype: float16", "tables.a.memory: host"]),
        (1.5, 2, {"tables__a__memory": "gpu", "tables__a__sharding": "table_wise"}, "table a: 1.9 GiB of 1.9 GiB",
         ["tables.a.dtype: float16", "tables.a.memory: host", "tables.a.sharding: auto"]),
        (0.5, 1, {}, "table a: 390.6 MiB of 732.4 MiB, and the GPU memory of 1 worker has 435.0 MiB",
         ["1 more GPU (cluster.workers: 2)", "tables.a.cache: 0.025"]),
        (0.4, 2, {"tables__a__memory": "gpu"}, "table a: 976.6 MiB on each of 2 workers, and the GPU memory of a wor",
         ["10 more GPUs (cluster.workers: 12)"]),
        (0.0001, 1, {}, "besides tables ", []),
    ],
)  # fmt: skip
def test_a_refusal_names_what_is_short_and_what_would_do(hbm, world, changes, said, mends):
    made_for = sized(hbm, **changes)
    with pytest.raises(DoesNotFit) as caught:
        dry_plan(made_for, world, "cuda")
    error = caught.value
    assert said in str(error)
    assert list(error.mends) == mends
    assert pickle.loads(pickle.dumps(error)).__dict__ == error.__dict__
    assert error.table == ("a" if "table a" in said else None)
    for mend in error.mends:  # each alone
        if "cluster.workers" in mend:
            assert dry_plan(made_for, int(mend.rpartition(": ")[2].strip(")")), "cuda")
        else:
            key, value = mend.split(": ")
            change = {key.replace(".", "__"): float(value) if key.endswith("cache") else value}
            assert dry_plan(sized(hbm, **(changes | change)), world, "cuda")


def test_a_run_lies_where_its_kept_plan_says(small_run):
    made_for, result = run_folder.recipe_of(small_run), json.loads((small_run / "result.json").read_text())
    with mock.patch.object(planning, "make", side_effect=AssertionError):  # so that it goes on with the plan it has
        plan = planning.of_run(small_run, None, made_for, 1, "cpu")
    assert planning.placed(made_for, plan) == result["plan"]
