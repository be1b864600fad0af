"""The model.py of a Triton model: it lies beside the export's files, and needs torch alone.

Triton's Python backend loads it, calls `initialize` once, and `execute` with requests. Tensors have the names of the
wire (see docs/guide/clients.md): ids.FEATURE, lengths.FEATURE, dense.FEATURE, and scores by task. Features of the user
have one row and those of candidates one per candidate; with the request's parameter ``rows`` every feature has as many.
"""

import importlib
import json
import math
from pathlib import Path
from typing import Any

import torch


class TritonPythonModel:
    """What Triton calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the file, map its tables, and score the golden rows: warm, and right.

        Args:
            args: of Triton; `model_repository` and `model_version` say where the files are.

        Raises:
            RuntimeError: the golden rows have other scores than golden.json says. Triton then serves on what it has.
        """
        self.utils = importlib.import_module("triton_python_backend_utils")  # which is there in Triton alone
        torch.set_num_threads(1)
        folder = Path(args["model_repository"], args["model_version"])
        signature = json.loads((folder / "signature.json").read_text(encoding="utf-8"))
        self.model = torch.jit.load(str(folder / "model.pt")).eval()
        if "stored" in signature:
            self.model.attach({name: _mapped(folder, about) for name, about in signature["stored"].items()})
        self.inputs = [each["name"] for each in json.loads(args["model_config"])["input"]]
        self._prove(json.loads((folder / "golden.json").read_text(encoding="utf-8")))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Score requests, each by itself; one that is wrong has its own error."""
        return [self._one(request) for request in requests]

    def _one(self, request: Any) -> Any:
        try:
            given: dict[str, dict[str, torch.Tensor]] = {"ids": {}, "lengths": {}, "dense": {}}
            for name in self.inputs:
                tensor = self.utils.get_input_tensor_by_name(request, name)
                if tensor is not None:  # one that is optional
                    part, _, feature = name.partition(".")
                    # Not by as_numpy: with NumPy 2 a backend that was built for NumPy 1 repeats the first number.
                    given[part][feature] = torch.from_dlpack(tensor.to_dlpack())
            rows = bool(json.loads(request.parameters() or "{}").get("rows"))
            with torch.inference_mode():
                scores = (self.model if rows else self.model.rank)(*given.values())
            wanted = request.requested_output_names() or [*scores]
            answer = [
                self.utils.Tensor.from_dlpack(name, torch.to_dlpack(scores[name].contiguous())) for name in wanted
            ]
            return self.utils.InferenceResponse(output_tensors=answer)
        except (RuntimeError, torch.jit.Error, ValueError, KeyError) as error:
            said = str(error).strip().splitlines() or [type(error).__name__]
            _, refused, why = said[-1].rpartition("builtins.ValueError: ")  # what the file says of a wrong request
            code = self.utils.TritonError.INVALID_ARG if refused else self.utils.TritonError.INTERNAL
            return self.utils.InferenceResponse(output_tensors=[], error=self.utils.TritonError(why, code))

    def _prove(self, golden: dict[str, Any]) -> None:
        rows = (
            {name: torch.tensor(values, dtype=torch.int64) for name, values in golden["ids"].items()},
            {name: torch.tensor(values, dtype=torch.int64) for name, values in golden["lengths"].items()},
            {name: torch.tensor(_numbers(values)) for name, values in golden["dense"].items()},
        )
        with torch.inference_mode():
            for _ in range(5):  # the first calls compile
                found = self.model(*rows)
                self.model.rank(*rows)
        for task, wanted in golden["scores"].items():
            apart = (found[task] - torch.tensor(wanted)).abs().max()
            if not apart <= golden["tolerance"]:
                raise RuntimeError(f"{task}: the golden rows' scores are {apart} off; export the run again")


def _mapped(folder: Path, about: dict[str, Any]) -> torch.Tensor:
    shape = about["shape"]
    dtype = getattr(torch, about["dtype"])
    return torch.from_file(str(folder / about["file"]), shared=False, size=math.prod(shape), dtype=dtype).view(*shape)


def _numbers(values: list[Any]) -> Any:
    return [_numbers(v) if isinstance(v, list) else math.nan if v is None else v for v in values]
