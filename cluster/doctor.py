"""Asking a cluster, before a job does, everything that a job needs of it.

Each check returns one sentence, or raises BadInput with the mend; `examine` turns both into lines of a table.
"""

import contextlib
import math
import shutil
import statistics
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from rich.markup import escape
from rich.table import Table

from livetrain.cluster import capacity, ray_workers
from livetrain.cluster.capacity import counted
from livetrain.cluster.elastic import largest
from livetrain.cluster.exchange import Exchanged, exchange
from livetrain.cluster.nodes import ask, look
from livetrain.configs.errors import BadInput, without_credentials
from livetrain.configs.schema import Cluster, Recipe
from livetrain.trainers.data.read import sidecar
from livetrain.trainers.data.read.files import split_files
from livetrain.trainers.data.read.lookups import looked_up
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.data.read.spread import Looking
from livetrain.trainers.train import few_rows, memory, planning, sharding
from livetrain.trainers.train.memory import amount
from livetrain.trainers.train.memory import waits as waits_for
from livetrain.trainers.train.preflight import SPLITS

SEEN_S = 10  # longest time after which a file must be visible on another machine


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's table; `text` says what was found or, where it failed, what to mend."""

    check: str
    ok: bool
    text: str


class _Findings(list[Finding]):
    def of(self, check: str, examined: Callable[..., str], *arguments: Any) -> bool:
        """Add what a check found; whatever it raises is a finding too, since the next checks can still be made."""
        try:
            self.append(Finding(check, True, examined(*arguments)))
        except BadInput as error:
            self.append(Finding(check, False, str(error)))
        except Exception as error:
            first = next(iter(str(error).strip().splitlines()), "")
            self.append(Finding(check, False, without_credentials(f"{type(error).__name__}: {first}")))
        return self[-1].ok


def examine(
    recipe: Recipe | None, runs: Path, address: str | None, progress: Callable[[str], None] = lambda text: None
) -> list[Finding]:
    """Check a Ray cluster; with a recipe also its data, its tables' plan and the memory that they need.

    Args:
        recipe: what is to run, or None for the cluster alone (one worker per GPU, or else one per node).
        runs: the folder of run folders that all nodes must share.
        address: the cluster, by default the recipe's, RAY_ADDRESS, or a Ray of this machine's own.
        progress: told what is being done, a line at a time.

    Raises:
        NotNow: there is no cluster at the address.
    """
    cluster = (recipe.cluster if recipe else Cluster()).model_copy(update={"address": address} if address else {})
    found = _Findings()
    progress("connecting to Ray")
    with contextlib.ExitStack() as stack:
        stack.enter_context(ray_workers.attached(cluster))
        _examine(recipe, runs.resolve(), cluster, found, progress)
    return found


def _examine(
    recipe: Recipe | None, runs: Path, cluster: Cluster, found: _Findings, progress: Callable[[str], None]
) -> None:
    progress("asking the nodes")
    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    gpus = int(ray.cluster_resources().get("GPU", 0))
    counts = recipe.counts() if recipe else (gpus or len(nodes),)
    if not cluster.elastic:
        cluster = cluster.of(counts[0])
    answers, silent = ask(nodes, look)
    found.of("nodes", nodes_answer, nodes, answers, silent)
    found.of("versions", versions_agree, look(), answers)
    progress("writing and reading in the runs folder")
    found.of("storage", storage_is_shared, runs, nodes)
    if recipe:
        found.of("data", data_is_seen, recipe, nodes)
    if not found.of("devices", devices_suffice, cluster, answers):
        return
    cuda = ray_workers.on_gpus(cluster)
    if recipe and cluster.elastic:
        room = capacity.places_now(cluster, cuda)
        found.of("workers", counts_that_work, recipe, room)
        cluster = cluster.of(largest(counts, room) or counts[0])
    progress(f"starting {counted(cluster.most, 'worker')}")
    met: list[Exchanged] = []
    found.of("exchange", workers_exchange, cluster, cuda, met)
    if not recipe or recipe.model.fitted:
        return
    found.of("batch", rows_are_told, recipe, cluster.most, "cuda" if cuda else "cpu")
    progress("planning the tables")
    for workers in dict.fromkeys((counts[0], cluster.most)):
        of = f" of {workers}" if len(counts) > 1 else ""
        plans: list[planning.Plan] = []
        if found.of(f"plan{of}", tables_are_planned, recipe, workers, cuda, runs, plans):
            found.of(f"memory{of}", memory_suffices, need(recipe, plans[0]), met[:workers], answers)


def findings_table(findings: list[Finding]) -> Table:
    """Return the findings as a table for people."""
    out = Table()
    out.add_column("check", no_wrap=True)
    out.add_column("")
    out.add_column("found", overflow="fold")
    for finding in findings:
        sign = "[green]ok[/green]" if finding.ok else "[red]failed[/red]"
        out.add_row(finding.check, sign, escape(finding.text))
    return out


def nodes_answer(nodes: dict[str, dict], answers: dict[str, dict], silent: dict[str, str]) -> str:
    """Say how many nodes there are; refuse those that cannot run livetrain."""
    if silent:
        node, why = next(iter(silent.items()))
        raise BadInput(
            f"{_name(nodes[node])} and {len(silent) - 1} other of {len(nodes)} nodes do not run livetrain ({why}); "
            "install it there with cluster/setup.sh, or send the recipe with livetrain submit"
        )
    cpus = sum(node["Resources"].get("CPU", 0) for node in nodes.values())
    kinds = Counter(name for answer in answers.values() for name, _ in answer["gpus"])
    gpus = ", ".join(f"{count} {name}" for name, count in kinds.items()) or "no GPU"
    return f"{counted(len(nodes), 'node')} with {cpus:g} CPUs and {gpus}"


def versions_agree(here: dict[str, Any], answers: dict[str, dict]) -> str:
    """Compare every node's versions with this process's."""
    for answer in answers.values():
        for package, number in here["versions"].items():
            if answer["versions"][package] != number:
                raise BadInput(
                    f"{answer['host']} has {package} {answer['versions'][package]}, and the driver on {here['host']} "
                    f"{number}; set both up from one commit with cluster/setup.sh"
                )
    return "everywhere " + ", ".join(f"{package} {number}" for package, number in here["versions"].items())


def devices_suffice(cluster: Cluster, answers: dict[str, dict]) -> str:
    """Compare the GPUs with what the recipe asks and its topology claims."""
    if not ray_workers.on_gpus(cluster):
        return f"{capacity.asked(cluster)} on CPUs"
    memory = [size for answer in answers.values() for _, size in answer["gpus"]]
    claimed = cluster.topology.hbm_gb
    # Cards are sold in GB of 10^9 and report a little less than they hold.
    if memory and claimed * 1e9 * 0.98 > min(memory):
        raise BadInput(
            f"cluster.topology.hbm_gb: the plan counts on {claimed:g} GB per GPU, and the smallest has "
            f"{min(memory) / 1e9:.0f}; set it to {math.floor(min(memory) / 1e9)}"
        )
    smallest = f"of at least {min(memory) / 1e9:.0f} GB" if memory else "of unknown memory"
    return f"{capacity.asked(cluster)}, one GPU {smallest} each"


def counts_that_work(recipe: Recipe, room: int) -> str:
    """Say which numbers of workers a run of a range may have, and how many have room now."""
    counts, cluster = recipe.counts(), recipe.cluster
    if room < counts[0]:
        raise BadInput(
            f"cluster.workers: there is room for {counted(room, 'worker')} now, and the run waits until there is for "
            f"{counts[0]}; add nodes, or lower cluster.workers.min"
        )
    others = "" if len(counts) > cluster.most - cluster.least else f", of {cluster.least} to {cluster.most} no other"
    return (
        f"{', '.join(map(str, counts))} share {recipe.data.shards} data.shards evenly{others}; there is room for "
        f"{room} now, so {largest(counts, room)} would train"
    )


def storage_is_shared(runs: Path, nodes: dict[str, dict]) -> str:
    """Have every node read a file of this process's, and read one of every node's."""
    token, ours = uuid.uuid4().hex, not runs.exists()
    folder = runs / f".doctor-{token[:8]}"
    try:
        folder.mkdir(parents=True)
        (folder / "driver").write_text(token, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{runs}: cannot write here ({error.strerror}); choose another folder with --runs") from error
    try:
        answers, silent = ask(nodes, _write_and_read, str(folder), token)
        wrong = {**silent, **{node: why for node, why in answers.items() if why}}
        for node in nodes:
            if node not in wrong and not _seen(folder / node, token):
                wrong[node] = "its file does not arrive here"
        if wrong:
            node, why = next(iter(wrong.items()))
            raise BadInput(
                f"{runs}: {_name(nodes[node])} does not share it ({why}); "
                "mount one storage there on all nodes, or choose another folder with --runs"
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if ours:
            with contextlib.suppress(OSError):
                runs.rmdir()
    return f"{runs} is written and read by the driver and {counted(len(nodes), 'node')}"


def _write_and_read(folder: str, token: str) -> str:
    if not _seen(Path(folder, "driver"), token):
        return "the driver's file is not there"
    try:
        Path(folder, ray.get_runtime_context().get_node_id()).write_text(token, encoding="utf-8")
    except OSError as error:
        return f"it cannot write there: {error.strerror}"
    return ""


def _seen(path: Path, content: str) -> bool:
    """Return whether a file has the content, granting a network's caches some time."""
    end = time.monotonic() + SEEN_S
    while True:
        if path.is_file() and path.read_text(encoding="utf-8") == content:
            return True
        if time.monotonic() > end:
            return False
        time.sleep(0.2)


def data_is_seen(recipe: Recipe, nodes: dict[str, dict]) -> str:
    """Compare the data files that every node sees with those that this process sees."""
    here = files_seen(recipe)
    answers, silent = ask(nodes, files_seen, recipe)
    shown = without_credentials(recipe.data.path)
    for node in nodes:
        if node in silent:
            raise BadInput(f"{_name(nodes[node])} cannot read the data: {silent[node].partition(': ')[2]}")
        if answers[node] != here:
            raise BadInput(
                f"data.path: {_name(nodes[node])} sees other files in {shown} than the driver; put the data on storage "
                "that all nodes share"
            )
    return f"{shown}: " + ", ".join(f"{counted(len(names), 'file')} of {split}" for split, names in here.items())


def files_seen(recipe: Recipe) -> dict[str, list[str]]:
    """Return {split: its Parquet files} as this machine sees them."""
    return {split: split_files(recipe, split)[2] for split in SPLITS}


def workers_exchange(cluster: Cluster, cuda: bool, met: list[Exchanged]) -> str:
    """Have the recipe's number of workers exchange data as embeddings are; `met` gets one entry per worker."""
    met += exchange(cluster, cuda)
    kind = "NCCL" if cuda else "gloo"
    machines = len({one.node for one in met})
    where = f"{len(met)} workers on {counted(machines, 'node')}"
    if len(met) == 1:
        return f"one worker starts, and has nobody to exchange with ({kind})"
    slowest = min(one.rate for one in met)
    median = statistics.median(one.rate for one in met)
    return f"{where}: all-to-all over {kind}, {median / 1e6:,.0f} MB/s per worker, the slowest {slowest / 1e6:,.0f}"


def rows_are_told(recipe: Recipe, workers: int, device: str) -> str:
    """Say how many rows a step has, and what more of them would gain on GPUs."""
    unit = "requests" if recipe.data.layout == "request" else "rows"
    size = recipe.data.batch_size
    said = f"{size:,} {unit} per step, {size / workers:,.0f} on each of {counted(workers, 'worker')}"
    return few_rows.advice(recipe, workers, device) or said


def tables_are_planned(recipe: Recipe, workers: int, cuda: bool, runs: Path, plans: list[planning.Plan]) -> str:
    """Plan the recipe's tables for its workers, as a run would; `plans` gets the plan."""
    plans.append(sharding.dry_plan(recipe, workers, "cuda" if cuda else "cpu", known_ids(recipe, runs)))
    return planning.in_words(planning.placed(recipe, plans[0]))


def known_ids(recipe: Recipe, runs: Path) -> planning.Lookups | None:
    """Return what the training split tells of ids, as a run is told; None where it cannot be read."""
    looking = Looking(runs / sidecar.NAME, ray_workers.spread(recipe))
    try:
        return looked_up(Source.open(recipe, "train", looking), recipe, looking)
    except BadInput:
        return None


@dataclass(frozen=True)
class Need:
    """Bytes of each worker, by rank: all that it holds at the least, and a checkpoint's copy of it."""

    gpu: list[int]
    host: list[int]
    copied: list[int]  # on the host too


def need(recipe: Recipe, plan: planning.Plan) -> Need:
    """Return what each worker takes, see `memory.per_rank`; but for windows of rows, which few data do not fill."""
    held = memory.per_rank(recipe, plan)
    copied, _ = held["host"].pop("checkpoint copy"), held["host"].pop("windows")
    gpu, host = (sum(held[where].values(), np.zeros(plan.world, np.int64)) for where in ("gpu", "host"))
    return Need(gpu.tolist(), host.tolist(), copied.tolist())


def memory_suffices(need: Need, met: list[Exchanged], answers: dict[str, dict]) -> str:
    """Compare what the tables need with what the workers' GPUs and machines have left."""
    if not met:
        raise BadInput("it cannot be told without the workers; mend the exchange between them first")
    on_host: defaultdict[str, int] = defaultdict(int)
    copied: defaultdict[str, int] = defaultdict(int)
    for one in met:
        on_host[one.node] += need.host[one.rank]
        copied[one.node] += need.copied[one.rank]
        if need.gpu[one.rank] > one.gpu_free:
            raise BadInput(
                f"tables: rank {one.rank} needs {amount(need.gpu[one.rank])} on its GPU, which has "
                f"{amount(one.gpu_free)} free; add workers, lower rows or dim, or use dtype: float16"
            )
    for node, wanted in on_host.items():
        if wanted > answers[node]["free"]:
            raise BadInput(
                f"tables: the workers on {answers[node]['host']} need {amount(wanted)} of host memory, and "
                f"{amount(answers[node]['free'])} are free; add nodes, lower rows or dim, or use dtype: float16"
            )
    least = min(answers[node]["free"] for node in on_host)
    said = f"it takes {amount(max(need.host))} per worker of the host, which has at least {amount(least)} free"
    if any(need.gpu):
        spare = min(one.gpu_free for one in met)
        said = f"it takes {amount(max(need.gpu))} per GPU, which has at least {amount(spare)} free; " + said
    waits = (waits_for(copied[n], answers[n]["free"] - on_host[n], answers[n]["host"]) for n in on_host)
    late = next((text for text in waits if text is not None), None)
    return f"{said}; {late or f'a copy of a checkpoint takes {amount(max(need.copied))} more'}"


def _name(node: dict) -> str:
    return f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
