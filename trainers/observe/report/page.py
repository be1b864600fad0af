"""What a page shows, apart from how: `contents` fills it from a run, `picture` and `html` draw it.

So both show the same numbers, and neither knows runs. Whoever adds a panel describes it here, and it appears in both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Form = Literal["line", "faint", "points", "hollow", "star"]


@dataclass(frozen=True)
class Series:
    """Points that belong together.

    Attributes:
        label: what they are: for the legend, and where one points at them.
        x, y: (n,) finite numbers.
        color, marker: as `panels.task_style` gives them.
        form: a line with its points, a faint line without them, points alone, filled or hollow, or one star.
        low, high: (n,) ends of intervals, of y or, where the panel has `names`, of x; None where a point has none.
        more: further figures of each point by what they are, (n,) words each, where one points at it.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    color: str
    marker: str = "o"
    form: Form = "line"
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    more: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Plot:
    """Series on two axes.

    Attributes:
        title, about: what is shown, and a sentence on how to read it.
        x, y: words at the axes.
        series: none of them where `missing` says why there is nothing to show.
        log: whether the axes are logarithmic, x and y; all values are above 0 then.
        steps: whether x counts steps from 0 on.
        diagonal: whether x = y is marked.
        level: a value of y, or of x where there are names, that is marked.
        names: of the places 0, 1, ... on the y axis, from the top down, where it has names in place of numbers.
        words: what stands at the end of each name's line.
        key: whether a legend is needed.
        missing: what is said in place of series.
    """

    title: str
    about: str = ""
    x: str = ""
    y: str = ""
    series: Sequence[Series] = ()
    log: tuple[bool, bool] = (False, False)
    steps: bool = False
    diagonal: bool = False
    level: float | None = None
    names: Sequence[str] | None = None
    words: Sequence[str] = ()
    key: bool = False
    missing: str = ""


@dataclass(frozen=True)
class Part:
    """A piece of a bar: what it is, how long, and a colour."""

    label: str
    size: float
    color: str


@dataclass(frozen=True)
class Stack:
    """Bars below each other, each cut into parts.

    Attributes:
        title, about: what is shown, and how to read it.
        rows: of each bar the name, the parts, and a word at its end.
        key: whether a legend names the parts, of one bar; else each part that is long enough bears its name.
        missing: what is said in place of bars.
    """

    title: str
    about: str = ""
    rows: Sequence[tuple[str, Sequence[Part], str]] = ()
    key: bool = False
    missing: str = ""


Panel = Plot | Stack


@dataclass(frozen=True)
class Table:
    """Rows of words; columns after the first `left` are numbers, which stand at the right."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    about: str = ""
    left: int = 1


@dataclass(frozen=True)
class Band:
    """Panels that stand side by side below a title: those of a task."""

    title: str
    panels: Sequence[Panel]
    about: str = ""
    color: str | None = None


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        name: what it is of.
        facts: names and values that say how it came about.
        figures: what one looks for first.
        bands: the panels.
        tables: for those who look closer: a picture leaves them out.
        notes: likewise.
        links: files beside the page, as paths relative to it, and what they hold.
    """

    name: str
    facts: Sequence[tuple[str, str]]
    figures: Table | None
    bands: Sequence[Band]
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    links: Sequence[tuple[str, str]] = ()
