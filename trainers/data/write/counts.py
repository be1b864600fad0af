"""What counts of the past become in the samples: logarithms, rates, and the time since."""

import numpy as np
import pyarrow as pa

from livetrain.trainers.data.write.history import Timeline


def rates(prefix: str, shown: np.ndarray, done: dict[str, np.ndarray]) -> dict[str, pa.Array]:
    """Return `<prefix>_count`, log(1 + exposures), and `<prefix>_<label>_rate`, actions per exposure, null without any.

    Args:
        shown: (R,) exposures.
        done: label -> (R,) actions.
    """
    none = shown == 0
    columns = {
        f"{prefix}_{name}_rate": pa.array((count / np.maximum(shown, 1)).astype(np.float32), mask=none)
        for name, count in done.items()
    }
    return {f"{prefix}_count": pa.array(np.log1p(shown).astype(np.float32))} | columns


def tallies(
    prefix: str, shown: np.ndarray, done: dict[str, np.ndarray], last: np.ndarray, time: np.ndarray
) -> dict[str, pa.Array]:
    """Return `<prefix>_count` and `<prefix>_<label>_count`, log(1 + times), and `<prefix>_ago`, log(1 + seconds).

    Args:
        shown: (R,) exposures.
        done: label -> (R,) actions.
        last: (R,) ms of the newest of the exposures, anything where there is none: `<prefix>_ago` is null there.
        time: (R,) ms of the rows.
    """
    counted = {f"{prefix}_count": shown} | {f"{prefix}_{name}_count": count for name, count in done.items()}
    columns = {name: pa.array(np.log1p(count).astype(np.float32)) for name, count in counted.items()}
    none = shown == 0
    seconds = np.where(none, 0, time - last) / 1000
    return columns | {f"{prefix}_ago": pa.array(np.log1p(seconds).astype(np.float32), mask=none)}


def earlier(
    key: np.ndarray, time: np.ndarray, wanted: np.ndarray, moment: np.ndarray, flags: list[np.ndarray]
) -> tuple[list[np.ndarray], np.ndarray]:
    """Count the events of each `wanted` key strictly before each `moment`.

    Args:
        key, time: (N,) of the events.
        wanted, moment: (R,).
        flags: (N,) booleans each: which events are counted; the first are the exposures.

    Returns:
        (R,) counts for each of `flags`, and the (R,) time of the newest exposure, -1 where there is none.
    """
    timeline = Timeline(key, time)
    spans = timeline.before(wanted, moment)
    newest = timeline.newest(spans, flags[0])
    last = np.where(newest >= 0, time[np.maximum(newest, 0)], -1) if len(time) else np.full(len(wanted), -1)
    return [timeline.total(spans, flag) for flag in flags], last
