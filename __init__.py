"""livetrain trains recommenders for live streaming: Ray, TorchRec and sharded embedding tables.

Everything below is imported when it is first asked for, so that `import livetrain` costs nothing. Nothing is defined
here: pytest and a job's working directory can import the repository's root under a second name.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from livetrain.api import Run, compare, evaluate, export, predict, runs, train
    from livetrain.cluster.sweep.driver import tune
    from livetrain.configs.load import load_recipe
    from livetrain.configs.schema import Recipe
    from livetrain.modules.features.registry import register_feature
    from livetrain.modules.fitted import FittedRanker, register_fitted_ranker
    from livetrain.modules.gradients.combiner import register_combiner
    from livetrain.modules.models.registry import register_model
    from livetrain.modules.network import Network
    from livetrain.modules.optimizers import register_dense_optimizer, register_optimizer
    from livetrain.modules.recall.fitted import Fitted, register_fitted
    from livetrain.modules.tasks.registry import register_task
    from livetrain.trainers.recall.index import Index

    __version__: str

__all__ = [
    "Fitted",
    "FittedRanker",
    "Index",
    "Network",
    "Recipe",
    "Run",
    "__version__",
    "compare",
    "evaluate",
    "export",
    "load_recipe",
    "predict",
    "register_combiner",
    "register_dense_optimizer",
    "register_feature",
    "register_fitted",
    "register_fitted_ranker",
    "register_model",
    "register_optimizer",
    "register_task",
    "runs",
    "train",
    "tune",
]

_PLACES = {
    "Fitted": "livetrain.modules.recall.fitted",
    "FittedRanker": "livetrain.modules.fitted",
    "Index": "livetrain.trainers.recall.index",
    "Network": "livetrain.modules.network",
    "Recipe": "livetrain.configs.schema",
    "Run": "livetrain.api",
    "compare": "livetrain.api",
    "evaluate": "livetrain.api",
    "export": "livetrain.api",
    "load_recipe": "livetrain.configs.load",
    "predict": "livetrain.api",
    "register_combiner": "livetrain.modules.gradients.combiner",
    "register_dense_optimizer": "livetrain.modules.optimizers",
    "register_feature": "livetrain.modules.features.registry",
    "register_fitted": "livetrain.modules.recall.fitted",
    "register_fitted_ranker": "livetrain.modules.fitted",
    "register_model": "livetrain.modules.models.registry",
    "register_optimizer": "livetrain.modules.optimizers",
    "register_task": "livetrain.modules.tasks.registry",
    "runs": "livetrain.api",
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
