"""What defines the kinds that a recipe may name, imported by name: livetrain's own, installed plugins, a recipe's own.

A module that is imported enters its kinds itself (`livetrain.register_model`). Whatever reads a recipe, or is sent one,
comes by here first: the command line, a notebook, every worker.
"""

import importlib
import os
import sys
from collections.abc import Iterable
from functools import cache
from importlib.metadata import entry_points

from livetrain.configs.errors import BadInput

OWN = (
    "livetrain.modules.models",
    "livetrain.trainers.recall",
    "livetrain.trainers.trees",
)  # not by an import statement: configs lies below what defines the kinds
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
