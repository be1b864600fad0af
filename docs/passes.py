"""How many files a recipe, a batch and a night pass through: python docs/passes.py [ROOT]

A file counts where one of its functions runs, as sys.setprofile sees it, on small made-up data and in one process. What
runs only when a module is first imported does not count: everything is done once before it is watched.

recipe   configs/recipes/din_ml1m.yaml is loaded and checked
batch    what runs in every step of a training, and beside the steps in other threads, which read
night    the second of two nights: it trains from the first one's weights, evaluates, compares, exports and publishes
"""

import importlib
import inspect
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import structure  # noqa: E402

DAYS = {"train": "2022-05-01..2022-05-02", "valid": "2022-05-03..2022-05-03", "test": "2022-05-04..2022-05-04"}


class Watch:
    """Which files run while some work is done.

    Attributes:
        all: every file.
        steps: those that ran in this thread, by training step: from one pass through the network to the next.
        read: those that ran in other threads between the first step's beginning and the last one's.
    """

    def __init__(self, root: Path, work: Callable[[], Any]) -> None:
        self._paths, self._known = set(structure.files(root).values()), dict[str, Path]()
        self._thread, self._others = threading.get_ident(), set[Path]()
        self.all, self.read, self.steps = set[Path](), set[Path](), list[set[Path]]()
        threading.setprofile(self._note)
        sys.setprofile(self._note)
        try:
            work()
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    def _note(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event != "call" or not code.co_flags & inspect.CO_OPTIMIZED:  # the body of a module or of a class
            return
        if code.co_filename not in self._known:
            self._known[code.co_filename] = Path(code.co_filename).resolve()
        path = self._known[code.co_filename]
        if path not in self._paths:
            return
        self.all.add(path)
        if threading.get_ident() != self._thread:
            self._others.add(path)
            return
        owner = frame.f_locals.get("self")
        if code.co_name == "forward" and type(owner).__name__ == "Dense" and owner.training:  # once per step
            self._others = self._others if self.steps else set()
            self.read = set(self._others)
            self.steps.append(set())
        if self.steps:
            self.steps[-1].add(path)


def main(root: Path, scratch: Path) -> None:
    sys.path.insert(0, str(root))
    package = "livetrain." if (root / "api.py").exists() else ""
    names = ("configs.load", "cluster.launch", "cluster.nightly", "modules.models")
    load, launch, nightly, _ = (importlib.import_module(package + name) for name in names)
    samples = importlib.import_module("tests.samples")
    changes = {"train__log_every": 1000, "train__epochs": 1, "train__evaluate_every": 1.0, "evaluate__group_by": None}

    def recipe() -> None:
        load.load_recipe(root / "configs/recipes/din_ml1m.yaml")

    def train(name: str) -> None:
        launch.train(samples.recipe(scratch / "data", name=name, **changes), scratch / "runs")

    def night(day: str) -> None:
        made = samples.recipe(scratch / "days", name="din", **changes, data__days=DAYS)
        nightly.night(made, scratch / "nights", day, str(scratch / "models"), 1.0, 7, False, print)

    samples.write(scratch / "data", rows=2880)
    (scratch / "days").mkdir()
    for number in range(1, 7):
        made = samples.write(scratch / f"made/{number}", rows=480, seed=number)
        (made / "train").rename(scratch / f"days/date=2022-05-0{number}")
    recipe()
    found = {"a recipe": Watch(root, recipe).all}
    train("first")
    watch = Watch(root, lambda: train("second"))
    found["a batch"] = set.intersection(*watch.steps[1:-1]) | watch.read
    night("2022-05-04")
    found["a night"] = Watch(root, lambda: night("2022-05-06")).all
    for what, paths in found.items():
        print(f"{what}: {len(paths)} files")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve(), Path(folder))
