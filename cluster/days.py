"""Which days a night is about: as they are named, as the data have them, and whether all of them are whole."""

import contextlib
import re
from collections.abc import Iterator
from datetime import date, timedelta

import pyarrow as pa
from pyarrow import fs

from livetrain.configs.errors import BadInput, NotNow
from livetrain.configs.schema import Days, Recipe
from livetrain.trainers.data.read.files import open_filesystem, short, shown
from livetrain.trainers.data.write.layout import SPLITS
from livetrain.trainers.runtime import manifest

_PARTITION = re.compile(r"date=(\d{4}-\d{2}-\d{2})")


def asked(day: str | None, days: str | None) -> list[str] | None:
    """Return the days that --day or --days A..B names, in order, each as 2022-05-08; None where neither is given.

    Raises:
        BadInput: both are given, or one is not as it must be.
    """
    if days is None:
        return None if day is None else [str(_date(day))]
    if day is not None:
        raise BadInput("--days: --day names a day already; leave one of them out")
    try:
        first, last = map(date.fromisoformat, days.split(".."))
    except ValueError:
        first, last = date.max, date.min
    if first > last:
        raise BadInput(f"--days: '{days[:50]}' is no first and last day; write them as 2022-05-04..2022-05-08")
    return [str(first + timedelta(number)) for number in range((last - first).days + 1)]


def weekday(day: str) -> int:
    """Return a day's weekday, 0 for Monday."""
    return _date(day).weekday()


def newest_day(recipe: Recipe) -> str:
    """Return the last day for which the data have a partition; folders of any other name are none.

    Raises:
        NotNow: they have none.
    """
    system, root = open_filesystem(recipe.data.path)
    days = _partitions(system, root)
    if not days:
        raise NotNow(f"data.path: {shown(system, root)} has no partition date=YYYY-MM-DD; prepare a day first")
    return max(days)


def moved(recipe: Recipe, day: str) -> Recipe:
    """Return the recipe with all its days moved alike, so that test ends with `day`, and the night's name.

    Raises:
        BadInput: the recipe names no days, `day` is none, or a split would begin before the year 1.
    """
    if recipe.data.days is None:
        raise BadInput("data.days: a nightly run moves the recipe's days on, and it names none; add data.days")
    last, days = _date(day), recipe.data.days
    by = last - _date(days.of("test")[-1])

    def shift(split: str) -> str:
        named = days.of(split)
        return "..".join(str(_date(end) + by) for end in (named[0], named[-1]))

    try:
        later = Days(**{split: shift(split) for split in SPLITS})
    except OverflowError:
        raise BadInput(f"--day: {last} leaves no room for the days before it; name a later one") from None
    data = recipe.data.model_copy(update={"days": later})
    return recipe.model_copy(update={"data": data, "name": f"{recipe.name}-{last}"})


def check_whole(recipe: Recipe) -> None:
    """Refuse days that are not as their manifests say: still being written, cut short, or with a file too many.

    Names and sizes are compared; no file is read. Data without any manifest are taken as they are.

    Raises:
        NotNow: one of the recipe's days is not whole, or has no manifest though other days have one.
    """
    assert recipe.data.days is not None  # see `moved`
    system, root = open_filesystem(recipe.data.path)
    days = _partitions(system, root)
    with _readable(system, root):
        infos = system.get_file_info([f"{root}/date={day}/{manifest.MANIFEST}" for day in days])
        manifests = {day: info.path for day, info in zip(days, infos, strict=True) if info.is_file}
        for day in (day for split in SPLITS for day in recipe.data.days.of(split)):
            if manifests and day in days and (wrong := _wrong(system, f"{root}/date={day}", manifests.get(day))):
                raise NotNow(
                    f"data.path: {shown(system, root)}/date={day} is not whole: {wrong}; prepare that day again, or "
                    "name another with --day"
                )


def _date(day: str) -> date:
    try:
        return date.fromisoformat(day)
    except ValueError:
        raise BadInput(f"--day: '{day[:50]}' is no day; write it as 2022-05-08") from None


def _partitions(system: fs.FileSystem, root: str) -> list[str]:
    """Return the days of the folders date=YYYY-MM-DD."""
    with _readable(system, root):
        infos = system.get_file_info(fs.FileSelector(root, allow_not_found=True))
    names = (_PARTITION.fullmatch(info.base_name) for info in infos if info.type == fs.FileType.Directory)
    return [name[1] for name in names if name is not None and _exists(name[1])]


@contextlib.contextmanager
def _readable(system: fs.FileSystem, root: str) -> Iterator[None]:
    """Turn what fails on the data's storage into a sentence."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise BadInput(
            f"data.path: {shown(system, root)} cannot be read ({short(error)}); correct data.path"
        ) from error


def _exists(day: str) -> bool:
    try:
        return bool(date.fromisoformat(day))
    except ValueError:
        return False


def _wrong(system: fs.FileSystem, folder: str, path: str | None) -> str | None:
    """Return in words in what a partition differs from its manifest."""
    if path is None:
        return f"it has no {manifest.MANIFEST}, and other days have one"
    with system.open_input_stream(path) as file:
        content = manifest.parsed(file.read())
    if content is None:
        return f"its {manifest.MANIFEST} is damaged"
    found = {info.base_name: info.size for info in system.get_file_info(fs.FileSelector(folder)) if info.is_file}
    for name, wanted in content["files"].items():
        if name not in found:
            return f"{name} is missing"
        if found[name] != wanted.get("bytes"):
            return f"{name} has {found[name]} bytes, and not {wanted.get('bytes')} as its manifest says"
    more = [name for name in found if name.endswith(".parquet") and name not in content["files"]]
    return next((f"{name} is not in its manifest" for name in more if not name.startswith((".", "_"))), None)
