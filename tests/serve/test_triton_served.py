"""What `livetrain export --triton` writes, served by Triton itself."""

import json
import shutil
import time

import numpy as np
import pytest
import torch

from livetrain import api
from livetrain.cluster import launch
from livetrain.modules.serving.loading import load
from livetrain.trainers.export import triton
from tests.serve import tritons, vectors
from tests.serve.client import asked_in_go, client

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A repository with `din`, which has a feature of every kind and mapped tables, and its vectors."""
    folder = tmp_path_factory.mktemp("triton")
    recipe = vectors.recipe(vectors.data(folder / "data")).model_dump(mode="json", exclude_unset=True)
    recipe["export"] |= {"tables": "mapped"}
    launch.train(type(vectors.recipe(folder)).model_validate(recipe), folder / "runs")
    api.export(folder / "runs/small", folder / "export")
    vectors.write(folder / "vectors", folder / "export")
    return folder


@pytest.fixture(scope="module")
def served(made):
    triton.write(made / "export", made / "models", "din")
    with tritons.running(made / "models", made) as server:
        yield server


def test_both_clients_get_the_files_scores_of_triton_bit_for_bit(served, made):
    place, asked = made / "vectors", client.Client(served.url, 60)
    cases = json.loads((place / "cases.json").read_text())
    people = {name: json.loads((place / f"{name}.people.json").read_text()) for name in cases}
    ranked = asked.rank("din", people["rank"]["user"], people["rank"]["candidates"], request_id="one")
    assert (ranked.id, ranked.model, ranked.version) == ("one", "din", "1")
    for name, answer in (("rank", ranked), ("rows", asked.rows("din", people["rows"]["rows"]))):
        assert answer.scores["click"].tobytes() == np.array(cases[name]["scores"]["click"], np.float32).tobytes()
    if go := shutil.which("go"):
        asked_in_go(go, served.url, place)


def test_golden_rows_and_lists_without_ids_have_their_scores(served, made):
    golden = json.loads((made / "export/golden.json").read_text())
    given = {
        f"{part}.{name}": np.array(values, np.float32 if part == "dense" else np.int64)
        for part in ("ids", "lengths", "dense")
        for name, values in golden[part].items()
    }
    asked = client.Client(served.url, 60)
    found = asked.infer("din", given, rows=True).scores["click"]
    assert found.tobytes() == np.array(golden["scores"]["click"], np.float32).tobytes()
    for name in ("tags", "history", "rating"):
        dtypes = {part: given[f"{part}.{name}"].dtype for part in ("ids", "dense") if f"{part}.{name}" in given}
        given |= {f"{part}.{name}": np.zeros(0, dtype) for part, dtype in dtypes.items()}
        given[f"lengths.{name}"] = np.zeros(6, np.int64)
    parts = {part: {n[len(part) + 1 :]: torch.from_numpy(v) for n, v in given.items() if n.startswith(part)}
             for part in ("ids", "lengths", "dense")}  # fmt: skip
    with torch.no_grad():
        wanted = load(made / "export")(*parts.values())["click"].numpy()
    assert asked.infer("din", given, rows=True).scores["click"].tobytes() == wanted.tobytes() != found.tobytes()


def test_a_wrong_request_is_refused_with_the_models_sentence(served, made):
    asked = client.Client(served.url, 60)
    people = json.loads((made / "vectors/rank.people.json").read_text())
    wrong = people["user"] | {"history": [1, 2, 3], "rating": [1]}
    with pytest.raises(client.Refused, match="the lists of one history must have the same length"):
        asked.rank("din", wrong, people["candidates"])
    del people["candidates"]["movie"]
    with pytest.raises(client.Refused, match=r"ids.movie|'movie' is missing"):
        asked.rank("din", people["user"], people["candidates"])


def test_a_new_version_is_served_without_a_failure_and_one_that_scores_otherwise_is_not(made, tmp_path):
    people = json.loads((made / "vectors/rank.people.json").read_text())
    models, wrong = tmp_path / "models", tmp_path / "wrong"
    triton.write(made / "export", models, "din")
    shutil.copytree(made / "export", wrong)
    golden = json.loads((wrong / "golden.json").read_text())
    golden["scores"]["click"][0] += 0.1
    (wrong / "golden.json").write_text(json.dumps(golden))
    with tritons.running(models, tmp_path) as server:
        asked, versions = client.Client(server.url, 60), []
        triton.write(made / "export", models, "din")
        for _ in range(1200):
            versions.append(asked.rank("din", people["user"], people["candidates"]).version)
            if versions[-1] == "2":
                break
            time.sleep(0.1)
        assert versions == sorted(versions)
        assert versions[-1] == "2"
        triton.write(wrong, models, "din")
        server.wait("the golden rows' scores are")
        for _ in range(5):
            assert asked.rank("din", people["user"], people["candidates"]).version == "2"
