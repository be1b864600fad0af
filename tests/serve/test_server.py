"""The server answers what Python does, byte for byte, with one model and with several behind one another."""

import json
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch

from livetrain import Index
from livetrain.modules.serving.loading import load
from livetrain.trainers.data.write.ids import string_id
from livetrain.trainers.export.rows import golden_inputs, one_user
from livetrain.trainers.runtime import manifest
from tests.serve.client import client
from tests.serve.live import running

pytestmark = pytest.mark.slow
VERSION = "2026-11-30.000001"


def golden(published, name: str) -> tuple:
    return golden_inputs(json.loads(Path(published.where(name), VERSION, "golden.json").read_text()))


def tensors(inputs) -> dict[str, np.ndarray]:
    """Return ids, lengths and dense by the names of the wire."""
    return {
        f"{part}.{name}": value.numpy()
        for part, values in zip(("ids", "lengths", "dense"), inputs, strict=True)
        for name, value in values.items()
    }


def config(published, **rank) -> dict:
    models = {name: {"published": published.where(name)} for name in ("din", "light", "towers")}
    models["light"] |= {"kind": "prerank", "keep": 12}
    models["towers"] |= {"kind": "retrieve", "index": str(published.folder / "indexes/towers")}
    return {"models": models, "rank": {"model": "din", **rank}}


USER = ["user", "history", "rating"]


@pytest.mark.parametrize("name", ["din", "light"])
def test_scores_are_pythons_byte_for_byte(program, published, tmp_path, name):
    inputs, model = golden(published, name), load(Path(published.where(name), VERSION))
    once, _ = one_user(inputs, USER, 3)
    with running(program, config(published), tmp_path) as server:
        asked = client.Client(server.url, 30.0)
        rows, ranked = asked.infer(name, tensors(inputs), rows=True), asked.infer(name, tensors(once))
        with torch.no_grad():
            assert rows.scores["click"].tobytes() == model(*inputs)["click"].numpy().tobytes()
            wanted = model.rank(*once)["click"].numpy()
        assert ranked.scores["click"].tobytes() == wanted.tobytes()
        assert (ranked.model, ranked.version, ranked.fence, ranked.delta) == (name, "2026-11-30", 1, 0)
        assert ranked.other["order"].tolist() == np.argsort(-wanted, kind="stable").tolist()
        assert "order" not in rows.other
        none = asked.rank(name, {"user": 1, "history": [], "rating": []}, {"movie": [], "rate": []})
        assert none.scores["click"].shape == (0,)


def test_a_chain_of_models_is_what_python_makes_of_them(program, published, tmp_path):
    ranker, light = (load(Path(published.where(name), VERSION)) for name in ("din", "light"))
    item = load(Path(published.where("towers"), VERSION), "item.pt")
    once, _ = one_user(golden(published, "din"), USER, 3)
    rerank = {"file": str(published.folder / "rerank.pt"), "vectors": "towers"}
    with running(program, config(published, prerank="light", rerank=rerank), tmp_path) as server:
        found = client.Client(server.url, 30.0).infer(None, tensors(once))
    with torch.no_grad():
        first, last = light.rank(*once)["click"], ranker.rank(*once)["click"]
        kept = first.argsort(descending=True, stable=True)[:12].sort()[0]
        vectors = item(*golden(published, "din"))[kept]
        listed = torch.jit.load(rerank["file"])(last[kept].logit(1e-7)[None], vectors[None])[0]
    rest = [each for each in last[kept].argsort(descending=True, stable=True).tolist() if each not in listed.tolist()]
    assert found.other["order"].tolist() == kept[[*listed.tolist(), *rest]].tolist()
    assert np.isnan(found.scores["click"]).sum() == len(first) - 12
    # A network scores other numbers of rows by other kernels, which round otherwise.
    np.testing.assert_allclose(found.scores["click"][kept], last[kept], rtol=1e-6)


def test_a_cut_keeps_regulars_and_limits_kinds(program, published, tmp_path):
    rng = np.random.default_rng(5)
    asked = config(published, prerank="light")
    asked["models"]["light"] = {"published": published.where("light"), "kind": "prerank"}
    asked["models"]["light"] |= {"cut": str(published.folder / "cut.pt"), "regular": "visits", "category": "kind"}
    light, cut = load(Path(published.where("light"), VERSION)), torch.jit.load(str(published.folder / "cut.pt"))
    with running(program, asked, tmp_path) as server:
        for count in (1, 5, 30, 200):
            visits = np.where(rng.random(count) < 0.2, rng.integers(1, 9, count), 0).astype(np.float32)
            kinds = rng.integers(-(2**62), 2**62, 3)[rng.integers(0, 3, count)]
            given = {
                "user": np.array([3]),
                **{
                    f"{part}.{name}": value
                    for name in ("history", "rating")
                    for part, value in (("ids", np.array([1, 2])), ("lengths", np.array([2])))
                },
                "movie": rng.integers(0, 99, count),
                "rate": rng.normal(3, 1, count).astype(np.float32),
                "visits": visits,
                "kind": kinds,
            }
            dense = ("rate", "visits")
            sent = {(k if "." in k else f"dense.{k}" if k in dense else f"ids.{k}"): v for k, v in given.items()}
            found = client.Client(server.url, 30.0).infer(None, sent)
            ids = {name: torch.tensor(sent[f"ids.{name}"]) for name in ("user", "history", "rating", "movie")}
            lengths = {name: torch.tensor([2]) for name in ("history", "rating")}
            scores = light.rank(ids, lengths, {"rate": torch.tensor(given["rate"])})["click"]
            _, of = np.unique(kinds, return_inverse=True)
            wanted = cut(scores[None], torch.tensor(visits > 0)[None], torch.tensor(of)[None])[0]
            assert sorted(found.other["order"].tolist()) == sorted(wanted[wanted >= 0].tolist())
        del sent["dense.visits"]
        with pytest.raises(client.Refused, match="'visits'"):
            client.Client(server.url, 30.0).infer(None, sent)


def test_items_are_those_of_the_index_and_leave_the_air(program, published, tmp_path):
    index = Index(published.folder / "indexes/towers")
    user = load(Path(published.where("towers"), VERSION), "user.pt")
    person = {"user": 7, "history": [3, 4], "rating": [5, 1], "rate": 2.0}
    ids = {name: torch.tensor(value if isinstance(value, list) else [value]) for name, value in person.items()}
    vector = user(ids, {name: torch.tensor([2]) for name in ("history", "rating")}, {"rate": torch.tensor([2.0])})
    asked = config(published)
    with running(program, asked, tmp_path) as server:
        ask = client.Client(server.url, 30.0)

        def same(count: int, exclude: tuple = ()) -> list[int]:
            keys, scores = index.search(vector.detach().numpy(), 50)
            there = ~np.isneginf(scores[0]) & ~np.isin(keys[0], exclude)
            wanted = dict(zip(keys[0][there].tolist(), scores[0][there].tolist(), strict=True))
            found = ask.retrieve(person, count, exclude)
            items, of = found.other["items"].tolist(), found.scores["score"]
            np.testing.assert_allclose(of, sorted(wanted.values(), reverse=True)[:count], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(
                of, [wanted[item] for item in items], rtol=1e-5, atol=1e-6
            )  # some are equally good
            return items

        best = same(10)
        same(500)
        same(5, tuple(best[:2]))
        for change in ({"off": best[:3]}, {"on": best[:1]}, {"only": best[4:]}, {"off": best[5:6], "on": best[:1]}):
            assert server.get("/v2/models/towers/air", change) == (200, "{}")
            index.only(change["only"]) if "only" in change else index.change(**change)
            same(10)
        status, said = server.get("/v2/models/towers/air", {"off": ["7"]})
        assert (status, "whole numbers" in said) == (400, True)
        same(10)
    asked["models"]["towers"]["air"] = "told"
    with running(program, asked, tmp_path) as server:
        with pytest.raises(client.Busy):
            client.Client(server.url, 30.0).retrieve(person, 3)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{server.url}/retrieve", json.dumps({"user": person}).encode(), timeout=30)
        assert (refused.value.code, refused.value.headers["Retry-After"]) == (503, "1")
        server.get("/v2/models/towers/air", {"only": best})
        assert client.Client(server.url, 30.0).retrieve(person, 3).other["items"].tolist() == best[:3]


def test_items_that_are_strings_are_answered_as_such(program, published, tmp_path):
    folder = next((published.folder / "indexes/towers").glob("*/index.json")).parent
    about, keys = json.loads((folder / "index.json").read_text()), (folder / "keys.txt").read_text().split()
    (folder / "index.json").write_text(json.dumps(about | {"key": about["key"] | {"type": "string"}}))
    (folder / "keys.txt").write_text("".join(f"film {key} é\n" for key in keys))
    (folder / "manifest.json").unlink()
    manifest.commit(folder, {path.name: manifest.digest(path) for path in sorted(folder.iterdir())})
    person = {"user": 7, "history": [3, 4], "rating": [5, 1], "rate": 2.0}
    tensors = client.tensors(None, person, one=True)
    with running(program, config(published), tmp_path) as server:
        best = json.loads(server.get("/retrieve", {"user": person, "top": 6})[1])["items"]
        assert len({*best}) == 6
        assert {*best} <= {f"film {key} é" for key in keys}
        hashes = [string_id(each) for each in best]
        found = client.Client(server.url, 30.0).infer("towers", tensors)
        assert found.other["items"][:6].tolist() == hashes
        for binary in (True, False):
            outputs = [{"name": "items"}, {"name": "names", "parameters": {"binary_data": binary}}]
            inputs = [
                {"name": name, "datatype": "FP32" if name.startswith("dense") else "INT64", "shape": list(each.shape)}
                | {"data": each.tolist()}
                for name, each in tensors.items()
            ]
            asked = {"parameters": {"top": 6}, "inputs": inputs, "outputs": outputs}
            request = urllib.request.Request(f"{server.url}/v2/models/towers/infer", json.dumps(asked).encode())
            with urllib.request.urlopen(request, timeout=30) as answer:
                body, length = answer.read(), answer.headers["Inference-Header-Content-Length"]
            head = json.loads(body[: int(length)] if length else body)
            items, names = head["outputs"]
            assert (items["data"], names["datatype"], names["shape"]) == (hashes, "BYTES", [6])
            if not binary:
                assert names["data"] == best
                continue
            rest = body[int(length) :]
            assert names["parameters"]["binary_data_size"] == len(rest)
            for each in best:
                size = int.from_bytes(rest[:4], "little")
                assert rest[4 : 4 + size].decode() == each
                rest = rest[4 + size :]
        server.get("/v2/models/towers/air", {"off": best[:2]})
        left = json.loads(server.get("/retrieve", {"user": person, "top": 3, "exclude": best[2:3]})[1])["items"]
        assert left == best[3:6]


def test_what_is_off_the_air_and_in_no_index_is_forgotten_in_the_end(program, published, tmp_path):
    person = {"user": 7, "history": [3, 4], "rating": [5, 1], "rate": 2.0}
    with running(program, config(published), tmp_path) as server:
        ask = client.Client(server.url, 30.0)
        best = ask.retrieve(person, 3).other["items"].tolist()
        off = 'livetrain_off_the_air{model="towers"}'
        server.get("/v2/models/towers/air", {"off": best[:1]})
        for begin in range(0, 300_000, 60_000):
            assert server.get("/v2/models/towers/air", {"off": list(range(begin, begin + 60_000))})[0] == 200
            assert 50_000 < server.metric(off) <= 101_000
            assert ask.retrieve(person, 2).other["items"].tolist() == best[1:]


@pytest.mark.parametrize("kind", ["hnsw"])
def test_a_graph_is_searched_too(program, published, tmp_path, kind):
    from livetrain.trainers.recall.build import Asked, build
    from livetrain.trainers.recall.origin import origin

    where = tmp_path / "graph"
    build(origin(published.where("towers"), published.folder / "runs"), str(where), Asked(kind=kind, least=0.1), print)
    asked = config(published)
    asked["models"]["towers"]["index"] = str(where)
    person = {"user": 7, "history": [3, 4], "rating": [5, 1], "rate": 2.0}
    with running(program, config(published), tmp_path) as server:
        exact = client.Client(server.url, 30.0).retrieve(person, 10).other["items"].tolist()
    with running(program, asked, tmp_path) as server:
        ask = client.Client(server.url, 30.0)
        assert len(set(ask.retrieve(person, 10).other["items"].tolist()) & set(exact)) >= 9
        server.get("/v2/models/towers/air", {"off": exact[:5]})
        left = ask.retrieve(person, 10).other["items"].tolist()
        assert set(exact[5:]) <= set(left)
        assert not set(exact[:5]) & set(left)


def test_what_is_wrong_is_said(program, published, tmp_path):
    with running(program, config(published), tmp_path) as server:
        for path, body, status, word in (
            ("/rank", {"user": {"user": 1}}, 400, "is missing"),
            ("/rank", {"user": {"user": 1, "hstory": [2]}}, 400, "'hstory'"),
            ("/v2/models/dinn/infer", {}, 404, "no model of this name"),
            ("/v2/models/din/air", {"on": [1]}, 400, "retrieves nothing"),
            ("/nothing", {}, 404, "nothing here"),
            ("/retrieve", {"user": {"user": [1, 2]}}, 400, "'user'"),
            ("/v2/models/din/infer", {"user": {"user": 1}}, 400, "JSON with user and candidates goes to /rank"),
        ):
            found, said = server.get(path, body)
            assert (found, word in json.loads(said)["error"]) == (status, True), said
        assert server.metric('livetrain_requests_total{model="rank",code="400"}') == 2
        assert server.get("/v2/models/din")[0] == server.get("/v2/models/din/ready")[0] == 200
        assert server.get("/v2/health/live")[0] == server.get("/v2/health/ready")[0] == 200
