"""The type checker looks at every source of the package, and at nothing else that lies in the package's folder."""

import tomllib
from pathlib import Path, PurePosixPath

from mypy.main import process_options

from tests.test_wheel import OUTSIDE
from tests.wheels import ROOT, tracked


def test_every_source_of_the_rooms_is_looked_at(monkeypatch):
    monkeypatch.chdir(ROOT)
    sources, _ = process_options([])
    looked_at = {Path(source.path).resolve().relative_to(ROOT.resolve()).as_posix() for source in sources}
    paths = map(PurePosixPath, tracked())
    assert looked_at == {str(path) for path in paths if path.suffix == ".py" and path.parts[0] not in OUTSIDE}
    assert {"__init__.py", "__main__.py", "api.py", "modules/layers/dice.py", "cluster/sweep/driver.py"} <= looked_at


def test_no_module_of_the_package_is_let_off():
    overrides = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]["overrides"]
    assert not [name for part in overrides for name in part["module"] if name.startswith("livetrain")]
    assert not [part for part in overrides if set(part) - {"module", "ignore_missing_imports"}]
