"""What of livetrain travels to a cluster: its own sources, a recipe fit for another machine, and the recipe's plugins.

Data, runs, credentials and the repository's history stay where they are; what a job needs of them it finds there.
"""

import contextlib
import hashlib
import os
import re
import shlex
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from livetrain.cluster.plugin_files import plugin_files
from livetrain.configs import registry
from livetrain.configs.errors import BadInput, without_credentials
from livetrain.configs.load import dump_recipe
from livetrain.configs.schema import Recipe

DOORS = ("__init__.py", "__main__.py", "api.py")
ROOMS = ("cli", "configs", "modules", "trainers", "cluster")
SUFFIXES = (".py", ".cpp", ".h")  # of the sources in them
LIMIT = 512 * 2**20  # bytes; Ray keeps a job's working directory in a store whose messages are at most this large
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Parcel:
    """What is sent: the recipe as the cluster will read it, the command there, and the id."""

    id: str
    files: dict[str, bytes]  # path in the job's working directory -> content
    entrypoint: str
    recipe: str  # digest of the recipe and of where it runs: whether another job is this one, sent before
    day: str = ""  # of a night


def pack(recipe: Recipe, runs: Path, job_id: str | None = None) -> Parcel:
    """Return what is sent for a recipe.

    Raises:
        BadInput: the recipe cannot run on another machine, or the id is none.
    """
    check_portable(recipe, runs)
    name = recipe.name or recipe.model.kind
    job_id = job_id or f"{name}-{time.strftime('%Y-%m-%d')}"
    if not _ID.fullmatch(job_id):
        raise BadInput(f"--id: '{job_id}' must be letters, digits, '.', '_' and '-', beginning with a letter or digit")
    # Without a name of its own the run takes the id's, so that a job of this id never starts a second run.
    text = dump_recipe(for_inside(recipe).model_copy(update={"name": recipe.name or job_id}))
    files = sources() | _read(plugin_files(recipe)) | {"recipe.yaml": text.encode()}
    check_size(files)
    entrypoint = f"python -m livetrain train recipe.yaml --runs {shlex.quote(str(runs))}"
    return Parcel(job_id, files, entrypoint, hashlib.sha256(f"{text}\n{runs}".encode()).hexdigest())


def check_portable(recipe: Recipe, runs: Path) -> None:
    """Raise BadInput for what means something on this machine only."""
    registry.check_shared(recipe)
    _check_place("data.path", recipe.data.path, "holds no data")
    if recipe.train.copies is not None:
        _check_place("train.copies", recipe.train.copies, "goes away with the job")
    start = recipe.train.warm_start
    if start is not None and not os.path.isabs(start.run):
        raise BadInput(
            f"train.warm_start: '{start.run}' is relative, and the job's folder on the cluster holds no runs; "
            "give the absolute path that all nodes share"
        )
    check_runs(runs)


def _check_place(key: str, path: str, why: str) -> None:
    """Raise BadInput for a place that a job would not find: its own folder on the cluster is none, for a reason."""
    if without_credentials(path) != path:
        raise BadInput(
            f"{key}: {without_credentials(path)} comes with a password, which is never sent; "
            "leave it out and give it to the cluster's environment"
        )
    if "://" not in path and not os.path.isabs(path):
        raise BadInput(
            f"{key}: '{path}' is relative, and the job's folder on the cluster {why}; "
            f"give a URI or the absolute path that all nodes share, as in {key}=/shared/{Path(path).name}"
        )


def check_runs(runs: Path) -> None:
    """Raise BadInput for a runs folder that would lie in the job's own."""
    if not runs.is_absolute():
        raise BadInput(
            f"--runs: '{runs}' is relative, and the job's folder on the cluster goes away with the job; "
            "give the absolute path of a folder that all nodes share, as in --runs /shared/runs"
        )


def check_size(files: dict[str, bytes], limit: int = LIMIT) -> None:
    """Raise BadInput where the files are more than Ray takes."""
    _check_sizes({name: len(content) for name, content in files.items()}, limit)


def _check_sizes(sizes: dict[str, int], limit: int = LIMIT) -> None:
    whole = sum(sizes.values())
    if whole < limit:
        return
    largest = max(sizes, key=sizes.__getitem__)
    raise BadInput(
        f"{largest}: with its {sizes[largest] / 2**20:.1f} MiB the job's folder comes to {whole / 2**20:.1f} MiB, and "
        f"Ray takes less than {limit / 2**20:.0f}; make it smaller"
    )


def _read(found: dict[str, Path]) -> dict[str, bytes]:
    """Return the files' contents, unless they are more than Ray takes."""
    _check_sizes({name: path.stat().st_size for name, path in found.items()})
    return {name: path.read_bytes() for name, path in found.items()}


def size(files: dict[str, bytes]) -> int:
    """Return the bytes of all files."""
    return sum(map(len, files.values()))


def sources(root: Path = Path(__file__).parents[1]) -> dict[str, bytes]:
    """Return livetrain's own sources as the package `livetrain`, with the metadata that tells their version.

    Recipes are left out: they may hold what is not for others, and a job needs its own only.
    """
    found = (path for room in ROOMS for path in (root / room).rglob("*") if path.suffix in SUFFIXES)
    paths = [*(root / name for name in DOORS), *found]
    paths = sorted(path for path in paths if not any(part.startswith(".") for part in path.relative_to(root).parts))
    files = {f"livetrain/{path.relative_to(root).as_posix()}": path.read_bytes() for path in paths}
    number = version("livetrain")
    metadata = f"Metadata-Version: 2.1\nName: livetrain\nVersion: {number}\n"
    return files | {f"livetrain-{number}.dist-info/METADATA": metadata.encode()}


@contextlib.contextmanager
def staged(files: dict[str, bytes] | None = None) -> Iterator[Path]:
    """Yield a folder that holds what travels, by default livetrain's sources, until the context ends."""
    with tempfile.TemporaryDirectory(prefix="livetrain-") as folder:
        for name, content in (sources() if files is None else files).items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        yield Path(folder)


def for_inside(recipe: Recipe) -> Recipe:
    """Return the recipe for a process on the cluster, which finds its cluster by itself."""
    return recipe.model_copy(update={"cluster": recipe.cluster.model_copy(update={"address": None})})


def once(command: str, recipe: Recipe | None, runs: Path) -> Parcel:
    """Return what is sent to run a command of livetrain on the cluster, under an id that is never used again.

    Args:
        command: as in `livetrain doctor`.
        recipe: its recipe, if it has one.
        runs: its --runs.

    Raises:
        BadInput: the recipe cannot run on another machine.
    """
    job_id = f"{command}-{time.strftime('%Y-%m-%d-%H%M%S')}-{os.getpid()}"
    return Parcel(job_id, *_command(command, recipe, runs), "")


def night(recipe: Recipe, runs: Path, day: str | None, options: Sequence[str]) -> Parcel:
    """Return what is sent for a night. Its id is without the number that tells the tries apart.

    Args:
        recipe: with a name.
        runs: its --runs.
        day: the night's, or None for the newest of the data, which shows on the cluster only: the id has today's then.
        options: its other options, --day included.

    Raises:
        BadInput: the recipe cannot run on another machine.
    """
    files, entrypoint = _command("nightly", recipe, runs, options)
    digest = hashlib.sha256(files["recipe.yaml"] + entrypoint.encode()).hexdigest()
    day = day or time.strftime("%Y-%m-%d")
    return Parcel(f"nightly-{recipe.name}-{day}", files, entrypoint, digest, day)


def _command(
    command: str, recipe: Recipe | None, runs: Path, options: Sequence[str] = ()
) -> tuple[dict[str, bytes], str]:
    """Return the files and the entrypoint that run a command of livetrain in a job."""
    files, words = sources(), ["python", "-m", "livetrain", command]
    if recipe is None:
        check_runs(runs)
    else:
        check_portable(recipe, runs)
        files |= _read(plugin_files(recipe))
        files["recipe.yaml"] = dump_recipe(for_inside(recipe)).encode()
        words.append("recipe.yaml")
    check_size(files)
    return files, shlex.join([*words, "--runs", str(runs), *options])
