"""A checkpoint becomes a TorchScript file that scores.

    <run>/export/  model.pt, signature.json, golden.json, manifest.json (last)
                   user.pt, item.pt: the towers of a model that finds items
                   NAME.table: tables that are mapped, listed in signature.json as `stored`
                   model.pt2, user.pt2, item.pt2, model.onnx: where asked for, see trainers.export.compiled

The file is the model that was evaluated: hashing, normalisation and the cut of long sequences are inside, and plain
PyTorch runs it. It computes in float32, also after training under bfloat16 autocast; tables are stored as they were
trained, or quantised. It appears only after it has scored held-out rows like the checkpoint: within export.tolerance,
or .tolerance_float16 or .tolerance_int8 where quantisation has to show.

Tables are read from the checkpoint, quantised and written a block at a time, into files that are mapped. So an export
takes the memory of the dense part and two blocks (`writing.BLOCK`) beside an idle process, and the pages of those
files, which the system drops when it wants them. Only a file that has its tables inside is loaded whole for the proof.
"""

import errno
import secrets
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Quantization, Recipe
from livetrain.modules.fitted import fitted
from livetrain.modules.fusion import Fused
from livetrain.modules.model import Model
from livetrain.modules.serving import flat
from livetrain.modules.serving.compiled import Compiled
from livetrain.modules.serving.quantized import let_go, stays, stored
from livetrain.modules.serving.scorer import Encoder, Features, Scorer, Tables
from livetrain.modules.tables.mapped import Files, Room, in_memory, nameless, opened
from livetrain.modules.tasks.registry import metrics
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.export import compiled, fusion, inverted
from livetrain.trainers.export import fitted as fits
from livetrain.trainers.export.parity import prove, prove_rank
from livetrain.trainers.export.rows import golden_inputs, held_out_rows, synthetic_rows
from livetrain.trainers.export.signature import _FORMAT, _signature
from livetrain.trainers.export.written import written
from livetrain.trainers.runtime import manifest, run_folder, scratch
from livetrain.trainers.runtime.run_folder import ANOTHER, find_checkpoint
from livetrain.trainers.train import checkpoint, compatible, memory

MAPPED = 1 << 32  # bytes of tables from which on they are mapped, where nothing else is asked for
_BYTES = {"none": lambda table: memory.ELEMENT[table.dtype] * table.dim, "float16": lambda table: 2 * table.dim}
_BYTES |= {"int8": lambda table: table.dim + 8}  # per row


def plain_model(recipe: Recipe, path: Path, room: Room | None = None) -> Model:
    """Return a checkpoint's model, whole, on this process's CPU: float32, evaluation mode, no gradients.

    Args:
        recipe: its recipe.
        path: the checkpoint.
        room: where its tables lie. By default in this process's memory; those of more than 4 GiB in all in files
            without a name in the system's folder for temporary ones (TMPDIR), mapped.

    Raises:
        BadInput: the checkpoint is damaged, or another model's, or there is no space for the tables.
    """
    compatible.check_same(path, recipe, resume=False)
    model = Model(recipe, tables_device="meta", replicated_device="meta")
    try:
        if room is None and _bytes(recipe, "none") > MAPPED:
            with nameless(Path(tempfile.gettempdir())) as files:
                checkpoint.load_plain(model, path, files.room)
        else:
            checkpoint.load_plain(model, path, room or in_memory)
    except run_folder.Damaged as error:
        raise BadInput(f"{error}; {ANOTHER}") from None
    model.dense.in_bfloat16 = False
    return model.eval().requires_grad_(False)


def script(model: Model, recipe: Recipe, tables: Tables, fused: Fused | None = None) -> torch.jit.ScriptModule:
    """Return the model as TorchScript: dicts of tensors in, predictions by task out (see modules.serving.scorer)."""
    return torch.jit.script(Scorer(model, recipe, tables, fused).eval())


def export(
    run: Path,
    which: str | Path = "best",
    out: Path | None = None,
    quantize: Quantization | None = None,
    **asked: Any,
) -> dict[str, Any]:
    """Export one checkpoint of a run and prove it on held-out rows.

    Args:
        run: the run folder, wherever it lies now; the test split must still be at the recipe's data.path.
        which: ``best`` or ``last``, or the checkpoint itself.
        out: folder to write, by default <run>/export; an earlier export there is replaced as a whole. Beside it there
            must be space for the tables as they were trained, and once more as they are stored.
        quantize: how tables are stored, by default as the recipe's export.quantize says.
        asked: other values of the recipe's export: compiled, onnx, candidate.

    Returns:
        The signature, with the parity figures and the sizes.

    Raises:
        BadInput: no such checkpoint or data, too little memory or space, `out` cannot be written or holds something
            else, or the file's scores differ from the model's beyond the tolerance: then nothing is written, and an
            earlier export stays.
    """
    path = which if isinstance(which, Path) else find_checkpoint(run, which)
    out = (out or run / "export").resolve()
    _check_place(out)
    recipe = run_folder.recipe_of(run)
    recipe = recipe.model_copy(update={"export": recipe.export.model_copy(update=asked)})
    compiled.check(recipe)
    try:
        Source.open(recipe, "test")
    except BadInput as error:
        raise type(error)(f"{run / 'config.yaml'}: {error}") from error.__cause__
    quantize = quantize or recipe.export.quantize
    if (kind := fitted(recipe)) is not None:
        with _draft(out) as draft:
            if recipe.model.finds:
                content = inverted.write(kind, run, recipe, path, draft, quantize)
            else:
                content = fits.write(run, recipe, path, draft)
            _commit(draft, out)
        return content
    mapped = _mapped(recipe, quantize)
    if not mapped:
        _check_memory(recipe, quantize, run)
    with _draft(out) as draft, nameless(draft.parent) as trained, nameless(draft.parent) as apart:
        beside = Files(draft)
        kept = beside if mapped else apart  # until the export is done

        def room(name: str, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
            return (kept if stays(dtype, quantize) else trained).room(name, shape, dtype)

        model = plain_model(recipe, path, room)
        tables = stored(model.table_weights(), quantize, model.maps, kept.room)
        if mapped:
            let_go(tables)
        fused = fusion.fused_of(run, recipe, path)
        modules = dict(parts(model, recipe, tables, fused))
        scored, *towers = (
            written(torch.jit.script(module), draft / f"{name}.pt", beside) for name, module in modules.items()
        )

        def again(file: torch.nn.Module, others: Sequence[torch.nn.Module]) -> dict[str, Any]:
            return prove(model, file, recipe, quantize, others, fused)

        found = {
            "quantize": quantize,
            "sizes": sizes(draft / "model.pt", scored, recipe, beside),
            "parity": again(scored, towers),
            **({"stored": beside.index} if mapped else {}),
            **_beside(draft, recipe, modules, [scored, *towers], beside, again),
        }
        content = manifest.finite(_signature(run, recipe, path, model) | found)
        manifest.write_json(draft / "signature.json", content)
        manifest.write_json(draft / "golden.json", _golden(scored, recipe, content))
        _commit(draft, out)
    return content


def _beside(
    draft: Path,
    recipe: Recipe,
    modules: dict[str, Features],
    scripted: list[torch.jit.ScriptModule],
    beside: Files,
    prove: Callable[..., dict[str, Any]],
) -> dict[str, Any]:
    """Write the files that the recipe asks for beside the scripted ones, and prove them; return what is said of them.

    Args:
        draft: the folder.
        recipe: its recipe.
        modules: what is scripted, by the name of its file.
        scripted: the files, loaded.
        beside: tables that lie outside them.
        prove: of a file and its towers what `parity.prove` says.
    """
    asked = recipe.export
    if not (asked.compiled or asked.onnx):
        return {}
    if beside.index:
        for module in modules.values():
            module.attach(opened(draft, beside.index))
    found: dict[str, Any] = {"flat": {name: flat.about(module, recipe) for name, module in modules.items()}}
    if asked.onnx:
        file = draft / "model.onnx"
        opset = compiled.write_onnx(modules["model"], recipe, file)
        worst = prove_rank(compiled.Onnx(file, found["flat"]["model"]), scripted[0], recipe)
        found["onnx"] = {"file": file.name, "opset": opset, "largest_difference_of_rank": worst}
    if asked.compiled:
        files = {name: draft / f"{name}.pt2" for name in modules}
        seconds = sum(compiled.write(modules[name], recipe, file) for name, file in files.items())
        scored, *towers = (
            Compiled(file, found["flat"][name], whole)
            for (name, file), whole in zip(files.items(), scripted, strict=True)
        )
        parity = prove(scored, towers)
        found["compiled"] = compiled.about([file.name for file in files.values()], seconds) | {
            name: parity[name] for name in ("largest_difference", "largest_difference_of_rank")
        }
    return found


def _commit(draft: Path, out: Path) -> None:
    """Make a draft whole, and put it in the place of `out`."""
    manifest.commit(draft, {p.name: manifest.digest(p) for p in sorted(draft.iterdir())}, format=_FORMAT)
    _replace(out, draft)


def _mapped(recipe: Recipe, quantize: Quantization) -> bool:
    """Return whether the tables lie outside the file."""
    asked = recipe.export.tables
    return bool(recipe.tables) and (asked == "mapped" or (asked == "auto" and _bytes(recipe, quantize) > MAPPED))


def _check_memory(recipe: Recipe, quantize: Quantization, run: Path) -> None:
    """Refuse tables that this machine cannot hold, as it does to prove a file that has them inside."""
    taken, free = _bytes(recipe, quantize), memory.free_memory()
    if taken > free:
        raise BadInput(
            f"{run}: to prove a file with all tables inside takes at least {memory.amount(taken)} of memory, and this "
            f"machine has {memory.amount(free)} free; set export.tables: mapped, or export it on a larger one"
        )


def _bytes(recipe: Recipe, quantize: Quantization) -> int:
    """Return the bytes of a recipe's tables as an export stores them."""
    return sum(table.rows * _BYTES[quantize](table) for table in recipe.tables.values())


def _float32(recipe: Recipe) -> int:
    """Return the bytes of a recipe's tables in float32."""
    return sum(4 * table.rows * table.dim for table in recipe.tables.values())


def parts(model: Model, recipe: Recipe, tables: Tables, fused: Fused | None) -> Iterator[tuple[str, Features]]:
    """Yield what is scripted, by the name of its file: the model, and both towers of one that finds items."""
    yield "model", Scorer(model, recipe, tables, fused).eval()
    towers = model.dense.network.towers
    for side in towers.names if towers is not None else ():
        yield side, Encoder(model, recipe, side, tables).eval()


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
            draft.rename(out)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another export has just come to stand there
                raise


def more(signature: dict[str, Any]) -> list[str]:
    """Return the files that score, besides TorchScript's."""
    onnx = [signature["onnx"]["file"]] if "onnx" in signature else []
    return [*onnx, *signature.get("compiled", {}).get("files", [])]


def lines(signature: dict[str, Any]) -> list[str]:
    """Return in sentences how close the file is to the model, and how large."""
    parity, size = signature["parity"], signature["sizes"]
    apart = parity["largest_difference"]
    how = f"differ from the model's by up to {apart:.1e}" if apart else "are exactly the model's"
    found = [f"on {parity['rows']:,} held-out rows the file's scores {how}"]
    for key, auc in parity.items():
        if isinstance(auc, dict) and auc["file"] is not None:
            task, _, name = key.rpartition(".")
            found.append(f"{task} {metrics()[name].title} on them: file {auc['file']:.5f}, model {auc['model']:.5f}")
    shown, wide = ({k: f"{part[k] / 1e6:,.2f} MB" for k in ("tables", "file")} for part in (size, size["float32"]))
    if "onnx" in signature:
        found.append(f"model.onnx ranks them within {signature['onnx']['largest_difference_of_rank']:.1e} of the file")
    if "compiled" in signature:
        about = signature["compiled"]
        found.append(
            f"model.pt2, compiled in {about['seconds']:.0f} s for torch {about['torch']} and {about['march']}, scores "
            f"them within {about['largest_difference']:.1e} of the model"
        )
    return [*found, *(f"{k}: {shown[k]}, with float32 tables {wide[k]}" for k in shown)]


def sizes(file: Path, scored: torch.jit.ScriptModule, recipe: Recipe, beside: Files | None = None) -> dict[str, Any]:
    """Return the bytes of the file, with the tables beside it, and of all tables, and what they would be in float32."""
    kept = {part.data_ptr(): part for name, part in scored.state_dict().items() if name.startswith("lookups.")}
    tables, whole = sum(part.nbytes for part in kept.values()), file.stat().st_size
    whole += sum((beside.folder / about["file"]).stat().st_size for about in beside.index.values()) if beside else 0
    wide = _float32(recipe)
    return {"tables": tables, "file": whole, "float32": {"tables": wide, "file": whole - tables + wide}}


def _golden(scored: torch.jit.ScriptModule, recipe: Recipe, signature: dict[str, Any]) -> dict[str, Any]:
    """Return rows with the scores that a server must reproduce."""
    kind, count = recipe.export.golden, recipe.export.golden_rows
    rows = held_out_rows(recipe, count) if kind == "rows" else synthetic_rows(recipe, signature, count)
    scores = {task: score.tolist() for task, score in scored(*golden_inputs(rows)).items()}
    return {"source": kind, **rows, "scores": scores, "tolerance": recipe.export.tolerance}
