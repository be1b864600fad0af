"""What should wake somebody: a score that is off, a kind of event that has stopped, a model or a stream that lags.

Each rule is a function of kept figures alone, and says in one sentence what is so, and what to look at. A week without
a fault should raise none: each asks for a difference that chance makes about once in 10,000 looks.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from livetrain.trainers.watch.effects import OTHERS, ROWS

CALIBRATION_S, SILENT_S, BEFORE_S = 1800, 900, 4 * 3600  # s of events that are judged, and that say what is usual
DEVIATIONS, OFF, EXPECTED, LEAST = 4.0, 0.2, 20.0, 10  # of the noise; of the PCOC from 1; events; minutes with scores


@dataclass(frozen=True)
class Alarm:
    """What is wrong, in a few words, and in a sentence."""

    what: str
    text: str


def calibration(figures: pd.DataFrame, end: int) -> Iterator[Alarm]:
    """Yield the scores that are off over the last CALIBRATION_S s: by more than OFF, and than chance.

    Where a score is off as a whole, its slices are not told apart.

    The noise is measured: by how far the minutes' errors differ from each other. So it is right for labels that are no
    0 and 1, and for events that come in bursts within a minute. It is at least that of counts, as few minutes without
    an event do not differ.

    Args:
        figures: rows of `effects.SCHEMA`, `start` in s since 1970.
        end: of the newest minute, s since 1970.
    """
    recent = figures[(figures["start"] >= end - CALIBRATION_S) & (figures["scored"] > 0)]
    whole: set[str] = set()  # "" sorts first
    for (by, value, measure), rows in recent.groupby(["by", "value", "measure"]):
        error = (rows["label_sum"] - rows["score_sum"]).to_numpy()
        foretold, came = rows["score_sum"].sum(), rows["label_sum"].sum()
        if len(error) < LEAST or value == OTHERS or foretold <= 0 or measure in whole:
            continue
        noise = max(error.std(ddof=1) * np.sqrt(len(error)), np.sqrt(foretold))
        if abs(foretold - came) > OFF * came and abs(error.sum()) > DEVIATIONS * noise:
            where = f" where {by} is {value}" if by else ""
            whole |= set() if by else {measure}
            yield Alarm(
                f"calibration of {measure}{where}",
                f"{foretold:,.0f} of {measure}{where} were foretold in the last {CALIBRATION_S // 60} min, and "
                f"{came:,.0f} came; see which model is served",
            )


def silent(figures: pd.DataFrame, end: int, labels: Collection[str]) -> Iterator[Alarm]:
    """Yield what has stopped: a label that nothing has made for SILENT_S s though many were to be expected, or all.

    Args:
        figures, end: as of `calibration`.
        labels: the measures that are labels.
    """
    whole = figures[(figures["by"] == "") & figures["measure"].isin([ROWS, *labels])]
    recent = whole[whole["start"] >= end - SILENT_S]
    before = whole[(whole["start"] < end - SILENT_S) & (whole["start"] >= end - SILENT_S - BEFORE_S)]
    for measure, rows in before.groupby("measure"):
        now = recent[recent["measure"] == measure]
        if measure == ROWS:
            span = rows["start"].max() - rows["start"].min()
            expected = rows["sum"].sum() / max(span, SILENT_S) * SILENT_S
        else:
            expected = rows["sum"].sum() / max(rows["count"].sum(), 1) * now["count"].sum()
        if len(now) and now["sum"].sum() == 0 and expected >= EXPECTED:
            what = "exposure" if measure == ROWS else str(measure)
            yield Alarm(
                f"no {what}",
                f"not one {what} came in {SILENT_S // 60} min, where {expected:,.0f} were to be expected; see whether "
                "its topic is silent",
            )
