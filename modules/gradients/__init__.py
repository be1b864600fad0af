"""One way to combine the tasks' gradients per file: its config and its arithmetic, side by side. Importing this package
registers all of them."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
