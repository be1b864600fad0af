"""A base and its deltas are the full export of the same checkpoint, to the last bit, and a server has them whole."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from livetrain.cli import main as cli
from livetrain.configs.errors import BadInput
from livetrain.configs.load import dump_recipe
from livetrain.configs.schema import Recipe
from livetrain.modules.serving import deltas as files
from livetrain.modules.serving.loading import load
from livetrain.trainers.data.read.reader import Reader
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.export import deltas, publish
from livetrain.trainers.export import kept as keeping
from livetrain.trainers.export.deltas import NeedsBase, publish_delta, publish_next
from livetrain.trainers.export.export import export
from livetrain.trainers.export.kept import Kept
from livetrain.trainers.export.served import Served
from livetrain.trainers.online.request_log import RequestLog
from livetrain.trainers.runtime import manifest, place, ranks, reach, run_folder
from livetrain.trainers.train import checkpoint, ids, tracking
from livetrain.trainers.train.sharding import shard
from tests import samples
from tests.cases import often
from tests.trainers.online import logged

CPU = torch.device("cpu")
MAPPED = {"export__tables": "mapped"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return samples.write(tmp_path_factory.mktemp("deltas") / "data", 400)


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch) -> None:
    monkeypatch.setattr(reach, "DEADLINE_S", 0.0)


def folder_of(path: Path, recipe: Recipe) -> Path:
    """Make a run's folder."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.yaml").write_text(dump_recipe(recipe))
    return path


class Line:
    """A training that goes on, in this process or on the ranks of a group; it goes on from its newest checkpoint."""

    def __init__(self, run: Path, recipe: Recipe, track: bool = True) -> None:
        self.run, self.recipe = run, recipe
        self.sharded = shard(recipe, CPU)
        if track:
            tracking.track(self.sharded)
        found = checkpoint.load_latest(self.sharded, recipe, run)
        self.step = found["step"] if found else 0
        self.sharded.module.train()
        reader = Reader(Source.open(recipe, "train"), recipe, rank=ranks.rank(), world=ranks.world(), shuffle=True)
        self._feed = (batch for epoch in range(10**6) for batch in reader.batches(epoch))

    def go(self, steps: int) -> "Line":
        for _ in range(steps):
            self.sharded.set_rates(1.0)
            ranks.seed_step(1, self.step)
            self.sharded.pipeline.progress(self._feed)
            self.step += 1
        return self

    def save(self) -> "Line":
        with checkpoint.Saver(self.sharded, self.recipe, self.run) as saver:
            saver.save(self.step, {"best_step": None})
            saver.wait()
        return self


@contextlib.contextmanager
def line(run: Path, recipe: Recipe, track: bool = True) -> Iterator[Line]:
    with ranks.alone(cuda=False):
        yield Line(folder_of(run, recipe), recipe, track)


def command(monkeypatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["livetrain", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


def state(model: torch.jit.ScriptModule) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_is_the_export(served: Served, run: Path, out: Path, names: tuple[str, ...] = ("model.pt",)) -> None:
    """See that a server has what a full export of the last checkpoint has, bit for bit, and its scores."""
    export(run, "last", out, served.signature["quantize"])
    golden = deltas.golden_inputs(json.loads((out / "golden.json").read_text()))
    with served.use() as models:
        for name in names:
            whole = load(out, name)
            found, wanted = state(models[name]), state(whole)
            assert found.keys() == wanted.keys()
            for key, value in wanted.items():
                assert torch.equal(found[key], value), key
            ours, theirs = models[name](*golden), whole(*golden)
            if name == "model.pt":
                assert all(torch.equal(ours[task], theirs[task]) for task in theirs)
            else:
                assert torch.equal(ours, theirs)


@pytest.fixture(scope="module")
def once(data, tmp_path_factory) -> Path:
    """The folder of a training whose base, of step 3, and one delta, of step 4, are published."""
    folder = tmp_path_factory.mktemp("once")
    with line(folder / "run", samples.recipe(data)) as training:
        training.go(3).save()
        publish_next(training.run, str(folder / "models"), "2026-11-30", 3)
        training.go(1).save()
        publish_delta(training.run, str(folder / "models"))
    return folder


@pytest.fixture
def published(once, data, tmp_path) -> Iterator[tuple[Line, str]]:
    """That training, going on, and where it is published."""
    for part in ("run", "models"):
        shutil.copytree(once / part, tmp_path / part)
    with line(tmp_path / "run", samples.recipe(data)) as training:
        yield training, str(tmp_path / "models")


def assert_is_up_to_date(served: Served, where: str) -> None:
    """See that a server has what one has that begins now."""
    with served.use() as ours, Served(where).use() as theirs:
        found, wanted = state(ours["model.pt"]), state(theirs["model.pt"])
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


DSSM = {
    "model": {"kind": "dssm", "key": "movie", "units": [8], "width": 4},
    "features": {
        "user": {"type": "id", "table": "user"},
        "movie": {"type": "id", "table": "movie"},
        "history": {"type": "sequence", "table": "movie", "max_length": 6},
    },
    "tables": {
        "user": {"rows": 100, "dim": 8, "hash": "modulo", "sharding": "row_wise"},
        "movie": {"rows": 512, "dim": 8, "sharding": "table_wise"},
    },
    "tasks": {"click": {"label": "label", "kind": "retrieval"}},
}


@pytest.mark.parametrize(
    "changes",
    often(
        {
            "one file": {},
            "mapped": MAPPED,
            "float16": MAPPED | {"export__quantize": "float16"},
            "8 bits": {"export__quantize": "int8"},
            "8 bits, mapped": MAPPED | {"export__quantize": "int8"},
            "Adam and a mean": MAPPED | {"optimizers__sparse": {"kind": "adam", "lr": 0.01}, "optimizers__ema": 0.9},
            "decay": {"optimizers__sparse__weight_decay": 0.1},
            "a table is frozen": {"tables__movie__frozen": True},
            "trained in float16": {"tables__user__dtype": "float16", "tables__user__sharding": "row_wise"},
        },
        ("Adam and a mean",),
    ),
)
def test_base_and_deltas_are_the_export(data, tmp_path, changes):
    loose = {"export__tolerance_int8": 1.0, "export__tolerance_float16": 1.0}
    where = str(tmp_path / "models")
    with line(tmp_path / "run", samples.recipe(data, **changes, **loose)) as training:
        training.go(2).save()
        first = publish_next(training.run, where, "2026-11-30", 3)
        served = Served(where)
        for number in (1, 2, 3):
            training.go(1).save()
            pointer = publish_delta(training.run, where, share=1e9)
            assert [each["number"] for each in pointer["deltas"]] == [*range(1, number + 1)]
            assert (pointer["folder"], pointer["fence"]) == (first["folder"], number + 1)
            if number != 2:  # one at a time, and two at once
                assert served.refresh()
        assert served.number == 3
        assert not served.refresh()
        assert_is_the_export(served, training.run, tmp_path / "whole")
        assert_is_up_to_date(served, where)
        assert publish.damage(where, pointer) is None


@pytest.mark.slow
def test_fifty_deltas_and_the_export_are_one(data, tmp_path):
    where = str(tmp_path / "models")
    recipe = samples.recipe(data, **MAPPED, data__batch_size=12, tables__movie__rows=50_000)
    with line(tmp_path / "run", recipe) as training:
        training.go(1).save()
        publish_next(training.run, where, "2026-11-30", 3)
        served = Served(where)
        for _ in range(50):
            training.go(1).save()
            pointer = publish_delta(training.run, where, share=1e9)
            served.refresh()
        assert served.number == len(pointer["deltas"]) == 50
        assert all(each["rows"] < 500 for each in pointer["deltas"])  # it is what changed, not the table
        assert_is_the_export(served, training.run, tmp_path / "whole")
        assert_is_up_to_date(served, where)


SHARDINGS = ("row_wise", "table_wise", "data_parallel", "column_wise", "grid", "table_row_wise")


@pytest.mark.slow
@given(
    seed=st.integers(0, 2**16),
    counts=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    user=st.sampled_from(SHARDINGS[:4]),
)
@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_is_trained_when(data, tmp_path_factory, seed, counts, user):
    """Random steps between publications: base and deltas are the export."""
    folder = tmp_path_factory.mktemp("any")
    recipe = samples.recipe(
        data, train__seed=seed, optimizers__sparse={"kind": "sgd", "lr": 0.1}, tables__user__sharding=user
    )
    with line(folder / "run", recipe) as training:
        training.go(1).save()
        publish_next(training.run, str(folder / "models"), "a", 3)
        for count in counts:
            training.go(count).save()
            publish_delta(training.run, str(folder / "models"), share=1e9)
        assert_is_the_export(Served(str(folder / "models")), training.run, folder / "whole")


WAYS = {
    "rows, tables and replicas": {"tables__rating__sharding": "data_parallel"},
    "columns": {
        "optimizers__sparse": {"kind": "sgd", "lr": 0.1},
        "tables__movie__sharding": "column_wise",
        "tables__rating__sharding": "row_wise",
    },
    "rows of one node": {"optimizers__sparse": {"kind": "sgd", "lr": 0.1}, "tables__user__sharding": "table_row_wise"},
}


def on_ranks(run: Path, recipe: Recipe, steps: int) -> dict[str, list[int]]:
    """Train on and save; return the rows that this rank saw change, by table."""
    ranks.of_sums(False, timedelta(seconds=60))
    training = Line(run, recipe).go(steps).save()
    pieces = training.sharded.changes.pieces
    return {name: ((piece.last > 0).nonzero().squeeze(1) + piece.first).tolist() for name, piece in pieces.items()}


@pytest.mark.parametrize("changes", often(WAYS, ("rows, tables and replicas",)))
def test_two_ranks_lose_no_change_and_one_goes_on(two_ranks, data, tmp_path, changes):
    recipe, run, where = samples.recipe(data, **changes), tmp_path / "run", str(tmp_path / "models")
    folder_of(run, recipe)
    two_ranks.run(on_ranks, run, recipe, 2)
    publish_next(run, where, "a", 3)
    for _ in range(2):
        found = two_ranks.run(on_ranks, run, recipe, 1)  # each goes on from the checkpoint
        publish_delta(run, where, share=1e9)
    assert all(found[0].keys() | found[1].keys() >= {"user", "movie", "rating"} for _ in found)
    assert_is_the_export(Served(where), run, tmp_path / "whole")
    with line(run, recipe) as training:
        training.go(2).save()
        pointer = publish_delta(run, where, share=1e9)
        assert len(pointer["deltas"]) == 3
        assert_is_the_export(Served(where), run, tmp_path / "whole")


def test_both_towers_are_brought_up_to_date(data, tmp_path):
    where = str(tmp_path / "models")
    with line(tmp_path / "run", samples.recipe(data, **DSSM)) as training:
        training.go(1).save()
        publish_next(training.run, where, "a", 3)
        served = Served(where, ["model.pt", "user.pt", "item.pt"])
        training.go(1).save()
        publish_delta(training.run, where)
        assert served.refresh()
        assert_is_the_export(served, training.run, tmp_path / "whole", ("model.pt", "user.pt", "item.pt"))


def test_what_was_published_already_is_not_published_again(published):
    training, where = published
    before = publish.current(where)
    assert publish_delta(training.run, where) == before == publish.current(where)
    assert deltas.newest(before)["step"] == training.step


@pytest.mark.slow
def test_a_lost_publication_is_in_the_next_one(published, tmp_path):
    training, where = published
    with_one = publish.current(where)
    training.go(1).save()
    publish_delta(training.run, where)
    place.open_place(where).remove(publish.POINTER)  # as though the pointer had never been written
    assert place.open_place(where).swap(publish.POINTER, None, publish._encoded(with_one))
    training.go(1).save()
    assert len(publish_delta(training.run, where)["deltas"]) == 2
    assert_is_the_export(Served(where), training.run, tmp_path / "whole")


def test_marked_rows_are_published(published, tmp_path):
    training, where = published
    changes = training.sharded.changes
    ((_, weight, _, _),) = [each for each in training.sharded.shards() if each[0] == "movie"]
    seen = changes.pieces["movie"].last
    row = int((seen == 0).nonzero()[0])
    weight[row] = 7.0
    changes.mark("movie", torch.tensor([row]))
    training.go(1).save()
    publish_delta(training.run, where)
    assert_is_the_export(Served(where), training.run, tmp_path / "whole")


def test_a_row_that_changed_untold_stops_the_delta(published):
    training, where = published
    before = publish.current(where)
    for table, weight, _, _ in training.sharded.shards():
        if table == "user":
            weight += 1e-3
    training.sharded.changes.pieces["user"].last.zero_()
    training.go(1).save()
    with pytest.raises(NeedsBase, match=r"lookups.*of a server that takes this delta in would not be the checkpoint's"):
        publish_delta(training.run, where)
    assert publish.current(where) == before
    assert len(os.listdir(Path(where) / before["folder"] / "deltas")) == 1
    assert "deltas" not in publish_next(training.run, where, "2026-12-01", 3)


def test_a_damaged_base_is_replaced_by_another(published, tmp_path):
    training, where = published
    flip(Path(where) / publish.current(where)["folder"] / "model.pt")
    training.go(1).save()
    assert "deltas" not in publish_next(training.run, where, "2026-12-01", 3)
    assert_is_the_export(Served(where), training.run, tmp_path / "whole")


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """The published folders that were read whole, in their order."""
    found, whole = [], Served._fetched

    def fetched(served: Served, folder: str, *more: Any) -> Any:
        found.append(folder)
        return whole(served, folder, *more)

    monkeypatch.setattr(Served, "_fetched", fetched)
    return found


def test_a_request_is_explained_by_what_servers_have(published, data, tmp_path, capsys):
    training, where = published
    recipe = samples.recipe(data)
    (tmp_path / recipe.name).symlink_to(training.run)
    rows = pa.concat_tables(pq.read_table(path) for path in sorted((data / "test").glob("*.parquet"))).slice(0, 9)
    table = logged.write(tmp_path / "log", rows, list(range(9)), recipe, ["user", "history", "rating"])
    asked = RequestLog(table.slice(4, 1), recipe, "log").inputs()
    with Served(where).use() as models, torch.inference_mode():
        scores = models["model.pt"].rank(*asked)["click"].tolist()
        base = load(Path(where) / publish.current(where)["folder"]).rank(*asked)["click"].tolist()
    assert scores != pytest.approx(base, abs=1e-6)  # the delta moved them
    every = pa.array([scores if row == 4 else None for row in range(9)], pa.list_(pa.float32()))
    for path in (tmp_path / "log").rglob("*.parquet"):
        pq.write_table(table.append_column("scores.click", every), path)
    command = ["explain", str(tmp_path / "log"), "--request", "r4", "--run", where, "--runs", str(tmp_path), "--json"]
    assert not cli.app(command, standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert found["request"]["largest difference from the logged scores"] < 1e-6


def test_a_base_is_read_once_for_all_deltas(published, read, tmp_path):
    training, where = published
    kept = Kept(where)
    for _ in range(3):
        publish_delta(training.go(1).save().run, where, share=1e9, kept=kept)
    pointer = publish.current(where)
    folders = [pointer["folder"], *(each["folder"] for each in pointer["deltas"])]
    assert read == folders[:-1]  # each once, as it lies in the place; the last one when the next is due
    assert_is_the_export(Served(where), training.run, tmp_path / "whole")


def spoilt(training: Line, where: str, kept: Kept, monkeypatch) -> None:
    """Have a delta tried on what is kept that is not published, and holds other rows than the next."""
    training.go(1).save()
    with monkeypatch.context() as patched:
        patched.setattr(publish, "extend", lambda *_, **__: (_ for _ in ()).throw(BadInput("the place is full")))
        with pytest.raises(BadInput, match="the place is full"):
            publish_delta(training.run, where, share=1e9, kept=kept)


def foreign(training: Line, where: str, kept: Kept, monkeypatch) -> None:
    publish_delta(training.go(1).save().run, where, share=1e9)  # by one that keeps its own


def written(training: Line, where: str, kept: Kept, monkeypatch) -> None:
    path = Path(where) / publish.current(where)["folder"] / "model.pt"
    os.utime(path, (1.0, 1.0))


def often_lent(training: Line, where: str, kept: Kept, monkeypatch) -> None:
    monkeypatch.setattr(keeping, "ANEW", 1)


@pytest.mark.some(2)
@pytest.mark.parametrize("what", [spoilt, foreign, written, often_lent])
def test_what_is_kept_is_read_anew_where_it_may_be_another(published, read, tmp_path, monkeypatch, what):
    training, where = published
    kept, base = Kept(where), publish.current(where)["folder"]
    publish_delta(training.go(1).save().run, where, share=1e9, kept=kept)
    what(training, where, kept, monkeypatch)
    before = read.count(base)
    publish_delta(training.go(1).save().run, where, share=1e9, kept=kept)
    assert read.count(base) == before + 1
    assert_is_the_export(Served(where), training.run, tmp_path / "whole")


def test_a_base_that_is_damaged_after_it_was_read_is_replaced(published, tmp_path):
    training, where = published
    kept, said = Kept(where), []
    publish_delta(training.go(1).save().run, where, share=1e9, kept=kept)
    flip(Path(where) / publish.current(where)["folder"] / "model.pt")
    training.go(1).save()
    assert "deltas" not in publish_next(training.run, where, "2026-12-01", 3, share=1e9, kept=kept, say=said.append)
    (text,) = said
    assert re.fullmatch(r"2026-12-01 becomes a base, as no delta can follow: .*model.pt is damaged.*", text)
    assert "publish a new base" not in text
    assert_is_the_export(Served(where), training.run, tmp_path / "whole")


def test_a_server_that_begins_with_a_damaged_base_asks_for_another(published):
    training, where = published
    base = Path(where) / publish.current(where)["folder"]
    flip(base / "model.pt")
    with pytest.raises(BadInput, match=r"model.pt is damaged"):
        Served(where)
    assert "model.pt is damaged" in (base / "wanted.txt").read_text()


def test_a_place_that_is_away_is_no_reason_for_a_new_base(published, monkeypatch):
    training, where = published
    served, pointer = Served(where), publish_delta(training.go(1).save().run, where)
    reads = place.Folder.read

    def away(folder: place.Folder, name: str) -> Any:
        if name != publish.POINTER:
            raise OSError("the network is away")
        return reads(folder, name)

    with monkeypatch.context() as patched:
        patched.setattr(place.Folder, "read", away)
        with pytest.raises(BadInput, match="the network is away"):
            served.refresh()
    assert not (Path(where) / pointer["folder"] / "wanted.txt").exists()
    assert served.refresh()


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("nothing", "nothing is published here"),
        ("untracked", "does not track which rows change"),
        ("another", "is of another training"),
        ("late", "changes are known from step 4 on"),
        ("many", "has 1 deltas, and 1 are the most"),
        ("large", "its deltas take .*% of its own size"),
        ("asked", "a server asks for a new base .why."),
    ],
)
def test_a_new_base_is_due_where(published, data, tmp_path, case, says):
    training, where = published
    more: dict[str, Any] = {"many": {"most": 1}, "large": {"share": 0.01}}.get(case, {})
    run = training.run
    if case == "nothing":
        where = str(tmp_path / "elsewhere")
    elif case == "asked":
        (Path(where) / publish.current(where)["folder"] / "wanted.txt").write_text("why")
    training.go(1).save()
    if case in ("untracked", "another", "late"):
        path = run_folder.committed(run)[-1]
        content = manifest.read(path)
        kept = {"untracked": None, "another": {"lineage": "0", "since": 0}}.get(
            case, content["changes"] | {"since": training.step}
        )
        content |= {"changes": kept}
        says = says.replace("step 4", f"step {training.step}")
        if kept is None:
            del content["changes"]
        manifest.write_json(path / manifest.MANIFEST, content)
        manifest_files = content.pop("files")
        manifest.commit(path, manifest_files, **content)
    with pytest.raises(NeedsBase, match=says) as raised:
        publish_delta(run, where, **more)
    assert len(str(raised.value)) < 300
    if case in ("many", "asked"):
        pointer = publish_next(run, where, "b", 3, **more)
        assert "deltas" not in pointer
        assert Served(where).pointer["folder"].startswith("b.")


def test_an_older_checkpoint_is_not_published(published):
    training, where = published
    first = run_folder.committed(training.run)[0]
    training.go(1).save()
    publish_delta(training.run, where)
    with pytest.raises(BadInput, match=r"is published, and this checkpoint is of step 4; train on") as raised:
        publish_delta(training.run, where, run_folder.committed(training.run)[-2])
    assert not isinstance(raised.value, NeedsBase)
    assert first


@pytest.mark.some(1)
@pytest.mark.parametrize("left", [1, 0], ids=["one is left", "none is left"])
def test_no_delta_follows_on_what_a_damaged_checkpoint_had(published, data, left):
    """The steps that are done anew may move other rows, and by other values, than those that are published."""
    training, where = published
    training.go(1).save()
    publish_delta(training.run, where)
    paths = run_folder.committed(training.run)
    begun, kept = paths[0], [run_folder.content(path)["changes"]["lineage"] for path in paths]
    assert len(set(kept)) == 1
    for path in paths[left:]:
        flip(next(path.glob("*.distcp")))
    again = Line(training.run, training.recipe)  # falls back, and comes to step 5 and further with other rows
    assert again.step == (run_folder.content(begun)["step"] if left else 0)
    again.go(6).save()
    assert run_folder.content(run_folder.committed(training.run)[-1])["changes"]["lineage"] not in kept
    with pytest.raises(NeedsBase, match="is of another training"):
        publish_delta(training.run, where)
    assert "deltas" not in publish_next(training.run, where, "2026-12-01", 3)
    assert (
        Line(training.run, training.recipe).go(1).save().step == again.step + 1
    )  # who goes on from the newest keeps it
    assert len(publish_delta(training.run, where, share=1e9)["deltas"]) == 1


def test_who_begins_with_anothers_checkpoint_has_a_lineage_of_its_own(published):
    training, _ = published
    other, path = shard(training.recipe, CPU), run_folder.committed(training.run)[-1]
    tracking.track(other)
    drawn = other.changes.lineage
    checkpoint.load(other, training.recipe, path)
    assert other.changes.lineage == drawn
    checkpoint.load(other, training.recipe, path, resume=True)
    assert other.changes.lineage == run_folder.content(path)["changes"]["lineage"]


DAMAGE = {
    "missing numbers": lambda folder: (folder / files.NUMBERS).unlink(),
    "another bit": lambda folder: flip(folder / files.NUMBERS),
    "another index": lambda folder: (folder / files.INDEX).write_text("{}"),
    "no manifest": lambda folder: (folder / manifest.MANIFEST).unlink(),
    "another manifest": lambda folder: (folder / manifest.MANIFEST).write_text('{"files": {}}'),
}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("hurt", often(DAMAGE, ("another bit",)))
def test_a_damaged_delta_is_not_taken_in_and_a_base_is_asked_for(published, hurt):
    training, where = published
    served = Served(where)
    training.go(1).save()
    pointer = publish_delta(training.run, where)
    folder = Path(where) / pointer["deltas"][-1]["folder"]
    with served.use() as models:
        before = state(models["model.pt"])
    hurt(folder)
    assert publish.damage(where, pointer) is not None
    for _ in range(2):
        with pytest.raises(BadInput) as raised:
            served.refresh()
        assert len(str(raised.value)) < 400
        assert served.number == 1
        with served.use() as models:
            assert all(torch.equal(value, before[name]) for name, value in models["model.pt"].state_dict().items())
    training.go(1).save()
    with pytest.raises(NeedsBase, match="a server asks for a new base"):
        publish_delta(training.run, where)
    publish_next(training.run, where, "2026-12-01", 3)
    assert served.refresh()
    assert_is_up_to_date(served, where)


def test_a_foreign_delta_is_not_taken_in(published, data, tmp_path):
    training, where = published
    with_one = publish.current(where)
    served = Served(where)
    training.go(1).save()
    second = publish_delta(training.run, where)["deltas"][-1]
    first = Path(where) / with_one["deltas"][-1]["folder"]
    content = manifest.read(first)
    with pytest.raises(BadInput, match="this is delta 1 of .*, and 2 of .* is due"):
        served.take(first, content)
    other = manifest.read(Path(where) / second["folder"])
    with pytest.raises(BadInput, match="this is delta 2 of another, and 2 of"):
        served.take(Path(where) / second["folder"], other | {"base": "another"})
    pointer = publish.current(where)
    pointer["deltas"] = [pointer["deltas"][0], {**pointer["deltas"][0], "number": 2}]
    (Path(where) / publish.POINTER).write_text(json.dumps(pointer))
    with pytest.raises(BadInput, match="does not follow on the delta before it"):
        served.refresh()


def test_fences_rise_and_a_server_never_goes_back(published, tmp_path):
    training, where = published
    pointer, old = Path(where) / publish.POINTER, (Path(where) / publish.POINTER).read_text()
    training.go(1).save()
    assert publish_delta(training.run, where)["fence"] == 3
    served = Served(where)
    new = pointer.read_text()
    pointer.write_text(old)
    assert not served.refresh()
    assert served.number == 2
    pointer.write_text(new)
    assert not served.refresh()
    publish_next(training.go(1).save().run, where, "2026-12-01", 3, most=2)
    assert served.refresh()
    assert (served.number, served.pointer["fence"]) == (0, 4)
    publish.rollback(where)  # to the version before with its deltas
    assert served.refresh()
    assert (served.number, served.pointer["fence"]) == (2, 5)
    assert served.pointer["folder"].startswith("2026-11-30")
    with pytest.raises(NeedsBase, match="took back what followed on it"):
        publish_delta(training.go(1).save().run, where)


def test_a_base_is_served_with_the_deltas_that_are_listed_or_not_at_all(published, monkeypatch):
    training, where = published
    served, take, seen = Served(where), Served._take, []

    def looked(self: Served, *arguments: Any) -> None:
        seen.append((self.pointer["folder"], self.number))
        take(self, *arguments)

    before = [(served.pointer["folder"], served.number)]
    publish_next(training.go(1).save().run, where, "2026-12-01", 3, most=0)
    pointer = publish_delta(training.go(1).save().run, where)
    monkeypatch.setattr(Served, "_take", looked)
    assert served.refresh()
    assert seen == before
    monkeypatch.undo()
    assert_is_up_to_date(served, where)
    publish_next(training.go(1).save().run, where, "2026-12-02", 3, most=0)
    delta = Path(where) / publish_delta(training.go(1).save().run, where)["deltas"][0]["folder"]
    (delta / "delta.bin").write_bytes((delta / "delta.bin").read_bytes()[:-1])
    with pytest.raises(BadInput, match=r"delta.bin"):
        served.refresh()
    assert (served.pointer, served.number) == (pointer, 1)


def test_of_two_publishers_one_succeeds(published, monkeypatch):
    training, where = published
    training.go(1).save()
    copy, won = publish._copy, []

    def slowly(*arguments: Any) -> None:
        copy(*arguments)
        if not won:
            won.append(True)
            won.append(publish_delta(training.run, where))

    monkeypatch.setattr(publish, "_copy", slowly)
    with pytest.raises(BadInput, match="was replaced by another publisher meanwhile"):
        publish_delta(training.run, where)
    assert publish.current(where) == won[1]
    assert publish.damage(where, won[1]) is None
    folders = sorted(os.listdir(Path(where) / won[1]["folder"] / "deltas"))
    assert folders == ["000001.000002", "000002.000004"]


def test_a_pointer_whose_writing_was_not_confirmed_names_a_whole_delta(published, monkeypatch):
    training, where = published
    served = Served(where)
    training.go(1).save()
    swap = place.Folder.swap

    def lost(folder, name, tag, content):
        done = swap(folder, name, tag, content)
        if name == publish.POINTER:
            raise OSError("the answer is lost")
        return done

    with monkeypatch.context() as patched:
        patched.setattr(place.Folder, "swap", lost)
        with pytest.raises(BadInput, match="the answer is lost"):
            publish_delta(training.run, where)
    assert served.refresh()
    assert served.number == 2
    assert publish_delta(training.run, where) == publish.current(where)


KILLED = """
import os, sys
from pathlib import Path
from livetrain.trainers.export import deltas
from livetrain.trainers.runtime import place

left = int(sys.argv[3])

def dying(name):
    original = getattr(place.Folder, name)
    def call(self, *arguments):
        global left
        if not left:
            os.kill(os.getpid(), 9)
        left -= 1
        return original(self, *arguments)
    return call

for name in ("swap", "make", "put", "sync"):
    setattr(place.Folder, name, dying(name))
deltas.publish_delta(Path(sys.argv[1]), sys.argv[2])
"""


STEPS = {"before the fence": 0, "before a file": 4, "between two files": 6, "before the pointer": 9, "never": 10}


@pytest.mark.parametrize("after", often(STEPS, ()))
def test_a_publisher_that_is_killed_leaves_nothing_half(published, after):
    training, where = published
    before, served = publish.current(where), Served(where)
    training.go(1).save()
    done = subprocess.run([sys.executable, "-c", KILLED, training.run, where, str(after)], capture_output=True)
    assert done.returncode in (-9, 0), done.stderr
    now = publish.current(where)
    assert now == before or publish.damage(where, now) is None
    served.refresh()
    assert served.number == len(now["deltas"])
    pointer = publish_delta(training.run, where)
    assert [each["number"] for each in pointer["deltas"]] == [1, 2]
    served.refresh()
    assert_is_up_to_date(served, where)
    assert not list(training.run.glob(".delta-*"))


def test_nobody_who_scores_sees_half_a_delta(data, tmp_path):
    where = str(tmp_path / "models")
    with line(tmp_path / "run", samples.recipe(data, **MAPPED)) as training:
        training.go(1).save()
        publish_next(training.run, where, "a", 3)
        served = Served(where)
        inputs = deltas.golden_inputs(served.golden)
        known, found, over = [served.score(*inputs)["click"]], [], threading.Event()

        def score() -> None:
            while not over.is_set():
                found.append(served.score(*inputs)["click"])

        threads = [threading.Thread(target=score) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(4):
            training.go(1).save()
            publish_delta(training.run, where, share=1e9)
            served.refresh()
            known.append(served.score(*inputs)["click"])
        over.set()
        for thread in threads:
            thread.join()
        assert len(found) > 10
        assert all(any(torch.equal(one, other) for other in known) for one in found)
        assert not torch.equal(known[0], known[-1])


@pytest.mark.slow
def test_a_bucket_serves_too(data, bucket, read, tmp_path):
    where = bucket.replace("/in/it", "/in/deltas")
    with line(tmp_path / "run", samples.recipe(data, **MAPPED)) as training:
        training.go(1).save()
        publish_next(training.run, where, "a", 3)
        served = Served(where)
        kept = Kept(where)
        for _ in range(3):
            training.go(1).save()
            pointer = publish_delta(training.run, where, share=1e9, kept=kept)
            assert served.refresh()
        assert_is_the_export(served, training.run, tmp_path / "whole")
        # twice of the base: by the server and by what is kept; the newest delta by the server alone
        assert [read.count(name) for name in (pointer["folder"], pointer["deltas"][0]["folder"])] == [2, 2]
        assert read.count(pointer["deltas"][-1]["folder"]) == 1


def test_the_command_publishes(published, monkeypatch, capsys):
    training, where = published
    training.go(1).save()
    words = ["publish", str(training.run), where]
    assert command(monkeypatch, *words, "--delta") == 0
    assert re.search(
        r"delta 2 of 2026-11-30\.000001, up to step 5: \d+ rows, 0\.\d+ MB; fence 3", capsys.readouterr().out
    )
    assert command(monkeypatch, *words, "--delta") == 0
    assert "this checkpoint is published already" in capsys.readouterr().out
    assert command(monkeypatch, *words, "--version", "2026-12-01", "--checkpoint", "last") == 0
    assert "servers are pointed to 2026-12-01.000004, with fence 4" in " ".join(capsys.readouterr().out.split())
    assert command(monkeypatch, *words, "--delta") == 0  # a base of the same checkpoint
    assert "this checkpoint is published already" in " ".join(capsys.readouterr().out.split())
    assert command(monkeypatch, "publish", str(training.run), f"{where}-2", "--delta") == 2


def test_rows_that_change_hands_are_in_a_delta_with_their_keys(data, tmp_path):
    table = {"rows": 64, "dim": 8, "hash": "table", "sharding": "row_wise"}
    where = str(tmp_path / "models")
    with line(tmp_path / "run", samples.recipe(data, tables__movie=table)) as training:
        keys = training.sharded.model.maps["movie"].keys
        for number, split in enumerate(("train", "valid")):
            before = keys.clone()
            ids.assign(training.sharded, training.recipe, Source.open(training.recipe, split), 1440 * number)
            training.go(2).save()
            publish_next(training.run, where, "2026-11-30", 3)
        assert 5 < int((keys != before).sum()) < 60
        served = Served(where)
        assert served.number == 1
        assert_is_the_export(served, training.run, tmp_path / "out")


@pytest.fixture(scope="module")
def follow(tmp_path_factory) -> Path:
    """examples/follow.cpp, compiled."""
    if not shutil.which("g++"):
        pytest.skip("there is no g++")
    source = Path(__file__).parents[3] / "examples/follow.cpp"
    torch_folder, out = Path(torch.__file__).parent, tmp_path_factory.mktemp("cpp") / "follow"
    includes = [f"-I{torch_folder / 'include' / part}" for part in (".", "torch/csrc/api/include")]
    libraries = [f"-L{torch_folder / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{torch_folder / 'lib'}"]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    command = ["g++", "-std=c++20", "-O0", "-Wall", abi, *includes, str(source), "-o", str(out), *libraries]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not re.search("examples/|serve/", done.stderr)  # no warning of ours
    return out


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, MAPPED | {"export__quantize": "int8"}], ids=["inside", "8 bits, mapped"])
def test_a_server_in_cpp_follows(follow, data, tmp_path, changes):
    where = str(tmp_path / "models")
    with line(tmp_path / "run", samples.recipe(data, **changes, export__tolerance_int8=1.0)) as training:
        training.go(1).save()
        publish_next(training.run, where, "a", 3)
        server = subprocess.Popen([follow, where], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

        def told() -> str:
            server.stdin.write("\n")
            server.stdin.flush()
            return server.stdout.readline().strip()

        assert told() == "0 deltas, 0 scores differ"
        for number in (1, 2):
            training.go(1).save()
            pointer = publish_delta(training.run, where, share=1e9)
            assert told() == f"{number} deltas, 0 scores differ"
        training.go(1).save()
        pointer = publish_delta(training.run, where, share=1e9)
        flip(Path(where) / pointer["deltas"][-1]["folder"] / files.NUMBERS)
        assert re.search(r"delta.bin is missing or damaged; publish a new base; it goes on as it was", told())
        assert server.stdout.readline().strip() == "2 deltas, 0 scores differ"
        with pytest.raises(NeedsBase, match="a server asks for a new base"):
            publish_delta(training.go(1).save().run, where, share=1e9)
        publish_next(training.run, where, "b", 3, share=1e9)
        assert told() == "0 deltas, 0 scores differ"
        server.communicate()
        assert server.returncode == 0
        base = Path(where) / publish.current(where)["folder"]
        flip(base / "model.pt")
        late = subprocess.run([follow, where], capture_output=True, text=True)
        assert late.returncode != 0
        assert "model.pt is missing or damaged" in (base / "wanted.txt").read_text()
    wrong = subprocess.run([follow, tmp_path], capture_output=True, text=True)
    assert (wrong.returncode, "follow DIR" in wrong.stderr) == (2, True)
