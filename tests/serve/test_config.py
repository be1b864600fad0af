"""A config that cannot be served is named in one sentence, with exit code 2, before anything starts."""

import json
import subprocess
from pathlib import Path

import pytest

MODEL = {"published": "/nowhere/din"}
TOWERS = {"published": "/nowhere/towers", "kind": "retrieve", "index": "/nowhere/index"}
BAD = {
    "none.json cannot be read; name a file": None,
    "serve.json is no JSON; mend it": "{",
    "serve.json: must be an object": [],
    "'models' must name at least one model": {},
    "'port' must be a whole number from 1 to 65535, not 99999": {"port": 99999, "models": {"din": MODEL}},
    "'threads' must be a whole number from 1 to 1024, not \"2\"": {"threads": "2", "models": {"din": MODEL}},
    "'prot' is no key here; there are ": {"prot": 1, "models": {"din": MODEL}},
    "models: 'a/b' must have letters": {"models": {"a/b": MODEL}},
    "models.din: 'published' is missing": {"models": {"din": {}}},
    "models.din: 'kind' must be prerank, rank, retrieve, not 'score'": {"models": {"din": {**MODEL, "kind": "score"}}},
    "models.din: 'keep' is no key here; there are kind, published": {"models": {"din": {**MODEL, "keep": 3}}},
    "models.din: give either 'keep' or 'cut'": {"models": {"din": {**MODEL, "kind": "prerank"}}},
    "models.din: 'index' is missing": {"models": {"din": {**MODEL, "kind": "retrieve"}}},
    "models.din: 'air' must be all, told, not 'some'": {"models": {"din": {**TOWERS, "air": "some"}}},
    "rank: 'model' must name a model of kind rank: din": {"models": {"din": MODEL}, "rank": {"model": "dinn"}},
    "rank: 'prerank' must name a model of kind prerank": {"models": {"din": MODEL}, "rank": {"prerank": "din"}},
    "rank.rerank: 'file' is missing": {"models": {"din": MODEL}, "rank": {"rerank": {"vectors": "din"}}},
    "rank.rerank: 'vectors' must name a model of kind retrieve": {
        "models": {"din": MODEL},
        "rank": {"rerank": {"file": "rerank.pt"}},
    },
    "retrieve: 'model' must name a model of kind retrieve": {"models": {"din": MODEL}, "retrieve": {"model": "din"}},
    "/nowhere/din/current.json is missing; publish a model there first": {"models": {"din": MODEL}},
}


def refused(program: Path, file: Path) -> str:
    done = subprocess.run([str(program), str(file)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    (sentence,) = done.stderr.splitlines()
    assert len(sentence) < 300
    return sentence


@pytest.mark.slow
@pytest.mark.parametrize("said", BAD)
def test_a_bad_config_is_one_sentence(program, tmp_path, said):
    content = BAD[said]
    file = tmp_path / ("none.json" if content is None else "serve.json")
    if content is not None:
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    assert said in refused(program, file)


@pytest.mark.slow
def test_what_does_not_fit_together_is_refused(program, published, tmp_path):
    def config(**rank: object) -> Path:
        models = {name: {"published": published.where(name)} for name in ("din", "towers")}
        models["towers"] |= {"kind": "retrieve", "index": str(published.folder / "indexes/towers")}
        (tmp_path / "serve.json").write_text(json.dumps({"models": models, "rank": rank}))
        return tmp_path / "serve.json"

    assert "rank: 'by' must name the score of din that orders" in refused(program, config(model="din", by="gift"))
    rerank = {"file": str(published.folder / "cut.json"), "vectors": "towers"}
    assert "cut.json is no TorchScript file" in refused(program, config(model="din", rerank=rerank))
    (published.folder / "models/din/2026-11-30.000001/model.pt").write_bytes(b"nothing")
    assert "model.pt is missing or damaged; publish a new base" in refused(program, config(model="din"))


@pytest.mark.slow
def test_an_address_that_is_taken_is_named(program, published, tmp_path):
    from tests.serve.live import running

    models = {"din": {"published": published.where("din")}}
    with running(program, {"models": models}, tmp_path) as server:
        again = tmp_path / "again.json"
        again.write_text(json.dumps({"port": server.port, "models": models}))
        done = subprocess.run([str(program), str(again)], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr.splitlines()[-1]) == (
            2,
            f"{again}: 127.0.0.1:{server.port} cannot be had; choose another host or port",
        )
