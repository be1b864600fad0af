"""Parquet as strangers write it: each form is refused in one sentence that helps, or read as what it says."""

import base64
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Days
from livetrain.trainers.data.checks import whole as checks
from livetrain.trainers.data.checks.dataset import open_dataset
from livetrain.trainers.data.checks.findings import Verdict
from livetrain.trainers.data.read.decode import NO_GROUP
from livetrain.trainers.data.read.reader import Reader
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.data.write.ids import string_id
from livetrain.trainers.export.rows import held_out_rows
from livetrain.trainers.train import preflight
from tests.trainers.data import forms
from tests.trainers.data.parquet import corrupt

CASES = [pytest.param(part, form, id=f"{part} as {form}") for part, known in forms.ACCEPTED.items() for form in known]
REFUSED = [
    pytest.param(part, form, id=f"{part} as {form}")
    for part, known in forms.ACCEPTED.items()
    for form in forms.FORMS
    if form not in known
]


def sentence(error: BadInput, *pieces: str) -> str:
    """Return what is said, which is one sentence that is no longer than a person reads."""
    text = str(error)
    assert "\n" not in text
    assert len(text) < 300, text
    for piece in pieces:
        assert piece in text
    return text


def twin(rows: pa.Table) -> dict[str, list]:
    """Return what batches must hold of a split's rows, made of Python's values."""

    def ids(value) -> list[int]:
        value = value if isinstance(value, list) else [value]
        return [hashed(number) for number in value if number is not None][-3:]

    def hashed(value) -> int:
        return string_id(value) if isinstance(value, str) else value

    def number(value) -> float:
        return math.nan if value is None else float(np.float32(value))

    columns = {name: rows[name].to_pylist() for name in ("user", "item", "history", "age", "click", "worth", "shop")}
    return {
        "user": [ids(value) for value in columns["user"]],
        "item": [ids(value) for value in columns["item"]],
        "history": [ids(value) for value in columns["history"]],
        "age": [number(value) for value in columns["age"]],
        "click": [number(value) for value in columns["click"]],
        "worth": [number(value) for value in columns["worth"]],
        "shop": [int(NO_GROUP) if value is None else hashed(value) for value in columns["shop"]],
    }


def batches(source, recipe) -> dict[str, list]:
    """Return the same of the batches of an epoch, by the rows' numbers."""
    found: dict[int, tuple] = {}
    for batch in Reader(source, recipe, rank=0, world=1, shuffle=True, groups=True).batches(0):
        lists = [batch.ids[key].to_dense() for key in ("user", "item", "history")]
        for place, row in enumerate(batch.rows.tolist()):
            if row >= 0:
                weight = batch.sample_weights[place, 0].item()
                numbers = (batch.dense[place, 0].item(), batch.labels[place, 0].item(), weight)
                found[row] = (*(part[place].tolist() for part in lists), *numbers, batch.groups[place].item())
    names = ("user", "item", "history", "age", "click", "worth", "shop")
    return dict(zip(names, map(list, zip(*(found[row] for row in sorted(found)), strict=True)), strict=True))


def check_read(folder: Path, splits: dict[str, list[pa.Table]], **task) -> list[str]:
    """Let train's own checks, an epoch of every split and an export's held-out rows read files; return the notes."""
    recipe, notes = forms.recipe(folder, **task), []
    sources, statistics = preflight.check(recipe, notes.append)
    twins = {split: [twin(part) for part in splits.get(split) or [forms.table()]] for split in forms.SPLITS}
    twins = {
        split: {name: sum((part[name] for part in parts), []) for name in parts[0]} for split, parts in twins.items()
    }
    for split, source in sources.items():
        found = batches(source, recipe)
        for name, wanted in twins[split].items():
            np.testing.assert_equal(found[name], wanted, err_msg=f"{split} {name}")
    ages = [age for age in twins["train"]["age"] if not math.isnan(age)]
    assert statistics.mean["age"] == [pytest.approx(np.mean(ages) if ages else 0.0)]
    rows = held_out_rows(recipe, sources["test"].rows)
    for name in ("item", "history"):
        wanted = twins["test"][name]
        assert sorted(rows["ids"][name]) == sorted(number for ids in wanted for number in ids)
        assert sorted(rows["lengths"][name]) == sorted(map(len, wanted))
    return notes


def spoiled(part: str, form: str) -> pa.Table:
    return forms.table(**{forms.COLUMNS[part]: forms.FORMS[form](forms.numbers(part))})


@pytest.mark.parametrize(("part", "form"), CASES)
@pytest.mark.some(30)
def test_a_form_with_one_meaning_is_read_as_it(tmp_path, part, form):
    changed = spoiled(part, form)
    splits = dict.fromkeys(forms.SPLITS, [changed])
    task = {}
    if form == "null" and part == "label":
        splits, task = dict.fromkeys(forms.SPLITS, [forms.table(), changed]), {"unknown": True}
    if form == "null" and part in ("group", "sample weight"):
        return  # of which every row needs one, see below
    check_read(forms.write(tmp_path, **splits), splits, **task)


@pytest.mark.parametrize(("part", "form"), REFUSED)
@pytest.mark.some(10)
def test_a_form_without_one_meaning_is_refused(tmp_path, part, form):
    folder = tmp_path / "train"
    folder.mkdir()
    for number, table in enumerate((forms.table(), spoiled(part, form))):
        pq.write_table(table, folder / f"part-{number}.parquet")
    with pytest.raises(BadInput) as refused:
        Source.open(forms.recipe(tmp_path), "train")
    sentence(refused.value, f"column '{forms.COLUMNS[part]}' of {folder}/part-1.parquet is ", ", but must be ")


def test_unused_columns_may_have_any_form(tmp_path):
    table = forms.table(**{name: make(forms.numbers("unused")) for name, make in forms.FORMS.items()})
    check_read(forms.write(tmp_path, **dict.fromkeys(forms.SPLITS, [table])), {})


def put(folder: Path, name: str, content: bytes | None = None) -> Path:
    """Write bytes, or an honest table, into a split of a dataset."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        pq.write_table(forms.table(), path)
    else:
        path.write_bytes(content)
    return path


def whole(folder: Path) -> bytes:
    return (folder / "train/part-0.parquet").read_bytes()


def spark(folder: Path, name: str, parts: int = 2) -> None:
    for part in range(parts):
        put(folder, f"{name}/part-{part:05d}-c000.snappy.parquet")
        put(folder, f"{name}/.part-{part:05d}-c000.snappy.parquet.crc", b"crc\0")
    put(folder, f"{name}/_SUCCESS", b"")


def link(folder: Path, name: str, to: str) -> None:
    (folder / name).symlink_to(to)


def encrypted(folder: Path, plaintext_footer: bool) -> None:
    factory, connection = pe.CryptoFactory(lambda config: Keys()), pe.KmsConnectionConfig()
    asked = pe.EncryptionConfiguration("footer", column_keys={"key": ["age"]}, plaintext_footer=plaintext_footer)
    properties = factory.file_encryption_properties(connection, asked)
    table = forms.table()
    with pq.ParquetWriter(folder / "train/x.parquet", table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)


class Keys(pe.KmsClient):
    """Keys that are their own wrapping."""

    def __init__(self) -> None:
        super().__init__()

    def wrap_key(self, key: bytes, name: str) -> bytes:
        return base64.b64encode(key)

    def unwrap_key(self, key: bytes, name: str) -> bytes:
        return base64.b64decode(key)


LEFT_OUT = "or begin its name with _ to leave it out"
FOLDERS: dict[str, tuple[Callable[[Path], object], int | str]] = {
    "a second file": (lambda f: put(f, "train/x.parquet"), 2),
    "a link to a file": (lambda f: link(f, "train/x.parquet", "part-0.parquet"), 2),
    "a link to nothing": (lambda f: link(f, "train/x.parquet", "gone.parquet"), "train/x.parquet: a link to nothing; "),
    "a link to itself": (lambda f: link(f, "train/x.parquet", "x.parquet"), "train/x.parquet: a link to nothing; "),
    "a link to nothing of any name": (lambda f: link(f, "train/more", "/gone/more"), "train/more: a link to nothing; "),
    "a hidden link to nothing": (lambda f: link(f, "train/.x.parquet", "gone"), 1),
    "a subfolder with files": (
        lambda f: put(f, "train/more/x.parquet"),
        "train/more: a folder of Parquet files",
    ),
    "a subfolder of subfolders": (lambda f: put(f, "train/a/b/x.parquet"), "train/a: a folder of Parquet files"),
    "a partition below": (lambda f: put(f, "train/hour=3/x.parquet"), "train/hour=3: a folder of Parquet files"),
    "a link to a folder with files": (lambda f: link(f, "train/more", "../valid"), "train/more: a folder of Parquet"),
    "a subfolder of other things": (lambda f: put(f, "train/plots/loss.png", b"png"), 1),
    "an empty subfolder": (lambda f: (f / "train/empty").mkdir(), 1),
    "a hidden subfolder": (lambda f: put(f, "train/_temporary/x.parquet"), 1),
    "a Spark folder": (lambda f: spark(f, "train/x.parquet"), 3),
    "a Spark folder of one part": (lambda f: spark(f, "train/x.parquet", 1), 2),
    "a Spark folder without a part": (
        lambda f: spark(f, "train/x.parquet", 0),
        "train/x.parquet: the folder holds",
    ),
    "a Spark folder of partitions": (
        lambda f: put(f, "train/x.parquet/hour=3/y.parquet"),
        "train/x.parquet/hour=3: a folder of Parquet files",
    ),
    "a Spark folder in another": (
        lambda f: spark(f, "train/x.parquet/y.parquet"),
        "train/x.parquet/y.parquet: a folder of Parquet files",
    ),
    "a Spark folder that links to itself": (
        lambda f: (spark(f, "train/x.parquet"), link(f, "train/x.parquet/y.parquet", "../x.parquet")),
        "train/x.parquet/y.parquet: a folder of Parquet files",
    ),
    "_SUCCESS and checksums": (
        lambda f: [put(f, f"train/{name}", b"") for name in ("_SUCCESS", ".part-0.parquet.crc", "part-0.parquet.crc")],
        1,
    ),
    "metadata files": (lambda f: [put(f, "train/_metadata", b"x"), put(f, "train/_common_metadata.parquet", b"x")], 1),
    "other files": (lambda f: [put(f, "train/README.md", b"#"), put(f, "train/rows.csv", b"a,b")], 1),
    "capitals": (
        lambda f: put(f, "train/X.PARQUET"),
        "train/X.PARQUET: no file NAME.parquet, so it is not read; rename",
    ),
    "parq": (lambda f: put(f, "train/x.parq"), "train/x.parq: no file NAME.parquet, so it is not read; rename it"),
    "pq": (lambda f: put(f, "train/x.pq"), "train/x.pq: no file NAME.parquet, so it is not read; rename it"),
    "a copy under way": (lambda f: put(f, "train/x.parquet.tmp"), "train/x.parquet.tmp: no file NAME.parquet"),
    "a compressed file": (
        lambda f: put(f, "train/x.parquet.gz", b"\x1f\x8b"),
        "x.parquet.gz: no file NAME.parquet",
    ),
    "a pipe": (lambda f: os.mkfifo(f / "train/x.parquet"), "train/x.parquet: no file NAME.parquet"),
    "no byte": (lambda f: put(f, "train/x.parquet", b""), "train/x.parquet: not a complete Parquet file ("),
    "four bytes": (lambda f: put(f, "train/x.parquet", b"PAR1"), "train/x.parquet: not a complete Parquet file ("),
    "cut short": (lambda f: put(f, "train/x.parquet", whole(f)[:-1]), "train/x.parquet: not a complete Parquet file ("),
    "half of it": (lambda f: put(f, "train/x.parquet", whole(f)[:1500]), "not a complete Parquet file ("),
    "without its head": (lambda f: put(f, "train/x.parquet", whole(f)[900:]), "train/x.parquet"),
    "zeros behind": (lambda f: put(f, "train/x.parquet", whole(f) + bytes(64)), "not a complete Parquet file ("),
    "a footer of zeros": (lambda f: put(f, "train/x.parquet", b"PAR1" + bytes(64) + b"PAR1"), "not a complete Parquet"),
    "a footer too long": (
        lambda f: put(f, "train/x.parquet", b"PAR1" + b"\xff" * 64 + b"PAR1"),
        "not a complete Parqu",
    ),
    "text": (lambda f: put(f, "train/x.parquet", b"user,item,click\n1,2,1\n" * 9), "not a complete Parquet file ("),
    "ORC": (lambda f: put(f, "train/x.parquet", b"ORC" + bytes(300) + b"ORC"), "not a complete Parquet file ("),
    "a name that is no text": (
        lambda f: put(f, "train/x.parquet", whole(f).replace(b"worth", b"w\xff\xfeth")),
        "train/x.parquet: not a complete Parquet file (",
    ),
    "encrypted": (lambda f: encrypted(f, False), "train/x.parquet: it is encrypted; write it without encryption"),
    "a column encrypted": (
        lambda f: encrypted(f, True),
        "x.parquet: columns of it are encrypted; write it",
    ),
    "no file": (lambda f: os.remove(f / "train/part-0.parquet"), "train: the folder holds no *.parquet file; prepare"),
    "only the wrong names": (
        lambda f: os.rename(f / "train/part-0.parquet", f / "train/part-0.pq"),
        "train/part-0.pq: no file NAME.parquet, so it is not read",
    ),
    "a file for a folder": (
        lambda f: (shutil.rmtree(f / "train"), put(f, "train", b"rows")),
        "data.path: ",
    ),
}


@pytest.mark.parametrize("case", FOLDERS)
@pytest.mark.some(8)
def test_what_lies_in_a_split(tmp_path, case):
    """Read whole, or named: never are rows left out in silence. The checks of prepared data go by the same rule."""
    spoil, wanted = FOLDERS[case]
    folder = forms.write(tmp_path)
    spoil(folder)
    if isinstance(wanted, int):
        check_read(folder, {"train": [forms.table()] * wanted})
        assert open_dataset(folder).parts[0].rows == wanted * forms.ROWS
        return
    with pytest.raises(BadInput) as refused:
        preflight.check(forms.recipe(folder), lambda text: None)
    said = sentence(refused.value, wanted)
    if "not read" in said or "link" in said or "a folder of" in said:
        assert said.endswith(LEFT_OUT)
    if case not in ("no file", "a file for a folder", "without its head"):  # of which the footers say nothing
        with pytest.raises(BadInput) as refused:
            open_dataset(folder)
        assert str(refused.value) == said


def test_days_hold_spark_folders_too(tmp_path):
    for day in ("25", "26", "27"):
        spark(tmp_path, f"date=2025-05-{day}/rows.parquet")
    days = {split: f"2025-05-{day}..2025-05-{day}" for split, day in zip(forms.SPLITS, ("25", "26", "27"), strict=True)}
    recipe = forms.recipe(tmp_path)
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"days": Days(**days)})})
    sources, _ = preflight.check(recipe, lambda text: None)
    assert {split: source.rows for split, source in sources.items()} == dict.fromkeys(forms.SPLITS, 2 * forms.ROWS)
    (tmp_path / "date=2025-05-26/more").symlink_to("gone")
    with pytest.raises(BadInput, match="date=2025-05-26/more: a link to nothing"):
        preflight.check(recipe, lambda text: None)


Splits = dict[str, list[pa.Table]]


def everywhere(*parts: pa.Table) -> Splits:
    return dict.fromkeys(forms.SPLITS, list(parts))


def beside(part: str, form: str, first: bool = False) -> Splits:
    """Return splits of an honest file and one whose column has another form."""
    return everywhere(*([spoiled(part, form), forms.table()] if first else [forms.table(), spoiled(part, form)]))


def with_value(column: str, value, kind: pa.DataType | None = None, row: int = 50) -> pa.Table:
    """Return a table with one value changed."""
    old = forms.table()[column]
    values = old.to_pylist()
    values[row] = value
    return forms.table(**{column: pa.array(values, kind or old.type, from_pandas=False)})


def named(*names: str) -> pa.Table:
    """Return a table with further columns; names may repeat."""
    table = forms.table()
    for name in names:
        table = table.append_column(name, pa.array(range(100, 100 + forms.ROWS)))
    return table


def renamed(old: str, new: str) -> pa.Table:
    return forms.table().rename_columns([new if name == old else name for name in forms.table().column_names])


def backwards(table: pa.Table) -> pa.Table:
    return table.select(table.column_names[::-1])


LONG = pa.array([list(range(n, n + (10**6 if n == 3 else n % 4))) for n in range(forms.ROWS)], pa.list_(pa.int64()))
EXTREMES = pa.array([-(2**63), 2**63 - 1, -1, 0, None, 2**53 + 1] * 12)
NOT_NULL = pa.list_(pa.field("element", pa.int64(), nullable=False))
HONEST = forms.table()
NEXT_TO_NULL = ["id", "sequence", "dense", "label"]
ONE_SCHEMA = "write all files of a split with one schema"
UNKNOWN = {"unknown": True}

CONTENTS: dict[str, tuple[Splits, dict, str | None]] = {
    **{f"a null {part} first": (beside(part, "null", True), UNKNOWN, None) for part in NEXT_TO_NULL},
    **{f"a null {part} second": (beside(part, "null"), UNKNOWN, None) for part in NEXT_TO_NULL},
    **{f"{form} beside list<int64>": (beside("sequence", form), {}, None) for form in ("list<null>", "list of a null")},
    "list<int64> beside list<null>": (beside("sequence", "list<null>", True), {}, None),
    "large_list beside list": (beside("sequence", "large_list<int64>"), {}, None),
    "list beside large_list": (beside("sequence", "large_list<int64>", True), {}, None),
    "fixed_size_list beside list": (beside("sequence", "fixed_size_list<int64>[2]"), {}, None),
    "not null beside nullable": (
        everywhere(forms.table(history=pa.array([[n] for n in range(forms.ROWS)], NOT_NULL)), HONEST),
        {},
        None,
    ),
    "int32 beside int64": (beside("id", "int32"), {}, "'item' is int32 here and int64 in "),
    "int64 beside int8": (beside("id", "int8", True), {}, "part-1.parquet: column 'item' is int64 here and int8 in "),
    "float32 beside float64": (beside("dense", "float32"), {}, ONE_SCHEMA),
    "list<int8> beside list<int64>": (beside("sequence", "list<int8>"), {}, "is list<item: int8> here and "),
    "bool labels beside int8": (beside("label", "bool"), {}, ONE_SCHEMA),
    "string beside int64": (beside("id", "string"), {}, "column 'item' is string here and int64 in "),
    "int64 beside a string": (beside("id", "string", True), {}, "column 'item' is int64 here and string in "),
    "large_string beside string": (everywhere(spoiled("id", "string"), spoiled("id", "large_string")), {}, None),
    "a list beside int64": (beside("id", "list<int64>"), {}, "set the feature's type: sequence"),
    "int64 beside a list": (beside("sequence", "int64"), {}, "set the feature's type: id"),
    "another type in another split": ({"valid": [spoiled("id", "int32")], "test": [spoiled("id", "uint8")]}, {}, None),
    "null in another split": ({"valid": [spoiled("id", "null")], "test": [spoiled("sequence", "null")]}, {}, None),
    "unused columns that differ": (everywhere(spoiled("unused", "string"), spoiled("unused", "list<float>")), {}, None),
    "an unused column in one file": (everywhere(HONEST, spoiled("unused", "struct")), {}, None),
    "a column missing in one file": (everywhere(HONEST, HONEST.drop_columns("item")), {}, "has no column 'item'"),
    "a label missing in one split": ({"test": [HONEST.drop_columns("click")]}, {}, "has no column 'click'"),
    "columns in another order": (everywhere(HONEST, backwards(HONEST)), {}, None),
    "a column in capitals": (everywhere(renamed("item", "ITEM")), {}, "(did you mean 'ITEM'?); correct the name"),
    "a label in capitals": (everywhere(HONEST, renamed("click", "Click")), {}, "(did you mean 'Click'?)"),
    "names that differ in capitals": (everywhere(named("ITEM", "Click", "AGE")), {}, None),
    "an id twice": (everywhere(named("item")), {}, "has 2 columns named 'item', and nothing says which is meant"),
    "a label twice": (everywhere(named("click")), {}, "has 2 columns named 'click'"),
    "a history thrice in one file": (everywhere(HONEST, named("history", "history")), {}, "3 columns named 'history'"),
    "a group twice": (everywhere(named("shop")), {}, "evaluate.group_by: "),
    "an unused column twice": (everywhere(named("spare", "spare")), {}, None),
    "names with dots": (everywhere(named("history.list", "item.x", "click.", ".age")), {}, None),
    "names with marks": (everywhere(named('a"b', "a'b", "a b", "a\nb", "ä→😀", "`", "%s", "select", "")), {}, None),
    "names that the checks use": (everywhere(named("_part", "_DAY", "rows", "parts", "filename", "date")), {}, None),
    "a name of a thousand letters": (everywhere(named("x" * 1000)), {}, None),
    "many columns": (everywhere(named(*(f"column_{n}" for n in range(300)))), {}, None),
    "a file without rows": (everywhere(HONEST, HONEST.slice(0, 0)), {}, None),
    "a file without rows first": (everywhere(HONEST.slice(0, 0), HONEST), {}, None),
    "a file without rows of other types": (everywhere(spoiled("id", "string").slice(0, 0), HONEST), {}, ONE_SCHEMA),
    "a split without rows": ({"valid": [HONEST.slice(0, 0)]}, {}, "valid: the split has no rows; prepare the data ag"),
    "a train split without rows": ({"train": [HONEST.slice(0, 0)] * 2}, {}, "train: the split has no rows; prepare"),
    "one row": ({"test": [HONEST.slice(3, 1)]}, {}, None),
    "a million events in a row": ({"train": [forms.table(history=LONG)]}, {}, None),
    "ids from end to end": (everywhere(forms.table(item=EXTREMES, user=EXTREMES)), {}, None),
    "a history from end to end": (
        everywhere(forms.table(history=pa.array([[-(2**63), None, 2**63 - 1]] * forms.ROWS))),
        {},
        None,
    ),
    "lists with nulls in them": (everywhere(forms.table(history=pa.array([[1, None], None, []] * 24))), {}, None),
    "a dense NaN": ({"train": [with_value("age", math.nan)]}, {}, "row group 1, row 10: features.age holds nan; store"),
    "a dense infinity": ({"test": [with_value("age", math.inf)]}, {}, "features.age holds inf; store finite float32"),
    "a dense number too large": ({"valid": [with_value("age", 1e39)]}, {}, "features.age holds 1e+39; store finite"),
    "a dense number too small": (everywhere(with_value("age", 1e-45)), {}, None),
    "a large dense integer": (everywhere(with_value("age", 2**64 - 1, pa.uint64())), {}, None),
    "a label of 2": ({"valid": [with_value("click", 2)]}, {}, "'click' holds 2, but a label is 0 or 1; correct the da"),
    "a label of -1": ({"train": [with_value("click", -1)]}, {}, "'click' holds -1, but a label is 0 or 1"),
    "a label of a half": ({"train": [with_value("click", 0.5, pa.float32())]}, {}, "'click' holds 0.5, but a label is"),
    "a label of 2^63": ({"train": [with_value("click", 2**63, pa.uint64())]}, {}, "holds 9223372036854775808, but"),
    "a NaN label": ({"train": [with_value("click", math.nan, pa.float64())]}, {}, "'click' holds nan, but a label is"),
    "a NaN label not known": (everywhere(with_value("click", math.nan, pa.float64())), UNKNOWN, None),
    "an infinite label": ({"train": [with_value("click", -math.inf, pa.float64())]}, UNKNOWN, "'click' holds -inf, bu"),
    "a null label": ({"test": [with_value("click", None)]}, {}, "set unknown: true if it is not known yet, or leave"),
    "a null label not known": (everywhere(with_value("click", None)), UNKNOWN, None),
    "labels null in a file": (beside("label", "null"), {}, "'click' holds None, but a label is 0 or 1; correct the d"),
    "labels null to learn from": ({"train": [spoiled("label", "null")]}, UNKNOWN, "'click' is null in every row, so n"),
    "labels null in valid": ({"valid": [spoiled("label", "null")]}, UNKNOWN, "so click.auc is undefined and nothing p"),
    "labels null in test": ({"test": [spoiled("label", "null")]}, UNKNOWN, None),
    "labels as strings": (everywhere(forms.table(click=pa.array(["0", "1"] * 36))), {}, "but must be an integer, bool"),
    "a weight below 0": (
        {"train": [with_value("worth", -0.5)]},
        {},
        "tasks.click.sample_weight 'worth' holds -0.5,",
    ),
    "a NaN weight": ({"test": [with_value("worth", math.nan)]}, {}, "'worth' holds nan, but a weight is a finite numb"),
    "a null weight": ({"train": [with_value("worth", None)]}, {}, "'worth' holds None, but a weight is a finite numbe"),
    "an infinite weight": (
        {"train": [with_value("worth", math.inf)]},
        {},
        "'worth' holds inf, but a weight is",
    ),
    "weights null in a file": (beside("sample weight", "null"), {}, "'worth' holds None, but a weight is a finite num"),
    "a null group": ({"valid": [with_value("shop", None)]}, {}, "valid: column 'shop' is null in 1 rows, and evaluate"),
    "groups null in a file": ({"test": beside("group", "null")["test"]}, {}, "test: column 'shop' is null in 72 rows,"),
    "a null group to learn from": ({"train": [with_value("shop", None)]}, {}, None),
}


@pytest.mark.parametrize("case", CONTENTS)
@pytest.mark.some(12)
def test_what_files_hold(tmp_path, case):
    splits, task, wanted = CONTENTS[case]
    folder = forms.write(tmp_path, **splits)
    if wanted is None:
        check_read(folder, splits, **task)
        return
    with pytest.raises(BadInput) as refused:
        check_read(folder, splits, **task)
    sentence(refused.value, wanted)


WRITERS: dict[str, dict] = {
    **{f"{codec}": {"compression": codec} for codec in ("none", "snappy", "gzip", "brotli", "zstd", "lz4")},
    "version 1.0": {"version": "1.0"},
    "pages of version 2": {"data_page_version": "2.0"},
    "no dictionary": {"use_dictionary": False},
    "no statistics": {"write_statistics": False},
    "checksums": {"write_page_checksum": True},
    "a page index": {"write_page_index": True},
    "no Arrow schema": {"store_schema": False},
    "a row per group": {"row_group_size": 1},
    "one group": {"row_group_size": 10**6},
    "small pages": {"data_page_size": 16},
    "bytes apart": {"use_dictionary": False, "column_encoding": {"age": "BYTE_STREAM_SPLIT"}},
    "differences": {"use_dictionary": False, "column_encoding": {"item": "DELTA_BINARY_PACKED"}},
    "lists of old": {"use_compliant_nested_type": False},
    "sorted": {"sorting_columns": [pq.SortingColumn(0)]},
    "bloom filters": {"bloom_filter_options": {"item": True}},
}


@pytest.mark.parametrize("case", WRITERS)
@pytest.mark.some(5)
def test_however_files_are_written(tmp_path, case):
    folder = forms.write(tmp_path)
    for split in forms.SPLITS:
        pq.write_table(forms.table(), folder / split / "part-0.parquet", **WRITERS[case])
    check_read(folder, {})


def test_groups_are_counted_where_footers_do_not_say(tmp_path):
    """A row without a group would be one more user's."""
    folder = forms.write(tmp_path)
    pq.write_table(with_value("shop", None), folder / "valid/part-0.parquet", write_statistics=False)
    with pytest.raises(BadInput, match="valid: column 'shop' is null in 1 rows, and evaluate.group_by needs it"):
        preflight.check(forms.recipe(folder), lambda text: None)


def test_empty_groups_between_others(tmp_path):
    folder, table = forms.write(tmp_path), forms.table()
    with pq.ParquetWriter(folder / "train/part-0.parquet", table.schema) as writer:
        for part in (table.slice(0, 0), table.slice(0, 30), table.slice(0, 0), table.slice(30), table.slice(0, 0)):
            writer.write_table(part)
    with pq.ParquetWriter(folder / "train/part-1.parquet", table.schema):
        pass
    check_read(folder, {})
    assert open_dataset(folder).parts[0].rows == forms.ROWS


def test_a_name_with_a_dot_is_not_a_structs_part(tmp_path):
    """The footer names both s.click, and says of the struct's that it is always 1."""
    always = pa.array([{"click": 1}] * forms.ROWS, pa.struct([("click", pa.int8())]))
    label = forms.table()["click"]
    table = pa.table(
        {"s": always} | {name: forms.table()[name] for name in forms.table().column_names} | {"s.click": label}
    )
    folder = forms.write(tmp_path, **everywhere(table))
    recipe = forms.recipe(folder, label="s.click")
    sources, statistics = preflight.check(recipe, lambda text: None)
    assert statistics.rate["click"] == pytest.approx(np.mean(label.to_pylist()))
    assert batches(sources["train"], recipe)["click"] == label.to_pylist()


def test_an_unreadable_column_matters_where_it_is_used(tmp_path):
    folder = forms.write(tmp_path, **everywhere(named("spare")))
    corrupt(folder / "train/part-0.parquet", group=0, column="spare")
    check_read(folder, {"train": [forms.table()]})
    with pytest.raises(BadInput) as refused:
        checks.check(folder)
    sentence(refused.value, "train/part-0.parquet, row group 0: it does not decode (", "; write the file again")
    corrupt(folder / "train/part-0.parquet", group=0, column="age")
    with pytest.raises(BadInput) as refused:
        preflight.check(forms.recipe(folder), lambda text: None)
    sentence(refused.value, "train/part-0.parquet, row group 0: its 40 rows do not decode (", "data.on_corrupt: skip")
    recipe = forms.recipe(folder)
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"on_corrupt": "skip"})})
    sources, statistics = preflight.check(recipe, lambda text: None)
    assert statistics.rows == forms.ROWS - 40


def test_a_column_that_is_null_throughout_has_no_ids(tmp_path):
    folder = forms.write(tmp_path, train=[forms.table(), spoiled("id", "null"), spoiled("sequence", "list<null>")])
    source = Source.open(forms.recipe(folder), "train")
    assert source.id_range("user") == (0, 10)
    assert source.id_range("item") == (1, 59)
    assert source.id_range("history") == (1, 59)
    empty = forms.write(tmp_path / "empty", train=[spoiled("id", "null")])
    assert Source.open(forms.recipe(empty), "train").id_range("item") is None


CHECKED: dict[str, tuple[str, str, str] | None] = {
    "a null id first": None,
    "a null dense second": None,
    "a null label second": None,
    "a null sequence second": None,
    "list<null> beside list<int64>": None,
    "fixed_size_list beside list": None,
    "not null beside nullable": None,
    "ids from end to end": None,
    "a million events in a row": None,
    "null in another split": None,
    "a file without rows": None,
    "an id twice": ("schema", "item", "2 columns of a file have this name"),
    "an unused column twice": ("schema", "spare", "2 columns of a file have this name"),
    "names that differ in capitals": ("schema", "ITEM", "another column's name differs from it in capitals alone"),
    "names that the checks use": ("schema", "_DAY", "the checks use this name"),
    "names with marks": ("schema", "", "the checks use this name"),
    "int32 beside int64": ("schema", "item", "int32 in "),
    "unused columns that differ": ("schema", "spare", "write all files with one schema"),
    "a column missing in one file": ("schema", "item", "absent in "),
    "a split without rows": ("rows", "valid", "no rows here"),
    "a dense infinity": ("ranges", "age", "1 rows hold NaN, infinity or more than float32 can"),
    "labels null in valid": ("unknown labels", "click", "most on valid, 100.0 %"),
}


@pytest.mark.parametrize("case", CHECKED)
@pytest.mark.some(6)
def test_the_checks_of_prepared_data_speak_of_every_form(tmp_path, case):
    splits, wanted = CONTENTS[case][0], CHECKED[case]
    checked = checks.check(forms.write(tmp_path, **splits))
    assert checks.columns_table(checked).row_count == len(checked.dataset.schema)
    schema = [finding for finding in checked.findings if finding.check == "schema"]
    if wanted is None:
        assert [finding.verdict for finding in schema] == [Verdict.ok]
        return
    (found,) = (finding for finding in checked.findings if (finding.check, finding.subject) == wanted[:2])
    assert found.verdict != Verdict.ok
    assert wanted[2] in found.text


def test_the_checks_read_every_form_at_once(tmp_path):
    """None of them stops the checks, and what is a number or text is probed as it is."""
    columns = {name: make(forms.numbers("dense")) for name, make in forms.FORMS.items()}
    large = pa.array([2**64 - 1 - n for n in range(forms.ROWS)], pa.uint64())
    columns |= {"large": large, "large ones": pa.array([[n] for n in large.to_pylist()], pa.list_(pa.uint64()))}
    checked = checks.check(forms.write(tmp_path, **everywhere(forms.table(**columns))))
    assert [finding.verdict for finding in checked.findings if finding.check == "schema"] == [Verdict.ok]
    summaries = {summary.column: summary for summary in checked.summaries}
    numbers = [n for n in forms.numbers("dense") if n is not None]
    for form in forms.NUMBERS:
        found = summaries[form]
        values = numbers if form != "bool" else [n % 2 for n in numbers]
        if form == "null":
            assert (found.null_share, found.least) == (1, None)
        else:
            assert (found.least, found.most, found.bad) == (min(values), max(values), 0)
            assert found.mean == pytest.approx(np.mean(values))
    assert summaries["large"].most == pytest.approx(2.0**64)
    probed = {probe.column for probe in checked.probes}
    features = set(forms.NUMBERS) - {"int8", "bool"}  # which are taken for labels
    assert {*features, "string", "dictionary of string", "list<string>", "list<float16>", "large ones"} <= probed


def test_a_path_may_look_like_a_pattern(tmp_path):
    checked = checks.check(forms.write(tmp_path / "da[ta]* 'x'?"))
    assert checked.dataset.rows == 3 * forms.ROWS
    check_read(tmp_path / "da[ta]* 'x'?", {})


@pytest.mark.parametrize("unit", [10**6, 10**9, -(10**6)])
def test_what_is_no_time_is_said(tmp_path, unit):
    """Microseconds, nanoseconds or nonsense would be days beyond the year 9999."""
    times = pa.array([1_748_000_000 * unit + n for n in range(forms.ROWS)])
    checked = checks.check(forms.write(tmp_path, **everywhere(forms.table(timestamp=times))))
    (found,) = (finding for finding in checked.findings if finding.subject == "timestamp")
    assert (found.check, found.verdict) == ("time order", Verdict.wrong)
    assert "no time in s or ms since 1970" in found.text
