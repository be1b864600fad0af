"""What is wrong is said in one sentence before training, and a refused run leaves nothing behind."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from livetrain.cli import main as cli
from livetrain.configs.load import dump_recipe
from tests import samples


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    return samples.write(tmp_path_factory.mktemp("prepared") / "data", rows=400)


@pytest.fixture
def data(prepared, tmp_path) -> Path:
    shutil.copytree(prepared, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def train(data, tmp_path, monkeypatch, capfd) -> Callable[..., tuple[int, str]]:
    """Call `livetrain train` in this process; return its exit code and what it says, on either stream."""
    monkeypatch.delenv("LIVETRAIN_DEBUG", raising=False)
    recipe = tmp_path / "small.yaml"
    recipe.write_text(dump_recipe(samples.recipe(data)))

    def train(*words: str) -> tuple[int, str]:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["livetrain", "train", str(recipe), "--runs", str(tmp_path / "runs"), *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, "".join(capfd.readouterr())

    return train


def change(file: Path, how: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(how(pq.read_table(file)), file)


def drop_column(data: Path) -> None:
    change(data / "valid/part-0.parquet", lambda table: table.drop_columns("history"))


def wrong_type(data: Path) -> None:
    change(data / "train/part-0.parquet", lambda t: t.set_column(0, "user", t["user"].cast(pa.float64())))


def empty_split(data: Path) -> None:
    change(data / "test/part-0.parquet", lambda table: table.slice(0, 0))


def cut_file(data: Path) -> None:
    file = data / "train/part-0.parquet"
    file.write_bytes(file.read_bytes()[:-100])


def spoil_bytes(data: Path) -> None:
    """Turn the bytes of one column chunk that is read before training, behind an intact footer."""
    file = data / "valid/part-0.parquet"
    columns = pq.read_metadata(file).row_group(0)
    chunk = next(columns.column(i) for i in range(columns.num_columns) if columns.column(i).path_in_schema == "rate")
    content = bytearray(file.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    file.write_bytes(content)


def third_label(data: Path) -> None:
    change(data / "valid/part-0.parquet", lambda t: t.set_column(5, "label", pa.array([2] + [1] * (len(t) - 1))))


def nan_dense(data: Path) -> None:
    change(data / "train/part-0.parquet", lambda t: t.set_column(4, "rate", pc.fill_null(t["rate"], float("nan"))))


def remove(data: Path) -> None:
    shutil.rmtree(data)


def remove_split(data: Path) -> None:
    shutil.rmtree(data / "valid")


WRONG_DATA = {
    drop_column: ("features.history: ", "valid/part-0.parquet has no column 'history'", "correct the name"),
    wrong_type: (
        "features.user: column 'user' of ",
        "is double, but must be int64 or a string; convert it when preparing the data",
    ),
    empty_split: ("data/test: the split has no rows; prepare the data again",),
    cut_file: ("train/part-0.parquet: not a complete Parquet file (", "; write or copy it again"),
    spoil_bytes: ("valid/part-0.parquet, row group 0: its ", "do not decode (", "write the file again"),
    third_label: ("valid/part-0.parquet, row group 0, row 0: tasks.click.label 'label' holds 2", "correct the data"),
    nan_dense: ("train/part-0.parquet, row group 0, row ", "features.rate holds nan", "null where there is none"),
    remove: ("data.path: there is no folder ", "data/train; prepare the data first, or correct data.path"),
    remove_split: ("data.path: there is no folder ", "data/valid; prepare the data first, or correct data.path"),
}
WRONG_RECIPE = {
    "train.epoch=3": ("override 'train.epoch=3': unknown key train.epoch (did you mean 'epochs'?)",),
    "tables.movie.dim=six": ("override 'tables.movie.dim=six': tables.movie.dim got 'six', wanted a whole number",),
    "features.movie.table=movies": ("features.movie.table: there is no table 'movies' (did you mean 'movie'?)",),
    "features.movie.table=rating": ("query 'movie' has dim 4 and its events 'history' dim 8; give both one table",),
    "tables.spare={rows: 4, dim: 4}": ("tables.spare: no feature uses this table; remove it or name it in a feature",),
    "model.attention.0.query=[film]": ("model.attention.0.query: there is no id feature 'film' (known: movie, user)",),
    "tasks.click.label=labels": ("tasks.click.label: ", "has no column 'labels' (did you mean 'label'?)"),
    "train.select=click.acu": ("train.select: ", "has a metric 'click.acu' (did you mean 'click.auc'?)"),
    "evaluate.group_by=usr": ("evaluate.group_by: ", "has no column 'usr' (did you mean 'user'?)"),
    "data.shards=7": ("data.batch_size: 96 rows do not divide among 7 data.shards; 91, 98 would",),
    "tasks.click.kind=watchtime": (
        "tasks.click.kind got 'watchtime', wanted one of binary, distilled, distilled_list, focal, huber, jrc",
    ),
    "tasks.click={label: watch}": ("tasks.click.label 'watch' holds ", "but a label is 0 or 1; correct the data"),
    "tasks.click={label: gift, kind: regression}": ("'gift' holds None", "set unknown: true if it is not known yet"),
    "tasks.click={label: watch, kind: watch_time, negatives_kept: 0.5}": ("tasks.click", "has no negatives; give the"),
    "tasks.click.sample_weight=worht": ("tasks.click.sample_weight: ", "(did you mean 'worth'?)"),
    "tasks.spent={label: watch, kind: regression, sample_weight: gift}": (
        "tasks.spent.sample_weight 'gift' holds None, but a weight is a finite number from 0 on",
    ),
    "train.select=click.xauc": ("train.select: no run of this recipe has a metric 'click.xauc' (did you mean",),
    "optimizers.dense.kind=adan": ("optimizers.dense.kind got 'adan', wanted one of adam, adamw, adagrad, sgd",),
    "tables.user.optimizer={kind: adma}": ("tables.user.optimizer.kind got 'adma', wanted one of rowwise_adagrad",),
    "optimizers.ema=1": ("optimizers.ema got 1, wanted less than 1",),
}


def check_refused(code: int, said: str, pieces: tuple[str, ...]) -> None:
    sentences = [line for line in said.splitlines() if line != "checking the data"]
    assert code == 2, said
    assert len(sentences) == 1, said
    assert "Traceback" not in said
    for piece in pieces:
        assert piece in sentences[0]


@pytest.mark.parametrize("spoil", WRONG_DATA, ids=lambda spoil: spoil.__name__)
def test_wrong_data_is_named(train, data, tmp_path, spoil):
    spoil(data)
    check_refused(*train(), WRONG_DATA[spoil])
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize("override", WRONG_RECIPE)
def test_a_wrong_recipe_is_named(train, tmp_path, override):
    check_refused(*train(override), WRONG_RECIPE[override])
    assert not list(tmp_path.glob("runs/*"))


def test_a_task_of_which_nothing_is_known_is_named(train, data, tmp_path):
    file = data / "train/part-0.parquet"
    change(file, lambda t: t.set_column(8, "gift", pa.nulls(len(t), pa.int64())))
    pieces = ("tasks.spent.label 'gift' is null in every row", "wait until labels are known, or leave the task out")
    check_refused(*train("tasks.spent={label: gift, kind: regression, unknown: true}"), pieces)
    assert not list(tmp_path.glob("runs/*"))


def test_a_run_without_a_name_leaves_nothing_either(train, data, tmp_path):
    remove(data)
    check_refused(*train("name=null"), ("there is no folder",))
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_folder_with_other_files_keeps_them(train, data, tmp_path):
    remove(data)
    (tmp_path / "runs/small").mkdir(parents=True)
    (tmp_path / "runs/small/thesis.tex").write_text("kept")
    check_refused(*train(), ("there is no folder",))
    assert (tmp_path / "runs/small/thesis.tex").read_text() == "kept"


def test_a_place_that_cannot_be_written_is_named(train, tmp_path):
    (tmp_path / "runs").write_text("a file")  # below it no folder can be made, not even by root
    check_refused(*train(), (f"{tmp_path}/runs/small: cannot write here (", "choose another folder with --runs"))
    assert (tmp_path / "runs").read_text() == "a file"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_name_of_a_finished_run_is_taken(small_run, tmp_path, train):
    shutil.copytree(small_run, tmp_path / "runs/small")
    before = files(tmp_path / "runs")
    check_refused(*train(), ("runs/small: this run is finished; give another name, as name=small-2, or remove",))
    assert files(tmp_path / "runs") == before


@pytest.mark.parametrize(
    ("override", "pieces"),
    [
        ("model.units=[24]", ("written with model.units=[16], but the recipe says [24]",)),
        ("tables.user.rows=50", ("written with tables.user.rows=100, but the recipe says 50",)),
        ("features.history.max_length=3", ("with features.history.max_length=6, but the recipe says 3",)),
        ("train.seed=8", ("written with train.seed=1, but the recipe says 8",)),
    ],
)
def test_a_checkpoint_of_another_model_is_not_resumed(small_run, data, tmp_path, train, override, pieces):
    shutil.copytree(small_run, tmp_path / "runs/small")
    (tmp_path / "runs/small/result.json").unlink()
    before = files(tmp_path / "runs")
    path = f"data.path={small_run.parents[1] / 'data'}"
    check_refused(*train(override, path), (*pieces, "checkpoints/step-", "use that recipe, or another run name"))
    assert files(tmp_path / "runs") == before


def test_a_run_that_diverges_keeps_its_log(train, tmp_path):
    code, said = train("optimizers.dense={kind: sgd, lr: 1e30}")
    assert code == 2
    assert "lower optimizers.sparse.lr or optimizers.dense.lr" in said.splitlines()[-1]
    assert '"kind": "train"' in (tmp_path / "runs/small/metrics.jsonl").read_text()
