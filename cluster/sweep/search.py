"""What is trained next: draws of the space, at random or by Optuna, handed to Ray Tune one at a time.

Nothing is restored from Tune's own snapshots. After a kill the searcher and the scheduler are told again what the
trials' own logs say, and trials that had not ended are handed out first, to go on in their run folders.
"""

import math
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from livetrain.cluster.sweep.trials import ENDED, Record, Trial
from livetrain.configs.errors import BadInput
from livetrain.configs.space import Choice, Domain, Integer, LogUniform, Range

SCORE, TIME = "score", "epoch"  # keys of what a trial reports; more of the score is better
REDUCTION = 3  # of trials, a third goes on from each rung


class Search(Searcher):
    """Ray Tune's source of trials: those that go on first, then new ones.

    Args:
        sweep: whose trials to continue, and to add to.
        ended: told the number of each trial that Tune is done with, and whether it gave it up; it settles the state.
    """

    def __init__(self, sweep: Record, ended: Callable[[int, bool], None]) -> None:
        super().__init__(metric=SCORE, mode="max")
        self._sweep, self._ended = sweep, ended
        self._open = [trial for trial in sweep.trials if trial.state not in ENDED]
        self._sampler = _Optuna(sweep) if sweep.settings.search == "optuna" else None
        self._numbers: dict[str, int] = {}  # Tune's id -> ours

    # Ray's own annotation leaves out Searcher.FINISHED, a string.
    def suggest(self, trial_id: str) -> dict[str, Any] | None | str:  # type: ignore[override]
        """Return the next trial's number, which is its whole configuration."""
        sweep = self._sweep
        if self._open:
            trial = self._open.pop(0)
        elif len(sweep.trials) < sweep.settings.samples:
            number = len(sweep.trials)
            values = self._sampler.draw(number) if self._sampler else sweep.space.sample(sweep.settings.seed, number)
            trial = Trial(number, values)
            sweep.trials.append(trial)
            sweep.save()
        else:
            return Searcher.FINISHED
        self._numbers[trial_id] = trial.number
        return {"number": trial.number, "values": trial.values}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Settle a trial that Tune is done with, and tell the sampler."""
        number = self._numbers[trial_id]
        self._ended(number, error)
        if self._sampler:
            self._sampler.tell(self._sweep.trials[number])

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the run folders hold it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing; see `save`."""


class _Optuna:
    """Optuna's tree-structured Parzen estimator, over one score or several."""

    def __init__(self, sweep: Record) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._sweep = sweep
        # Another seed after a kill: the same one would draw the first points once more.
        sampler = optuna.samplers.TPESampler(seed=sweep.settings.seed + len(sweep.trials), constant_liar=True)
        self._study = optuna.create_study(directions=["maximize"] * len(sweep.metrics), sampler=sampler)
        self._asked: dict[int, Any] = {}
        for trial in sweep.trials:
            if trial.state in ENDED:
                self.tell(trial)

    def draw(self, number: int) -> dict[str, Any]:
        """Return values for a new trial."""
        asked = self._asked[number] = self._study.ask()

        def pick(key: str, domain: Domain) -> Any:
            if isinstance(domain, Choice):  # Optuna knows no lists: it chooses among their places
                return domain.choice[asked.suggest_categorical(key, range(len(domain.choice)))]
            if isinstance(domain, Integer):
                return asked.suggest_int(key, *domain.integer)
            assert isinstance(domain, Range)
            return asked.suggest_float(key, *domain.ends(), log=isinstance(domain, LogUniform))

        return self._sweep.space.draw(pick)

    def tell(self, trial: Trial) -> None:
        """Take in how a trial ended: its scores, the last one it had when it was stopped, or that it failed."""
        from optuna.trial import TrialState, create_trial

        asked = self._asked.pop(trial.number, None)
        scores = [metric.score(value) for metric, value in zip(self._sweep.metrics, trial.scores, strict=False)]
        known = bool(scores) and all(map(math.isfinite, scores))
        state = TrialState.COMPLETE if trial.state == "finished" else TrialState.PRUNED
        if trial.state == "failed" or not known:
            state = TrialState.FAIL
        steps = {}
        if state == TrialState.PRUNED:
            evaluations = self._sweep.evaluations(trial)
            steps = {line["step"]: self._sweep.metrics[0].score(line["scores"][0]) for line in evaluations}
        values = scores if state == TrialState.COMPLETE else None
        if asked is not None:
            for step, score in steps.items():
                asked.report(score, step)
            self._study.tell(asked, values=values, state=state)
            return
        distributions = {key: _distribution(self._sweep.space.domains[key]) for key in trial.values}
        params = {key: _inner(self._sweep.space.domains[key], value) for key, value in trial.values.items()}
        self._study.add_trial(
            create_trial(
                state=state, values=values, params=params, distributions=distributions, intermediate_values=steps
            )
        )


def check_optuna() -> None:
    """Raise BadInput where Optuna is not installed."""
    try:
        version("optuna")
    except PackageNotFoundError:
        raise BadInput(
            "--search optuna: the package is not installed; pip install 'livetrain[tune]', or use --search random"
        ) from None


def _distribution(domain: Domain) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(domain, Choice):
        return CategoricalDistribution(range(len(domain.choice)))
    if isinstance(domain, Integer):
        return IntDistribution(*domain.integer)
    assert isinstance(domain, Range)
    low, high = domain.ends()
    return FloatDistribution(low, high, log=isinstance(domain, LogUniform))


def _inner(domain: Domain, value: Any) -> Any:
    """Return a value as Optuna knows it."""
    return domain.choice.index(value) if isinstance(domain, Choice) else value


def scheduler(sweep: Record) -> TrialScheduler:
    """Return what stops trials early: ASHA by the epoch of each evaluation, told what earlier trials' logs say.

    The epoch is the run's own, so that a trial that goes on after a kill is judged where it stands.
    """
    if sweep.settings.scheduler == "none":
        return FIFOScheduler()
    first, last = _rungs(sweep)
    # A trial at its last evaluation has nothing left to save: the scheduler is never told of it.
    steps: dict[str, Any] = {"grace_period": first, "max_t": last}  # parts of epochs do as well as Ray's whole numbers
    asha = AsyncHyperBandScheduler(
        time_attr=TIME, metric=SCORE, mode="max", reduction_factor=REDUCTION, stop_last_trials=False, **steps
    )
    nobody: Any = None  # in the place of Tune's controller, which the scheduler does not ask
    for trial in sweep.trials:
        if trial.state in ("finished", "stopped"):
            known: Any = SimpleNamespace(trial_id=f"earlier-{trial.number}")
            asha.on_trial_add(nobody, known)
            for line in sweep.evaluations(trial):
                asha.on_trial_result(nobody, known, reported(sweep, line))
    return asha


def reported(sweep: Record, evaluation: dict[str, Any]) -> dict[str, float]:
    """Return what a trial tells Tune of an evaluation."""
    score = sweep.metrics[0].score(evaluation["scores"][0])
    # Rounded up a little: the epoch .3 of 10 steps is 3/10, and a rung at 3 * .1 would lie above it.
    return {SCORE: score, TIME: evaluation["epoch"] + 1e-6}


def _rungs(sweep: Record) -> tuple[float, float]:
    """Return the epochs of the first evaluation and of the last, over all recipes that the space can make."""

    def values(key: str, own: float) -> list[float]:
        domain = sweep.space.domains.get(key)
        return [own, *domain.probes()] if domain else [own]

    train = sweep.recipe.train
    return max(values("train.evaluate_every", train.evaluate_every)), max(values("train.epochs", train.epochs))
