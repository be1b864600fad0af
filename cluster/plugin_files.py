"""Which files a recipe's plugins are, and which plugins stay here since they are installed."""

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

from livetrain.configs.schema import Recipe


def plugin_files(recipe: Recipe) -> dict[str, Path]:
    """Return the files of the plugins that travel, by their path in the folder that Python will find them in.

    A package travels whole, but for hidden and compiled files; a module alone is its one file.
    """
    found: dict[str, Path] = {}
    for spec in _specs(recipe):
        folders = spec.submodule_search_locations
        if _is_installed(spec):
            continue
        if folders is None and spec.origin is not None:
            found[Path(spec.origin).name] = Path(spec.origin)
        for folder in map(Path, folders or ()):
            inside = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
            found |= {f"{spec.name}/{part.as_posix()}": path for part, path in inside.items() if not _stays(part)}
    return found


def installed(recipe: Recipe) -> list[str]:
    """Return the plugins' packages that do not travel: they are installed here, and nodes need them installed too."""
    return [spec.name for spec in _specs(recipe) if _is_installed(spec)]


def _specs(recipe: Recipe) -> list[ModuleSpec]:
    """Return the plugins' packages, and modules that are in none. All were imported when the recipe was read."""
    tops = {name.partition(".")[0]: None for name in recipe.plugins}
    return [spec for top in tops if top != "livetrain" and (spec := importlib.util.find_spec(top))]


def _is_installed(spec: ModuleSpec) -> bool:
    """Tell whether a module came with Python or lies where pip installs; an editable installation lies elsewhere."""
    places = [Path(place) for place in (spec.origin, *(spec.submodule_search_locations or ())) if place]
    return spec.name in sys.stdlib_module_names or any(
        part in ("site-packages", "dist-packages") for place in places for part in place.parts
    )


def _stays(part: Path) -> bool:
    return part.suffix == ".pyc" or any(name.startswith(".") or name == "__pycache__" for name in part.parts)
