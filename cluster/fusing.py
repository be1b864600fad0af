"""The weights of a run's fused score: searched by Ray Tune on the validation split, without training anything again.

<run>/fusion.json   formula, weights, and the points that were tried, with which of them no other beats on all tasks
"""

import contextlib
import os
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from livetrain.cluster import ray_workers
from livetrain.configs.complaints import first_complaint
from livetrain.configs.errors import BadInput
from livetrain.configs.schema import FUSED, Days, Recipe
from livetrain.modules.fusion import Fused
from livetrain.trainers.evaluate.fused import Figures, Predicted, compared, figures, lines
from livetrain.trainers.export import fused_rows, fusion
from livetrain.trainers.runtime import run_folder
from livetrain.trainers.runtime.manifest import finite, write_json

Say = Callable[[str], None]
_AT_ONCE = 8  # points that are judged at a time at most: each is searched by what is known of those before
_NONE = -1.0  # in the place of a metric that is undefined, for what searches


def fuse(run: Path, days: Days | None = None, say: Say = lambda text: None) -> dict[str, Any]:
    """Search the weights of a run's fused score, and write them beside the run.

    Of the points that no other one beats in every task's metric, the one is chosen whose metrics are largest in the
    mean, each as a multiple of what the task's own score has, and counted as fusion.tasks says.

    Args:
        run: the run's folder.
        days: what the splits read in the place of the run's own days.
        say: told what was found.

    Returns:
        What fusion.json holds.

    Raises:
        BadInput: the recipe has no fusion, or no point gives every row a score.
    """
    recipe = run_folder.recipe_of(run)
    if recipe.fusion is None:
        raise BadInput(f"{run / 'config.yaml'}: the recipe has no section fusion; add one, with a score over its tasks")
    predicted = fused_rows.predicted(run, "valid", days)
    tried = _tried(recipe, predicted)
    by, judged = recipe.fusion.by, recipe.judged()
    own = figures(predicted, recipe, {name: predicted.predictions[name] for name in judged}, list(judged))
    single = np.array([own[task][task][by] for task in judged])
    values = np.array([[one["metrics"][task] for task in judged] for one in tried])
    whole = np.flatnonzero((values >= 0).all(1))
    if not len(whole):
        raise BadInput(
            f"fusion.score: {by} is undefined at every point that was tried: the formula gives some rows no number, or "
            "all rows the same, or a task has no group with labels of both kinds; change the formula, or fusion.tasks"
        )
    front = [int(place) for place in whole if not _beaten(values[place], values[whole])]
    counts = np.array(list(judged.values()))
    best = max(front, key=lambda place: float(np.nan_to_num(values[place] / single) @ counts))
    weights = tried[best]["weights"]
    found = {
        "score": recipe.fusion.score,
        "weights": weights,
        "by": by,
        "step": run_folder.content(run_folder.find_checkpoint(run, "best"))["step"],
        "rows": len(predicted.groups),
        "share_of_groups": predicted.share,
        "days": None if days is None else days.model_dump(mode="json"),
        "valid": compared(predicted, recipe, weights),
        "front": [tried[place] for place in front],
        "tried": tried,
    }
    write_json(run / fusion.NAME, finite(found))
    say(f"fused score: {recipe.fusion.score}, {_said(weights)}")
    say(f"{len(front)} of {len(tried)} points are beaten by no other on all tasks:")
    for place in front:
        metrics = " ".join(f"{task} {value:.4f}" for task, value in tried[place]["metrics"].items())
        say(f"  {metrics}  {_said(tried[place]['weights'])}{'  chosen' if place == best else ''}")
    tell(found["valid"], by, "valid", say)
    return found


def judged_on(recipe: Recipe, valid: str) -> Days:
    """Return a recipe's days with others to validate by, which come after those of training.

    Args:
        recipe: the run's.
        valid: first..last day, as 2026-01-05..2026-01-06.

    Raises:
        BadInput: these are no such days, or the recipe has none.
    """
    days = recipe.data.days
    if days is None:
        raise BadInput("--valid: the run has no data.days, whose validation days could be others; leave it out")
    try:
        # Nothing reads the test split here, and it may lie before these days.
        return Days.model_validate({"train": days.train, "valid": valid, "test": "9999-12-31..9999-12-31"})
    except ValidationError as error:
        raise BadInput(f"--valid: {first_complaint(error, Days, {}).sentence}") from None


def measured(run: Path, split: str, days: Days | None = None) -> Figures | None:
    """Return the figures of a run's fused score on a split, and of all it is compared with; None where it has none."""
    recipe = run_folder.recipe_of(run)
    weights = fusion.weights_in(run, recipe)
    if recipe.fusion is None or weights is None:
        return None
    return compared(fused_rows.predicted(run, split, days), recipe, weights)


def tell(found: Figures, by: str, split: str, say: Say) -> None:
    """Say how the fused score ranks, beside each task's own and their product."""
    say(f"{split}: by each task's labels,")
    for line in lines(found, by):
        say(f"  {line}")


def _said(weights: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in weights.items()) or "without weights"


def _beaten(one: np.ndarray, others: np.ndarray) -> bool:
    """Return whether another point is as good in all metrics, and better in one."""
    return bool(((others >= one).all(1) & (others > one).any(1)).any())


def _metrics(recipe: Recipe, predicted: Predicted, weights: dict[str, float]) -> dict[str, float]:
    """Return each task's metric of the score with some weights; `_NONE` where a row has none, or all rows the same."""
    assert recipe.fusion is not None
    score = Fused(recipe.fusion, list(recipe.answered), weights)(predicted.predictions)
    if len(score) and bool((score == score[0]).all()):  # it would order nothing, and a metric of ties looks like one
        return dict.fromkeys(recipe.judged(), _NONE)
    found = figures(predicted, recipe, {FUSED: score}, list(recipe.judged()))[FUSED]
    return {task: float(np.nan_to_num(found[task][recipe.fusion.by], nan=_NONE)) for task in found}


def _tried(recipe: Recipe, predicted: Predicted) -> list[dict[str, Any]]:
    """Return the points that were tried: their weights, and each task's metric."""
    assert recipe.fusion is not None
    if not recipe.fusion.weights:
        return [{"weights": {}, "metrics": _metrics(recipe, predicted, {})}]
    return _in_process(recipe, predicted) if recipe.cluster.most == 0 else _by_tune(recipe, predicted)


def _in_process(recipe: Recipe, predicted: Predicted) -> list[dict[str, Any]]:
    """Return the points that were tried one after the other, of a run without Ray."""
    assert recipe.fusion is not None
    ends, judged, tried = recipe.fusion.weights, list(recipe.judged()), list[dict[str, Any]]()
    draw, study = np.random.default_rng(recipe.train.seed), None
    if find_spec("optuna") is not None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=recipe.train.seed)
        study = optuna.create_study(directions=["maximize"] * len(judged), sampler=sampler)
    for _ in range(recipe.fusion.trials):
        asked = None if study is None else study.ask()
        weights = {
            name: float(draw.uniform(least, most)) if asked is None else asked.suggest_float(name, least, most)
            for name, (least, most) in ends.items()
        }
        metrics = _metrics(recipe, predicted, weights)
        if study is not None and asked is not None:
            study.tell(asked, [metrics[task] for task in judged])
        tried.append({"weights": weights, "metrics": metrics})
    return tried


def _by_tune(recipe: Recipe, predicted: Predicted) -> list[dict[str, Any]]:
    """Return the points that Ray Tune tried, on the recipe's cluster or on this machine."""
    assert recipe.fusion is not None
    ends = recipe.fusion.weights
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    from ray import tune as ray_tune
    from ray.tune import CLIReporter
    from ray.tune.search import BasicVariantGenerator

    class Point(ray_tune.Trainable):
        """Points of the weights, one after the other: a process that is there judges the next in no time."""

        def setup(self, config: dict[str, float], **given: Any) -> None:
            self._judge = partial(_metrics, given["recipe"], given["predicted"])

        def reset_config(self, new_config: dict[str, float]) -> bool:
            self.config = new_config
            return True

        def step(self) -> dict[str, Any]:
            return {**self._judge(self.config), "done": True}

    judged = list(recipe.judged())
    search: Any = BasicVariantGenerator(random_state=recipe.train.seed)
    if find_spec("optuna") is not None:
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        search = OptunaSearch(metric=judged, mode=["max"] * len(judged), seed=recipe.train.seed)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(ray_workers.attached(recipe.cluster))
        done = ray_tune.run(
            ray_tune.with_parameters(Point, recipe=recipe, predicted=predicted),
            config={name: ray_tune.uniform(*pair) for name, pair in ends.items()},
            num_samples=recipe.fusion.trials,
            search_alg=search,
            storage_path=folder,
            verbose=0,
            progress_reporter=CLIReporter(),
            reuse_actors=True,
            max_concurrent_trials=_AT_ONCE,
        )
        return [
            {
                "weights": {name: one.config[name] for name in ends},
                "metrics": {task: one.last_result.get(task, _NONE) for task in judged},
            }
            for one in done.trials
        ]
