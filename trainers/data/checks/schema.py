"""The columns of a dataset: those that all its files agree on, and how SQL names and reads them."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from livetrain.trainers.data.checks.findings import Finding, Verdict
from livetrain.trainers.data.read.columns import common, is_list, is_null, plain, worded

_OWN = ("_part", "_day")  # columns of the view `rows` besides the data's
_SQL = {
    pa.bool_(): "BOOLEAN",
    pa.int8(): "TINYINT",
    pa.int16(): "SMALLINT",
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.uint8(): "UTINYINT",
    pa.uint16(): "USMALLINT",
    pa.uint32(): "UINTEGER",
    pa.uint64(): "UBIGINT",
    pa.float16(): "FLOAT",
    pa.float32(): "FLOAT",
    pa.float64(): "DOUBLE",
    pa.string(): "VARCHAR",
    pa.large_string(): "VARCHAR",
}


def agreed(schemas: dict[Path, pa.Schema], manifest: dict[str, Any]) -> tuple[pa.Schema, list[Finding]]:
    """Return the columns that are the same in all files, by plain types, and findings about the rest."""
    findings = _unnameable(schemas.values())
    apart = {finding.subject for finding in findings}
    columns: dict[str, pa.DataType] = {}
    for name in dict.fromkeys(name for schema in schemas.values() for name in schema.names if name not in apart):
        kinds = {path: s.field(name).type if name in s.names else None for path, s in schemas.items()}
        kind = None if None in kinds.values() else common(kinds.values())
        if kind is None:
            findings.append(Finding("schema", name, Verdict.wrong, _differing(kinds)))
        else:
            columns[name] = _filled(name, kind, manifest)
    promised = manifest.get("columns")
    for name, kind in promised.items() if isinstance(promised, dict) else ():
        if name not in columns and name not in {finding.subject for finding in findings}:
            findings.append(Finding("schema", name, Verdict.wrong, "dataset.json names it, and no file has it"))
        elif name in columns and kind not in (stored := _stored(name, schemas.values())) and stored:
            text = f"{', '.join(stored)} in the files, {kind} in dataset.json; prepare the data again"
            findings.append(Finding("schema", name, Verdict.wrong, text))
    if not findings:
        text = f"{len(columns)} columns, the same in {len(schemas)} files"
        findings.append(Finding("schema", "all files", Verdict.ok, text))
    return pa.schema(list(columns.items())), findings


def _unnameable(schemas: Iterable[pa.Schema]) -> list[Finding]:
    """Return a finding for every column that is not checked, for SQL could not tell it from another one."""
    found = {}
    for schema in schemas:
        often, alike = Counter(schema.names), Counter(name.casefold() for name in schema.names)
        for name in often:
            if often[name] > 1:
                text = f"{often[name]} columns of a file have this name; write it with a name for each"
                found[name] = Finding("schema", name, Verdict.wrong, text)
            elif alike[name.casefold()] > 1:
                text = "not checked: another column's name differs from it in capitals alone"
                found.setdefault(name, Finding("schema", name, Verdict.look, text))
            elif name.casefold() in ("", *_OWN):
                found.setdefault(name, Finding("schema", name, Verdict.look, "not checked: the checks use this name"))
    return list(found.values())


def _stored(name: str, schemas: Iterable[pa.Schema]) -> list[str]:
    """Return a column's types as files store them; without those of writers that knew none."""
    kinds = dict.fromkeys(schema.field(name).type for schema in schemas)
    return [worded(kind) for kind in kinds if not is_null(kind)]


def _differing(kinds: dict[Path, pa.DataType | None]) -> str:
    """Say which file has another type of a column than most have; None stands for a file without it."""
    words = {path: "absent" if kind is None else worded(plain(kind)) for path, kind in kinds.items()}
    words = {path: word for path, word in words.items() if kinds[path] is None or not is_null(kinds[path])}
    usual = max(words.values(), key=list(words.values()).count)
    odd = next(path for path, word in words.items() if word != usual)
    return f"{words[odd]} in {odd}, {usual} elsewhere; write all files with one schema"


def _filled(name: str, kind: pa.DataType, manifest: dict[str, Any]) -> pa.DataType:
    """Return a column's type; where it is null in every file, that of its role, or a number's."""
    if not is_null(kind):
        return kind
    roles = manifest.get("roles")
    given: dict[str, Any] = roles if isinstance(roles, dict) else {}
    columns = {part: [names] if isinstance(names, str) else names or () for part, names in given.items()}
    part = next((part for part, names in columns.items() if name in names), "dense")
    if is_list(kind) or part == "sequences":
        return pa.list_(pa.int64())
    return pa.float64() if part in ("dense", "labels") else pa.int64()


def selected(column: pa.Field) -> str:
    """Return a column as the view selects it: cast where files may differ in what they say of it."""
    name, kind = quoted(column.name), _sql(column.type)
    return name if kind is None else f"CAST({name} AS {kind}) AS {name}"


def _sql(kind: pa.DataType) -> str | None:
    """Return DuckDB's name of a type; None of one that no check looks into."""
    if is_list(kind):
        element = _sql(kind.value_type)
        return element and f"{element}[]"
    return _SQL.get(kind)


def quoted(name: str) -> str:
    """Return a column's name as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'
