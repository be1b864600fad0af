"""The kinds of values that recipes hold. Every number has both ends, so that none overflows what computes with it.

`true` is no number, text is none either ('12', 1_000 in quotes), and 1e3 is a whole one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from livetrain.configs import duration


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def whole(least: int, most: int, **more: Any) -> tuple[Any, ...]:
    """Return what makes `int` the whole numbers from `least` to `most`, as in `Annotated[int, *whole(1, 8)]`."""
    return Field(strict=True, ge=least, le=most, **more), BeforeValidator(_whole)


def _seconds(value: Any) -> Any:
    return duration.seconds(value, "a duration") if isinstance(value, str) else value


def real(least: float, most: float) -> Any:
    """Return what makes `float` the finite numbers from `least` to `most`, as in `Annotated[float, real(0, 1)]`."""
    return Field(strict=True, ge=least, le=most, allow_inf_nan=False)


@dataclass(frozen=True)
class Names:
    """Marks text that names parts of the recipe: where one of them is taken away, this goes too (configs.removal).

    Attributes:
        of: text -> (section, name) of what it names, as ("features", "user").
    """

    of: Callable[[str], list[tuple[str, str]]]


@dataclass(frozen=True)
class Together:
    """Marks lists of a section whose entries belong together by their places: where one goes, so do the others."""


@dataclass(frozen=True)
class Bound:
    """Marks a key that may be left out, but whose section goes where what it names is taken away."""


def _of_metric(text: str) -> list[tuple[str, str]]:
    """Return what ``task.metric`` or ``slice.task.metric`` names; a bare metric is the first task's, whichever."""
    *scope, task, _ = ["", *text.split(".")]
    return [("tasks", task), *(("evaluate.slices", name) for name in scope)]


# Names of features, tables and tasks become parts of dotted keys, of parameter names and of TorchScript attributes.
Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=100)]
FeatureName = Annotated[Name, Names(lambda text: [("features", text)])]
TableName = Annotated[Name, Names(lambda text: [("tables", text)])]
TaskName = Annotated[Name, Names(lambda text: [("tasks", text)])]
SliceName = Annotated[Name, Names(lambda text: [("evaluate.slices", text)])]
# A file system's names end at 255 bytes, and what is written beside a run adds to its name.
RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
RunName = Annotated[str, Field(pattern=RUN_NAME, max_length=128)]
Text = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$", max_length=4096)]
ListName = Annotated[Text, Names(lambda text: [("features", text)])]  # of a sequence feature, or a column of lists
MetricName = Annotated[Text, Names(_of_metric)]
PartName = Annotated[Text, Names(lambda text: [(text.split(".")[0], text.partition(".")[2].split(".")[0])])]
Sql = Annotated[str, Field(pattern=r"\S", max_length=2**16)]  # which may go over several lines

Count = Annotated[int, *whole(1, 2**31 - 1)]  # of steps, epochs, rows ...
CountOrZero = Annotated[int, *whole(0, 2**31 - 1)]
Few = Annotated[int, *whole(1, 256)]  # parts of a network: each is a module of its own
Size = Annotated[int, *whole(1, 2**20)]  # width of a layer
Length = Annotated[int, *whole(1, 2**16)]  # of a list of ids
Units = Annotated[list[Size], Field(max_length=64)]
# A seed is mixed with step and rank into 64 bits (trainers.runtime.ranks.seed_step): beyond 32 bits they would not fit.
Seed = Annotated[int, *whole(0, 2**32 - 1)]
Positive = Annotated[float, real(1e-30, 1e30)]  # float32 knows it, its inverse and no zero
PositiveOrZero = Annotated[float, real(0, 1e30)]
Share = Annotated[float, real(1e-9, 1)]
Dropout = Annotated[float, Field(strict=True, ge=0, lt=1, allow_inf_nan=False)]
Rate = Annotated[float, real(1e-6, 1e6)]  # GB, or GB per second
Duration = Annotated[int, *whole(1, duration.MOST), BeforeValidator(_seconds)]  # s; or text, as 5m
Unit = Literal["s", "ms", "us", "ns"]  # of times that are integers
