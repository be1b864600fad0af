import importlib.util

import pytest
import torch

from livetrain.modules.serving import flat
from livetrain.trainers.export import compiled
from livetrain.trainers.export.export import export, more
from livetrain.trainers.export.parity import apart
from livetrain.trainers.export.rows import golden_inputs, one_user
from livetrain.trainers.runtime import run_folder
from tests.trainers.export.test_export import content, copied, read  # noqa: F401

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnxscript", "onnxruntime")), reason="livetrain[onnx]"
)


@needs_onnx
def test_onnx_runtime_ranks_the_golden_rows_as_the_file_does(small_run, tmp_path):
    signature = export(small_run, out=tmp_path / "out", onnx=True)
    assert more(signature) == ["model.onnx"]
    assert {"model.onnx", "model.pt"} < {*content(tmp_path / "out")}
    assert 0 <= signature["onnx"]["largest_difference_of_rank"] < 1e-5
    ranks = compiled.Onnx(tmp_path / "out/model.onnx", signature["flat"]["model"])
    scored = torch.jit.load(tmp_path / "out/model.pt")
    rows = golden_inputs(read(tmp_path / "out/golden.json"))
    once = flat.once(run_folder.recipe_of(small_run))
    for row in range(4):  # of which one misses all it can
        given, repeated = one_user(rows, once, row)
        for found in (ranks.rank(*given), scored.rank(*given)):
            for task, scores in scored(*repeated).items():
                assert apart(found[task], scores) < 1e-5
                assert scores.std() > 0
