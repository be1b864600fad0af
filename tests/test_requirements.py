"""What the code imports is declared, is pinned by hash beside its range, and no range admits a known hole."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "cluster/requirements.lock").read_text()
OWN = {"livetrain", "benchmarks", "tests", "structure"}  # the last is docs/structure.py
KNOWN = {"triton": ["triton"]} | packages_distributions()  # it comes with PyTorch for GPUs alone
TRIO = {"torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu"}  # of cluster/setup.sh
# The first version without the holes that are known of those before it.
SAFE = {
    "numpy": "1.22",
    "pyarrow": "14.0.1",
    "pydantic": "2.4",
    "pytest": "9.0.3",
    "pyyaml": "5.4",
    "requests": "2.32.4",
    "scikit-learn": "1.5",
    "setuptools": "78.1.1",
    "tqdm": "4.66.3",
}


def requirements(*extras: str) -> dict[str, Requirement]:
    """The declared requirements, and those of extras, by name."""
    project = PROJECT["project"]
    lines = project["dependencies"] + [line for name in extras for line in project["optional-dependencies"][name]]
    return {canonicalize_name(one.name): one for one in map(Requirement, lines)}


def imported(path: Path) -> set[str]:
    """The distributions of what a file imports, anywhere in it, that are not Python's or ours."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module)
    top = {name.split(".")[0] for name in names} - OWN - sys.stdlib_module_names
    return {canonicalize_name(KNOWN[name][0]) for name in top}


def pins() -> dict[str, list[tuple[Version, int]]]:
    """What the lock file pins: versions and their number of hashes, by name."""
    found: dict[str, list[tuple[Version, int]]] = {}
    for text in re.split(r"\n(?=\S)", re.sub(r"^#.*\n", "", LOCK, flags=re.MULTILINE).strip()):
        name, version = re.match(r"([A-Za-z0-9._-]+)==([^ ;]+)", text).groups()
        found.setdefault(canonicalize_name(name), []).append((Version(version), text.count("--hash=sha256:")))
    return found


def test_every_import_is_declared():
    declared = set(requirements(*PROJECT["project"]["optional-dependencies"])) | TRIO
    declared |= {"ipython"}  # imported in a notebook only, which is IPython's own
    for package in ("cli", "configs", "modules", "trainers", "cluster", "tests"):
        for path in (ROOT / package).rglob("*.py"):
            missing = imported(path) - declared
            assert not missing, f"{path} imports what pyproject.toml does not declare: {missing}"


def test_an_import_outside_the_tests_needs_no_extra_but_those_of_its_users():
    declared = (
        set(requirements("wandb", "tune", "publish", "index", "kernels", "trees", "kafka", "nats", "store", "onnx"))
        | TRIO
        | {"ipython"}
    )
    for package in ("cli", "configs", "modules", "trainers", "cluster"):
        assert set().union(*map(imported, (ROOT / package).rglob("*.py"))) <= declared


@pytest.mark.parametrize("name", SAFE)
def test_no_lower_bound_admits_a_known_hole(name):
    build = {"setuptools": Requirement(PROJECT["build-system"]["requires"][0])}
    one = (requirements("test", "tune", "wandb") | build)[name]
    (lowest,) = (Version(part.version) for part in one.specifier if part.operator in (">=", "=="))
    assert lowest >= Version(SAFE[name])


def test_the_lock_pins_all_that_is_declared_within_its_range():
    found = pins()
    for name, one in requirements("test").items():
        assert name in found, f"cluster/requirements.lock lacks {name}: make lock"
        for version, _ in found[name]:
            assert one.specifier.contains(version), f"{name} {version} is not {one.specifier}: make lock"


def test_the_lock_is_whole_and_of_no_machine():
    assert all(hashes for versions in pins().values() for _, hashes in versions)
    assert not TRIO & set(pins())
    assert not [name for name in pins() if name.startswith(("nvidia-", "cuda-", "triton"))]
    assert not re.search(r"://|--(?!hash=sha256:)| @ |(^|\s)[./]", re.sub(r"^#.*\n", "", LOCK, flags=re.MULTILINE))
