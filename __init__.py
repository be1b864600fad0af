"""livetrain trains recommenders for live streaming: Ray, TorchRec and sharded embedding tables.

Everything below is imported when it is first asked for, so that `import livetrain` costs nothing. Nothing is defined
here: pytest and a job's working directory can import the repository's root under a second name.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from livetrain.api import Run, evaluate, export, train
    from livetrain.cluster.sweep.driver import tune
    from livetrain.configs.load import load_recipe
    from livetrain.configs.schema import Recipe
    from livetrain.modules.models.registry import register_model

    __version__: str

__all__ = ["Recipe", "Run", "__version__", "evaluate", "export", "load_recipe", "register_model", "train", "tune"]

_PLACES = {
    "Recipe": "livetrain.configs.schema",
    "Run": "livetrain.api",
    "evaluate": "livetrain.api",
    "export": "livetrain.api",
    "load_recipe": "livetrain.configs.load",
    "register_model": "livetrain.modules.models.registry",
    "train": "livetrain.api",
    "tune": "livetrain.cluster.sweep.driver",
}


if not TYPE_CHECKING:  # a type checker would take any name for one that is there

    def __getattr__(name: str) -> Any:
        from importlib import import_module, metadata

        if name == "__version__":
            return metadata.version("livetrain")
        if name in _PLACES:
            return getattr(import_module(_PLACES[name]), name)
        raise AttributeError(f"module 'livetrain' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
