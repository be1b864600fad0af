"""One model per file: its config and its network, side by side. Importing this package registers all of them,
and the kinds of features, tasks, combiners of gradients and optimizers that a recipe may name beside them."""

import importlib
import pkgutil

import livetrain.modules.features
import livetrain.modules.gradients
import livetrain.modules.optimizers
import livetrain.modules.tasks  # noqa: F401

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
