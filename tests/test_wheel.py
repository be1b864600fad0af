"""The wheel holds the package `livetrain` and nothing else, whole, and works beside anybody's own folders."""

import json
import os
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path, PurePosixPath

import pytest

import livetrain
from livetrain.configs.load import dump_recipe
from tests import samples
from tests.wheels import OUTSIDE, ROOT, tracked

TEN_LINES = """
import json, torch, livetrain
run = livetrain.train("recipe.yaml", train={"epochs": 1}, name="first")
print(run.metrics("eval")["click.auc"].max())
run.export("served")
model, rows = torch.jit.load("served/model.pt"), json.load(open("served/golden.json"))
ids = {name: torch.tensor(values, dtype=torch.int64) for name, values in rows["ids"].items()}
lengths = {name: torch.tensor(counts) for name, counts in rows["lengths"].items()}
rate = torch.tensor([torch.nan if x is None else x for x in rows["dense"]["rate"]])
scores = model(ids, lengths, {"rate": rate})["click"]
print((scores - torch.tensor(rows["scores"]["click"])).abs().tolist())
""".strip()


def test_the_wheel_holds_every_source_of_the_rooms(wheel):
    kept = dict.fromkeys([".py", ".cpp", ".h"], lambda path: path.parts[0] not in OUTSIDE)
    kept |= {".yaml": lambda path: path.parts[0] == "configs", ".typed": lambda path: True}
    wanted = {
        f"livetrain/{path}" for path in map(PurePosixPath, tracked()) if kept.get(path.suffix, lambda path: False)(path)
    }
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == wanted
    assert {"livetrain/api.py", "livetrain/py.typed", "livetrain/modules/layers/fused.cpp"} <= held
    assert {"livetrain/configs/recipes/base/kuairand.yaml", "livetrain/configs/spaces/din.yaml"} <= held


def test_only_livetrain_lands_in_site_packages(wheel):
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert tops == {"livetrain", f"livetrain-{livetrain.__version__}.dist-info"}


def test_the_extra_for_gpus_is_what_the_set_up_installs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    torch, gemm, rec = (pin.split("==")[1] for pin in project["optional-dependencies"]["cuda"])
    assert f"TORCH={torch} REC={rec} GEMM={gemm} ;;" in (ROOT / "cluster/setup.sh").read_text()


@pytest.fixture
def stranger(wheel, tmp_path) -> Path:
    """The Python of an environment with the wheel, and with all that is installed here but for this checkout."""
    venv.create(tmp_path / "venv", symlinks=True)
    (site,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    for path in (Path(part) for part in sys.path if part.endswith("site-packages")):
        for found in path.iterdir():
            if "livetrain" not in found.name.lower() and not (site / found.name).exists():
                (site / found.name).symlink_to(found)
    words = ("install", "--quiet", "--no-deps", "--no-index", "--target", str(site), str(wheel))
    subprocess.run([sys.executable, "-m", "pip", *words], check=True)
    return tmp_path / "venv/bin/python"


@pytest.fixture
def home(tmp_path) -> Path:
    """A folder with what its user calls as livetrain calls its rooms, none of which may be imported."""
    for name in ("configs", "modules", "trainers", "cluster", "cli", "tests"):
        (tmp_path / "home" / name).mkdir(parents=True)
        (tmp_path / "home" / name / "__init__.py").write_text("raise SystemExit('this folder is its user\\'s own')")
    return tmp_path / "home"


def run(python: Path, home: Path, *words: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([str(python), *words], cwd=home, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_imported_beside_ones_own_folders(stranger, home, tmp_path):
    where, version = run(
        stranger, home, "-c", "import livetrain; print(livetrain.__file__, livetrain.__version__)"
    ).split()
    assert where.startswith(str(tmp_path / "venv"))
    assert version == livetrain.__version__
    recipe = f"{Path(where).parent}/configs/recipes/din_ml1m.yaml"
    read = f"import livetrain; print(livetrain.load_recipe({recipe!r}, train={{'epochs': 7}}).train.epochs)"
    assert run(stranger, home, "-c", read) == "7\n"


@pytest.mark.slow
def test_a_file_of_ten_lines_trains_exports_and_scores(stranger, home):
    (home / "recipe.yaml").write_text(dump_recipe(samples.recipe(samples.write(home / "data", rows=600))))
    (home / "mine.py").write_text(TEN_LINES)
    assert len(TEN_LINES.splitlines()) <= 10
    auc, apart = run(stranger, home, "mine.py").splitlines()[-2:]
    assert float(auc) > 0.5
    assert json.loads(apart) == pytest.approx([0] * 32, abs=1e-6)
