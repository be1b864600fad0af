"""A warm start: the new run begins as the old one ended, whatever the ranks and however much its tables grew."""

import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensorBase, ShardedTensorMetadata, TensorProperties
from torch.distributed._shard.sharding_spec import ShardMetadata

from livetrain.cluster import launch
from livetrain.configs.errors import BadInput
from livetrain.configs.schema import WarmStart
from livetrain.modules.batch import Batch
from livetrain.modules.features.bag import pools_where_rows_lie
from livetrain.modules.model import Model, set_statistics
from livetrain.trainers.export.export import plain_model
from livetrain.trainers.runtime import ranks, run_folder, runlog
from livetrain.trainers.runtime.run_folder import find_checkpoint
from livetrain.trainers.train import checkpoint, fitting, restore, warm_start, writing
from livetrain.trainers.train.sharding import Sharded, shard
from tests import samples, twins
from tests.modules.features.test_bag import made as bags
from tests.trainers.train import test_loop as loop
from tests.trainers.train import test_sharding as sharding

CPU = torch.device("cpu")
KINDS = {
    "row-wise Adagrad, Adam": {"optimizers__dense__kind": "adam"},
    "Adagrad": {"optimizers__sparse__kind": "adagrad"},
    "SGD": {"optimizers__sparse__kind": "sgd"},
    "replicated users": {"tables__user__sharding": "data_parallel"},
}
# By four, by two and not at all; row-wise shards on two ranks are larger than the old table, and smaller.
GROWN = {"tables__movie__rows": 160, "tables__user__rows": 122}


def everything(sharded) -> dict[str, torch.Tensor]:
    """Every tensor of a model and its optimizers, whole."""
    flat: dict[str, object] = {}

    def collect(at: str, value) -> None:
        if isinstance(value, dict):
            for key, part in value.items():
                collect(f"{at}/{key}", part)
        else:
            flat[at] = value

    collect("", checkpoint.state(sharded))
    return sharding.whole(flat)


def save(made_for, path: Path, steps: int = 5, sharded: Sharded | None = None) -> dict[str, torch.Tensor]:
    """Train a few steps and write a checkpoint; return what it holds."""
    sharded = sharded or shard(made_for, CPU)
    rank, world = ranks.rank(), ranks.world()
    feed = iter([twins.part(batch, rank, world) for batch in twins.batches(made_for, steps)])
    sharded.module.train()
    sharded.set_rates(1.0)
    for _ in range(steps):
        sharded.pipeline.progress(feed)
    with checkpoint.Saver(sharded, made_for, path) as saver:
        saver.save(steps, {"best_step": steps})
        saver.wait()
    return everything(sharded)


def begin(made_for, path: Path) -> dict[str, torch.Tensor]:
    sharded = shard(made_for, CPU)
    warm_start.load(sharded, made_for, path)
    return everything(sharded)


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("growth", [{}, GROWN], ids=["same size", "grown"])
@pytest.mark.parametrize("before", [1, 2])
@pytest.mark.some(6)
def test_every_row_begins_as_the_one_that_its_ids_come_from(two_ranks, tmp_path, changes, growth, before):
    old, new = twins.recipe(**changes), twins.recipe(**changes, **growth)
    if before == 1:
        with ranks.alone(cuda=False):
            wanted = save(old, tmp_path)
        found = two_ranks.run(begin, new, run_folder.checkpoint(tmp_path, 5))[0]
    else:
        wanted = two_ranks.run(save, old, tmp_path)[0]
        with ranks.alone(cuda=False):
            found = begin(new, run_folder.checkpoint(tmp_path, 5))
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        rows = torch.arange(len(value)) % len(wanted[name]) if value.dim() else ...
        assert torch.equal(value, wanted[name][rows]), name
    if growth:
        longer = [name for name, value in found.items() if value.dim() and len(value) > len(wanted[name])]
        assert {"movie", "user"} == {name.split(".embeddings.")[1].split(".")[0] for name in longer}


ADAM_ROWS = {"optimizers__sparse": {"kind": "adam", "lr": 0.01, "eps": 1e-3}}


@pytest.mark.parametrize("changes", [{}, ADAM_ROWS], ids=["row-wise Adagrad", "Adam"])
@pytest.mark.parametrize("pooled_before", [True, False])
@pytest.mark.some(1)
def test_a_table_goes_on_pooled_or_not(two_ranks, tmp_path, changes, pooled_before):
    """A bag of max needs every embedding, so its table is pooled after the lookup."""
    pooled, apart = bags(**changes), bags(features__tags={"type": "bag", "table": "tag", "pooling": "max"}, **changes)
    assert [pools_where_rows_lie(each, "tag") for each in (pooled, apart)] == [True, False]
    old, new = (pooled, apart) if pooled_before else (apart, pooled)
    wanted = two_ranks.run(save, old, tmp_path)[0]
    new = new.model_copy(update={"tables": new.tables | {"tag": new.tables["tag"].model_copy(update={"rows": 100})}})
    with ranks.alone(cuda=False):
        found = begin(new, run_folder.checkpoint(tmp_path, 5))
    names = [name for name in wanted if name.endswith("tag.weight") or "/tag." in name]
    assert len(names) == (3 if changes else 2)
    for name in names:
        assert torch.equal(found[name], wanted[name][torch.arange(100) % 50]), name


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 20))
def test_rows_follow_one_another_modulo_the_old_table(first, size, rows):
    found = [(at + i, old + i) for at, old, count in warm_start._ranges(first, size, rows) for i in range(count)]
    assert found == [(at, (first + at) % rows) for at in range(size)]


@pytest.mark.parametrize("columns", [[], [(0, 4)], [(0, 1), (1, 4)]])
@pytest.mark.parametrize("cuts", [[0, 5, 10, 15, 20], [0, 7, 14, 20], [0, 3, 30], [0, 40]])
def test_a_rank_reads_the_old_rows_that_its_shard_needs_in_blocks(tmp_path, monkeypatch, columns, cuts):
    """Shards smaller than the old table, as more than two ranks have them: some begin at its end and go on at row 0."""
    old, row = torch.randn(10, 4) if columns else torch.randn(10), 16 if columns else 4
    monkeypatch.setattr(writing, "BLOCK", 3 * row)
    dcp.save({"part": {"t": old}}, checkpoint_id=tmp_path, planner=writing.Planner(), no_dist=True)
    read, load = [], torch.load
    monkeypatch.setattr(restore.torch, "load", lambda *given, **how: read.append(load(*given, **how)) or read[-1])
    reader = restore.Reader(tmp_path, {path.name for path in tmp_path.iterdir()})
    for first, stop in zip(cuts, cuts[1:], strict=False):
        rows = torch.arange(first, stop) % 10
        for low, high in columns or [(None, None)]:
            wanted = old[rows] if low is None else old[rows, low:high]
            live = sharded_of(
                torch.zeros_like(wanted), [first, *([] if low is None else [low])], [cuts[-1], *old.shape[1:]]
            )
            read.clear()
            warm_start._spread(live, reader, "part.t", 10)
            assert torch.equal(live.local_shards()[0].tensor, wanted)
            assert max(part.nbytes for part in read) <= 3 * row
            assert len(read) == len({int(row) // 3 for row in rows})
    whole = torch.zeros(cuts[-1], *old.shape[1:])  # as a table that every rank holds
    warm_start._spread(whole, reader, "part.t", 10)
    assert torch.equal(whole, old[torch.arange(cuts[-1]) % 10])


def sharded_of(piece: torch.Tensor, offsets: list[int], size: list[int]) -> ShardedTensorBase:
    """A sharded tensor of which this rank holds one piece."""
    shard_ = Shard.from_tensor_and_offsets(piece, offsets, 0)
    everything = ShardMetadata([0] * len(size), size, "rank:0/cpu")
    whole = ShardedTensorMetadata([everything], torch.Size(size), TensorProperties())
    return ShardedTensorBase._init_from_local_shards_and_global_metadata([shard_], whole)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return samples.write(tmp_path_factory.mktemp("samples"), rows=1000)


@pytest.fixture(scope="module")
def yesterday(data, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "yesterday"
    launch.train(samples.recipe(data, name="yesterday", train__epochs=1), run.parent)
    return run


def test_a_grown_model_answers_what_it_answered(yesterday, data):
    old = samples.recipe(data, train__epochs=1)
    new = samples.recipe(data, train__epochs=1, tables__movie__rows=2048, tables__user__rows=300)
    path = find_checkpoint(yesterday, "best")
    batch: Batch = twins.batches(old, 1)[0]
    with ranks.alone(cuda=False):
        sharded = shard(new, CPU)
        warm_start.load(sharded, new, path)
        grown = Model(new)
        grown.load_state_dict({name: value for name, value in _plain(sharded).items()})
    grown.eval()
    assert torch.equal(grown(batch.ids, batch.dense)["click"], plain_model(old, path)(batch.ids, batch.dense)["click"])


def _plain(sharded) -> dict[str, torch.Tensor]:
    return {name.removeprefix("/model/"): v for name, v in everything(sharded).items() if name.startswith("/model/")}


def test_a_run_goes_on_from_another_and_is_resumed_bitwise(yesterday, data, tmp_path):
    changes = {"train__warm_start": str(yesterday), "train__epochs": 1, "train__checkpoint_every": 5}
    whole = loop.train(loop.job(data, tmp_path / "whole", **changes))
    killed = loop.job(data, tmp_path / "killed", **changes)
    loop.train(killed, kill_at=3)  # before its first checkpoint: it begins again
    assert loop.same(whole, loop.train(killed))
    notes = [line["text"] for line in runlog.read(tmp_path / "whole") if line["kind"] == "note"]
    assert f"begins with {find_checkpoint(yesterday, 'best')}" in notes
    cold = loop.job(data, tmp_path / "cold", **{**changes, "train__warm_start": None})
    loop.train(cold)
    first = {name: loop.log(tmp_path / name)[0]["loss"] for name in ("whole", "cold")}
    assert first["whole"] < first["cold"] - 0.02


def begun(made_for, path: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What a run begins with after a warm start, and what it would begin with otherwise."""
    with ranks.alone(cuda=False):
        sharded = shard(made_for, CPU)
        cold = {name: value.clone() for name, value in everything(sharded).items()}
        warm_start.load(sharded, made_for, path)
        return everything(sharded), cold


def start(**more) -> dict:
    return {"train__warm_start": {"run": "earlier", **more}}


@pytest.fixture(scope="module")
def earlier(tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A checkpoint of `twins.recipe` with Adam in the dense part, and what is in it."""
    folder = tmp_path_factory.mktemp("earlier")
    with ranks.alone(cuda=False):
        kept = save(twins.recipe(optimizers__dense__kind="adam"), folder)
    return run_folder.checkpoint(folder, 5), kept


ADAM = {"optimizers__dense__kind": "adam"}
FIRST = "/model/dense.network.tower.linears.0.weight"
MORE = {
    "features__age": {"type": "dense"},
    "features__tag": {"type": "id", "table": "tag"},
    "tables__tag": {"rows": 10, "dim": 4},
}


def test_a_layer_keeps_the_columns_of_the_features_that_remain(earlier):
    """x is [ids, dense, histories]: of user 8, movie 8, (tag 4), rate 1, (age 1), the history 8 + 4."""
    path, kept = earlier
    found, cold = begun(twins.recipe(**ADAM, **MORE, **start()), path)
    same = [*range(16), 20, *range(22, 34)]
    others = [column for column in range(34) if column not in same]
    moment = FIRST.replace("/model/", "/optimizer_dense/model.") + "/exp_avg"
    assert kept[moment].any()
    for name in (FIRST, moment):
        assert torch.equal(found[name][:, same], kept[name])
        assert torch.equal(found[name][:, others], cold[name][:, others])
    assert torch.equal(found["/model/dense.normalise.mean"][:1], kept["/model/dense.normalise.mean"])
    for name, value in found.items():
        if name in kept and value.shape == kept[name].shape:
            assert torch.equal(value, kept[name]), name
        elif ".tag." in name:
            assert torch.equal(value, cold[name]), name


def changed(made_for, change, **start_):
    """A recipe after `change` of its mapping, with a warm start."""
    content = made_for.model_dump(mode="json")
    change(content)
    content["train"]["warm_start"] = {"run": "earlier", **start_}
    return type(made_for).model_validate(content)


def test_a_feature_in_the_place_of_another_is_not_taken_for_it(earlier):
    """Of the same width: its column begins anew where it lay, and all of the layer where it lies elsewhere."""
    path, kept = earlier

    def change(content):
        content["features"]["kind"] = content["features"].pop("rate")

    left_out = twins.recipe(**ADAM, **start(**{"except": ["features.rate"]}))
    for made_for in (changed(twins.recipe(**ADAM), change), left_out):
        found, cold = begun(made_for, path)
        others = [column for column in range(29) if column != 16]
        assert torch.equal(found[FIRST][:, 16], cold[FIRST][:, 16])
        assert torch.equal(found[FIRST][:, others], kept[FIRST][:, others])

    def move(content):
        content["features"] = {"new": {"type": "id", "table": "user"}} | content["features"]
        del content["features"]["user"]
        content["features"] |= {"movie": content["features"].pop("movie")}
        content["features"] = {"movie": content["features"].pop("movie")} | content["features"]

    moved = changed(twins.recipe(**ADAM), move)
    lines = {line.name: line for line in warm_start.plan(moved, path).lines}
    assert "it may read features or tasks that are others now" in lines["layers.tower.linears.0"].why
    found, _ = begun(changed(twins.recipe(**ADAM), change, map={"features.kind": "features.rate"}), path)
    assert torch.equal(found[FIRST], kept[FIRST])


def test_a_table_of_another_name_is_taken_where_it_is_mapped(earlier):
    path, kept = earlier
    at = "/model/tables.dim8.embeddings.{}.weight"
    state = "/optimizer_tables/model.tables.dim8.embeddings.{0}.weight/{0}.momentum1"

    def change(content):
        content["tables"]["video"] = content["tables"].pop("movie")
        for feature in content["features"].values():
            if feature.get("table") == "movie":
                feature["table"] = "video"

    found, _ = begun(changed(twins.recipe(**ADAM), change, map={"tables.video": "tables.movie"}), path)
    for name in (at, state):
        assert torch.equal(found[name.format("video")], kept[name.format("movie")])
        assert torch.equal(found[name.format("user")], kept[name.format("user")])
    found, cold = begun(changed(twins.recipe(**ADAM), change), path)
    assert torch.equal(found[at.format("video")], cold[at.format("video")])


TASKS = {"click": {"label": "label"}, "like": {"label": "like"}}
MMOE = {
    "model": {
        "kind": "mmoe",
        "attention": [{"query": ["movie"], "events": ["history"], "side": ["rating"]}],
        "attention_units": [8, 4],
        "tower_units": [8],
    }
}


def test_a_tower_goes_with_its_task(tmp_path):
    with ranks.alone(cuda=False):
        kept = save(twins.recipe(**MMOE, tasks=TASKS), tmp_path)
    path = run_folder.checkpoint(tmp_path, 5)
    new = twins.recipe(**MMOE, tasks={"gift": {"label": "gift"}, **TASKS}, **start())
    found, cold = begun(new, path)
    tower = "/model/dense.network.trunk.towers.{}.linears.0.weight"
    assert torch.equal(found[tower.format(0)], cold[tower.format(0)])
    assert torch.equal(found[tower.format(1)], kept[tower.format(0)])
    assert torch.equal(found[tower.format(2)], kept[tower.format(1)])
    lines = {line.name: (line.taken, line.why) for line in warm_start.plan(new, path).lines}
    assert lines["layers.trunk.towers.0.linears.0"] == ("nothing", "there was no such layer")
    assert lines["layers.trunk.towers.1.linears.0"] == ("all", "")


SWAPPED = dict(reversed(TASKS.items()))


@pytest.mark.parametrize("kind", ["mmoe", "cgc", "ple", "shared_bottom"])
def test_a_tower_of_as_many_layers_as_tasks_keeps_their_order(kind):
    model = MMOE["model"] | {"kind": kind, "tower_units": [8, 8]} | ({"experts": 2} if kind == "mmoe" else {})
    old, new = twins.recipe(model=model, tasks=TASKS), twins.recipe(model=model, tasks=SWAPPED)
    taken = fitting.fit(new, old, "old").taken
    own = [key for key in taken if any(f".{name}." in key for name in ("towers", "gates", "own"))]
    assert len([key for key in own if ".towers." in key]) == 2 * 3 * 2  # tasks, layers, weight and bias
    for key in own:
        parts = key.split(".")
        at = next(i for i, part in enumerate(parts) if part in ("towers", "gates", "own")) + 1
        parts[at] = str(1 - int(parts[at]))
        assert taken[key].key == ".".join(parts)
        assert not taken[key].places
    if kind == "ple":  # of one expert of either task, and a shared one
        here, there = taken["dense.network.trunk.levels.0.shared_gates.0.linear.weight"].places[0]
        assert dict(zip(here.tolist(), there.tolist(), strict=True)) == {0: 1, 1: 0, 2: 2}


def test_a_task_of_another_name_leaves_layers_that_are_not_its_own():
    """One task, and every perceptron has one hidden layer."""
    model = MMOE["model"] | {"expert_units": [8]}
    old, new = (twins.recipe(model=model, tasks={name: {"label": "label"}}) for name in ("click", "like"))
    for way, names in (({}, set()), ({"map": {"tasks.like": "tasks.click"}}, {"towers", "gates"})):
        asked = new.model_copy(update={"train": new.train.model_copy(update={"warm_start": WarmStart(run="x", **way)})})
        found = fitting.fit(asked, old, "old")
        whole = {line.name for line in found.lines if line.taken == "all"}
        assert {"layers.trunk.experts.first", "layers.bottom.histories.0.unit.rest.linears.0"} <= whole
        assert all(key == taken.key for key, taken in found.taken.items())
        assert {part for key in found.taken for part in key.split(".") if part in ("towers", "gates")} == names


NUMBER = {"label": "label", "kind": "regression"}


def test_the_last_layer_of_a_task_of_another_kind_begins_anew():
    old, new = (twins.recipe(**MMOE, tasks={"click": kind, "like": TASKS["like"]}) for kind in (TASKS["click"], NUMBER))
    lines = {line.name: line for line in fitting.fit(new, old, "old").lines}
    last = lines["layers.trunk.towers.0.last"]
    assert (last.taken, last.why) == ("nothing", "tasks.click was of kind binary and is of kind regression")
    for name in ("towers.0.linears.0", "gates.0.linear", "towers.1.last"):
        assert lines[f"layers.trunk.{name}"].taken == "all"
    old, new = (twins.recipe(tasks={"click": kind, "like": TASKS["like"]}) for kind in (TASKS["click"], NUMBER))
    here, there = fitting.fit(new, old, "old").taken["dense.network.tower.last.weight"].places[0]
    assert here.tolist() == there.tolist() == [1]


PART = {"type": "bucket", "column": "rate", "bounds": [10.0, 20.0, 30.0], "table": "part"}
STATED = {
    "features__part": PART,
    "features__pair": {"type": "cross", "of": ["user", "part"], "table": "pair"},
    "features__since": {"type": "age", "column": "rate"},
    "tables__part": {"rows": 16, "dim": 4, "hash": "modulo"},
    "tables__pair": {"rows": 16, "dim": 4},
}
BOUNDS = "/model/hash.transforms.of_part.bounds"


CUT = {"features__part": {"type": "bucket", "column": "rate", "quantiles": 4, "table": "part"}}


def measured(made_for, value: float):
    """A model as after the statistics of a training split are set."""
    sharded = shard(made_for, CPU)
    both = [{"rate": [number], "since": [number + 1]} for number in (value, 2 * value)]
    set_statistics(sharded.model, *both, {"part": [value, value + 1, value + 2]})
    return sharded


@pytest.fixture(scope="module")
def stated(tmp_path_factory) -> dict[str, tuple[Path, dict[str, torch.Tensor]]]:
    """A checkpoint with statistics, and what is in it: of buckets with bounds, and of quantiles."""
    out = {}
    with ranks.alone(cuda=False):
        for name, changes in (("bounds", STATED), ("quantiles", STATED | CUT)):
            made_for, folder = twins.recipe(**changes), tmp_path_factory.mktemp(name)
            out[name] = run_folder.checkpoint(folder, 5), save(made_for, folder, sharded=measured(made_for, 7.0))
    return out


AGE = STATED["features__since"]


def domains(*names: str):
    """FARM over histories that have these names, `seen` of movies and `shops` of users."""
    like = {"seen": "movie", "shops": "user"}
    histories = {name: {"type": "sequence", "table": like[name], "max_length": 6} for name in names}
    model = {"kind": "farm", "attention": [{"query": [like[name]], "events": [name]} for name in names], "width": 6}
    features = {"user": {"type": "id", "table": "user"}, "movie": {"type": "id", "table": "movie"}, **histories}
    model |= {"heads": 2, "shared": 1, "own": 1, "expert_units": [4], "tower_units": [4]}
    tables = {"user": {"rows": 61, "dim": 8}, "movie": {"rows": 40, "dim": 8}}
    return twins.recipe(features=features, model=model, tables=tables)


def test_domains_of_farm_go_by_their_histories_and_not_by_their_places():
    """Both in the other order, and one that has come before the one that was there."""
    both, turned, alone = domains("seen", "shops"), domains("shops", "seen"), domains("seen")
    found = fitting.fit(turned, both, "earlier")
    assert {line.taken for line in found.lines if not line.name.startswith("layers.trunk")} == {"all"}
    lists = ("domains", "filters", "units", "fuse.positions", "fuse.blocks", "fuse.crosses", "fuse.norms")
    for place in lists:
        own = {key: taken.key for key, taken in found.taken.items() if f"dense.network.{place}." in key}
        assert own
        for key, was in own.items():
            here, there = (int(name.partition(f"{place}.")[2].partition(".")[0]) for name in (key, was))
            assert here == 1 - there
    grown = fitting.fit(turned, alone, "earlier")
    of = {name: {key for key in grown.taken if f".{name}." in key} for name in ("domains.0", "domains.1", "norms.1")}
    assert not of["domains.0"]
    assert {grown.taken[key].key.replace("domains.0", "domains.1") for key in of["domains.1"]} == of["domains.1"]
    assert of["norms.1"]


@pytest.mark.parametrize(
    ("before", "changes", "others"),
    [
        ("bounds", {}, set()),
        ("quantiles", CUT, set()),
        ("bounds", {"features__part": PART | {"bounds": [1.0, 2.0, 3.0]}}, {"part", "pair"}),
        ("quantiles", {}, {"part", "pair"}),
        ("bounds", CUT, {"part", "pair"}),
        ("bounds", {"features__pair": {"type": "cross", "of": ["part", "user"], "table": "pair"}}, {"pair"}),
        ("bounds", {"features__rate": {"type": "dense", "log1p": True}}, {"rate"}),
        ("bounds", {"features__rate": {"type": "dense", "clip": [0.0, 1.0]}}, {"rate"}),
        ("bounds", {"features__rate": {"type": "dense", "missing_flag": True}}, {"rate"}),
        ("bounds", {"features__since": AGE | {"per": "hours"}}, {"since"}),
        ("bounds", {"features__since": AGE | {"unit": "ms"}}, {"since"}),
        ("bounds", {"features__history": {"type": "sequence", "table": "movie", "max_length": 5}}, set()),
    ],
)
@pytest.mark.some(3)
def test_what_belongs_to_other_values_of_a_feature_begins_anew(stated, before, changes, others):
    """x is [user 8, movie 8, part 4, pair 4, rate 1 or 2, since 1, history 12]."""
    path, kept = stated[before]
    made_for = twins.recipe(**STATED | changes, **start())
    with ranks.alone(cuda=False):
        sharded = measured(made_for, 3.0)
        cold = {name: value.clone() for name, value in everything(sharded).items()}
        warm_start.load(sharded, made_for, path)
        found = everything(sharded)

    def begins(name: str, here=..., there=..., anew: bool = False) -> None:
        assert torch.equal(found[name][here], (cold if anew else kept)[name][here if anew else there]), name

    begins(BOUNDS, anew="part" in others)
    for table in ("part", "pair"):
        begins(f"/model/tables.dim4.embeddings.{table}.weight", anew=table in others)
    wide = made_for.features["rate"].missing_flag + 1
    for name in ("mean", "std"):
        begins(f"/model/dense.normalise.{name}", 0, 0, "rate" in others)
        begins(f"/model/dense.normalise.{name}", wide, 1, "since" in others)
    at = 0
    for feature, width in {"user": 8, "movie": 8, "part": 4, "pair": 4, "rate": 1, "since": 1, "history": 12}.items():
        more = wide - 1 if feature in ("since", "history") else 0
        here, there = ((slice(None), slice(begin, begin + width)) for begin in (at + more, at))
        begins(FIRST, here, there, feature in others)
        at += width
    if others:
        lines = {line.name: line for line in warm_start.plan(made_for, path).lines}
        for table in others & {"part", "pair"}:
            assert "makes other values of its column than before" in lines[f"tables.{table}"].why


STATE = "without its optimizer's state"
NO_MULTIPLE = "its rows were 40 and 50 are no whole multiple of that"


@pytest.mark.parametrize(
    ("changes", "name", "taken", "why"),
    [
        ({"tables__movie__rows": 50}, "tables.movie", "nothing", NO_MULTIPLE),
        ({"tables__rating__dim": 8}, "tables.rating", "nothing", "its dim was 4 and is 8"),
        ({"tables__rating__hash": "mix"}, "tables.rating", "nothing", "its hash was modulo and is mix"),
        ({"tables__user__dtype": "float16"}, "tables.user", "all", ""),
        ({"tables__user__sharding": "data_parallel"}, "tables.user", "all", ""),
        ({"tables__user__optimizer": {"kind": "sgd"}, "tables__movie__rows": 80}, "tables.user", "all", STATE),
        ({"model__units": [16, 12]}, "layers.tower.linears.1", "nothing", "its shape was"),
        (start(only=["tables.user", "layers"]), "tables.movie", "nothing", "it is left out"),
        (start(**{"except": ["tables.user", "layers.tower"]}), "layers.tower.linears.0", "nothing", "it is left out"),
    ],
)
def test_what_is_taken_and_why_not_is_told(earlier, tmp_path, changes, name, taken, why):
    path, kept = earlier
    made_for = twins.recipe(**ADAM, **start() | changes)
    lines = {line.name: line for line in warm_start.plan(made_for, path).lines}
    assert lines[name].taken == taken
    assert why in lines[name].why
    found, cold = begun(made_for, path)
    last = f".{name.partition('.')[2]}.weight"
    at, before = (
        next(key for key in tree if key.startswith("/model/") and key.endswith(last)) for tree in (found, kept)
    )
    assert torch.allclose(found[at], kept[before] if taken == "all" else cold[at], atol=1e-3)
    told = warm_start.tell(made_for, path, tmp_path)
    assert name in (tmp_path / warm_start.NAME).read_text()
    assert any(line.startswith(f"{name}: ") for line in told) == bool(why)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("nowhere", r"train.warm_start: nowhere: this folder holds no run"),
        (
            {"map": {"tables.movei": "tables.movie"}},
            r"this recipe has no 'tables.movei' \(did you mean 'tables.movie'",
        ),
        ({"map": {"tables.movie": "tables.x"}}, r"map: the earlier run has no 'tables.x'"),
        ({"map": {"tables.movie": "features.movie"}}, r"are of different kinds; map like to like"),
        ({"only": ["tables.usr"]}, r"warm_start.only: there is no 'tables.usr' here \(did you mean 'tables.user'"),
        ({"except": ["layer.tower"]}, r"train.warm_start.except: there is no 'layer.tower' here"),
        ({"only": ["tables"], "except": ["tables"]}, r"train.warm_start: .*nothing of this checkpoint fits the recipe"),
    ],
)
def test_what_cannot_be_taken_is_said_before_anything_starts(yesterday, data, tmp_path, section, message):
    section = section if isinstance(section, str) else section | {"run": str(yesterday)}
    with pytest.raises(BadInput, match=message):
        launch.train(samples.recipe(data, train__warm_start=section), tmp_path)
    assert not (tmp_path / "small" / "config.yaml").exists()


def test_a_damaged_start_is_refused(yesterday, data, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(yesterday, copy)
    shard_file = next(find_checkpoint(copy, "best").glob("*.distcp"))
    shard_file.write_bytes(shard_file.read_bytes()[:-1])
    made = loop.job(data, tmp_path / "run", train__warm_start=str(copy))
    with pytest.raises(
        BadInput, match="train.warm_start: .* is damaged: .*; start from another run, or leave train.warm_start out"
    ):
        loop.train(made)
