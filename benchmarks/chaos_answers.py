"""What a server may answer while it, its store and its publisher are killed: see benchmarks.chaos_serve."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from livetrain.configs.load import load_recipe
from livetrain.trainers.data.store.kv import open_store
from livetrain.trainers.export import publish
from livetrain.trainers.export.served import Served
from livetrain.trainers.online.features import Features
from tests.trainers.online import worlds

if TYPE_CHECKING:
    from benchmarks.chaos_serve import Stage

CLOSE = 1e-5
ROOMS, STREAMERS = [1, 2, 3, 99], [101, 102, 100, 999]


@dataclass
class Answer:
    """What a client got: scores, or why there are none."""

    whole: bool  # it had sent all features
    began: float
    ended: float
    user: int = 0
    id: str = ""
    fence: int = 0
    delta: int = 0
    scores: np.ndarray | None = None
    refused: str = ""


class Wanted:
    """What may be answered: by a state of the model, of what the store had before or after it was told the day."""

    def __init__(self, stage: "Stage") -> None:
        self._inputs = stage.inputs
        days, recipe = sorted((stage.work / "out").glob("date=*")), load_recipe(stage.work / "recipe.yaml", [])
        self._features = []
        for told in (False, True):
            store = open_store(str(stage.folder / f"known-{told}"), create=True)
            worlds.filled(store, days[-2])
            if told:
                worlds.told(store, worlds.EVERYTHING, stage.work / "raw", days[-1], stage.folder / "known-work")
            self._features.append(Features(store, recipe))
        self._minute = cache(self._minute)

    def of(self, served: Served, answer: Answer) -> str | None:
        """Return of what an answer is: "whole" rows, of the "night" or what was "told" since; None of nothing."""
        assert answer.scores is not None
        if answer.whole:
            return "whole" if _close(self._scores(served, self._inputs), answer.scores) else None
        for minute in {int(answer.began // 60), int(answer.ended // 60)}:
            # The user's events and each room's are told one after the other; a score is of one user and one room.
            made = [self._scores(served, self._minute(answer.user, minute, *told)) for told in product((0, 1), (0, 1))]
            for user, name in ((0, "night"), (1, "told")):
                rooms = np.stack(made[2 * user : 2 * user + 2])
                if (np.abs(rooms - answer.scores).max(1).min(0) <= CLOSE).all():
                    return name
        return None

    def _minute(self, user: int, minute: int, told: int, room: int) -> Any:
        """Return the features of a request in a minute: of the user, and of rooms, before or after they were told."""
        made = [
            features.row(user, {"room": ROOMS, "streamer": STREAMERS}, 60_000 * minute) for features in self._features
        ]
        made[told][2]["room_viewers"] = made[room][2]["room_viewers"]
        return made[told]

    def _scores(self, served: Served, inputs: Any) -> np.ndarray:
        with torch.no_grad(), served.use() as models:
            model = models["model.pt"]
            found = model(*inputs) if inputs is self._inputs else model.rank(*inputs)
        return np.stack([found[task].numpy() for task in ("click", "like")])


def _close(wanted: np.ndarray, found: np.ndarray) -> bool:
    return bool(np.allclose(wanted, found, atol=CLOSE, rtol=0))


def states(folder: Path) -> Iterator[tuple[tuple[int, int], Served]]:
    """Yield each state that was ever published, (fence, delta), loaded from its own files."""
    pointer = publish.current(str(folder / "models"))
    again = folder / "again"
    for version in pointer["versions"] if pointer else ():
        shutil.rmtree(again, ignore_errors=True)
        again.mkdir()
        (again / version["folder"]).symlink_to(folder / "models" / version["folder"])
        deltas, served = version.get("deltas", []), None
        for number in range(len(deltas) + 1):
            fence = int([version, *deltas][number]["folder"].rpartition(".")[2])
            entry = {**version, "deltas": deltas[:number]}
            (again / "current.json").write_text(json.dumps({**entry, "fence": fence, "versions": [entry]}))
            if served is None:
                served = Served(str(again))
            else:
                served.refresh()
            yield (fence, number), served
