"""Which keys decide a sweep's metric, with intervals, as far as its trials can tell."""

from dataclasses import dataclass

import numpy as np

from livetrain.cluster.sweep.trials import Record
from livetrain.cluster.sweep.words import place

LEAST = 4  # trials below which importance says nothing
FEW = 5  # trials per key below which its order is a hint
TREES, RESAMPLES, WITHIN = 10, 60, 0.9
ROWS = 200  # of changed trials in which a resample looks for what a key is worth


@dataclass(frozen=True)
class Importance:
    """What each key's values explain of the first metric, as shares of what all keys explain.

    Args:
        shares: key -> lower end, mean and upper end over resamples of the trials; between the ends lie WITHIN of them.
        trials: how many were compared.
        epoch: at which they were compared.
    """

    shares: dict[str, tuple[float, float, float]]
    trials: int
    epoch: float

    @property
    def caution(self) -> str:
        """Why the order of the keys is not to be trusted; '' where nothing speaks against it."""
        order = sorted(self.shares.values(), key=lambda share: -share[1])
        if self.trials < FEW * len(order):
            return f"Caution: {self.trials} trials are few for {len(order)} keys; take the order as a hint"
        if len(order) > 1 and order[0][0] <= order[1][2]:
            return "Caution: the intervals of the first two keys overlap; their order may be chance"
        return ""


def importance(sweep: Record) -> Importance | None:
    """Measure how much each key decides the first metric.

    Trials are compared where all of them can be: at the last evaluation that even the first to be stopped has reached.
    From a resample of the trials a random forest learns the metric by what was drawn; of the trials that the resample
    has left out, a key is worth what putting other trials' values of it into them adds to the forest's squared error
    (Breiman, Machine Learning 2001). The spread of its share over resamples is what other trials could have shown.

    Raises:
        ImportError: scikit-learn is not installed.

    Returns:
        None where fewer than LEAST trials can be compared, or none differs from another.
    """
    rows, target, epoch = _compared(sweep)
    if len(target) < LEAST or np.ptp(target) == 0:
        return None
    rng = np.random.default_rng(0)
    drawn = np.array([_worth(rows, target, rng) for _ in range(RESAMPLES)])
    tail = 50 * (1 - WITHIN)
    low, high = np.percentile(drawn, [tail, 100 - tail], axis=0)
    shares = zip(low.tolist(), drawn.mean(0).tolist(), high.tolist(), strict=True)
    return Importance(dict(zip(sweep.space.domains, shares, strict=True)), len(target), epoch)


def _compared(sweep: Record) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the places of what was drawn, (trials, keys), their metric, (trials,), and the epoch that it is of."""
    logs = [(trial, log) for trial in sweep.trials if trial.measured and (log := sweep.evaluations(trial))]
    epoch = min((log[-1]["epoch"] for _, log in logs), default=0.0)
    rows, target = [], []
    for trial, log in logs:
        line = max((line for line in log if line["epoch"] <= epoch), key=lambda line: line["epoch"], default=log[0])
        if line["scores"][0] is not None:
            rows.append([place(domain, trial.values.get(key)) for key, domain in sweep.space.domains.items()])
            target.append(line["scores"][0])
    return np.array(rows), np.array(target), epoch


def _worth(rows: np.ndarray, target: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return each key's share, (keys,), by one resample of the trials; zeros where no key explains anything."""
    from sklearn.ensemble import RandomForestRegressor

    count, keys = rows.shape
    chosen = rng.integers(0, count, count)
    out = np.setdiff1d(np.arange(count), chosen)
    if not len(out):
        return np.zeros(keys)
    forest = RandomForestRegressor(TREES, random_state=int(rng.integers(2**31)))
    forest.fit(rows[chosen], target[chosen])
    repeats = max(1, ROWS // len(out))
    changed = np.broadcast_to(rows[out], (keys + 1, repeats, *rows[out].shape)).copy()  # of all but the last one key
    for key in range(keys):
        changed[key, ..., key] = rows[rng.integers(0, count, (repeats, len(out))), key]
    found = forest.predict(changed.reshape(-1, keys)).reshape(keys + 1, repeats, len(out))
    *errors, before = ((found - target[out]) ** 2).mean((1, 2))
    drops = np.maximum(np.array(errors) - before, 0)
    return drops / (drops.sum() or 1.0)
