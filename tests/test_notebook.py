"""The notebooks run from their first cell to their last in a real kernel, and lie in the repository without outputs."""

import json
import os
from pathlib import Path

import nbformat
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from nbclient import NotebookClient

from livetrain.cluster.sweep import Sweep
from livetrain.configs.load import dump_recipe, load_recipe
from tests import samples

ROOT = Path(__file__).parent.parent
NOTEBOOKS = ROOT / "notebooks"


def kuairand(source: Path, folder: Path) -> Path:
    """Write KuaiRand's first 30,000 exposures, split by time, and a recipe for them; return the recipe."""
    columns = ["user_id", "video_id", "author_id", "tab", "duration_ms", "long_view", "time_ms"]
    log = pq.read_table(source / "log_0425_0430.parquet", columns=columns).sort_by("time_ms")[:30_000]
    log = log.set_column(log.schema.get_field_index("duration_ms"), "duration", pc.log1p(log["duration_ms"]))
    ends = [0, *(int(len(log) * share) for share in (0.7, 0.85, 1))]
    for split, first, last in zip(("train", "valid", "test"), ends, ends[1:], strict=False):
        (folder / split).mkdir(parents=True)
        pq.write_table(log.slice(first, last - first), folder / split / "part-0.parquet", row_group_size=8192)
    (folder / "recipe.yaml").write_text(f"""
data: {{path: {folder}, batch_size: 1536}}
features:
  user: {{type: id, table: user, column: user_id}}
  video: {{type: id, table: video, column: video_id}}
  author: {{type: id, table: author, column: author_id}}
  tab: {{type: id, table: tab}}
  duration: {{type: dense}}
tables:
  user: {{rows: 65536, dim: 8}}
  video: {{rows: 16384, dim: 8}}
  author: {{rows: 16384, dim: 8}}
  tab: {{rows: 64, dim: 4}}
model: {{kind: dnn, units: [32]}}
tasks: {{long_view: {{label: long_view}}}}
train: {{evaluate_every: 0.5}}
evaluate: {{group_by: user_id}}
cluster: {{workers: 0, device: cpu}}
""")
    return folder / "recipe.yaml"


@pytest.fixture
def recipe(tmp_path) -> Path:
    """A recipe on a little of KuaiRand where that is at hand, and on made-up data elsewhere."""
    source = Path(os.environ.get("LIVETRAIN_DATA", "/nowhere")) / "kuairand"
    if (source / "log_0425_0430.parquet").exists():
        return kuairand(source, tmp_path / "data")
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(samples.recipe(samples.write(tmp_path / "data"), train__epochs=1)))
    return path


def executed(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """Run a notebook in its folder, and return the outputs of its cells; a cell that fails raises."""
    resources = {"metadata": {"path": str(NOTEBOOKS)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


@pytest.mark.slow
def test_the_first_notebook_runs_from_logs_to_each_users_best_rooms(tmp_path):
    notebook = nbformat.read(NOTEBOOKS / "first.ipynb", as_version=4)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    asked = 'folder, users = ROOT / "runs/first-notebook", 1000'
    assert asked in parameters.source
    parameters.source = parameters.source.replace(asked, f"folder, users = Path({str(tmp_path)!r}), 200")
    outputs = executed(notebook)

    result = json.loads((tmp_path / "din/result.json").read_text())
    assert 0 < result["test.click.auc"] < 1
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1
    said = "".join(output.get("text", "") for output in outputs)
    assert "live exposures" in said
    assert "gift" in said  # a row of the oracle's table
    (best,) = (tmp_path / "best").glob("*.parquet")
    assert max(pc.value_counts(pq.read_table(best)["user"]).field("counts").to_pylist()) <= 3


@pytest.mark.slow
def test_the_notebook_runs_from_start_to_export(recipe, tmp_path):
    notebook = nbformat.read(NOTEBOOKS / "sweep.ipynb", as_version=4)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    spaces = parameters.source[parameters.source.index("space = {") : parameters.source.index("folder, samples")]
    parameters.source = (
        f"recipe = livetrain.load_recipe({str(recipe)!r})\n{spaces}\n"
        f"folder, samples = Path({str(tmp_path / 'sweep')!r}), 3"
    )
    outputs = executed(notebook)

    record = json.loads((tmp_path / "sweep/sweep.json").read_text())
    states = [trial["state"] for trial in record["trials"]]
    assert len(states) == 3
    assert set(states) <= {"finished", "stopped"}
    pages = [output["data"]["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    live = next(page for page in pages if "finished" in page)  # not what was printed before there was a trial
    assert live.count("finished") == states.count("finished") + 1  # one of them in the line below the table
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    assert (tmp_path / "sweep/export/model.pt").exists()
    winner, sweep = load_recipe(tmp_path / "sweep/winner.yaml"), Sweep.open(tmp_path / "sweep")
    assert winner == sweep.recipe_of(sweep.best).model_copy(update={"name": None})


def test_outputs_are_not_kept():
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        for cell in notebook.cells:
            assert not cell.get("outputs")
            assert not cell.get("execution_count")
