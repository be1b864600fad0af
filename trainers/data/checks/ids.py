"""Ids that a model has not met when it is measured: their vectors are untrained. Exact.

Threshold. UNSEEN: one row in five scored by a vector that nothing was learned for. Ids that are new by nature, as those
of live rooms, pass it too; such a column wants a feature beside it that carries over, as the room's streamer.
CALENDAR: a column of so few values a day follows the calendar, as `weekday` does (two, where its day begins at another
hour than the log's). All of them are new until the log is a week long, which says nothing on the ids of anything.
"""

from dataclasses import dataclass

from livetrain.trainers.data.checks.dataset import Dataset
from livetrain.trainers.data.checks.findings import Finding, Verdict, share
from livetrain.trainers.data.checks.schema import quoted

UNSEEN = 0.2
CALENDAR = 2


@dataclass(frozen=True)
class Unseen:
    """An id column: (day, part, rows with an id, of these with an id that no part learned from before holds)."""

    column: str
    days: list[tuple[int, int, int, int]]
    calendar: bool = False  # whether its ids follow the calendar, as weekdays do

    @property
    def last(self) -> tuple[int, int]:
        """Rows, and unseen ones, of the last part."""
        part = max(day[1] for day in self.days)
        days = [day for day in self.days if day[1] == part]
        return sum(day[2] for day in days), sum(day[3] for day in days)


def measure(dataset: Dataset) -> list[Unseen]:
    """Return every id column's unseen rows: of valid/ and test/ against train/, or of each day against all before."""
    found = []
    for name in dataset.roles.ids:
        column, since = quoted(name), "_part" if dataset.by_day else "1"
        days = dataset.query(
            f"""WITH counted AS (
                SELECT {column} AS id, _day, _part, count(*) AS n FROM rows WHERE {column} IS NOT NULL GROUP BY ALL
            ), known AS (SELECT *, min(_part) OVER (PARTITION BY id) AS first FROM counted)
            SELECT _day, _part, sum(n)::BIGINT, coalesce(sum(n) FILTER (first >= {since}), 0)::BIGINT, count(*)
            FROM known WHERE _day IS NOT NULL GROUP BY ALL ORDER BY _part, _day"""
        )
        calendar = dataset.dated and max((day[4] for day in days), default=0) <= CALENDAR
        found.append(Unseen(name, [day[:4] for day in days if day[1] > 0], calendar))
    return found


def check(dataset: Dataset, unseen: list[Unseen]) -> list[Finding]:
    """Return a finding for every id column of which the last part has too many new ids, one for the others."""
    findings, fine = [], []
    where = "any day before" if dataset.by_day else "train"
    for column in unseen:
        rows, new = column.last if column.days else (0, 0)
        if not rows or new / rows <= UNSEEN:
            fine.append((new / rows if rows else 0.0, column.column))
            continue
        text = f"{share(new / rows)} of the rows of {dataset.parts[-1].name} have an id that is not in {where}"
        if column.calendar:
            text += "; it follows the calendar: a longer log to learn from would have them all"
        findings.append(Finding("unseen ids", column.column, Verdict.look, text))
    if fine:
        most, name = max(fine)
        text = f"most of {name}: {share(most)} of the rows of {dataset.parts[-1].name} have one that is not in {where}"
        findings.append(Finding("unseen ids", f"{len(fine)} columns", Verdict.ok, text))
    return findings
