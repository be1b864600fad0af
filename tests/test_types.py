"""The type checker looks at every source of the package, and at nothing else that lies in the package's folder."""

import tomllib
from pathlib import Path, PurePosixPath

from mypy.main import process_options

from tests.test_wheel import OUTSIDE
from tests.wheels import ROOT, tracked


def test_every_source_of_the_rooms_is_looked_at(monkeypatch):
    monkeypatch.chdir(ROOT)
    sources, _ = process_options([])  # as `mypy` without arguments, by pyproject.toml
    looked_at = {source.module for source in sources if source.path is None or Path(source.path).is_file()}
    paths = [path for path in map(PurePosixPath, tracked()) if path.suffix == ".py" and path.parts[0] not in OUTSIDE]
    names = {".".join(("livetrain", *path.with_suffix("").parts)).removesuffix(".__init__") for path in paths}
    assert looked_at == names
    assert {"livetrain", "livetrain.__main__", "livetrain.api", "livetrain.cluster.sweep.driver"} <= names


def test_no_module_of_the_package_is_let_off():
    overrides = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]["overrides"]
    kernels = {"module": ["livetrain.modules.layers.gpu.attend", "livetrain.modules.layers.gpu.kernels"]}
    overrides.remove(kernels | {"disallow_untyped_defs": False})  # Triton's functions take pointers and blocks
    assert {key for part in overrides for key in part} == {"module", "ignore_missing_imports"}
    assert not [name for part in overrides for name in part["module"] if name.startswith("livetrain")]
