"""How fast a DIN trains: livetrain against torch-rechub, DeepCTR-Torch and a DIN hand-written in PyTorch.

    python benchmarks/peers.py --data data/ml-1m-rechorus --lengths 50 20 --threads 1 2

Data: `livetrain data ml-1m --protocol rechorus --out data/ml-1m-rechorus`. All train on the same rows with the same
sizes, each in a process of its own pinned to as many cores as it has torch threads, one after the other in every round
(A B C D A B C D ...). livetrain is timed end to end: reading, decoding and shuffling Parquet, hashing ids, exchange,
training. Its peers get their rows read, hashed, padded and in memory, which favours them; from there on each takes its
own path: the libraries their data loader and training loop, the hand-written DIN ready tensors.

On two cores livetrain runs twice: as one worker of two threads, like its peers, and as two workers of one thread, each
with half of every batch, which is how a recipe uses two cores.

Rows per processor second say more than rows/s where other programs run. --huge says who gets memory in huge pages, by
THP_MEM_ALLOC_ENABLE=1 set before PyTorch is imported.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import importlib.util
import io
import itertools
import multiprocessing
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from torch import Tensor, nn

from livetrain.configs.schema import Recipe
from livetrain.modules.tables.hashing import row
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.data.read.statistics import Statistics
from livetrain.trainers.runtime import ranks
from livetrain.trainers.runtime.process import set_up
from livetrain.trainers.train.feed import Meter
from livetrain.trainers.train.loop import Job, Trainer

DIM, ATTENTION, TOWER = 32, [64, 16], [200, 80]
SAMPLE = 200_000  # rows of the split that the peers draw theirs from
SMALL = {"user": 6041, "gender": 64, "age": 57, "occupation": 21, "hour": 24, "weekday": 7}  # table rows
Seconds = tuple[float, float]  # wall, processor: of all threads
PEERS = {"torch_rechub": "torch-rechub==0.9.0", "deepctr_torch": "deepctr-torch==0.3.0"}
IMPORTED = {"sklearn": "scikit-learn", "pandas": "pandas", "tqdm": "tqdm"}  # what the two import beside torch


def recipe_of(given: argparse.Namespace, length: int) -> Recipe:
    """Return livetrain's side: every id hashed, tables trained by row-wise Adagrad, the rest by Adam."""
    rows, unit = {**SMALL, "movie": given.movies}, [{"query": ["movie"], "events": ["history"]}]
    return Recipe.model_validate(
        {
            "data": {"path": given.data, "batch_size": given.batch},
            "features": {name: {"type": "id", "table": name} for name in rows}
            | {"history": {"type": "sequence", "table": "movie", "max_length": length}},
            "tables": {name: {"rows": count, "dim": DIM} for name, count in rows.items()},
            "model": {"kind": "din", "attention": unit, "attention_units": ATTENTION, "units": TOWER},
            "tasks": {"label": {"label": "label"}},
        }
    )


class Rows:
    """The training split as its peers want it: table rows from 1, histories padded at the end with 0, in memory."""

    def __init__(self, recipe: Recipe, length: int) -> None:
        tables = recipe.tables
        table = pq.read_table(Path(recipe.data.path) / "train", columns=[*SMALL, "movie", "history", "label"])
        table = table.take(np.sort(np.random.default_rng(1).permutation(len(table))[:SAMPLE]))

        def rows_of(values, name: str) -> Tensor:
            ids = torch.from_numpy(values.to_numpy().copy())
            return row(ids, tables[name].rows, modulo=False) + 1

        self.ids = {name: rows_of(table[name], name) for name in (*SMALL, "movie")}
        self.labels = torch.from_numpy(table["label"].to_numpy().astype(np.float32))
        lists = table["history"]
        lengths = torch.from_numpy(pc.list_value_length(lists).to_numpy().astype(np.int64))
        self.lengths = lengths.clamp(max=length)
        first = lengths.cumsum(0) - self.lengths  # (rows,), where the newest `length` events of a row begin
        at = first.unsqueeze(1) + torch.arange(length)
        events = rows_of(pc.list_flatten(lists), "movie")
        inside = torch.arange(length) < self.lengths.unsqueeze(1)  # (rows, T)
        self.history = torch.where(inside, events[at.clamp_(max=events.numel() - 1)], 0)
        self._order = itertools.cycle(torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(1)))

    def take(self, count: int) -> Tensor:
        """Return the next rows of a fixed random order."""
        return torch.tensor(list(itertools.islice(self._order, count)))


class Livetrain:
    """The product's reader, sharded model and pipeline, driven as `Trainer` drives them."""

    def __init__(self, recipe: Recipe, rows: Rows) -> None:
        self._batch, self._meter, self._step = recipe.data.batch_size, Meter(), 0
        job = Job(recipe, Path(), {"train": Source.open(recipe, "train")}, Statistics(0, {}, {}, {}))
        self._trainer = Trainer(job, torch.device("cpu"))
        self._trainer.sharded.module.train()
        reader, self.parts = self._trainer.reader, self._trainer.breakdown
        batches = itertools.chain.from_iterable(reader.batches(epoch) for epoch in itertools.count())
        self._batches = self.parts.waiting(batches)

    def prepare(self, steps: int) -> Callable[[], object]:
        """Return what trains so many batches; what was read ahead while others ran is used up before."""
        self._run(2 * self._trainer.recipe.data.prefetch)
        return partial(self._run, steps)

    def _run(self, steps: int) -> None:
        sharded = self._trainer.sharded
        for _ in range(steps):
            sharded.set_rates(1.0)
            ranks.seed_step(1, self._step)
            with self.parts.step():
                output = sharded.pipeline.progress(self._batches)
            self._meter.add(output)
            self._step += 1


class Workers(Livetrain):
    """The product on two workers of one thread and one core: this process and one that it starts."""

    def __init__(self, recipe: Recipe, rows: Rows) -> None:
        self._pipe: Connection = RUNNING["pipe"]
        super().__init__(recipe, rows)
        self.others = 0.0  # processor seconds of the other worker, in the last turn

    def prepare(self, steps: int) -> Callable[[], object]:
        """Return what trains so many batches on both."""
        self._pipe.send(steps)
        work = super().prepare(steps)

        def both() -> None:
            work()
            self.others = self._pipe.recv()

        return both


def follow(store: str, given: argparse.Namespace, length: int, core: int, pipe: Connection) -> None:
    """Be the second of `Workers`: train as often as the first one says."""
    set_up()
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=1, world_size=2)
    it = Livetrain(recipe_of(given, length), None)
    while True:
        work = it.prepare(pipe.recv())
        busy = time.process_time()
        work()
        pipe.send(time.process_time() - busy)


def pair(given: argparse.Namespace, length: int) -> None:
    """Start the second worker, and make this process the first."""
    RUNNING["pipe"], theirs = multiprocessing.get_context("spawn").Pipe()
    first, second = sorted(os.sched_getaffinity(0))
    store = f"{tempfile.mkdtemp()}/store"
    arguments = (store, given, length, second, theirs)
    multiprocessing.get_context("spawn").Process(target=follow, args=arguments, daemon=True).start()
    os.sched_setaffinity(0, {first})
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=2)


class Rechub:
    """torch-rechub: DataGenerator and CTRTrainer with Adam, without its L2. Its DIN knows no mask."""

    def __init__(self, recipe: Recipe, rows: Rows) -> None:
        from torch_rechub.basic.features import SequenceFeature, SparseFeature
        from torch_rechub.models.ranking import DIN
        from torch_rechub.trainers import CTRTrainer

        self._rows, self._batch = rows, recipe.data.batch_size
        sizes = {name: table.rows + 1 for name, table in recipe.tables.items()}
        history = SequenceFeature("history", sizes["movie"], DIM, pooling="concat", shared_with="movie", padding_idx=0)
        features = {name: SparseFeature(name, sizes[name], DIM) for name in rows.ids}
        model = DIN(
            [features[name] for name in SMALL], [history], [features["movie"]], {"dims": TOWER}, {"dims": ATTENTION}
        )
        self._trainer = CTRTrainer(model, optimizer_params={"lr": 1e-3})

    def prepare(self, steps: int) -> Callable[[], object]:
        """Return what trains so many batches; getting their rows together is not timed."""
        from torch_rechub.utils.data import DataGenerator

        at = self._rows.take(steps * self._batch)
        x = {name: ids[at].numpy() for name, ids in self._rows.ids.items()}
        x["history"] = self._rows.history[at].numpy()
        data = DataGenerator(x, self._rows.labels[at].numpy())
        loader, _, _ = data.generate_dataloader(x_val=x, y_val=[0], x_test=x, y_test=[0], batch_size=self._batch)
        return partial(self._trainer.train_one_epoch, loader)


class DeepCTR:
    """DeepCTR-Torch: compile and fit with Adam, without its L2. Its tower fails with Dice, so it has ReLU."""

    def __init__(self, recipe: Recipe, rows: Rows) -> None:
        from deepctr_torch.inputs import SparseFeat, VarLenSparseFeat
        from deepctr_torch.models import DIN

        self._rows, self._batch = rows, recipe.data.batch_size
        sizes = {name: table.rows + 1 for name, table in recipe.tables.items()}
        columns = [SparseFeat(name, sizes[name], DIM) for name in rows.ids]
        events = SparseFeat("hist_movie", sizes["movie"], DIM, embedding_name="movie")
        columns.append(VarLenSparseFeat(events, maxlen=rows.history.size(1), length_name="length"))
        sizes = {"dnn_hidden_units": TOWER, "att_hidden_size": ATTENTION}
        self._model = DIN(columns, ["movie"], **sizes, att_activation="Dice", l2_reg_embedding=0)
        self._model.compile("adam", "binary_crossentropy")

    def prepare(self, steps: int) -> Callable[[], object]:
        """Return what trains so many batches; getting their rows together is not timed."""
        at = self._rows.take(steps * self._batch)
        x = {name: ids[at].numpy() for name, ids in self._rows.ids.items()}
        x |= {"hist_movie": self._rows.history[at].numpy(), "length": self._rows.lengths[at].numpy()}
        labels = self._rows.labels[at].numpy()
        return partial(self._model.fit, x, labels, batch_size=self._batch, verbose=0)


class Dice(nn.Module):
    """Dice by PyTorch's batch normalisation."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(units, eps=1e-8, affine=False)
        self.alpha = nn.Parameter(torch.zeros(units))

    def forward(self, x: Tensor) -> Tensor:
        p = self.norm(x).sigmoid()
        return x * (self.alpha + p * (1 - self.alpha))


def mlp(width: int, units: list[int]) -> nn.Sequential:
    """Return Linear and Dice for each of `units`, then one output."""
    layers: list[nn.Module] = []
    for size in units:
        layers += [nn.Linear(width, size), Dice(size)]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, 1))


class PlainDIN(nn.Module):
    """DIN in PyTorch: padded input, cut to the batch's longest history; the activation unit sees the events alone."""

    def __init__(self, sizes: dict[str, int]) -> None:
        super().__init__()
        self.tables = nn.ModuleDict({name: nn.Embedding(size, DIM, sparse=True) for name, size in sizes.items()})
        for table in self.tables.values():
            nn.init.normal_(table.weight, std=0.01)
        self.unit, self.tower = mlp(4 * DIM, ATTENTION), mlp((len(sizes) + 1) * DIM, TOWER)

    def forward(self, ids: dict[str, Tensor], history: Tensor, lengths: Tensor) -> Tensor:
        found = {name: self.tables[name](part) for name, part in ids.items()}  # (B, d) each
        inside = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)  # (B, T)
        owner = inside.nonzero()[:, 0]  # (N,)
        events = self.tables["movie"](history[:, : inside.size(1)][inside])  # (N, d)
        query = found["movie"].index_select(0, owner)
        weight = self.unit(torch.cat([query, events, query - events, query * events], 1))  # (N, 1)
        pooled = torch.zeros(len(lengths), DIM).index_add(0, owner, weight * events)  # (B, d)
        return self.tower(torch.cat([*found.values(), pooled], 1)).squeeze(1)


class Plain:
    """`PlainDIN` with sparse Adagrad for tables and Adam for the rest, on tensors that are sliced by batch."""

    def __init__(self, recipe: Recipe, rows: Rows) -> None:
        self._rows, self._batch = rows, recipe.data.batch_size
        self._model = PlainDIN({name: table.rows + 1 for name, table in recipe.tables.items()})
        tables = list(self._model.tables.parameters())
        rest = [*self._model.unit.parameters(), *self._model.tower.parameters()]
        self._optimizers = [torch.optim.Adagrad(tables, lr=0.02), torch.optim.Adam(rest, lr=1e-3)]

    def prepare(self, steps: int) -> Callable[[], object]:
        """Return what trains so many batches; getting their rows together is not timed."""
        return partial(self._run, self._rows.take(steps * self._batch).split(self._batch))

    def _run(self, parts: Sequence[Tensor]) -> None:
        rows = self._rows
        for part in parts:
            logits = self._model({k: v[part] for k, v in rows.ids.items()}, rows.history[part], rows.lengths[part])
            loss = nn.functional.binary_cross_entropy_with_logits(logits, rows.labels[part])
            for optimizer in self._optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in self._optimizers:
                optimizer.step()


WORKERS = "livetrain, 2 workers"
CONTENDERS = {
    "livetrain": Livetrain,
    WORKERS: Workers,
    "torch-rechub": Rechub,
    "DeepCTR-Torch": DeepCTR,
    "plain PyTorch": Plain,
}
RUNNING = {}  # the contender of this process


def start(name: str, given: argparse.Namespace, length: int, threads: int) -> int:
    """Build a contender in this process; return the number of steps that last about given.seconds."""
    set_up()
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    recipe = recipe_of(given, length)
    RUNNING["batch"], RUNNING["group"] = given.batch, contextlib.ExitStack()  # open as long as this process lives
    if name == WORKERS:
        pair(given, length)
    else:
        RUNNING["group"].enter_context(ranks.alone(False))
    rows = Rows(recipe, length)
    RUNNING["history"], RUNNING["it"] = float(rows.lengths.double().mean()), CONTENDERS[name](recipe, rows)
    turn(3)
    return max(5, round(given.seconds / turn(5)[0] / given.batch))


def turn(steps: int) -> Seconds:
    """Train this process's contender; return wall and processor seconds per row."""
    work, rows = RUNNING["it"].prepare(steps), steps * RUNNING["batch"]
    if hasattr(RUNNING["it"], "parts"):
        RUNNING["it"].parts.read(0.0)  # forget what came before
    wall, busy = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        work()
    RUNNING["last"] = time.perf_counter() - wall
    wall, busy = RUNNING["last"], time.process_time() - busy + getattr(RUNNING["it"], "others", 0.0)
    return wall / rows, busy / rows


def inside() -> str:
    """Say where the last turn's steps went, and how long their matrix products alone would take."""
    a, b = torch.randn(2, 1024, 1024)
    seconds = []
    for _ in range(8):
        start = time.process_time()
        a @ b
        seconds.append(time.process_time() - start)
    rate = 2 * 1024**3 / min(seconds)
    towers = [(len(SMALL) + 2) * DIM, *TOWER, 1]
    cells = RUNNING["history"] * (DIM * ATTENTION[0] + ATTENTION[0] * ATTENTION[1] + ATTENTION[1])
    cells += sum(m * n for m, n in itertools.pairwise(towers))  # weights that a row meets
    floor = 6 * cells * RUNNING["batch"] / rate  # a multiplication and an addition, for values and two gradients
    parts = {name: ms for name, ms in RUNNING["it"].parts.read(RUNNING["last"]).items() if ms >= 0.05}
    spent = ", ".join(f"{name.removeprefix('ms.')} {ms:.1f}" for name, ms in parts.items())
    return (
        f"livetrain, ms per step: {spent}. Products alone, at this core's {rate / 1e9:.0f} GFLOP/s: {1e3 * floor:.1f}."
    )


def measure(given: argparse.Namespace, length: int, threads: int, cores: list[int]) -> dict[str, list[Seconds]]:
    """Return each contender's seconds per row, by round."""
    os.sched_setaffinity(0, cores[-threads:])  # a new process inherits it, with every thread that it starts
    names = [name for name in CONTENDERS if name != WORKERS or threads == 2]
    found: dict[str, list[Seconds]] = {name: [] for name in names}
    with contextlib.ExitStack() as stack:
        pools, steps = {}, {}
        for name in names:
            huge = given.huge == "all" or given.huge == "livetrain" and name.startswith("livetrain")
            os.environ["THP_MEM_ALLOC_ENABLE"] = str(int(huge))
            pools[name] = stack.enter_context(ProcessPoolExecutor(1, multiprocessing.get_context("spawn")))
            steps[name] = pools[name].submit(start, name, given, length, threads).result()
        for _ in range(given.rounds):
            for name, pool in pools.items():
                found[name].append(pool.submit(turn, steps[name]).result())
        print(f"History {length}, threads {threads}:", pools["livetrain"].submit(inside).result(), file=sys.stderr)
    return found


def lines(case: str, found: dict[str, list[Seconds]]) -> Iterator[str]:
    """Yield a case's rows of the table."""

    def spread(values: list[float], form: str, strong: str = "") -> str:
        return f"{strong}{statistics.median(values):{form}}{strong} ({min(values):{form}}-{max(values):{form}})"

    for name, seconds in found.items():
        cells = [case, name]
        cells += [spread([1 / each[kind] for each in seconds], ",.0f") for kind in (0, 1)]
        for ours, kind in (("livetrain", 0), ("livetrain", 1), (WORKERS, 0)):
            pairs = zip(seconds, found.get(ours, []), strict=False)  # no pair where `ours` did not run
            ratios = [other[kind] / mine[kind] for other, mine in pairs]
            cells.append("" if name in (ours, WORKERS) or not ratios else spread(ratios, ".2f", "**"))
        yield f"| {' | '.join(cells)} |"


def check_peers() -> None:
    """Exit with the command that installs what is missing."""
    missing = [name for module, name in {**PEERS, **IMPORTED}.items() if importlib.util.find_spec(module) is None]
    if missing:
        sys.exit(
            f"missing: {', '.join(missing)}. Install beside the environment and put the folder on PYTHONPATH:\n"
            f"    pip install --no-deps --target peers {' '.join(missing)}\n"
            "    export PYTHONPATH=peers"
        )


def machine() -> str:
    """Return the processor, the number of cores and the memory."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()}-core {os.uname().machine} ({cpu}), {memory:.0f} GiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/ml-1m-rechorus")
    parser.add_argument("--lengths", type=int, nargs="+", default=[50, 20], help="longest history")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="cores and torch threads")
    parser.add_argument("--movies", type=int, default=4000, help="rows of the movie table")
    parser.add_argument("--batch", type=int, default=1536)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="length of one contender's turn, about")
    parser.add_argument("--huge", choices=["none", "livetrain", "all"], default="livetrain", help="who uses huge pages")
    given = parser.parse_args()
    check_peers()
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("torch", "torchrec", "fbgemm-gpu-cpu")
    )
    print(f"{datetime.date.today()}, {machine()}; {', '.join(PEERS.values())}, {versions}, numpy {np.__version__}.")
    print(f"Batch {given.batch}, {given.movies:,} movie rows, {given.rounds} rounds of {given.seconds:g} s a turn.")
    print(f"Huge pages: {given.huge}. Cells: median (min-max) over rounds; the ratios are taken round by round.\n")
    over = "livetrain over it, rows/s | by processor time | 2 workers over it, rows/s"
    print(f"| history, threads | who | rows/s | rows/processor s | {over} |")
    print("| --- " * 7 + "|")
    cores = sorted(os.sched_getaffinity(0))
    for length, threads in itertools.product(given.lengths, given.threads):
        print(*lines(f"{length}, {threads}", measure(given, length, threads, cores)), sep="\n", flush=True)


if __name__ == "__main__":
    main()
