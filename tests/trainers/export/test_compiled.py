import importlib.util
import subprocess
from pathlib import Path

import pytest
import torch

from livetrain.configs.errors import BadInput
from livetrain.configs.load import load_recipe
from livetrain.modules.model import Model
from livetrain.modules.serving import flat, proof
from livetrain.modules.serving.compiled import Compiled, unfit
from livetrain.modules.serving.loading import load
from livetrain.modules.serving.scorer import Encoder
from livetrain.trainers.export import compiled
from livetrain.trainers.export.export import export, more
from livetrain.trainers.export.parity import apart
from livetrain.trainers.export.rows import golden_inputs, one_user
from livetrain.trainers.runtime import run_folder
from tests.modules.serving import test_flat
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


@pytest.mark.slow
def test_compiled_code_scores_as_the_file_does_and_follows_what_changes_in_it(copied, tmp_path):  # noqa: F811
    run, out = copied("export.tables=mapped", "export.quantize=int8"), tmp_path / "out"
    signature = export(run, out=out, compiled=True)
    assert more(signature) == signature["compiled"]["files"] == ["model.pt2"]
    assert signature["compiled"]["largest_difference"] < 1e-2
    assert (out / "model.pt2").stat().st_size < 4 << 20  # code alone
    assert unfit(signature["compiled"]) is None
    assert "torch 1.0" in str(unfit(signature["compiled"] | {"torch": "1.0"}))
    assert "with avx9" in str(unfit(signature["compiled"] | {"flags": ["avx2", "avx9"]}))
    scripted, rows = load(out), golden_inputs(read(out / "golden.json"))
    code, once = Compiled(out / "model.pt2", signature["flat"]["model"], scripted), flat.once(run_folder.recipe_of(run))
    seen = []
    for _ in range(2):
        for task, wanted in scripted(*rows).items():
            assert apart(code(*rows)[task], wanted) < 1e-5
            seen.append(wanted)
        for row in (0, 1, 5):
            given, _ = one_user(rows, once, row)
            assert apart(code.rank(*given)["click"], scripted.rank(*given)["click"]) < 1e-5
        assert code.rank(*one_user(rows, ["movie"], 0)[0])["click"].shape == (32,)  # lists of each candidate
        for each in [*scripted.parameters(), *scripted.buffers()]:  # as a delta does
            if each.is_floating_point() or each.dtype == torch.uint8:
                each.detach().add_(1 if each.dtype == torch.uint8 else 0.01)
    assert apart(seen[0], seen[1]) > 1e-3
    said = driven(out)
    assert "of TorchScript's processor time on the golden rows" in said[0]
    (_, first, mean), (_, second, other), (_, cut), missing = (line.split() for line in said[1:])
    assert max(float(first), float(second), float(cut)) < 1e-5
    assert abs(float(mean) - float(other)) > 1e-3
    assert missing == ["missing", "0"]


def driven(folder: Path) -> list[str]:
    """What the C++ class says of an export."""
    source, torch_folder = Path(__file__).parents[2] / "serve/compiled_driver.cpp", Path(torch.__path__[0])
    program, includes = (
        folder.parent / "driver",
        [torch_folder / "include", torch_folder / "include/torch/csrc/api/include"],
    )
    libraries = [f"-L{torch_folder / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{torch_folder / 'lib'}"]
    build = ["g++", "-std=c++20", "-O0", source, "-o", program, *(f"-I{path}" for path in includes), *libraries]
    subprocess.run(build, check=True)
    found = subprocess.run([program, folder], capture_output=True, text=True, check=True)
    return found.stdout.splitlines()


def compared(code, scorer, recipe, ways) -> None:
    """Hold compiled code against the model itself: 6 rows, one of them alone, and candidates of each row's user."""
    rows = proof._made_up(recipe, whole=False)
    for way in ways:
        calls = [rows] if way == "forward" else [rows.row(place, flat.once(recipe)) for place in range(6)]
        for call in [*calls, rows.row(1), rows.row(0)]:
            wanted, found = call.call(getattr(scorer, way)), call.call(getattr(code, way))
            for task, scores in wanted.items():
                torch.testing.assert_close(found[task], scores, rtol=1e-5, atol=1e-5)


# What a server ranks with; tables of ids, and others quantised.
RANKS = "dcnv2_dcnv2 rankmixer_simulated onetrans_simulated pepnet_simulated cgc_hstu_simulated hstu_simulated"
RANKS += " farm_simulated twin_simulated stem_simulated mmoe_simulated din_simulated_ids sasrec_simulated fm_dcnv2"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "quantize"),
    [*((name, "none") for name in RANKS.split()), ("dcnv2_dcnv2", "int8"), ("dcnv2_dcnv2", "float16")],
)
def test_kinds_that_rank_are_compiled_and_score_by_the_tensors_of_a_plain_model(name, quantize, tmp_path):
    recipe = test_flat.small(name)
    scorer = test_flat.built(recipe, quantize)
    compiled.write(scorer, recipe, tmp_path / "model.pt2")
    with torch.no_grad():  # no TorchScript is here: the code takes its tensors from any module that has them
        compared(
            Compiled(tmp_path / "model.pt2", flat.about(scorer, recipe), scorer), scorer, recipe, ["rank", "forward"]
        )


@pytest.mark.slow
@pytest.mark.parametrize("side", ["user", "item"])
def test_towers_are_compiled(side, tmp_path):
    recipe = test_flat.small("dssm_simulated")
    tower = Encoder(Model(recipe).eval().requires_grad_(False), recipe, side).eval()
    compiled.write(tower, recipe, tmp_path / "tower.pt2")
    code, rows = Compiled(tmp_path / "tower.pt2", flat.about(tower, recipe), tower), proof._made_up(recipe, False)
    with torch.no_grad():
        torch.testing.assert_close(rows.call(code), rows.call(tower), rtol=1e-5, atol=1e-5)


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in test_flat.TRAINED if not name.startswith("als")])
def test_kinds_rank_in_onnx_runtime(name, tmp_path):
    recipe = test_flat.small(name)
    scorer = test_flat.built(recipe)
    compiled.write_onnx(scorer, recipe, tmp_path / "model.onnx")
    with torch.no_grad():
        compared(compiled.Onnx(tmp_path / "model.onnx", flat.about(scorer, recipe)), scorer, recipe, ["rank"])


@needs_onnx
def test_what_onnx_cannot_say_is_told_in_a_sentence(tmp_path):
    recipe = test_flat.small("als_amusic")
    with pytest.raises(BadInput, match=r"'als' cannot be written as ONNX \(ONNX has no aten.linalg_cholesky_ex\)"):
        compiled.write_onnx(test_flat.built(recipe), recipe, tmp_path / "model.onnx")


@pytest.mark.parametrize("key", ["compiled", "onnx"])
def test_a_fitted_model_is_refused_before_anything_is_written(key):
    recipe = load_recipe(test_flat.RECIPES / "item_cf_simulated.yaml", [f"export.{key}=true"])
    with pytest.raises(BadInput, match=f"export.{key}: 'item_cf' is fitted"):
        compiled.check(recipe)


def test_another_processor_is_refused(monkeypatch):
    monkeypatch.setattr(compiled, "flags_here", lambda: {"sse2"})
    with pytest.raises(BadInput, match="x86-64 processors with AVX2"):
        compiled.processor()
    monkeypatch.setattr(compiled, "flags_here", lambda: {*compiled._V3, "sse2"})
    assert compiled.processor() == {"march": "x86-64-v3", "flags": compiled._V3}


def test_a_candidate_is_a_feature():
    with pytest.raises(BadInput, match="export.candidate: there is no feature 'vido'.*'video'"):
        load_recipe(test_flat.RECIPES / "din_kuairand.yaml", ["export.candidate=[vido]"])
