"""Requests with the answers that they must get, for every program that speaks the wire: C++, Python and Go.

python -m tests.serve.vectors           # writes tests/serve/vectors anew, from a small run that it trains
python -m tests.serve.vectors FOLDER    # writes what fuzzers begin with, see serve/fuzz

vectors/signature.json      what the server knows of the model
vectors/cases.json          by name: what is asked for, as tensors, and the scores as float32
vectors/hashes.json         strings with the ids that they are
vectors/NAME.request.bin    the request in binary; NAME.answer.bin: its answer; NAME.people.json: the same request
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from livetrain.configs.schema import Recipe
from livetrain.modules.serving.loading import load
from livetrain.trainers.data.write.ids import string_id
from livetrain.trainers.export import export as exporter
from livetrain.trainers.export.rows import golden_inputs, one_user
from tests import samples
from tests.serve import malformed
from tests.serve.client import client

HERE = Path(__file__).parent / "vectors"
STAMP = {"model_name": "din", "model_version": "20261130"}
MARK = {"fence": 7, "delta": 2}
USER = ["user", "city", "history", "rating"]
_LENGTHS = (4, 8, 15, 31, 32, 63, 75)
_WORDS = ["live", "song", "dance", "chat", "大话西游", "games"]


def data(folder: Path) -> Path:
    """Write the small dataset with strings, weighted tags and vectors besides."""
    samples.write(folder, rows=400)
    for path in folder.rglob("*.parquet"):
        table = pq.read_table(path)
        rng = np.random.default_rng(len(table))
        tags = [list(rng.choice(_WORDS, n, replace=False)) for n in rng.integers(0, 4, len(table))]
        columns = {
            "city": pa.array(rng.choice(["Tianjin", "Oslo", "São Paulo"], len(table))),
            "tags": pa.array(tags, pa.list_(pa.string())),
            "strength": pa.array([list(rng.random(len(each))) for each in tags], pa.list_(pa.float32())),
            "cover": pa.array(list(rng.normal(size=(len(table), 3)).astype(np.float32)), pa.list_(pa.float32())),
        }
        for name, column in columns.items():
            table = table.append_column(name, column)
        pq.write_table(table, path)
    return folder


def recipe(folder: Path) -> Recipe:
    """A small DIN with a feature of every kind that the wire tells apart, and two tasks."""
    base = samples.recipe(folder).model_dump(mode="json", exclude_unset=True)
    base["features"] |= {
        "city": {"type": "id", "table": "city"},
        "tags": {"type": "bag", "table": "tag", "weights": "strength", "max_length": 3},
        "cover": {"type": "vector", "width": 3},
    }
    base["tables"] |= {"city": {"rows": 16, "dim": 4}, "tag": {"rows": 16, "dim": 4}}
    base["train"]["epochs"] = 1
    base["export"] = {"after_training": False, "golden": "rows", "golden_rows": 6}
    return Recipe.model_validate(base)


def plain(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return tensors as lists with their shapes; NaN is None."""
    out = {}
    for name, values in tensors.items():
        flat = [None if value != value else value for value in values.flatten().tolist()]
        out[name] = {"shape": [*values.shape], "values": flat}
    return out


def named(inputs: tuple[dict[str, torch.Tensor], ...]) -> dict[str, torch.Tensor]:
    """Return ids, lengths and dense by the names that the wire has."""
    parts = zip(("ids", "lengths", "dense"), inputs, strict=True)
    return {f"{part}.{name}": values for part, found in parts for name, values in found.items()}


def people(features: dict[str, Any], inputs: tuple[dict[str, torch.Tensor], ...], names: list[str], one: bool) -> dict:
    """Return features as JSON for people has them."""
    ids, lengths, dense = inputs
    out: dict[str, Any] = {}
    for name in names:
        about = features[name]
        if about["dtype"] == "float32":
            column = [[None if x != x else x for x in row] if isinstance(row, list) else None if row != row else row
                      for row in dense[name].tolist()]  # fmt: skip
        else:
            column, at = [], 0
            for count in lengths[name].tolist():
                own: Any = ids[name][at : at + count].tolist()
                if name in dense:
                    own = {"ids": own, "weights": dense[name][at : at + count].tolist()}
                column.append(own if about["type"] != "id" else own[0] if own else None)
                at += count
        out[name] = column[0] if one else column
    return out


def write(where: Path, export: Path) -> None:
    """Write the vectors of an exported model."""
    where.mkdir(exist_ok=True)
    signature = json.loads((export / "signature.json").read_text(encoding="utf-8"))
    known = {key: signature[key] for key in ("features", "tasks")}
    for about in known["features"].values():
        about.pop("ids", None)  # so that ids are accepted as integers and as strings
    (where / "signature.json").write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    model = load(export)
    golden = golden_inputs(json.loads((export / "golden.json").read_text(encoding="utf-8")))
    golden[2]["rate"][2] = torch.nan  # whatever the data are, something is missing
    once, _ = one_user(golden, USER, 1)
    candidates = [name for name in known["features"] if name not in USER]
    cases = {}
    for name, inputs, rows in (("rank", once, False), ("rows", golden, True)):
        with torch.no_grad():
            scores = {task: s.numpy() for task, s in (model(*inputs) if rows else model.rank(*inputs)).items()}
        body, header = client.encode(
            {key: values.numpy() for key, values in named(inputs).items()},
            request_id=f"vector-{name}",
            parameters={"rows": True} if rows else {},
        )
        (where / f"{name}.request.bin").write_bytes(body)
        asked: dict[str, Any] = {"request_id": f"vector-{name}"}
        if rows:
            asked["rows"] = people(known["features"], inputs, [*known["features"]], one=False)
        else:
            asked["user"] = people(known["features"], inputs, USER, one=True)
            asked["candidates"] = people(known["features"], inputs, candidates, one=False)
        (where / f"{name}.people.json").write_text(json.dumps(asked), encoding="utf-8")
        answer, answer_header = answered(f"vector-{name}", scores)
        (where / f"{name}.answer.bin").write_bytes(answer)
        cases[name] = {
            "id": f"vector-{name}",
            "rows": rows,
            "header": header,
            "answer_header": answer_header,
            "tensors": plain(named(inputs)),
            "scores": {task: values.tolist() for task, values in scores.items()},
        }
    texts = ["", "F", "São Paulo", "大话西游", *(("0123456789abcdef" * 5)[:length] for length in _LENGTHS)]
    (where / "hashes.json").write_text(json.dumps({text: string_id(text) for text in texts}, indent=1) + "\n")
    (where / "cases.json").write_text(json.dumps(cases, indent=1) + "\n", encoding="utf-8")


def answered(request_id: str, scores: dict[str, np.ndarray]) -> tuple[bytes, int]:
    """Return an answer as the server writes it, written a second time."""
    outputs = [
        {"name": task, "datatype": "FP32", "shape": [*values.shape], "parameters": {"binary_data_size": values.nbytes}}
        for task, values in scores.items()
    ]
    head = json.dumps({**STAMP, "id": request_id, "parameters": MARK, "outputs": outputs}, separators=(",", ":"))
    head += " " * (-len(head) % 8)
    return head.encode() + b"".join(values.tobytes() for values in scores.values()), len(head)


def seeds(folder: Path) -> None:
    """Write the vectors and the malformed requests as the fuzzers read them."""
    cases = json.loads((HERE / "cases.json").read_text(encoding="utf-8"))
    found = {f"malformed-{n}": (case.body, case.header) for n, case in enumerate(malformed.corpus(HERE))}
    for name, case in cases.items():
        found[f"{name}.binary"] = (HERE / f"{name}.request.bin").read_bytes(), str(case["header"])
        found[f"{name}.people"] = (HERE / f"{name}.people.json").read_bytes(), None
    for name, (body, header) in found.items():
        length = int(header) if header is not None and header.isdigit() else 0
        if len(body) < 8192 and length < 1 << 16:
            kind = b"j" if header is None else b"b"
            (folder / "wire").mkdir(parents=True, exist_ok=True)
            (folder / "wire" / name).write_bytes(kind + length.to_bytes(2, "big") + body)
    (folder / "json").mkdir(parents=True, exist_ok=True)
    for path in HERE.glob("*.json"):
        (folder / "json" / path.name).write_bytes(path.read_bytes()[:8192])
    (folder / "json/deep").write_text("[" * 8_000)
    (folder / "json/escapes").write_text('{"\\ud83d\\ude00\\u00e9\\n": ["\\"", -1.5e3, null, true, "a\\')


def main() -> None:
    from livetrain.cluster import launch

    if sys.argv[1:]:
        seeds(Path(sys.argv[1]))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        launch.train(recipe(data(folder / "data")), folder / "runs")
        exporter.export(folder / "runs/small", out=folder / "export")
        write(HERE, folder / "export")


if __name__ == "__main__":
    main()
