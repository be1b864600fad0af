"""Files of interactions: tables of users, items, times and values, lines of a user's items, and lists of negatives.

| form | is | of files that end in |
| --- | --- | --- |
| `parquet` | columns by their names | .parquet |
| `csv`, `tsv` | a line of names, then a line per event | .csv, .tsv |
| `inter` | RecBole's: as `tsv`, a name is followed by its type, as user_id:token | .inter |
| `dat` | GroupLens': user::item::value::time without names | .dat |
| `rating` | that of NCF: user, item, value and perhaps time between tabs, without names | .rating |
| `lines` | a line per user: the user, then the items in the order of time, between spaces | .txt |

Text may be packed by gzip, the name then ends in .gz besides.
"""

import gzip
import io
import re
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

from livetrain.configs.errors import BadInput, nearest, short
from livetrain.trainers.data.sources.interactions.log import Events, Listed

ROLES = ("user", "item", "time", "value")
# Names that columns of these roles have in data sets that many use.
_USUAL = {
    "user": ("user", "user_id", "userid", "uid", "reviewerid", "session_id", "sessionid"),
    "item": ("item", "item_id", "itemid", "movieid", "movie_id", "movie", "video_id", "asin", "parent_asin", "book_id"),
    "time": ("time", "timestamp", "ts", "unixreviewtime", "time_ms", "datetime", "date"),
    "value": ("value", "rating", "overall", "weight", "score"),
}
_PLACES = {"dat": ("user", "item", "value", "time"), "rating": ("user", "item", "value", "time")}  # without names
_UNITS = ((1e17, 1e-3), (1e14, 1.0), (1e11, 1e3))  # times above are in nano-, micro-, milliseconds; then microseconds
_PAIR = re.compile(r"\((.+),(.+)\)")


def form_of(path: Path) -> str:
    """Return a file's form by its name's ending.

    >>> form_of(Path("ml-1m.train.rating.gz"))
    'rating'

    Raises:
        BadInput: it is none that is known.
    """
    ending = Path(path.name.removesuffix(".gz")).suffix.lower().removeprefix(".")
    form = {"txt": "lines", "pq": "parquet"}.get(ending, ending)
    if form not in _FORMS:
        raise BadInput(f"{path}: its name ends in no known form; say --form, one of {', '.join(_FORMS)}")
    return form


def read_events(path: Path, form: str | None, names: Mapping[str, str]) -> Events:
    """Read a file of interactions. All of it is held in memory, as text about twice.

    Args:
        path: the file.
        form: see above; by default by the name's ending.
        names: role -> the file's column, of the roles in `ROLES` whose columns have other than the usual names.

    Raises:
        BadInput: it cannot be read, lacks a column, or a row of it has no user, no item, or a time that is none.
    """
    form = form or form_of(path)
    if form not in _FORMS:
        raise BadInput(f"--form: there is no form '{form}'{nearest(form, _FORMS)}")
    table = _read(path, form)
    columns = _columns(path, table, form, names)
    if not len(table):
        raise BadInput(f"{path} has no events; name a file with some")
    ids = {role: _ids(path, table[columns[role]], columns[role]) for role in ("user", "item")}
    time, value = (table[columns[role]] if role in columns else None for role in ("time", "value"))
    return Events(
        str(path),
        **ids,
        time=None if time is None else _microseconds(path, time, columns["time"]),
        value=None if value is None else _values(path, value, columns["value"]),
    )


def read_table(path: Path, key: str | None, role: str) -> tuple[pa.Table, str]:
    """Read what is known of users or items, a row each; return it, and the name of its column of ids.

    Strings of numbers throughout become numbers, other strings stay.

    Args:
        path: a file of the form parquet, csv, tsv or inter.
        key: its column of ids; by default the first with a usual name.
        role: user or item.

    Raises:
        BadInput: it cannot be read, or has no such column.
    """
    form = "inter" if path.name.endswith((".item", ".user")) else form_of(path)
    if form not in ("parquet", "csv", "tsv", "inter"):
        raise BadInput(f"{path}: a table of {role}s is a Parquet, CSV or TSV file with names of columns")
    table = _read(path, form)
    key = _columns(path, table, form, {role: key} if key else {}, (role,))[role]
    for place, name in enumerate(table.column_names):
        if pa.types.is_string(table[name].type) and name != key:
            for kind in (pa.int64(), pa.float32()):
                try:
                    filled = pc.if_else(pc.equal(table[name], ""), None, table[name])
                    table = table.set_column(place, name, filled.cast(kind))
                    break
                except pa.ArrowInvalid:
                    continue
    return table.set_column(table.column_names.index(key), key, _ids(path, table[key], key)), key


def read_listed(path: Path) -> Listed:
    """Read NCF's lists of negatives: a line per test event, `(user,item)` and the negatives, between tabs.

    Raises:
        BadInput: it cannot be read, or a line has another form.
    """
    pairs, negatives, lengths = [], [], []
    for number, line in enumerate(_text(path).splitlines(), 1):
        if line.strip():
            head, *others = line.split("\t")
            pair = _PAIR.fullmatch(head.strip())
            if pair is None or not others:
                raise BadInput(f"{path}, line {number}: wanted (user,item) and negatives between tabs; mend the line")
            pairs.append(pair.groups())
            negatives += [other.strip() for other in others]
            lengths.append(len(others))
    if not pairs:
        raise BadInput(f"{path} is empty; name a file with a line per test event")
    user, item = (pa.array(part) for part in zip(*pairs, strict=True))
    return Listed(str(path), user, item, np.cumsum([0, *lengths]), pa.array(negatives))


def _text(path: Path) -> str:
    return _bytes(path).decode("utf-8", "replace")


def _bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.name.endswith(".gz") else data
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(f"{path} cannot be read ({short(error)}); correct the path, or write the file again") from None


def _read(path: Path, form: str) -> pa.Table:
    """Return a file's columns: of text, all of strings."""
    try:
        return _FORMS[form](path)
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"{path} cannot be read as {form} ({short(error)}); mend it, or say another --form") from None


def _parquet(path: Path) -> pa.Table:
    return pq.read_table(path, partitioning=None)


def _separated(delimiter: str, path: Path) -> pa.Table:
    """Read lines below a line of names; of two letters the delimiter is read as a tab."""
    return _parsed(_bytes(path), delimiter, csv.ReadOptions(use_threads=False))


def _inter(path: Path) -> pa.Table:
    table = _separated("\t", path)
    return table.rename_columns([name.split(":")[0] for name in table.column_names])


def _unnamed(form: str, delimiter: str, path: Path) -> pa.Table:
    data = _bytes(path).replace(delimiter.encode(), b"\t")
    columns = data.split(b"\n", 1)[0].count(b"\t") + 1
    if not 2 <= columns <= len(_PLACES[form]):
        raise BadInput(f"{path}: line 1 has {columns} fields, wanted user, item, value, time; say another --form")
    names = list(_PLACES[form][:columns])
    return _parsed(data, "\t", csv.ReadOptions(use_threads=False, column_names=names))


def _parsed(data: bytes, delimiter: str, options: csv.ReadOptions) -> pa.Table:
    names = (
        options.column_names
        or csv.open_csv(io.BytesIO(data), options, csv.ParseOptions(delimiter=delimiter)).schema.names
    )
    return csv.read_csv(
        io.BytesIO(data),
        options,
        csv.ParseOptions(delimiter=delimiter, newlines_in_values=delimiter == ","),
        csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False),
    )


def _lines(path: Path) -> pa.Table:
    users, items, lengths = [], [], []
    first: dict[str, int] = {}
    for number, line in enumerate(_text(path).splitlines(), 1):
        user, *own = line.split() or [""]
        if not user:
            continue
        if not own or any(mark in line for mark in ("\t", ",", "::")):
            raise BadInput(
                f"{path}, line {number}: wanted a user and her items, between spaces; mend it, or say another --form"
            )
        if first.setdefault(user, number) != number:
            raise BadInput(f"{path}, line {number}: user {user} stands in line {first[user]} too; make them one line")
        users.append(user)
        items += own
        lengths.append(len(own))
    return pa.table(
        {"user": pa.array(users, pa.string()).take(np.repeat(np.arange(len(users)), lengths)), "item": items}
    )


_FORMS: dict[str, Callable[[Path], pa.Table]] = {
    "parquet": _parquet,
    "csv": partial(_separated, ","),
    "tsv": partial(_separated, "\t"),
    "inter": _inter,
    "dat": partial(_unnamed, "dat", "::"),
    "rating": partial(_unnamed, "rating", "\t"),
    "lines": _lines,
}


def _columns(
    path: Path, table: pa.Table, form: str, names: Mapping[str, str], roles: tuple[str, ...] = ROLES
) -> dict[str, str]:
    """Return the column of each role that a file has."""
    found: dict[str, str] = {}
    for role in roles:
        usual = [name for name in table.column_names if name.lower() in _USUAL[role]]
        asked = names.get(role)
        if asked is not None and asked not in table.column_names:
            known = ", ".join(table.column_names)
            raise BadInput(f"{path} has no column '{asked}' for --{role}; it has {known}")
        if asked is None and len(usual) > 1:
            raise BadInput(f"{path}: {' and '.join(usual)} could each be the {role}; name the one by --{role}")
        if asked or usual:
            found[role] = asked or usual[0]
        elif role in ("user", "item"):
            raise BadInput(f"{path}: which column is the {role}? Name it by --{role}: {', '.join(table.column_names)}")
    return found


def _ids(path: Path, column: pa.ChunkedArray, name: str) -> pa.Array:
    ids = column.combine_chunks()
    if not pa.types.is_integer(ids.type):
        if not (pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type)):
            raise BadInput(f"{path}: column '{name}' is {ids.type}; ids are integers or strings")
        ids = pc.utf8_trim_whitespace(ids.cast(pa.string()))
        ids = pc.if_else(pc.equal(ids, ""), None, ids)
    if ids.null_count:
        row = int(np.flatnonzero(ids.is_null().to_numpy(zero_copy_only=False))[0])
        raise BadInput(f"{path}, row {row + 1}: column '{name}' is empty; fill it, or leave the row out")
    try:
        return ids.cast(pa.int64()) if pa.types.is_integer(ids.type) else ids
    except pa.ArrowInvalid:
        raise BadInput(f"{path}: column '{name}' has ids above 2**63 - 1; write them as strings") from None


def _finite(path: Path, column: pa.ChunkedArray, name: str) -> np.ndarray:
    """Return a column as float64."""
    try:
        numbers = column.cast(pa.float64()).to_numpy()
    except (pa.ArrowException, ValueError) as error:
        raise BadInput(f"{path}: column '{name}' is not a number throughout ({short(error)}); mend it") from None
    for row in np.flatnonzero(~np.isfinite(numbers))[:1]:
        raise BadInput(f"{path}, row {row + 1}: column '{name}' is no number; fill it, or leave the row out")
    return numbers


def _values(path: Path, column: pa.ChunkedArray, name: str) -> np.ndarray:
    """Return a column as int64 where each value is whole, and otherwise as float32."""
    numbers = _finite(path, column, name)
    whole = (numbers == np.round(numbers)) & (np.abs(numbers) < 2**53)
    return numbers.astype(np.int64 if whole.all() else np.float32)


def _microseconds(path: Path, column: pa.ChunkedArray, name: str) -> np.ndarray:
    """Return times as int64: of numbers, whose unit their size tells, or of dates."""
    if pa.types.is_string(column.type) and not _starts_with_number(column):
        try:
            column = column.cast(pa.timestamp("us"))
        except pa.ArrowException as error:
            raise BadInput(
                f"{path}: column '{name}' is neither numbers nor dates as 2014-07-20 12:00:00 ({short(error)}); mend it"
            ) from None
    if pa.types.is_temporal(column.type):
        for row in np.flatnonzero(column.is_null().to_numpy())[:1]:
            raise BadInput(f"{path}, row {row + 1}: column '{name}' is empty; fill it, or leave the row out")
        try:
            return column.cast(pa.timestamp("us"), safe=False).cast(pa.int64()).to_numpy()
        except pa.ArrowException:
            raise BadInput(
                f"{path}: column '{name}' is {column.type}, which is no point in time; write dates or numbers"
            ) from None
    numbers = _finite(path, column, name)
    sizes = np.abs(numbers[numbers != 0])
    least, factor = (_factor(size) for size in (sizes.min(initial=np.inf), sizes.max(initial=0)))
    if least != factor and sizes.min(initial=np.inf) > 1e9:  # 1e9 s are a date; small numbers may count from anywhere
        row = int(np.abs(numbers).argmax())
        raise BadInput(
            f"{path}, row {row + 1}: column '{name}' has a time in another unit than others ({numbers[row]:.0f}); "
            "write all in one"
        )
    if sizes.max(initial=0) * factor >= 2**63:
        raise BadInput(f"{path}: column '{name}' has times beyond every calendar; mend them")
    return np.round(numbers * factor).astype(np.int64)


def _factor(size: float) -> float:
    """Return what a time of this size is multiplied by to become microseconds."""
    return next((factor for above, factor in _UNITS if size > above), 1e6)


def _starts_with_number(column: pa.ChunkedArray) -> bool:
    try:
        column.slice(0, 1).cast(pa.float64())
    except pa.ArrowInvalid:
        return False
    return True
