"""What defines the kinds that a recipe may name, imported by name: livetrain's own, installed plugins, a recipe's own.

A module that is imported enters its kinds itself (`livetrain.register_model`). Whatever reads a recipe, or is sent one,
comes by here first: the command line, a notebook, every worker.
"""

import importlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from pydantic import BaseModel

from livetrain.configs.errors import BadInput

OWN = ("livetrain.modules.models",)  # not by an import statement: configs lies below what defines the kinds
GROUP = "livetrain.plugins"  # of entry points


def load(names: Iterable[str] = ()) -> None:
    """Make all kinds known: livetrain's own, those of installed plugins, and those of the modules named.

    Raises:
        BadInput: a module is not there, or cannot be imported.
    """
    _installed()
    for name in names:
        if os.getcwd() not in sys.path:  # where `python -m livetrain` looks too; last, so that it hides nothing
            sys.path.append(os.getcwd())
        _import(name, f"plugins: '{name}'")


@cache
def _installed() -> None:
    for name in OWN:
        importlib.import_module(name)
    for entry in entry_points(group=GROUP):
        owner = f" of {entry.dist.name}" if entry.dist else ""
        _import(entry.module, f"plugins: '{entry.module}', which is installed as a plugin{owner},")


def _import(name: str, what: str) -> None:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            raise BadInput(
                f"{what} is no module that Python finds; install it, or start where its folder lies, or put that "
                "folder on PYTHONPATH"
            ) from None
        raise BadInput(f"{what} needs the module '{error.name}', which is not installed; install it") from error
    except (Exception, SystemExit) as error:
        why = next(iter(str(error).splitlines()), "")[:120]
        raise BadInput(f"{what} cannot be imported ({type(error).__name__}: {why}); mend it") from error


def origins(part: Any, place: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield the place and the class of every section of a recipe, as ("model", DINConfig)."""
    if isinstance(part, BaseModel):
        yield place, type(part)
        part = part.__dict__
    inner = part.items() if isinstance(part, Mapping) else enumerate(part) if isinstance(part, list | tuple) else ()
    for key, value in inner:
        yield from origins(value, f"{place}.{key}".lstrip("."))


def complete(recipe: BaseModel, named: list[str]) -> list[str]:
    """Return the modules named and those that the recipe's kinds come from otherwise: installed, or just imported.

    Written into the run's config.yaml they bring the kinds along wherever the run is read, resumed, scored or sent.
    """
    found = {kind.__module__: None for _, kind in origins(recipe) if not _is_local(kind)}
    inside = ("livetrain", *named)
    return named + [module for module in found if not any(f"{module}.".startswith(f"{name}.") for name in inside)]


def check_shared(recipe: BaseModel) -> None:
    """Raise BadInput where no other process can import a recipe's kinds."""
    for place, kind in origins(recipe):
        if _is_local(kind):
            raise BadInput(
                f"{place}: {kind.__name__} is defined in a notebook cell, a script or a function, where no other "
                "process can import it; move it to a module and name that under plugins; only training with "
                "cluster.workers=0 does without"
            )


def _is_local(kind: type) -> bool:
    return kind.__module__ == "__main__" or "<locals>" in kind.__qualname__
