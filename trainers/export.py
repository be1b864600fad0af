"""A checkpoint becomes a TorchScript file that scores.

    <run>/export/  model.pt, signature.json, golden.json, manifest.json (last)
                   user.pt, item.pt: the towers of a model that finds items

The file is the model that was evaluated: hashing, normalisation and the cut of long sequences are inside, and plain
PyTorch runs it. It computes in float32, also after training under bfloat16 autocast; tables are stored as they were
trained, or quantised. It appears only after it has scored held-out rows like the checkpoint: within export.tolerance,
or .tolerance_float16 or .tolerance_int8 where quantisation has to show.
"""

import errno
import math
import platform
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from configs.errors import BadInput, without_credentials
from configs.schema import DenseFeature, Feature, IdFeature, Quantization, Recipe, SequenceFeature
from modules.batch import Batch
from modules.model import Model
from modules.serving import Encoder, Scorer
from modules.tasks import kinds
from trainers import checkpoint, manifest, metrics, numbers, runlog, scratch
from trainers.data.reader import Reader
from trainers.data.source import Source

_FORMAT = 1
LAST = "use --checkpoint last"  # what helps where there is no best checkpoint
ANOTHER = "put it back from a copy, or use another (--checkpoint best or last)"  # where one is not whole
Inputs = tuple[dict[str, torch.Tensor], ...]  # ids, lengths and dense by feature, as the file takes them
_TIME = "timestamp"  # a column of this name, if the training split has it, says when its rows happened


def find_checkpoint(run: Path, which: str, mend: str = LAST) -> Path:
    """Return a run's ``best`` or ``last`` committed checkpoint.

    Args:
        run: the run folder.
        which: of its checkpoints.
        mend: what helps where the best is not there, for the message.

    Raises:
        BadInput: the folder is no run, or has no such checkpoint.
    """
    if not (run / "config.yaml").exists():
        raise BadInput(f"{run}: no config.yaml here; name a run folder that `livetrain train` wrote, as runs/<name>")
    found = checkpoint.committed(run)
    if not found:
        raise BadInput(
            f"{run}/checkpoints: no committed checkpoint; let the run come to its first evaluation, or name another"
        )
    if which == "last":
        return found[-1]
    best = manifest.read(found[-1])["position"]["best_step"]
    if best is None:
        raise BadInput(f"{run}: not evaluated yet, so no checkpoint is the best; {mend}")
    path = checkpoint.folder(run, best)
    if path not in found:
        raise BadInput(f"{path}: the best checkpoint is gone; {mend}")
    return path


def plain_model(recipe: Recipe, path: Path) -> Model:
    """Return a checkpoint's model, whole, on this process's CPU: float32, evaluation mode, no gradients.

    Raises:
        BadInput: the checkpoint is damaged, or another model's.
    """
    checkpoint.check_same(path, recipe, resume=False)
    model = Model(recipe)
    try:
        checkpoint.load_plain(model, path)
    except checkpoint.Damaged as error:
        raise BadInput(f"{error}; {ANOTHER}") from None
    model.dense.bfloat16 = False
    return model.eval().requires_grad_(False)


def script(model: Model, recipe: Recipe, quantize: Quantization) -> torch.jit.ScriptModule:
    """Return the model as TorchScript: dicts of tensors in, predictions by task out (see modules.serving)."""
    return torch.jit.script(Scorer(model, recipe, quantize).eval())


def export(
    run: Path, which: str = "best", out: Path | None = None, quantize: Quantization | None = None
) -> dict[str, Any]:
    """Export one checkpoint of a run and prove it on held-out rows.

    Args:
        run: the run folder, wherever it lies now; the data must still be at the recipe's data.path.
        which: ``best`` or ``last``.
        out: folder to write, by default <run>/export; an earlier export there is replaced as a whole.
        quantize: how tables are stored, by default as the recipe's export.quantize says.

    Returns:
        The signature, with the parity figures and the sizes.

    Raises:
        BadInput: no such checkpoint or data, `out` cannot be written or holds something else, or the file's scores
            differ from the model's beyond the tolerance: then nothing is written and an earlier export stays.
    """
    path = find_checkpoint(run, which)
    out = (out or run / "export").resolve()
    _check_place(out)
    recipe = checkpoint.recipe_of(run)
    try:
        for split in ("test", "train"):
            Source.open(recipe, split)
    except BadInput as error:
        raise type(error)(f"{run / 'config.yaml'}: {error}") from error.__cause__
    quantize = quantize or recipe.export.quantize
    model = plain_model(recipe, path)
    with _draft(out) as draft:
        script(model, recipe, quantize).save(str(draft / "model.pt"))
        scored = torch.jit.load(str(draft / "model.pt"))
        towers = _encode(draft, model, recipe, quantize)
        found = {
            "quantize": quantize,
            "sizes": sizes(draft / "model.pt", scored, recipe),
            "parity": prove(model, scored, recipe, quantize, towers),
        }
        content = manifest.finite(_signature(run, recipe, path, model) | found)
        manifest.write_json(draft / "signature.json", content)
        manifest.write_json(draft / "golden.json", _golden(scored, recipe, content))
        manifest.commit(draft, {p.name: manifest.digest(p) for p in sorted(draft.iterdir())}, format=_FORMAT)
        _replace(out, draft)
    return content


def _encode(draft: Path, model: Model, recipe: Recipe, quantize: Quantization) -> list[torch.jit.ScriptModule]:
    """Write both towers of a model that finds items, and return them as loaded again; none of another model."""
    found = []
    for side in getattr(getattr(model.dense.network, "towers", None), "names", ()):
        path = str(draft / f"{side}.pt")
        torch.jit.script(Encoder(model, recipe, side, quantize).eval()).save(path)
        found.append(torch.jit.load(path))
    return found


def _check_place(out: Path) -> None:
    """Refuse to replace anything but an earlier export or an empty folder."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    found = manifest.read(out) if out.is_dir() else None
    if found is None or "model.pt" not in found["files"]:
        raise BadInput(f"{out}: holds something that is not an export; name a new or empty folder with --out")


@contextmanager
def _draft(out: Path) -> Iterator[Path]:
    """Yield an empty folder beside `out`, on its file system, that no other export writes to."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch.sweep(out.parent, f".{out.name}.")
        place = ExitStack()
        draft = place.enter_context(scratch.place(out.parent, f".{out.name}.")) / out.name
        draft.mkdir()
    except OSError as error:
        raise BadInput(f"{out.parent}: cannot write here ({error.strerror}); name another folder with --out") from error
    with place:
        yield draft


def _replace(out: Path, draft: Path) -> None:
    """Put a whole draft in the place of `out`; two renames are all the time in which `out` is not there."""
    while True:
        if out.exists():
            with suppress(FileNotFoundError):  # another export has just moved it away
                out.rename(draft.with_name(f"old-{secrets.token_hex(4)}"))
        try:
            return draft.rename(out)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another export has just come to stand there
                raise


def inputs_of(batch: Batch, recipe: Recipe) -> Inputs:
    """Return a batch as the exported file takes it: ids, lengths and dense by feature."""
    keyed, dense = _names(recipe)
    ids, lengths = {k: batch.ids[k].values() for k in keyed}, {k: batch.ids[k].lengths() for k in keyed}
    return ids, lengths, dict(zip(dense, batch.dense.unbind(1), strict=True))


def _names(recipe: Recipe) -> tuple[list[str], list[str]]:
    """Return the names of the id and sequence features, and those of the dense ones."""
    dense = [name for name, feature in recipe.features.items() if isinstance(feature, DenseFeature)]
    return [name for name in recipe.features if name not in dense], dense


def one_user(inputs: Inputs, user: list[str], row: int) -> tuple[Inputs, Inputs]:
    """Make rows candidates of one user.

    Args:
        inputs: B rows.
        user: the features that all rows take from `row`; the others stay.
        row: whose.

    Returns:
        The same rows as `rank` takes them, the user's features once, and as `forward` does, repeated B times.
    """
    once: Inputs = ({}, {}, {})
    repeated: Inputs = ({}, {}, {})
    ids, lengths, dense = inputs
    for name, count in lengths.items():
        if name not in user:
            for part in (once, repeated):
                part[0][name], part[1][name] = ids[name], count
            continue
        end = int(count[: row + 1].sum())
        own = ids[name][end - int(count[row]) : end]
        once[0][name], once[1][name] = own, count[row : row + 1]
        repeated[0][name], repeated[1][name] = own.repeat(count.numel()), count[row].repeat(count.numel())
    for name, column in dense.items():
        once[2][name] = column[row : row + 1] if name in user else column
        repeated[2][name] = column[row].repeat(column.numel()) if name in user else column
    return once, repeated


def _held_out(recipe: Recipe, rows: int) -> Iterator[tuple[Batch, torch.Tensor]]:
    """Yield the test split's first batches, and in each the places of real rows, `rows` in all."""
    reader = Reader(Source.open(recipe, "test"), recipe, rank=0, world=1, shuffle=False)
    with closing(reader.batches(0)) as batches:
        for batch in batches:
            real = torch.nonzero(batch.weights > 0).flatten()[:rows]
            rows -= real.numel()
            yield batch, real
            if not rows:
                return


def lines(signature: dict[str, Any]) -> list[str]:
    """Return in sentences how close the file is to the model, and how large."""
    parity, size = signature["parity"], signature["sizes"]
    apart = parity["largest_difference"]
    how = f"differ from the model's by up to {apart:.1e}" if apart else "are exactly the model's"
    found = [f"on {parity['rows']:,} held-out rows the file's scores {how}"]
    for key, auc in parity.items():
        if isinstance(auc, dict) and auc["file"] is not None:
            task, _, name = key.rpartition(".")
            name = name.replace("auc", "AUC")
            found.append(f"{task} {name} on them: file {auc['file']:.5f}, model {auc['model']:.5f}")
    shown, wide = ({k: f"{part[k] / 1e6:,.2f} MB" for k in ("tables", "file")} for part in (size, size["float32"]))
    return [*found, *(f"{k}: {shown[k]}, with float32 tables {wide[k]}" for k in shown)]


def prove(
    model: Model,
    scored: torch.jit.ScriptModule,
    recipe: Recipe,
    quantize: Quantization,
    towers: Sequence[torch.jit.ScriptModule] = (),
) -> dict[str, Any]:
    """Return how closely the file, and the product of the towers' vectors, score held-out rows like the model.

    Raises:
        BadInput: less closely than the recipe's tolerance.
    """
    parts, ranked, product, predict = [], 0.0, 0.0, kinds(recipe.tasks)
    with torch.no_grad():
        for batch, real in _held_out(recipe, recipe.export.parity_rows):
            scores = scored(*inputs_of(batch, recipe))
            logits = model(batch.ids, batch.dense, None)
            found = torch.stack([scores[task] for task in recipe.tasks])[:, real]  # (T, n)
            wanted = torch.stack([kind(logits[task]) for task, kind in predict.items()])[:, real]
            parts.append((found, wanted, batch.labels.T[:, real]))
            ranked = max(ranked, _rank_difference(scored, batch, recipe))
            if towers:
                user, item = (tower(*inputs_of(batch, recipe)) for tower in towers)
                product = max(product, _apart((user * item).sum(1), next(iter(scores.values()))))
    found, wanted, labels = (torch.cat(part, 1) for part in zip(*parts, strict=True))
    rows = found.shape[1]
    key = "tolerance" if quantize == "none" else f"tolerance_{quantize}"
    if not rows:
        raise BadInput("export: the test split has no rows to prove the file on; nothing was exported: give it some")
    worst = _apart(found, wanted)
    _check_close(f"on {rows} held-out rows the file's predictions differ from the model's", worst, key, recipe)
    _check_close("the file's rank differs from its forward", ranked, "tolerance", recipe)
    _check_close("the towers' product differs from the file's score", product, "tolerance", recipe)
    aucs = {}
    for t, (task, kind) in enumerate(predict.items()):
        known = ~labels[t].isnan()
        name, auc = ("xauc", numbers.xauc) if kind.numeric else ("auc", metrics.auc)
        both = {"file": found, "model": wanted}
        aucs[f"{task}.{name}"] = {k: auc(labels[t, known].numpy(), p[t, known].numpy()) for k, p in both.items()}
    return {"rows": rows, "largest_difference": worst, "largest_difference_of_rank": ranked, **aucs}


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest difference of two predictions, relative to the second where that is above 1."""
    return float(((one - other).abs() / other.abs().clamp(min=1)).max())


def _check_close(what: str, difference: float, key: str, recipe: Recipe) -> None:
    tolerance = getattr(recipe.export, key)
    if difference <= tolerance:
        return
    if math.isnan(difference):
        mend = "export another checkpoint: --checkpoint best or last"
    else:
        mend = f"raise export.{key} in the run's config.yaml"
        mend += "" if key == "tolerance" else ", or leave the tables as they are: --quantize none"
    raise BadInput(
        f"export: {what} by {difference:.2e}, more than export.{key}={tolerance}; nothing was exported: {mend}"
    )


def _rank_difference(scored: torch.jit.ScriptModule, batch: Batch, recipe: Recipe) -> float:
    """Return how far `rank` is from `forward` where all rows of a batch get the sequences of its longest row."""
    sequences = [name for name, feature in recipe.features.items() if isinstance(feature, SequenceFeature)]
    longest = int(batch.ids[sequences[0]].lengths().argmax()) if sequences else 0
    once, repeated = one_user(inputs_of(batch, recipe), sequences or list(recipe.features)[:1], longest)
    scores = zip(scored.rank(*once).values(), scored(*repeated).values(), strict=True)
    return max(_apart(one, other) for one, other in scores)


def sizes(file: Path, scored: torch.jit.ScriptModule, recipe: Recipe) -> dict[str, Any]:
    """Return the bytes of the file and of the tables in it, and what they would be in float32."""
    stored = {part.data_ptr(): part for name, part in scored.state_dict().items() if name.startswith("lookups.")}
    tables, whole = sum(part.nbytes for part in stored.values()), file.stat().st_size
    wide = sum(4 * table.rows * table.dim for table in recipe.tables.values())
    return {"tables": tables, "file": whole, "float32": {"tables": wide, "file": whole - tables + wide}}


def golden_inputs(rows: dict[str, Any]) -> Inputs:
    """Return the rows of a golden.json as the exported file takes them: ids, lengths and dense by feature."""
    ids, lengths = ({k: torch.tensor(v, dtype=torch.int64) for k, v in rows[p].items()} for p in ("ids", "lengths"))
    dense = {k: torch.tensor([math.nan if x is None else x for x in v]) for k, v in rows["dense"].items()}
    return ids, lengths, dense


def _golden(scored: torch.jit.ScriptModule, recipe: Recipe, signature: dict[str, Any]) -> dict[str, Any]:
    """Return rows with the scores that a server must reproduce."""
    kind, count = recipe.export.golden, recipe.export.golden_rows
    rows = held_out_rows(recipe, count) if kind == "rows" else synthetic_rows(signature, count)
    scores = {task: score.tolist() for task, score in scored(*golden_inputs(rows)).items()}
    return {"source": kind, **rows, "scores": scores, "tolerance": recipe.export.tolerance}


def synthetic_rows(signature: dict[str, Any], rows: int) -> dict[str, Any]:
    """Return rows like those of `held_out_rows`, drawn from what a signature declares: nobody's data are in them.

    Ids are uniform over their table's rows, numbers normal with the stored mean and deviation, each missing in about
    one row of ten. All sequences of a row have one length, as those of one history must: in the first row one more than
    the file looks at, where it looks at as much of each. The first row misses nothing, the second all.
    """
    drawn, features = np.random.default_rng(0), signature["features"]
    longest = {f["max_length"] for f in features.values() if f["type"] == "sequence"} or {0}
    events = drawn.integers(0, min(longest) + 1, rows)
    events[:2] = (min(longest) + (len(longest) == 1), 0)[:rows]
    found: dict[str, dict[str, list]] = {"ids": {}, "lengths": {}, "dense": {}}
    for name, feature in features.items():
        there = drawn.random(rows) >= 0.1
        there[:2] = (True, False)[:rows]
        if feature["type"] == "dense":
            values = drawn.normal(feature["mean"], feature["std"], rows).astype(np.float32).tolist()
            found["dense"][name] = [x if known else None for x, known in zip(values, there, strict=True)]
            continue
        lengths = events if feature["type"] == "sequence" else there.astype(np.int64)
        found["lengths"][name] = lengths.tolist()
        found["ids"][name] = drawn.integers(0, signature["tables"][feature["table"]]["rows"], lengths.sum()).tolist()
    return {"rows": rows, **found}


def held_out_rows(recipe: Recipe, rows: int) -> dict[str, Any]:
    """Return the test split's first rows as lists, a missing dense value as None, and how many there are."""
    keyed, dense = _names(recipe)
    found: dict[str, dict[str, list]] = {
        "ids": {key: [] for key in keyed},
        "lengths": {key: [] for key in keyed},
        "dense": {name: [] for name in dense},
    }
    count = 0
    for batch, real in _held_out(recipe, rows):
        count += real.numel()
        for key in keyed:
            lists = batch.ids[key].to_dense()
            for row in real.tolist():
                found["ids"][key] += lists[row].tolist()
                found["lengths"][key].append(lists[row].numel())
        for column, values in zip(batch.dense[real].T.tolist(), found["dense"].values(), strict=True):
            values += [None if math.isnan(x) else x for x in column]
    return {"rows": count, **found}


def _signature(run: Path, recipe: Recipe, path: Path, model: Model) -> dict[str, Any]:
    """Return what a caller has to know about the file, and where it comes from."""
    step = manifest.read(path)["step"]
    normalise = model.dense.normalise
    statistics = iter(zip(normalise.mean.tolist(), normalise.std.tolist(), strict=True))
    towers = getattr(model.dense.network, "towers", None)
    return {
        "format": _FORMAT,
        "call": "model(ids: Dict[str, Tensor], lengths: Dict[str, Tensor], dense: Dict[str, Tensor])"
        " -> Dict[str, Tensor]: by feature the int64 ids of all rows one after the other, the int64 number of ids of"
        " each row, a float32 number a row; by task a float32 number a row, see tasks",
        "rank": "model.rank(ids, lengths, dense): the same for candidates of one user, whose features are given once,"
        " as one row",
        "features": {name: _feature(feature, statistics) for name, feature in recipe.features.items()},
        "tables": {name: t.model_dump(include={"rows", "dim", "hash", "dtype"}) for name, t in recipe.tables.items()},
        "hashing": "in the file; row = splitmix64(id) with the sign bit cleared, mod rows (hash: mix), or id mod rows,"
        " never negative (hash: modulo)",
        "strings": "a string id is the xxh64 (seed 0) of its UTF-8 bytes, read as a signed 64-bit integer",
        "tasks": {
            name: {"label": recipe.tasks[name].label, "output": kind.output}
            for name, kind in kinds(recipe.tasks).items()
        },
        **({} if towers is None else {"towers": _towers(towers.names)}),
        "model": recipe.model.model_dump(),
        "run": recipe.name,
        "checkpoint": {"step": step, "path": path.name},
        "training": _training(recipe),
        "metrics": _metrics(run, step),
        "versions": versions(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _towers(names: dict[str, list[str]]) -> dict[str, Any]:
    return {
        "call": "user.pt and item.pt (ids, lengths, dense) -> Tensor (B, width): the vectors of B rows, from the"
        " features of their side alone; the product of the two is the score",
        **names,
    }


def _feature(feature: Feature, statistics: Iterator[tuple[float, float]]) -> dict[str, Any]:
    if isinstance(feature, IdFeature):
        return {"type": "id", "dtype": "int64", "table": feature.table, "missing": "length 0"}
    if isinstance(feature, SequenceFeature):
        return {
            "type": "sequence",
            "dtype": "int64",
            "table": feature.table,
            "order": "newest last",
            "max_length": feature.max_length,
            "missing": "length 0",
        }
    mean, std = next(statistics)
    return {"type": "dense", "dtype": "float32", "missing": "NaN", "mean": mean, "std": std}


def _training(recipe: Recipe) -> dict[str, Any]:
    """Return what the model was trained on; the window is read from footers, null where they do not tell."""
    source = Source.open(recipe, "train")
    window = source.id_range(_TIME)
    return {
        "data": without_credentials(recipe.data.path),
        "rows": source.rows,
        "window": None if window is None else [t if isinstance(t, int | float) else str(t) for t in window],
        "window_column": _TIME,
    }


def _metrics(run: Path, step: int) -> dict[str, Any]:
    """Return what the run's log says of a checkpoint, as ``<split>.<task>.<metric>``."""
    found = [line for line in runlog.read(run) if line.get("kind") == "eval" and line.get("step") == step]
    apart = ("kind", "time", "step", "split")
    return {f"{line['split']}.{key}": value for line in found for key, value in line.items() if key not in apart}


def versions() -> dict[str, str]:
    """Return the versions that decide what a run computes."""
    names = ["livetrain", "torch", "torchrec", "ray", "pyarrow", "numpy"]
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
