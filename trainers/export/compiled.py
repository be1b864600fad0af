"""Beside a TorchScript file its code compiled by AOTInductor, .pt2, and what of it runs in ONNX Runtime, model.onnx.

A .pt2 holds no tensors: whoever loads it gives it those of the TorchScript file, mapped ones too, so that nothing is
held twice and deltas count at once (modules/serving/compiled.py). It is for one release of PyTorch and processors with
the instructions that signature.json lists; elsewhere, and where it is not faster, the TorchScript file scores.
"""

import logging
import platform
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Recipe
from livetrain.configs.schema.fit import check_candidate
from livetrain.modules.serving import flat
from livetrain.modules.serving.compiled import flags_here
from livetrain.modules.serving.proof import short
from livetrain.modules.serving.scorer import Features

# What a processor of x86-64-v3 and of v4 has, by the names in /proc/cpuinfo.
_V3 = ["abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"]
_LEVELS = {"x86-64-v4": [*_V3, "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"], "x86-64-v3": _V3}


def processor() -> dict[str, Any]:
    """Return what code that is compiled here is for: `march` as compilers call it, and the `flags` that it needs.

    Raises:
        BadInput: this is another kind of processor than those that are known here.
    """
    here = flags_here()
    for march, wanted in _LEVELS.items():
        if here.issuperset(wanted):  # PyTorch's own kernels also ask for what begins so
            more = sorted(flag for flag in here if flag.startswith(("avx512_", "amx_")))
            return {"march": march, "flags": [*wanted, *more]}
    raise BadInput(
        "export.compiled: code is compiled on and for x86-64 processors with AVX2, and this one is "
        f"{platform.machine()} without it; leave export.compiled out"
    )


def about(files: list[str], seconds: float) -> dict[str, Any]:
    """Return what `compiled` of signature.json says of files that were compiled here, in so many seconds."""
    return {"files": files, "torch": torch.__version__.partition("+")[0], **processor(), "seconds": round(seconds, 1)}


def check(recipe: Recipe) -> None:
    """Refuse, before work starts, what an export of a recipe cannot have.

    Raises:
        BadInput: it asks for files that this machine or this kind of model cannot have, or names no feature.
    """
    asked = recipe.export
    for key, wanted in (("compiled", asked.compiled), ("onnx", asked.onnx)):
        if wanted and recipe.model.fitted:
            raise BadInput(
                f"export.{key}: '{recipe.model.kind}' is fitted, and its lists or trees lead each row another way, "
                f"which no graph can say; it scores by model.pt alone: leave export.{key} out"
            )
    check_candidate(recipe)
    if asked.compiled:
        processor()
    if asked.onnx and any(find_spec(name) is None for name in ("onnxscript", "onnxruntime")):
        raise BadInput("export.onnx: onnxscript and onnxruntime are needed; pip install 'livetrain[onnx]'")


def write(module: Features, recipe: Recipe, path: Path) -> float:
    """Compile all ways of a module into one file; return the seconds that it took.

    Args:
        module: in evaluation mode, with its tables.
        recipe: its recipe.
        path: of the file.

    Raises:
        BadInput: PyTorch or the C++ compiler refuses it.
    """
    import torch._inductor
    from torch._inductor.package import package_aoti

    options = {
        "aot_inductor.package": True,
        "aot_inductor.package_constants_in_so": False,
        "always_keep_tensor_constants": True,  # small ones too: a delta changes them
        "aot_inductor.enable_line_tables": False,
        "cpp.march": processor()["march"],
        "cpp.threads": 1,  # a server's threads each answer a request
    }
    start, files = time.monotonic(), dict[str, Any]()
    try:
        with _quiet():
            for way in flat.about(module, recipe)["ways"]:
                program = flat.exported(module, recipe, way)
                arguments, _ = program.example_inputs
                files[way] = torch._inductor.aot_compile(program.module(check_guards=False), arguments, options=options)
            package_aoti(str(path), files)
    except Exception as error:
        raise BadInput(
            f"export.compiled: '{recipe.model.kind}' cannot be compiled ({short(error)}); leave export.compiled out"
        ) from error
    return time.monotonic() - start


def write_onnx(module: Features, recipe: Recipe, path: Path) -> int:
    """Write what ranks as ONNX; return the opset. A model of more than 2 GB has its weights beside it, in PATH.data.

    Raises:
        BadInput: PyTorch has no ONNX operator for something that the model does.
    """
    names = flat.about(module, recipe)
    inputs, outputs = [column["name"] for column in names["inputs"]], names["outputs"]
    try:
        with _quiet():
            program = flat.exported(module, recipe, "rank")
            written = torch.onnx.export(
                program, dynamo=True, input_names=inputs, output_names=outputs, verbose=False, optimize=True
            )
        assert written is not None
        written.save(str(path))
    except Exception as error:
        known = re.search(r"No ONNX function found for <OpOverload\(op='([^']*)'", str(error))
        why = short(error) if known is None else f"ONNX has no {known[1]}"
        raise BadInput(
            f"export.onnx: '{recipe.model.kind}' cannot be written as ONNX ({why}); leave export.onnx out"
        ) from error
    return int(written.model.opset_imports[""])


class Onnx:
    """A written model.onnx, called as the scripted file's `rank` is.

    Raises:
        BadInput: ONNX Runtime refuses the file.
    """

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise BadInput(f"export.onnx: ONNX Runtime refuses it ({short(error)}); leave export.onnx out") from error
        self._columns, self._about = flat.Columns(about), about

    def rank(
        self, ids: dict[str, torch.Tensor], lengths: dict[str, torch.Tensor], dense: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """As `Scorer.rank`, where the features of `once` come once."""
        way, columns = self._columns.rank(ids, lengths, dense)
        if way != "rank":
            raise ValueError("model.onnx ranks candidates of one user alone")
        given = zip(self._about["inputs"], columns, strict=True)
        found = self._session.run(self._about["outputs"], {about["name"]: column.numpy() for about, column in given})
        return {name: torch.from_numpy(each) for name, each in zip(self._about["outputs"], found, strict=True)}


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what PyTorch's compilers tell their developers."""
    names = ("torch", "torch.onnx", "torch._inductor", "onnxscript")
    before = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
