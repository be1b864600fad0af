"""Fitted models as indexes and as channels: both find what the model finds."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import livetrain
from livetrain.configs.blend_spec import BlendSpec
from livetrain.configs.errors import BadInput
from livetrain.modules.serving.loading import load
from livetrain.trainers.export.export import export
from livetrain.trainers.export.inverted import retriever
from livetrain.trainers.export.rows import golden_inputs, held_out_rows
from livetrain.trainers.recall import build
from livetrain.trainers.recall.blend import Blend, blended
from livetrain.trainers.recall.build import Asked
from livetrain.trainers.recall.inverted import Request
from livetrain.trainers.recall.origin import Origin, ids
from livetrain.trainers.runtime import run_folder
from tests.trainers.recall.test_fit import ITEMS, USERS, data, run  # noqa: F401


def test_the_table_of_an_export_is_the_index(run, tmp_path):  # noqa: F811
    export(run, out=tmp_path / "export", quantize="int8")
    found = Origin(run, str(tmp_path / "export"), "2026-05-01")
    pointer = build.build(found, str(tmp_path / "indexes"), Asked(), lambda text: None)
    assert pointer is not None
    assert pointer["folder"] == "2026-05-01.000001"
    index, scored = livetrain.Index(tmp_path / "indexes"), load(tmp_path / "export")
    inputs = golden_inputs(held_out_rows(run_folder.recipe_of(run), USERS))
    with torch.no_grad():
        request = Request(*(part.numpy() for part in scored.request(*inputs)))
        wanted = scored.of_all(*inputs).numpy()
    keys, scores = index.search(request, 5)
    best = -np.sort(-wanted, axis=1)[:, :5]
    np.testing.assert_allclose(np.where(np.isneginf(scores), 0, scores), best, rtol=1e-5, atol=1e-6)
    assert index.about["kind"] == "inverted"
    assert sorted(index.keys) == sorted(f"i{item}" for item in range(ITEMS))  # of the run's catalogue, by name
    index.change(off=[keys[0, 0]])
    assert keys[0, 0] not in index.search(request, 5)[0][~np.isneginf(index.search(request, 5)[1])]


def test_string_items_need_a_catalogue(run, tmp_path):  # noqa: F811
    """The table has their hashes alone, and no caller could take a room off the air by them."""

    class Bare(Origin):
        recipe = run_folder.recipe_of(run)

    Bare.recipe = Bare.recipe.model_copy(
        update={"evaluate": Bare.recipe.evaluate.model_copy(update={"catalogue": None})}
    )
    with pytest.raises(
        BadInput, match=r"--catalogue: cf knows the items of 'item', which are strings, by their hashes"
    ):
        build.build(Bare(run), str(tmp_path / "indexes"), Asked(), lambda text: None)
    assert not (tmp_path / "indexes").exists()
    asked = Asked(catalogue=run_folder.recipe_of(run).evaluate.catalogue)
    assert build.build(Bare(run), str(tmp_path / "indexes"), asked, lambda text: None)
    assert livetrain.Index(tmp_path / "indexes").about["key"] == {"column": "item", "type": "string"}


def test_a_fitted_run_is_a_channel(run, data: Path, tmp_path):  # noqa: F811
    channels = {"cf": {"run": str(run)}, "again": {"run": str(run), "when": "user >= 45"}}
    spec = BlendSpec.model_validate({"requests": str(run), "channels": channels, "size": 5})
    content = blended(spec, tmp_path / "blend", lambda text: None)
    assert content["test"]["channels"]["cf"]["recall_5"] > content["test"]["channels"]["again"]["recall_5"] > 0
    blend, rows = Blend(spec), pq.read_table(data / "test")
    table, known = blend.items(None, "test")
    blend.meet(table, known)
    cf, again = blend.lists(rows, known)
    assert (again[:45] == -1).all()
    np.testing.assert_array_equal(cf[45:], again[45:])
    recipe = run_folder.recipe_of(run)
    learned = retriever(recipe, run_folder.find_checkpoint(run, "best"))
    histories = [ids(pa.chunked_array([own])) for own in rows["history"].to_pylist()]
    newest = torch.from_numpy(np.concatenate([own[-6:] for own in histories]))
    with torch.no_grad():
        wanted = learned.of_all({"history": newest}, {"history": torch.full((USERS,), 6)}, {}).numpy()
    place = {int(item): number for number, item in enumerate(learned.items)}
    for row, own in enumerate(cf):
        wanted[row, [place[item] for item in histories[row]]] = 0  # all of it was seen, though the feature takes six
        told = [wanted[row, place[known[at]]] for at in own if at >= 0]
        best = -np.sort(-wanted[row])[:5]
        np.testing.assert_allclose(told, best[best > 0], rtol=1e-5)
