"""How fast an exported file ranks: one call with 500 candidates of one user, on one thread, by how tables are stored.

`rank`, which gets the user's features once, is compared with `forward` on rows that repeat them. Users change from call
to call, all ways of calling take turns in one process that does nothing else, and inputs are made before the clock
starts.
"""

import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from rich import box
from rich.table import Table

from livetrain.configs.errors import BadInput, nearest
from livetrain.configs.schema import Quantization, Recipe
from livetrain.trainers.export import export
from livetrain.trainers.export.parity import prove
from livetrain.trainers.export.rows import Inputs, golden_inputs, held_out_rows, one_user
from livetrain.trainers.runtime import run_folder
from livetrain.trainers.runtime.run_folder import find_checkpoint

CANDIDATES = 500
_USERS = 30
_HEAD = ("tables", "tables MB", "file MB", "AUC", "user", "p50 ms", "p99 ms", "rows/s", "faster")


@dataclass(frozen=True)
class Measured:
    """A way to store tables: sizes in bytes, parity with the model, candidates per call and seconds of every call."""

    quantize: Quantization
    sizes: dict[str, Any]
    parity: dict[str, Any]
    candidates: int
    rank: list[float]
    forward: list[float]


def compare(run: Path, which: str = "best", candidate: list[str] | None = None, rounds: int = 10) -> list[Measured]:
    """Measure a run's model with its tables as trained, in float16 and in 8 bits.

    Args:
        run: the run folder.
        which: ``best`` or ``last`` checkpoint.
        candidate: the candidate's features, all others being the user's; by default the ids that share a table with a
            sequence.
        rounds: passes over 30 users, each of whom is scored in every way.

    Raises:
        BadInput: no such checkpoint, data or feature; or a file differs from the model beyond its tolerance.
    """
    recipe = run_folder.recipe_of(run)
    user = user_features(recipe, candidate)
    model = export.plain_model(recipe, find_checkpoint(run, which))
    rows = held_out_rows(recipe, CANDIDATES)
    requests = _requests(golden_inputs(rows), rows["rows"], user)
    with tempfile.TemporaryDirectory() as folder:
        files, found = {}, {}
        for quantize in get_args(Quantization):
            files[quantize] = file = Path(folder) / f"{quantize}.pt"
            export.script(model, recipe, quantize).save(str(file))
            scored = torch.jit.load(str(file))
            found[quantize] = (export.sizes(file, scored, recipe), prove(model, scored, recipe, quantize))
        # A server is a process of its own; here malloc has learned to keep memory, which hides what calls cost there.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as server:
            seconds = server.submit(_measure, files, requests, rounds).result()
    return [Measured(q, *found[q], rows["rows"], seconds[q, "rank"], seconds[q, "forward"]) for q in files]


def user_features(recipe: Recipe, candidate: list[str] | None) -> list[str]:
    """Return the features that are not the candidate's.

    Raises:
        BadInput: a named feature does not exist, or none is named and no id shares a table with a sequence.
    """
    for name in candidate or []:
        if name not in recipe.features:
            raise BadInput(f"--candidate: there is no feature '{name}'{nearest(name, recipe.features)}")
    past = {feature.looks_up() for feature in recipe.features.values() if feature.form == "sequence"}
    offered = candidate or [
        n for n, f in recipe.features.items() if f.form == "id" and not f.lists and f.looks_up() in past
    ]
    if not offered:
        raise BadInput(
            "--bench: no id feature shares a table with a sequence, so the candidate's features cannot be told from "
            "the user's; name them with --candidate"
        )
    return [name for name in recipe.features if name not in offered]


def _requests(rows: Inputs, count: int, user: list[str]) -> list[dict[str, Inputs]]:
    """Return what `rank` and `forward` are given for each user, by their names."""
    places = np.linspace(0, count - 1, _USERS).astype(int).tolist()
    return [dict(zip(("rank", "forward"), one_user(rows, user, place), strict=True)) for place in places]


def _measure(
    files: dict[Quantization, Path], requests: list[dict[str, Inputs]], rounds: int
) -> dict[tuple[Quantization, str], list[float]]:
    """Return the seconds of every call by file and method; a first pass, while TorchScript optimises, is left out."""
    torch.set_num_threads(1)
    loaded = {quantize: torch.jit.load(str(file)) for quantize, file in files.items()}
    calls = {(quantize, way): getattr(file, way) for quantize, file in loaded.items() for way in ("rank", "forward")}
    seconds: dict[tuple[Quantization, str], list[float]] = {key: [] for key in calls}
    with torch.no_grad():
        for request in requests * (rounds + 1):
            for (quantize, way), call in calls.items():
                start = time.perf_counter()
                call(*request[way])
                seconds[quantize, way].append(time.perf_counter() - start)
    return {key: values[len(requests) :] for key, values in seconds.items()}


def cells(measured: list[Measured]) -> list[tuple[str, ...]]:
    """Return the comparison as text, its head first: two lines per way to store tables."""
    out: list[tuple[str, ...]] = [_HEAD]
    for m in measured:
        aucs = [value["file"] for key, value in m.parity.items() if key.endswith(".auc")]
        about = (
            m.quantize.replace("none", "trained"),
            f"{m.sizes['tables'] / 1e6:.2f}",
            f"{m.sizes['file'] / 1e6:.2f}",
            " ".join("-" if auc is None else f"{auc:.5f}" for auc in aucs),
        )
        faster = np.median(m.forward) / np.median(m.rank)
        out.append((*about, "once", *_timing(m.rank, m.candidates), f"{faster:.2f}x"))
        out.append((*[""] * len(about), "repeated", *_timing(m.forward, m.candidates), ""))
    return out


def _timing(seconds: list[float], candidates: int) -> tuple[str, ...]:
    p50, p99 = np.percentile(seconds, [50, 99]) * 1e3
    return f"{p50:.2f}", f"{p99:.2f}", f"{candidates * len(seconds) / sum(seconds):,.0f}"


def latency_table(measured: list[Measured]) -> Table:
    """Return the comparison for a terminal."""
    head, *lines = cells(measured)
    title = f"{measured[0].candidates} candidates of one user, one thread"
    found = Table(title=title, title_justify="left", header_style="bold", box=box.SIMPLE, pad_edge=False)
    found.collapse_padding = True
    for name in head:
        found.add_column(name.replace(" ", "\n"), justify="left" if name in ("tables", "user") else "right")
    for line in lines:
        found.add_row(*line)
    return found
