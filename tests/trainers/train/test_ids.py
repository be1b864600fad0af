"""Tables of ids in training: sharded as plain, the same for any number of ranks, gone on with, moved to other sizes."""

import io
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

from livetrain.cli import main as cli
from livetrain.cluster import launch
from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Recipe
from livetrain.modules.model import Model, initial_values
from livetrain.modules.tables import hashing
from livetrain.trainers.data.read.sidecar import Sidecar
from livetrain.trainers.data.read.sights import Sights, minute_of
from livetrain.trainers.data.read.source import Partition, Source
from livetrain.trainers.export import export
from livetrain.trainers.export import ids as listing
from livetrain.trainers.runtime import ranks, run_folder, runlog
from livetrain.trainers.train import checkpoint, ids, warm_start
from livetrain.trainers.train.sharding import shard
from tests import samples, twins
from tests.cases import often
from tests.trainers.train import test_sharding as sharding
from tests.trainers.train.test_warm_start import everything

CPU = torch.device("cpu")
TABLE = {"rows": 120, "dim": 8, "hash": "table", "init_std": 0.1}
WAYS = {
    "rows and tables": {"tables__user": TABLE | {"sharding": "row_wise"}},
    "columns, Adagrad": {
        "tables__user": TABLE | {"sharding": "column_wise"},
        "optimizers__sparse": {"kind": "adagrad", "lr": 0.05, "eps": 1e-3},
    },
    "on every rank": {"tables__user": TABLE | {"sharding": "data_parallel"}},
    "Adam": {
        "tables__user": TABLE | {"sharding": "row_wise"},
        "optimizers__sparse": {"kind": "adam", "lr": 0.01, "eps": 1e-3},
    },
}


def made(**changes) -> Recipe:
    movie = TABLE | {"sharding": "table_wise", "rows": 200}
    return twins.recipe(**{"tables__user": TABLE | {"sharding": "row_wise"}, "tables__movie": movie, **changes})


def lookups(day: int) -> dict[str, Sights]:
    """Lookups of a day, of the ids that `twins.batches` draws."""
    drawn = np.random.default_rng(day)
    return {name: Sights.of(drawn.integers(-1000, 1000, size=400)) for name in ("user", "movie")}


def counted(sharded, days: list[int]) -> None:
    for day in days:
        ids.count(sharded, lookups(day), day * 1440)
    ids.settle(sharded)


def steps(sharded, made_for: Recipe, count: int, seed: int = 0) -> None:
    rank, world = ranks.rank(), ranks.world()
    feed = iter([twins.part(batch, rank, world) for batch in twins.batches(made_for, count, seed)])
    sharded.module.train()
    sharded.set_rates(1.0)
    for _ in range(count):
        sharded.pipeline.progress(feed)


def twice(made_for: Recipe) -> list[dict[str, torch.Tensor]]:
    """Train between two assignments; return all that there is after each of these, and at the end."""
    sharded, found = shard(made_for, CPU), []
    for seed in (1, 2):
        counted(sharded, [seed])
        found.append(everything(sharded))
        steps(sharded, made_for, 5, seed)
    return [*found, everything(sharded)]


@pytest.mark.parametrize("changes", often(WAYS, ("columns, Adagrad", "on every rank")))
def test_two_ranks_equal_plain_and_one(two_ranks, changes):
    made_for = made(**changes)
    found = two_ranks.run(begun_and_trained, made_for)[0]
    begins, keys = found.pop("begins"), found.pop("keys")

    def begin(model: Model) -> None:
        for name, weight in model.table_weights().items():
            weight.data.copy_(begins[name])
        for name, map in model.maps.items():
            map.keys.copy_(keys[name])

    model, _, state = twins.train_plain(made_for, twins.batches(made_for, 10), begin)
    for name, weight in model.table_weights().items():
        assert torch.allclose(found[name], weight.detach(), atol=2e-6), name
    with ranks.alone(cuda=False):
        alone = begun_and_trained(made_for)
    assert all(torch.equal(alone["keys"][name], keys[name]) for name in keys)
    assert all(torch.allclose(alone["begins"][name], begins[name], atol=1e-6) for name in begins)
    rows = model.maps["user"](torch.arange(-1000, 1000))
    assert 100 < len(rows[rows < 8 * made_for.tables["user"].buckets].unique()) <= 112


def begun_and_trained(made_for: Recipe) -> dict:
    sharded = shard(made_for, CPU)
    counted(sharded, [1, 2])

    def tables() -> dict[str, torch.Tensor]:
        return {
            key.split(".")[-2]: value
            for key, value in sharding.whole(
                {k: v for k, v in sharded.model.state_dict().items() if k.startswith("tables.")}
            ).items()
        }

    begins = tables()
    steps(sharded, made_for, 10)
    return tables() | {"begins": begins, "keys": {n: m.keys.clone() for n, m in sharded.model.maps.items()}}


@pytest.mark.parametrize("changes", often(WAYS, ("rows and tables", "Adam")))
def test_rows_that_change_hands_begin_anew_on_any_number_of_ranks(two_ranks, changes):
    made_for = made(**changes)
    with ranks.alone(cuda=False):
        alone = twice(made_for)
    both = two_ranks.run(twice, made_for)[0]
    for one, two in zip(alone, both, strict=True):
        assert one.keys() == two.keys()
        assert all(torch.allclose(one[name].float(), two[name].float(), atol=2e-6) for name in one)
    first, second, _ = alone
    for table in ("user", "movie"):
        keys = [each[f"/model/hash.maps.of_{table}.keys"].long() for each in (first, second)]
        moved = keys[0] != keys[1]
        weight = next(name for name in first if name.endswith(f".{table}.weight") and name.startswith("/model"))
        wanted = initial_values(made_for, table).of_ids(keys[1][moved], range(8))
        assert moved.sum() > 20
        assert torch.allclose(second[weight][moved], wanted, atol=1e-6)
        state = [name for name in first if name.startswith("/optimizer") and f"/{table}." in name]
        assert state
        for name in state:
            assert not second[name][moved].any()
            assert second[name][~moved].any()


def saved(made_for: Recipe, path: Path, days: list[int]) -> dict[str, torch.Tensor]:
    sharded = shard(made_for, CPU)
    counted(sharded, days)
    steps(sharded, made_for, 5)
    with checkpoint.Saver(sharded, made_for, path) as saver:
        saver.save(5, {"best_step": 5})
        saver.wait()
    return everything(sharded)


def begun(made_for: Recipe, path: Path, days: list[int]) -> dict[str, torch.Tensor]:
    sharded = shard(made_for, CPU)
    taken = warm_start.load(sharded, made_for, path)
    counted(sharded, days)
    taken.admitted(sharded)
    return everything(sharded)


def of_ids(found: dict[str, torch.Tensor], made_for: Recipe, table: str) -> dict[int, list[torch.Tensor]]:
    """Every row of an id that has one, with its optimizer's state."""
    entries = [name for name in found if f".{table}.weight" in name]
    keys = found[f"/model/hash.maps.of_{table}.keys"].long().tolist()
    return {key: [found[name][row] for name in entries] for row, key in enumerate(keys) if key != -(2**63)}


@pytest.mark.parametrize("changes", often(WAYS, ("rows and tables",)))
@pytest.mark.parametrize("before", [1, 2])
@pytest.mark.some(2)
def test_ids_keep_their_rows_where_the_table_grows(two_ranks, tmp_path, changes, before):
    old = made(**changes, tables__movie__admission={"threshold": 2})
    new = made(**changes, tables__movie__admission={"threshold": 2}, tables__movie__rows=333, tables__user__rows=250)
    if before == 1:
        with ranks.alone(cuda=False):
            wanted = saved(old, tmp_path, [1])
        found = two_ranks.run(begun, new, run_folder.checkpoint(tmp_path, 5), [1])[0]
    else:
        wanted = two_ranks.run(saved, old, tmp_path, [1])[0]
        with ranks.alone(cuda=False):
            found = begun(new, run_folder.checkpoint(tmp_path, 5), [1])
    for table in ("user", "movie"):
        was, now = of_ids(wanted, old, table), of_ids(found, new, table)
        assert was.keys() == now.keys()
        assert len(was) > 25
        for key, rows in was.items():
            assert all(torch.equal(one, two) for one, two in zip(rows, now[key], strict=True)), key
    waits = [each["/ids/movie/waiting"].long() for each in (wanted, found)]
    assert {*waits[0].tolist(), -(2**63)} == {*waits[1].tolist(), -(2**63)}  # the larger one has free places


@pytest.mark.parametrize("hash", ["mix", "modulo"])
def test_ids_take_the_rows_that_a_hash_gave_them(tmp_path, hash):
    before = {"rows": 61, "dim": 8, "hash": hash, "sharding": "row_wise", "init_std": 0.1}
    old, new = twins.recipe(tables__user=before), made()
    with ranks.alone(cuda=False):
        wanted = saved(old, tmp_path, [])
        found = begun(new, run_folder.checkpoint(tmp_path, 5), [1])
    entries = [name for name in wanted if ".user.weight" in name]
    now = of_ids(found, new, "user")
    assert len(now) > 50
    for key, rows in now.items():
        row = int(hashing.row(torch.tensor([key]), 61, hash == "modulo"))
        assert all(torch.equal(one, wanted[name][row]) for one, name in zip(rows, entries, strict=True))
    assert "each id's row is taken from where it was" in str(warm_start.plan(new, run_folder.checkpoint(tmp_path, 5)))


DAYS = [f"2022-05-0{day}" for day in range(1, 7)]


@pytest.fixture(scope="module")
def days(tmp_path_factory) -> Path:
    """Six days: of the hundred users each day knows those from ten times its number on, forty of them."""
    folder = tmp_path_factory.mktemp("days")
    for number, day in enumerate(DAYS):
        samples.write(folder / "made" / day, rows=480, seed=number)
        shutil.copytree(folder / "made" / day / "train", folder / "data" / f"date={day}")
        path = folder / "data" / f"date={day}" / "part-0.parquet"
        table = pq.read_table(path)
        users = pa.array(np.asarray(table["user"]) % 40 + 10 * number)
        pq.write_table(table.set_column(0, "user", users), path, row_group_size=128)
    return folder / "data"


def nightly(data: Path, first: int, **changes) -> Recipe:
    train, valid, test = (f"{DAYS[first + a]}..{DAYS[first + b]}" for a, b in ((0, 1), (2, 2), (3, 3)))
    users = {"rows": 120, "dim": 8, "hash": "table", "eviction": {"expire_days": 2}, "sharding": "row_wise"}
    made_for = {"name": f"night{first}", "data__days": {"train": train, "valid": valid, "test": test}}
    return samples.recipe(
        data, **{**made_for, "tables__user": users, "train__epochs": 1, "evaluate__group_by": None, **changes}
    )


def rendered(table) -> str:
    console = Console(width=160, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_nights_count_new_days_alone(days, tmp_path, monkeypatch, capsys):
    first = launch.train(nightly(days, 0), tmp_path)["tables"]["user"]
    assert first == first | {"ids": 50, "admitted": 50, "expired": 0, "refused": 0, "evicted": 0}
    warm = nightly(days, 2, train__warm_start={"run": str(tmp_path / "night0")})
    second = launch.train(warm, tmp_path)["tables"]["user"]
    # Days 3 and 4 bring users 20 to 69; those below 20 were met on day 2 at the latest, below 10 on day 1.
    assert second == second | {"ids": 50, "admitted": 70, "expired": 20}
    notes = [line["text"] for line in runlog.read(tmp_path / "night2") if line["kind"] == "note"]
    assert any(
        note.startswith("tables.user: 50 ids have rows of 112 (44.6%); 20 admitted, 0 evicted, 20 expired, 0 refused")
        for note in notes
    )
    monkeypatch.setattr(sys, "argv", ["livetrain", "ids", str(tmp_path / "night2"), "25", "no", "--table", "user"])
    with pytest.raises(SystemExit):
        cli.main()
    shown = capsys.readouterr().out
    assert re.search(r"user +│ 25 +│ \d+ +│ 2022-05-03 00:00", shown)
    assert re.search(r"user +│ no +│ \d+ +│ shares a row", shown)
    found = listing.kept(tmp_path / "night2", "best")
    assert listing.write(found, tmp_path / "ids.parquet") == 50
    assert pq.read_table(tmp_path / "ids.parquet")["id"].to_pylist() == list(range(20, 70))
    assert "│ 44.6% │" in rendered(listing.summary(found))
    again = nightly(days, 2, name="again", train__warm_start={"run": str(tmp_path / "night2")})
    assert launch.train(again, tmp_path)["tables"]["user"] == second


def increments(made_for: Recipe) -> list[dict]:
    """Take three splits as increments, the last two within one minute; return the maps and what was told after each."""
    sharded, found = shard(made_for, CPU), []
    for split, time in (("train", 50_000_000), ("valid", 50_000_005), ("test", 50_000_005)):
        told = ids.assign(sharded, made_for, Source.open(made_for, split), time)
        found.append({"keys": sharded.model.maps["user"].keys.clone(), "told": told["user"].to_dict()})
    return found


def test_increments_let_ids_in_alike_on_two_ranks(two_ranks, days):
    made_for = nightly(days, 0, tables__user={"rows": 80, "dim": 8, "hash": "table", "sharding": "row_wise"})
    with ranks.alone(cuda=False):
        alone = increments(made_for)
    for one, first, second in zip(alone, *two_ranks.run(increments, made_for), strict=True):
        assert one["told"] == first["told"] == second["told"]
        assert torch.equal(one["keys"], first["keys"])
        assert torch.equal(one["keys"], second["keys"])
    told = [one["told"] for one in alone]
    assert told[0]["admitted"] == 50  # users 0 to 49, then 20 to 59, then 30 to 69
    assert told[1]["admitted"] == 10
    assert told[2]["admitted"] + told[2]["refused"] >= 10


def test_a_run_goes_on_exactly(days, tmp_path):
    made_for = nightly(days, 1, train__epochs=2)
    launch.train(made_for, tmp_path)
    run = tmp_path / "night1"
    newest = run_folder.committed(run)[-1]
    with ranks.alone(cuda=False):
        sharded = shard(made_for, CPU)
        checkpoint.load(sharded, made_for, newest)
        wanted = everything(sharded)
    shutil.rmtree(newest)
    (run / "result.json").unlink()
    launch.train(made_for, tmp_path)
    with ranks.alone(cuda=False):
        checkpoint.load(sharded, made_for, newest)
        found = everything(sharded)
    assert len(wanted) > 10
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


@pytest.mark.parametrize("quantize", ["none", pytest.param("int8", marks=pytest.mark.slow)])
def test_what_is_exported_knows_the_ids(days, tmp_path, quantize):
    launch.train(nightly(days, 0, export__tables="mapped"), tmp_path)
    told = export.export(tmp_path / "night0", quantize=quantize)
    assert told["stored"]["user.keys"] == {"file": "user.keys.table", "dtype": "int64", "shape": [120, 1]}
    assert told["tables"]["user"]["capacity"] == 112
    assert json.loads((tmp_path / "night0/export/signature.json").read_text())["parity"] == told["parity"]
    if quantize == "none":
        assert told["parity"]["largest_difference"] < 1e-6
    config = tmp_path / "night0/config.yaml"
    config.write_text(config.read_text().replace("tables: mapped", "tables: inside"))
    inside = export.export(tmp_path / "night0", quantize=quantize)
    assert "stored" not in inside
    assert inside["parity"] == told["parity"]


def test_lookups_are_those_of_the_rows(days):
    made_for = nightly(days, 0)
    source = Source.open(made_for, "train")
    for _ in range(2):  # counted, and then as kept
        found = [(time, one["user"]) for time, one in ids.intervals(source, made_for)]
        assert [time for time, _ in found] == [1440 * 19113, 1440 * 19114]
        for day, (_, one) in zip(DAYS, found, strict=False):
            users = np.asarray(pq.read_table(days / f"date={day}")["user"])
            wanted = np.unique(users, return_counts=True)
            assert np.array_equal(one.ids, wanted[0])
            assert np.array_equal(one.counts, wanted[1])


def test_lookups_of_lists_are_of_their_newest(tmp_path):
    data = samples.write(tmp_path / "data", rows=200)
    made_for = samples.recipe(data, tables__movie={"rows": 512, "dim": 8, "hash": "table"})
    ((time, found),) = ids.intervals(Source.open(made_for, "train"), made_for)
    table = pq.read_table(data / "train").to_pydict()
    wanted = [id_ for id_ in table["movie"] if id_ is not None]
    wanted += [id_ for each in table["history"] for id_ in each[-6:]]
    assert time is None
    assert dict(zip(found["movie"].ids.tolist(), found["movie"].counts.tolist(), strict=True)) == {
        id_: wanted.count(id_) for id_ in wanted
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tables__user__admission": {"threshold": 2}}, "tables.user.admission: is for hash: table"),
        ({"tables__movie__shared": 4}, "tables.movie.shared: is for hash: table, and this one is 'mix'"),
        ({"tables__user": TABLE | {"frozen": True}}, "tables.user.frozen: with hash: table a row begins by its id"),
        ({"tables__user": TABLE | {"initial": {"file": "x"}}}, "tables.user.initial: with hash: table a row begins"),
        ({"tables__user": TABLE | {"rows": 8}}, "tables.user.rows: 8 rows, 1 of them shared, leave no bucket of 8"),
        ({"tables__user": TABLE | {"eviction": {"expire_days": 3}}}, "expire_days: counts days of the data, and data."),
        (
            {"tables__user": TABLE | {"eviction": {"strategy": "none", "expire_days": 3}}},
            "tables.user.eviction.expire_days: strategy 'none' evicts no id",
        ),
        (
            {
                "tables__pair": TABLE,
                "features__pair": {"type": "cross", "of": ["user", "movie"], "table": "pair"},
            },
            "tables.pair.hash: 'table' counts the ids of columns, and features.pair makes its ids itself",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(changes, message):
    with pytest.raises((BadInput, ValueError), match=message):
        twins.recipe(**changes)


@pytest.mark.parametrize(
    ("path", "minutes"),
    [
        ("/data/date=1970-01-03/_kept", 2880),
        ("/export/date=2026-11-30/data/date=1970-01-03/_kept", 2880),
        ("/data/date=1970-01-03/time=013000/_kept", 2970),
        ("/data/all/_kept", None),
    ],
)
def test_a_partition_tells_when_it_begins(path, minutes):
    partition = Partition(Sidecar(((None, path),), None), 0, 0)
    assert minute_of(partition) == minutes
