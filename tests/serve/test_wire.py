"""The wire in C++: what it makes of requests, refuses and answers; and the Python client's side of it."""

import json
import math
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.serve import built, malformed
from tests.serve.client import client

VECTORS = Path(__file__).parent / "vectors"
CASES = json.loads((VECTORS / "cases.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """Run tests/serve/wire_driver.cpp over requests; what became of each."""
    sources = [*built.WIRE, Path(__file__).with_name("wire_driver.cpp")]
    program = built.program("wire_driver", sources)
    folder = tmp_path_factory.mktemp("requests")

    def run(requests, scores=None, signature=VECTORS / "signature.json"):
        lines = []
        for place, (body, header) in enumerate(requests):
            (folder / str(place)).write_bytes(body)
            lines.append(f"json {folder / str(place)}" if header is None else f"binary {header} {folder / str(place)}")
        more = []
        if scores is not None:
            (folder / "scores").write_text(json.dumps(scores), encoding="utf-8")
            more = [str(folder / "scores")]
        done = subprocess.run(
            [program, str(signature), *more], input="\n".join(lines), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def _tensors(told):
    return {f"{part}.{name}": values for part in ("ids", "lengths", "dense") for name, values in told[part].items()}


@pytest.mark.parametrize("name", [*CASES])
def test_both_forms_of_a_request_are_the_tensors_that_they_say(driver, name):
    case = CASES[name]
    binary, people, _ = driver(
        [
            ((VECTORS / f"{name}.request.bin").read_bytes(), case["header"]),
            ((VECTORS / f"{name}.people.json").read_bytes(), None),
        ]
    )
    for told in (binary, people):
        assert _tensors(told) == case["tensors"]
        assert (told["id"], told["rows"], told["count"]) == (case["id"], case["rows"], 6)


@pytest.mark.parametrize("name", [*CASES])
def test_answers_are_these_bytes_and_the_client_reads_the_scores_in_them(driver, name):
    case = CASES[name]
    told, _ = driver([((VECTORS / f"{name}.request.bin").read_bytes(), case["header"])], case["scores"])
    body = bytes.fromhex(told["answer"]["body"])
    assert body == (VECTORS / f"{name}.answer.bin").read_bytes()
    assert told["answer"]["header"] == case["answer_header"]
    answer = client.decode(body, told["answer"]["header"])
    assert (answer.id, answer.model, answer.version, answer.fence, answer.delta) == (
        case["id"],
        "din",
        "20261130",
        7,
        2,
    )
    people = json.loads(told["answer"]["people"])
    assert people["model"] == {"name": "din", "version": "20261130", "fence": 7, "delta": 2}
    for task, scores in case["scores"].items():
        wanted = np.array(scores, np.float32)
        assert answer.scores[task].tobytes() == wanted.tobytes()
        assert np.array(people["scores"][task], np.float32).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("name", [*CASES])
def test_the_python_client_sends_these_bytes(name):
    case = CASES[name]
    tensors = {
        key: np.array(about["values"], dtype=object)
        .astype("<f4" if key.startswith("dense") else "<i8")
        .reshape(about["shape"])
        for key, about in case["tensors"].items()
    }
    sent = client.encode(tensors, request_id=case["id"], parameters={"rows": True} if case["rows"] else {})
    assert sent == ((VECTORS / f"{name}.request.bin").read_bytes(), case["header"])
    people = json.loads((VECTORS / f"{name}.people.json").read_text(encoding="utf-8"))
    known = {key: about["shape"] for key, about in case["tensors"].items()}
    found = {}
    for part in ("user", "candidates", "rows"):
        found |= client.tensors(known, people.get(part, {}), one=part == "user")
    assert client.encode(found, request_id=case["id"], parameters={"rows": True} if case["rows"] else {}) == sent


def test_200_malformed_requests_get_200_clear_answers(driver):
    cases = malformed.corpus(VECTORS)
    answers = driver([(case.body, case.header) for case in cases])[:-1]
    assert len(answers) == len(cases) == malformed.COUNT == 200
    for case, answer in zip(cases, answers, strict=True):
        assert answer.get("status") in (400, 413), f"{case.name}: {answer}"
        sentence = json.loads(answer["body"])["error"]
        assert 20 < len(sentence.encode()) < 300, f"{case.name}: {sentence}"
        assert case.says[:30] in sentence, f"{case.name}: {sentence}"
        assert sentence.isprintable(), f"{case.name}: {sentence}"


def test_json_tensors_of_the_protocol_are_taken_too(driver):
    case = CASES["rank"]
    inputs = [
        {
            "name": name,
            "datatype": "FP32" if name.startswith("dense") else "INT64",
            "shape": about["shape"],
            "data": about["values"],
        }
        for name, about in case["tensors"].items()
    ]
    asked = {"id": case["id"], "inputs": inputs, "outputs": [{"name": "click"}]}
    told, _ = driver([(json.dumps(asked).encode(), "-")], case["scores"])
    assert _tensors(told) == case["tensors"]
    assert told["answer"]["header"] == 0
    answer = client.decode(bytes.fromhex(told["answer"]["body"]), None)
    assert answer.scores["click"].tobytes() == np.array(case["scores"]["click"], np.float32).tobytes()
    wrong, _ = driver([(json.dumps({**asked, "outputs": [{"name": "clicks"}]}).encode(), "-")], case["scores"])
    assert (wrong["status"], "'clicks'" in wrong["body"], "click" in wrong["body"]) == (400, True, True)


def test_strings_are_hashed_alike_in_c_and_python(driver):
    people = json.loads((VECTORS / "rank.people.json").read_text(encoding="utf-8"))
    people["user"]["city"] = "São Paulo"
    people["user"]["history"] = ["", "F", "大话西游", "x" * 100]
    people["channel"], people["exclude"], people["top"] = ["hot"] * 6, [4, "F"], 5
    told, _ = driver([(json.dumps(people).encode(), None)])
    assert told["ids"]["city"]["values"] == [client.hashed("São Paulo")]
    assert told["ids"]["history"]["values"] == [client.hashed(text) for text in people["user"]["history"]]
    assert (told["channel"], told["exclude"], told["top"]) == (["hot"] * 6, [4, client.hashed("F")], 5)
    given = client.tensors(None, {"city": "São Paulo"}, one=True)
    body, header = client.encode(given, channel=["hot", "São"], parameters={"top": 3})
    refused, _ = driver([(body, header)])
    assert "is missing" in refused["body"]  # and nothing else is wrong with it


def test_ids_of_a_model_that_knows_what_they_are_must_be_that(driver, tmp_path):
    signature = json.loads((VECTORS / "signature.json").read_text(encoding="utf-8"))
    signature["features"]["city"]["ids"], signature["features"]["user"]["ids"] = "strings", "integers"
    (tmp_path / "signature.json").write_text(json.dumps(signature), encoding="utf-8")
    people = json.loads((VECTORS / "rank.people.json").read_text(encoding="utf-8"))
    both = [
        {**people, "user": {**people["user"], "city": c, "user": u}} for c, u in ((5, 5), ("Oslo", "a"), ("Oslo", 5))
    ]
    first, second, fine, _ = driver(
        [(json.dumps(p).encode(), None) for p in both], signature=tmp_path / "signature.json"
    )
    assert ("'city'" in first["body"], "'user'" in second["body"], fine["count"]) == (True, True, 6)


def test_vectors_that_are_null_are_counted_before_there_are_numbers_of_them(driver, tmp_path):
    signature = json.loads((VECTORS / "signature.json").read_text(encoding="utf-8"))
    tags = signature["features"]["tags"]
    tags |= {"weights": None, "vectors": "embedding", "beside": 100_000}
    (tmp_path / "signature.json").write_text(json.dumps(signature), encoding="utf-8")
    many = 200_000
    asked = {"user": {"tags": {"ids": [1] * many, "vectors": [None] * many}}, "candidates": {}}
    few = {"user": {"tags": {"ids": [1, 2], "vectors": [None, [0.5] * 100_000]}}, "candidates": {}}
    refused, fine, _ = driver(
        [(json.dumps(each).encode(), None) for each in (asked, few)], signature=tmp_path / "signature.json"
    )
    assert (refused["status"], "more than 2000000" in refused["body"]) == (413, True)
    assert (fine["status"], "is missing" in fine["body"]) == (400, True)  # and nothing else is wrong with it


def test_metadata_names_the_tensors_as_the_protocol_does(driver):
    (told,) = driver([])
    inputs = {each["name"]: (each["datatype"], each["shape"]) for each in told["inputs"]}
    assert {*CASES["rows"]["tensors"]} == {*inputs}
    assert inputs["ids.history"] == ("INT64", [-1])
    assert inputs["dense.cover"] == ("FP32", [-1, 3])
    assert told["outputs"] == [{"name": "click", "datatype": "FP32", "shape": [-1]}]
    assert inputs["dense.tags"] == ("FP32", [-1])


def test_no_candidates_are_no_fault(driver):
    people = json.loads((VECTORS / "rank.people.json").read_text(encoding="utf-8"))
    people["candidates"] = {name: [] for name in people["candidates"]}
    told, _ = driver([(json.dumps(people).encode(), None)])
    assert told["count"] == 0


_IDS = st.integers(-(2**63), 2**63 - 1)
_NUMBER = st.none() | st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def _features(draw):
    count = draw(st.integers(2, 5))

    def row(kind):
        if kind == "tags":
            size = draw(st.integers(0, 3))
            return {
                "ids": draw(st.lists(_IDS, min_size=size, max_size=size)),
                "weights": draw(st.lists(st.floats(0, 1, width=32), min_size=size, max_size=size)),
            }
        kinds = {"id": st.none() | _IDS, "list": st.none() | st.lists(_IDS, max_size=4), "number": _NUMBER}
        return draw({**kinds, "vector": st.none() | st.lists(_NUMBER, min_size=3, max_size=3)}[kind])

    user = {"user": row("id"), "city": row("id"), "history": row("list"), "rating": row("list")}
    kinds = {"movie": "id", "rate": "number", "tags": "tags", "cover": "vector"}
    return user, {name: [row(kind) for _ in range(count)] for name, kind in kinds.items()}


def test_both_forms_agree_on_whatever_is_asked(driver):
    sent, rows = [], []

    @given(_features())
    def collect(features):
        user, candidates = features
        known = {key: about["shape"] for key, about in CASES["rank"]["tensors"].items()}
        given_tensors = client.tensors(known, user, one=True) | client.tensors(known, candidates, one=False)
        body, header = client.encode(given_tensors)
        sent.extend([(body, header), (json.dumps({"user": user, "candidates": candidates}).encode(), None)])
        rows.append(len(candidates["movie"]))

    collect()
    told = driver(sent)[:-1]
    for count, binary, people in zip(rows, told[::2], told[1::2], strict=True):
        assert _tensors(binary) == _tensors(people)
        assert binary["count"] == people["count"] == count
        values = [v for v in binary["dense"]["rate"]["values"] if v is not None]
        assert all(math.isfinite(v) for v in values)
