"""Ids that get rows while a model trains: sharded as plain, on any number of ranks, gone on with, judged, exported."""

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from livetrain.cluster import launch
from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Recipe
from livetrain.modules.batch import Batch
from livetrain.modules.model import Model, initial_values
from livetrain.modules.tables.ids import EMPTY
from livetrain.modules.tables.owner import Owner
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.export import export
from livetrain.trainers.export import ids as listing
from livetrain.trainers.runtime import ranks, run_folder, runlog
from livetrain.trainers.train import checkpoint, ids, online, warm_start
from livetrain.trainers.train.sharding import shard
from tests import twins
from tests.cases import often
from tests.pool import Pool
from tests.trainers.train.test_ids import DAYS, counted, days, nightly, of_ids  # noqa: F401  (a fixture)
from tests.trainers.train.test_warm_start import everything, save

CPU = torch.device("cpu")
TABLE = {"rows": 200, "dim": 8, "hash": "table", "assign": "online", "init_std": 0.1}
ALIKE = {"tables__rating__sharding": "data_parallel", "tables__movie__sharding": "data_parallel"}
WAYS = {
    "rows and tables": {},
    "few rows": {"tables__user__rows": 40},  # ids of a batch take over rows that the batch before it has looked up
    "columns, Adagrad": {
        "tables__user__sharding": "column_wise",
        "optimizers__sparse": {"kind": "adagrad", "lr": 0.05, "eps": 1e-3},
    },
    "one on every rank": {"tables__user__sharding": "data_parallel"},
    "all on every rank": {"tables__user__sharding": "data_parallel", **ALIKE},
    "Adam": {"optimizers__sparse": {"kind": "adam", "lr": 0.01, "eps": 1e-3}},
    "one before, one online": {"tables__movie__assign": "before"},
}


def made(**changes) -> Recipe:
    tables = {
        "tables__user": TABLE | {"sharding": "row_wise"},
        "tables__movie": TABLE | {"rows": 131, "sharding": "table_wise", "admission": {"threshold": 2}},
    }
    # Where a gradient is nearly zero a smaller eps would make much of what ranks round differently.
    return twins.recipe(**{**tables, "optimizers__sparse": {"lr": 0.05, "eps": 1e-3}, **changes})


def lookups(batch: Batch) -> dict[str, torch.Tensor]:
    history = torch.cat([batch.ids["movie"].values(), batch.ids["history"].values()])
    return {"user": batch.ids["user"].values(), "movie": history}


class Counted:
    """What `twins.train_plain` does before each step: counts, and lets rows begin anew."""

    def __init__(self, made_for: Recipe) -> None:
        self.made_for, self.owners, self.moved = made_for, {}, Counter()

    def begin(self, model: Model) -> None:
        for name, map_ in model.maps.items():
            if self.made_for.tables[name].assign == "online":
                self.owners[name] = Owner(self.made_for.tables[name], map_)

    @torch.no_grad()
    def before(self, model: Model, batch: Batch, states: list[dict[str, torch.Tensor]]) -> None:
        for name, owner in self.owners.items():
            found, counts = lookups(batch)[name].unique(return_counts=True)
            owner.tell(owner.take(found, counts, 0)[1])
            rows, whose = owner.changed()
            self.moved[name] += len(rows)
            model.table_weights()[name][rows] = initial_values(self.made_for, name).of_ids(whose, range(8))
            for state in states:
                state[name][rows] = 0


def feed(made_for: Recipe, batches: list[Batch]) -> Iterator[Batch]:
    return iter([twins.part(batch, ranks.rank(), ranks.world()) for batch in batches])


def trained(made_for: Recipe, count: int = 12) -> dict[str, torch.Tensor]:
    sharded = shard(made_for, CPU)
    sharded.module.train()
    sharded.set_rates(1.0)
    batches = feed(made_for, twins.batches(made_for, count))
    for _ in range(count):
        sharded.pipeline.progress(batches)
    return everything(sharded)


def alike(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor], atol: float) -> None:
    assert one.keys() == two.keys()
    for name in one:
        if one[name].dtype in (torch.int32, torch.int64):
            assert torch.equal(one[name], two[name]), name
        assert torch.allclose(one[name].double(), two[name].double(), rtol=0, atol=atol), name


@pytest.mark.parametrize("changes", often(WAYS, ("few rows", "all on every rank", "Adam")))
def test_it_is_plain_training_that_counts_before_every_step(two_ranks, changes):
    made_for = made(**changes)
    twin = Counted(made_for)
    model, _, states = twins.train_plain(made_for, twins.batches(made_for, 12), twin.begin, twin.before)
    with ranks.alone(cuda=False):
        alone = trained(made_for)
    alike(alone, two_ranks.run(trained, made_for)[0], 2e-6)
    for name, owner in twin.owners.items():
        assert owner.totals[1] > 30  # evicted: rows have changed hands often
        assert twin.moved[name] > owner.capacity + 20
        assert torch.equal(alone[f"/model/hash.maps.of_{name}.keys"].long(), owner.keys)
        for part, value in (owner.state()[0] | owner.state()[1]).items():
            assert torch.equal(alone[f"/ids/{name}/{part}"].long(), value.long()), part
    for name, weight in model.table_weights().items():
        own = next(key for key in alone if key.startswith("/model") and key.endswith(f".{name}.weight"))
        assert torch.allclose(alone[own], weight.detach(), atol=2e-6), name
        kept = [key for key in alone if key.startswith("/optimizer_tables") and f"/{name}." in key]
        assert kept
        value = alone[kept[0]]
        state = states[name] if value.dim() == 2 else states[name][:, 0]
        assert torch.allclose(value, state, atol=2e-6), kept[0]


@pytest.fixture(scope="module")
def four_ranks() -> Iterator[Pool]:
    pool = Pool(4)
    yield pool
    pool.close()


@pytest.mark.slow  # four processes on two cores; which ids have which rows on four is seen by test_owner
def test_four_ranks_do_what_one_does(four_ranks):
    made_for = made()
    with ranks.alone(cuda=False):
        alone = trained(made_for, 8)
    alike(alone, four_ranks.run(trained, made_for, 8)[0], 2e-6)
    keys = four_ranks.run(own_keys, made_for)
    assert [len(part) for part in keys] == [40, 40, 40, 80]  # the last one has the shared rows too


def own_keys(made_for: Recipe) -> torch.Tensor:
    return shard(made_for, CPU).model.maps["user"].keys


def stopped(made_for: Recipe, path: Path, at: int, count: int) -> dict[str, torch.Tensor]:
    """Train, saving on the way with batches ahead; return what there is at the end."""
    sharded = shard(made_for, CPU)
    sharded.module.train()
    sharded.set_rates(1.0)
    batches = feed(made_for, twins.batches(made_for, count))
    with checkpoint.Saver(sharded, made_for, path) as saver:
        for step in range(1, count + 1):
            sharded.pipeline.progress(batches)
            if step == at:
                saver.save(step, {"best_step": step})
        saver.wait()
    return everything(sharded)


def gone_on(made_for: Recipe, path: Path, at: int, count: int) -> dict[str, torch.Tensor]:
    sharded = shard(made_for, CPU)
    checkpoint.load(sharded, made_for, run_folder.checkpoint(path, at))
    sharded.module.train()
    sharded.set_rates(1.0)
    batches = feed(made_for, twins.batches(made_for, count)[at:])
    for _ in range(at, count):
        sharded.pipeline.progress(batches)
    return everything(sharded)


@pytest.mark.parametrize("changes", often(WAYS, ("rows and tables",)))
@pytest.mark.parametrize("at", [5, 9])  # with the next batch counted ahead, and at the end of what there is
def test_it_goes_on_exactly_on_any_number_of_ranks(two_ranks, tmp_path, changes, at):
    made_for = made(**changes)
    with ranks.alone(cuda=False):
        wanted = stopped(made_for, tmp_path / "one", at, 9)
        alike(wanted, gone_on(made_for, tmp_path / "one", at, 9), 0)
    alike(wanted, two_ranks.run(gone_on, made_for, tmp_path / "one", at, 9)[0], 2e-6)
    alike(wanted, two_ranks.run(stopped, made_for, tmp_path / "two", at, 9)[0], 2e-6)
    with ranks.alone(cuda=False):
        alike(wanted, gone_on(made_for, tmp_path / "two", at, 9), 2e-6)


def test_it_goes_on_exactly_where_tables_lie_otherwise(tmp_path):
    """What was saved with a batch on its way goes on where none ever is, and the reverse."""
    ways = made(), made(**WAYS["all on every rank"])
    with ranks.alone(cuda=False):
        for number, (one, other) in enumerate((ways, ways[::-1])):
            wanted = stopped(one, tmp_path / str(number), 5, 9)
            alike(wanted, gone_on(other, tmp_path / str(number), 5, 9), 2e-6)


def calls(made_for: Recipe) -> list[Counter]:
    """Count the collectives of online ids in six steps of training, and of six batches that are judged."""
    found, real = [], dist
    sharded = shard(made_for, CPU)
    sharded.set_rates(1.0)
    for training in (True, False):
        sharded.module.train(training)
        counter: Counter = Counter()

        class Counting:
            def __getattr__(self, name: str, counter: Counter = counter):
                counter[name] += 1
                return getattr(real, name)

        online.dist = Counting()
        try:
            before = everything(sharded)
            batches = feed(made_for, twins.batches(made_for, 6))
            outputs = [sharded.pipeline.progress(batches) for _ in range(6)]
        finally:
            online.dist = real
        found.append(counter)
        if not training:
            alike(before, everything(sharded), 0)
            assert all(output.logits is not None for output in outputs)
    return found


def test_all_tables_share_one_exchange_there_and_back(two_ranks):
    training, judging = two_ranks.run(calls, made())[0]
    assert training == {"all_to_all_single": 18, "all_gather_into_tensor": 6}
    assert judging == {"all_to_all_single": 18}


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, WAYS["all on every rank"]])
def test_a_batch_that_is_looked_at_twice_is_counted_once(changes):
    made_for = made(tasks__like={"label": "like"}, gradients={"kind": "famo"}, **changes)
    with ranks.alone(cuda=False):
        found = trained(made_for, 6)
    assert [int(found[f"/ids/{table}/batches"]) for table in ("user", "movie")] == [6, 6]


def grown(made_for: Recipe, path: Path) -> dict[str, torch.Tensor]:
    sharded = shard(made_for, CPU)
    warm_start.load(sharded, made_for, path)
    return everything(sharded)


@pytest.mark.parametrize("before", ["online", "before"])
def test_ids_keep_their_rows_in_another_layout(two_ranks, tmp_path, before):
    tables = {f"tables__{name}__assign": before for name in ("user", "movie")}
    old, new = made(**tables), made(tables__user__rows=500, tables__movie__rows=333)
    with ranks.alone(cuda=False):
        sharded = shard(old, CPU)
        if before == "before":
            counted(sharded, [1])
        wanted = save(old, tmp_path, 5, sharded)
    found = two_ranks.run(grown, new, run_folder.checkpoint(tmp_path, 5))[0]
    for table in ("user", "movie"):
        was, now = of_ids(wanted, old, table), of_ids(found, new, table)
        assert was.keys() == now.keys()
        assert len(was) > 30
        for key, rows in was.items():
            assert all(torch.equal(one, two) for one, two in zip(rows, now[key], strict=True)), key
        assert found[f"/ids/{table}/held"][0] == len(now)
    waits = [{*each["/ids/movie/waiting"].long().tolist()} - {EMPTY} for each in (wanted, found)]
    assert waits[0] == waits[1]


NIGHT = {"rows": 120, "dim": 8, "hash": "table", "assign": "online", "sharding": "row_wise"}
KEPT = NIGHT | {"eviction": {"expire_days": 2}}


def test_nights_let_ids_in_while_they_train(days, tmp_path):  # noqa: F811
    first = launch.train(nightly(days, 0, tables__user=KEPT), tmp_path)["tables"]["user"]
    # Days 1 and 2 know users 0 to 49; days 3 and 4 users 20 to 69. The first run's last day is day 2.
    assert first == first | {"ids": 50, "admitted": 50, "expired": 0, "refused": 0, "evicted": 0}
    warm = nightly(days, 2, tables__user=KEPT, train__warm_start={"run": str(tmp_path / "night0")})
    second = launch.train(warm, tmp_path)["tables"]["user"]
    assert second == second | {"ids": 50, "admitted": 100, "expired": 50}
    notes = [line["text"] for line in runlog.read(tmp_path / "night2") if line["kind"] == "note"]
    told = [note for note in notes if note.startswith("tables.user: 50 ids have rows of 112 (44.6%)")]
    assert "50 admitted, 0 evicted, 50 expired, 0 refused" in told[0]
    found = listing.kept(tmp_path / "night2", "best")["user"]
    assert found.ids()[0].tolist() == list(range(20, 70))
    assert listing.moment(int(found.used[found.ids()[1][0]])) == f"{DAYS[3]} 00:00"
    assert int(found.map(torch.tensor([25]))) in found.ids()[1].tolist()


def test_every_lookup_of_the_data_is_counted_once(days, tmp_path):  # noqa: F811
    most = {"admission": {"threshold": 2**20}}
    launch.train(nightly(days, 0, tables__user=NIGHT | most), tmp_path)
    found = listing.kept(tmp_path / "night0", "best")["user"]
    there = found.waiting[0] != EMPTY
    seen = dict(zip(found.waiting[0][there].tolist(), found.waiting[1][there].tolist(), strict=True))
    wanted: Counter = Counter()
    before = nightly(days, 0, tables__user=NIGHT | {"assign": "before"})
    for _, lookups_of in ids.intervals(Source.open(before, "train"), before):
        wanted.update(dict(zip(lookups_of["user"].ids.tolist(), lookups_of["user"].counts.tolist(), strict=True)))
    assert seen == wanted
    assert len(seen) == 50


def test_a_run_goes_on_exactly(days, tmp_path):  # noqa: F811
    made_for = nightly(
        days, 1, tables__user=NIGHT | {"rows": 50}, train__epochs=2, train__checkpoint_every=7, train__keep=9
    )
    launch.train(made_for, tmp_path)
    run = tmp_path / "night1"
    *kept, newest = run_folder.committed(run)
    before = max(path for path in kept if run_folder.content(path)["step"] % 7 == 0)  # saved with a batch on its way
    with ranks.alone(cuda=False):
        sharded = shard(made_for, CPU)
        checkpoint.load(sharded, made_for, before)
        assert int(sharded.online.owners["user"].ahead) == 1
        checkpoint.load(sharded, made_for, newest)
        wanted = everything(sharded)
    assert wanted["/ids/user/totals"][1] > 20
    for path in (each for each in [*kept, newest] if each > before):
        shutil.rmtree(path)
    (run / "result.json").unlink()
    launch.train(made_for, tmp_path)
    with ranks.alone(cuda=False):
        checkpoint.load(sharded, made_for, newest)
        alike(wanted, everything(sharded), 0)


def test_what_is_exported_scores_as_it_was_judged(days, tmp_path):  # noqa: F811
    launch.train(nightly(days, 0, tables__user=NIGHT), tmp_path)
    told = export.export(tmp_path / "night0")
    assert told["parity"]["largest_difference"] < 1e-6
    assert told["tables"]["user"]["capacity"] == 112


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tables__user": {"rows": 61, "dim": 8, "assign": "online"}}, "tables.user.assign: is for hash: table"),
        ({"tables__user": TABLE | {"memory": "host"}}, "tables.user.assign: 'online' begins rows anew between steps"),
    ],
)
def test_what_cannot_work_is_refused(changes, message):
    with pytest.raises((BadInput, ValueError), match=message):
        made(**changes)
