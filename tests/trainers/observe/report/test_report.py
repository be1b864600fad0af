import json
import math

import numpy as np
import pytest
from matplotlib.image import imread

from livetrain.configs.errors import BadInput
from livetrain.trainers.observe.report.report import PARTS, draw, write_report
from livetrain.trainers.observe.report.summary import summary_table, table_lines
from livetrain.trainers.train.probes import step_times

POINTS = [{"mean_p": p, "mean_y": p * 1.1, "count": 250} for p in (0.05, 0.2, 0.4, 0.7)]
LENGTHS = [{"length": name, "auc": auc, "rows": 1000} for name, auc in (("0", 0.61), ("6-10", 0.74), (">100", 0.8))]


def training(steps=3000):
    for step in range(20, steps + 1, 20):
        yield {"kind": "train", "step": step, "loss": 0.4 + 50 / (step + 200), "rows_per_s": 41_000.0}


def evaluations(tasks=("click",), split="valid", steps=(1000, 2000, 3000)):
    for step in steps:
        yield {"kind": "eval", "step": step, "split": split, **{f"{task}.auc": 0.7 + step / 1e5 for task in tasks}}


def outcome(tasks=("click",), splits=("valid", "test")):
    figures = {
        "auc": 0.7312,
        "gauc": 0.7123,
        "uauc": 0.71,
        "log_loss": 0.41,
        "ne": 0.93,
        "pcoc": 1.04,
        "positives": 1234.0,
    }
    flat = {f"{split}.{task}.{name}": x for split in splits for task in tasks for name, x in figures.items()}
    curves = {task: {"calibration": POINTS, "auc_by_length": LENGTHS} for task in tasks}
    return flat | {f"{split}.rows": 5000.0 for split in splits} | {"rows_per_s": 52310.4, "curves": curves}


def write(folder, lines=(), result=None):
    folder.mkdir(exist_ok=True)
    if lines:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))
    return folder


def texts(figure):
    return [text.get_text() for text in figure.texts]


def panel(figure, title):
    """Return the one panel whose title is `title`, apart from what follows in brackets."""
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    return figure.axes[[text.partition(" (")[0] for text in titles].index(title)]


def words(axes):
    legend = axes.get_legend()
    entries = [] if legend is None else [text.get_text() for text in legend.get_texts()]
    return [text.get_text() for text in axes.texts] + entries


def coloured(picture, quadrant):
    """Return the share of pixels that are neither white nor grey, of one quarter of the page."""
    high, wide = (extent // 2 for extent in picture.shape[:2])
    part = picture[quadrant[0] * high :, quadrant[1] * wide :][:high, :wide, :3]
    return ((part.max(axis=2) - part.min(axis=2)) > 0.15).mean()


QUADRANTS = [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.parametrize(
    "tasks", [("click",), ("click", "long_view", "follow.live", "gift", "like", "share", "report")]
)
def test_every_panel_of_a_finished_run_is_drawn(tmp_path, tasks):
    lines = [*training(), *evaluations(tasks), *evaluations(tasks, "test", [3000])]
    path = write_report(write(tmp_path / "run", lines, outcome(tasks)))
    assert path == tmp_path / "run" / "report.png"
    assert sorted(file.name for file in path.parent.iterdir()) == ["metrics.jsonl", "report.png", "result.json"]
    picture = imread(path)
    assert picture.shape[:2] == (1000, 1600)
    assert all(coloured(picture, quadrant) > 0.001 for quadrant in QUADRANTS)


def test_a_steps_time_is_cut_into_its_parts(tmp_path):
    parts = {"data_wait": 1.0, "id_exchange": 2.0, "dense_forward": 4.0, "optimizer": 2.0}
    slow = {f"ms.{part}": 100 * spent for part, spent in parts.items()} | {"ms.step": 1000.0}  # the first line
    lines = [line | {f"ms.{part}": spent for part, spent in parts.items()} | {"ms.step": 10.0} for line in training()]
    lines[0] |= slow
    lines[2] |= {"ms.step": 12.0}  # a checkpoint, say
    lines[-1] |= {"step": lines[-2]["step"] + 10}  # half as many steps count half
    figure = draw(write(tmp_path / "run", lines))
    axes = panel(figure, "Where a step's time goes")
    mean = 10 + 2 / 148.5
    assert axes.get_title(loc="left").endswith(", 10.0 ms")
    widths = dict(zip(PARTS, [bar.get_width() for bar in axes.patches], strict=True))
    assert {part: width for part, width in widths.items() if width} == pytest.approx(parts | {"rest": mean - 9})
    assert words(axes)[:3] == ["data wait 10%", "id exchange 20%", "embedding forward 0%"]


def test_the_parts_drawn_are_the_parts_measured():
    assert list(PARTS) == [*step_times.PARTS, "rest"]


def test_headline_names_run_and_figures(tmp_path):
    run = write(tmp_path / "din_ml1m-1", training(), outcome())
    assert texts(draw(run)) == ["din_ml1m-1", "test AUC 0.7312  GAUC 0.7123   |   52,310 rows/s"]
    run = write(tmp_path / "running", training())
    assert texts(draw(run)) == ["running", "41,000 rows/s"]


def test_titles_and_points_say_what_was_measured(tmp_path):
    lines = [*training(), *evaluations(), *evaluations(split="test", steps=[2000])]
    figure = draw(write(tmp_path / "run", lines, outcome()))
    assert panel(figure, "Calibration").get_title(loc="left") == "Calibration (test), PCOC 1.040"
    assert any("250 rows per point" in text for text in words(panel(figure, "Calibration")))
    auc = panel(figure, "AUC")
    assert words(auc) == ["valid, best 0.7300", "test 0.7200"]
    assert auc.collections[0].get_offsets().tolist() == [[2000, 0.72]]
    lengths = panel(figure, "AUC by history length")
    assert [tick.get_text() for tick in lengths.get_xticklabels()] == ["0\n1,000", "6-10\n1,000", ">100\n1,000"]
    assert [bar.get_y() + bar.get_height() for bar in lengths.patches] == pytest.approx([0.61, 0.74, 0.8])


def test_missing_parts_are_named(tmp_path):
    figure = draw(write(tmp_path / "run", [*training(), *evaluations()], {}))
    auc = panel(figure, "AUC")
    assert "no test split evaluated" in words(auc)
    assert words(panel(figure, "Calibration")) == ["drawn when the run has ended"]
    picture = imread(write_report(tmp_path / "run"))
    assert coloured(picture, (0, 0)) > 0.001
    assert coloured(picture, (1, 0)) == coloured(picture, (1, 1)) == 0

    figure = draw(write(tmp_path / "bare", [], {"rows_per_s": 10.0}))
    assert words(panel(figure, "Training loss")) == ["no training steps logged"]
    assert [words(axes) for axes in figure.axes[1:4]] == [["no split evaluated"]] * 3
    assert words(panel(figure, "Where a step's time goes")) == ["no step times logged"]

    result = outcome(splits=["valid"])
    result["curves"]["click"]["auc_by_length"] = []
    figure = draw(write(tmp_path / "no_lengths", [], result))
    assert words(panel(figure, "AUC by history length")) == ["no history lengths evaluated"]
    assert panel(figure, "Calibration").get_title(loc="left") == "Calibration (valid), PCOC 1.040"


def test_a_resumed_run_shows_each_step_once_and_torn_lines_do_not_count(tmp_path):
    run = write(tmp_path / "run", [*training(1000)])
    again = [{"kind": "train", "step": step, "loss": 9.0, "rows_per_s": 1.0} for step in (980, 1000, 1020)]
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st\n' + "".join(json.dumps(line) + "\n" for line in again) + '{"kind": "tra')
    (line,) = panel(draw(run), "Training loss").lines
    steps, losses = line.get_data()
    assert steps.tolist() == list(range(20, 1021, 20))
    assert losses[-4:].tolist() == [pytest.approx(0.4 + 50 / 1160), 9.0, 9.0, 9.0]


def test_nan_and_null_are_left_out(tmp_path):
    lines = [
        *training(200),
        {"kind": "train", "step": 220, "loss": math.nan},
        {"kind": "eval", "step": 200, "click.auc": None},
    ]
    result = outcome() | {"test.click.auc": math.nan, "test.click.pcoc": None}
    figure = draw(write(tmp_path / "run", lines, result))
    assert len(panel(figure, "Training loss").lines[0].get_xdata()) == 10
    assert "GAUC 0.7123" in texts(figure)[1]
    assert " AUC" not in texts(figure)[1].replace(" GAUC", "")
    assert panel(figure, "Calibration").get_title(loc="left") == "Calibration (test)"
    assert imread(write_report(tmp_path / "run")).shape[:2] == (1000, 1600)


def test_smoothed_loss_keeps_the_level_at_both_ends(tmp_path):
    lines = [{"kind": "train", "step": step, "loss": 0.5} for step in range(1, 301)]
    raw, smooth = panel(draw(write(tmp_path / "run", lines)), "Training loss").lines
    np.testing.assert_allclose(smooth.get_ydata(), raw.get_ydata())


def test_several_tasks_have_a_loss_each_and_numbers_their_own_metrics(tmp_path):
    lines = [line | {"click.loss": 0.4, "watch.loss": 40.0} for line in training()]
    lines += [line | {"watch.xauc": 0.6} for line in evaluations()]
    result = outcome() | {"test.watch.xauc": 0.61, "test.watch.mae": 12.5, "test.watch.rmse": 30.25}
    result["curves"]["watch"] = {"calibration": [], "auc_by_length": []}
    figure = draw(write(tmp_path / "run", lines, result))
    loss, auc = panel(figure, "Training loss"), panel(figure, "AUC / xAUC")
    assert loss.get_yscale() == "log"
    assert [text.get_text() for text in loss.get_legend().get_texts()] == [
        "click mean of 7 logged",
        "watch mean of 7 logged",
    ]
    assert "watch test 0.6100" in [text.get_text() for text in auc.get_legend().get_texts()]
    assert "test watch xAUC 0.6100" in texts(figure)[1]
    cells = {row[0]: list(row[1:]) for row in zip(*(c.cells for c in summary_table(result).columns), strict=True)}
    assert cells["MAE"][-1] == "12.5000"
    assert cells["RMSE"][-1] == "30.2500"


def test_gates_have_a_bar_each(tmp_path):
    gates = {"gate.click.own0": 0.7, "gate.click.shared0": 0.3, "gate.click.entropy": 0.88}
    gates |= {"gate.level0.like.own0": 0.02, "gate.level0.like.shared0": 0.98, "gate.level0.like.entropy": 0.14}
    lines = [line | gates for line in training(100)]
    run = write(tmp_path / "run", lines, outcome())
    axes = panel(draw(run), "Use of experts")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["click", "level0.like"]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([0.7, 0.3, 0.02, 0.98])
    assert set(words(axes)) >= {"own0 0.70", "shared0 0.30", "entropy 0.88", "shared0 0.98", "entropy 0.14"}
    assert imread(write_report(run)).shape[:2] == (1350, 1600)


def keys(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_combined_gradients_have_cosines_and_weights(tmp_path):
    found = {"grad.conflict": 0.5, "grad.cos.click.like": -0.25, "grad.cos.click.gift": 0.5}
    found |= {"grad.click.weight": 1.5, "grad.like.weight": 0.5, "grad.click.norm": 3.0}
    lines = [line | found for line in training(100)]
    figure = draw(write(tmp_path / "run", lines, outcome()))
    cosines, weights = (panel(figure, f"{title} of the tasks' gradients") for title in ("Cosines", "Weights"))
    assert cosines.get_title(loc="left").endswith("(50% of steps conflict)")
    assert keys(cosines) == ["click, like  -0.25", "click, gift  +0.50"]
    assert keys(weights) == ["click  1.50", "like  0.50"]
    assert imread(write_report(tmp_path / "run")).shape[:2] == (1350, 1600)


def test_a_plain_sum_has_no_panel_of_weights(tmp_path):
    measured = {"grad.click.weight": 1.0, "grad.like.weight": 1.0, "grad.cos.click.like": 0.1, "grad.conflict": 0.0}
    figure = draw(write(tmp_path / "measured", [line | measured for line in training(100)], outcome()))
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert any(title.startswith("Cosines") for title in titles)
    assert not any(title.startswith("Weights") for title in titles)


def test_of_many_pairs_those_that_conflict_most_are_drawn(tmp_path):
    pairs = {f"grad.cos.a.b{i}": i / 10 for i in range(9)} | {"grad.conflict": 0.0}
    figure = draw(write(tmp_path / "run", [line | pairs for line in training(100)], outcome()))
    axes = panel(figure, "Cosines of the tasks' gradients")
    assert keys(axes) == [f"a, b{i}  +{i / 10:.2f}" for i in range(6)]
    assert "the 6 of 9 pairs that conflict most" in words(axes)


def test_no_run_and_a_broken_result_are_named(tmp_path):
    with pytest.raises(BadInput, match="nowhere: neither metrics.jsonl nor result.json"):
        write_report(tmp_path / "nowhere")
    (write(tmp_path / "run") / "result.json").write_text('{"test.click.auc": 0.')
    with pytest.raises(BadInput, match=r"result\.json: this is no JSON"):
        write_report(tmp_path / "run")


def test_summary_table_has_a_row_a_metric_and_a_column_a_task_and_split():
    result = outcome(("click", "follow.live")) | {"test.click.auc_error": 3.21e-5, "versions": {"torch": "2"}}
    result["test.follow.live.gauc"] = math.nan
    table = summary_table(result)
    assert [column.header for column in table.columns] == [
        "metric",
        "click\nvalid\n5,000 rows",
        "click\ntest\n5,000 rows",
        "follow.live\nvalid\n5,000 rows",
        "follow.live\ntest\n5,000 rows",
    ]
    cells = {row[0]: list(row[1:]) for row in zip(*(column.cells for column in table.columns), strict=True)}
    assert cells["AUC"] == ["0.7312"] * 4
    assert cells["AUC error at most"] == ["-", "3.2e-05", "-", "-"]
    assert cells["GAUC"] == ["0.7123"] * 3 + ["undefined"]
    assert cells["positives"] == ["1,234"] * 4
    assert list(cells) == ["AUC", "AUC error at most", "GAUC", "UAUC", "log loss", "NE", "PCOC", "positives"]


def test_summary_table_of_many_tasks_has_rows_of_each():
    result = outcome(("click", "view")) | {"valid.watch.xauc": 0.6, "test.watch.xauc": 0.61, "test.watch.mae": 3.0}
    table = summary_table(result)
    assert [column.header for column in table.columns] == ["task", "metric", "valid\n5,000 rows", "test\n5,000 rows"]
    rows = list(zip(*(column.cells for column in table.columns), strict=True))
    assert rows[0] == ("click", "AUC", "0.7312", "0.7312")
    assert rows[-2:] == [("watch", "xAUC", "0.6000", "0.6100"), ("watch", "MAE", "-", "3.0000")]


def test_summary_table_leaves_out_what_was_not_measured():
    table = summary_table({"test.click.auc": 0.7, "test.click.log_loss": 0.4, "test.rows": 12.0, "wall_s": 3.0})
    assert [list(column.cells) for column in table.columns] == [["AUC", "log loss"], ["0.7000", "0.4000"]]


def test_tables_in_words():
    result = {
        "tables": {
            "movie": {"rows": 1000, "occupied": 300, "occupancy": 0.3, "ids": 357, "collisions": 57},
            "age": {"rows": 7, "occupied": 7, "occupancy": 1.0, "ids": None, "collisions": None},
        },
        "cut": {"history": 12, "rating": 0},
        "skipped_rows": 3,
    }
    assert table_lines(result) == [
        "table movie: 300 of 1,000 rows in use (30.0%); about 57 of 357 ids share a row",
        "table age: 7 of 7 rows in use (100.0%); the table is full, give it more rows",
        "lists cut to max_length in training: 12 of history",
        "rows of unreadable row groups left out: 3",
    ]


def test_a_retrieval_shows_what_it_finds(tmp_path):
    lines = [*training()] + [
        {"kind": "eval", "step": step, "split": "valid", "click.auc": 0.6, "click.recall_100": step / 1e3}
        for step in (100, 200)
    ]
    found = {f"click.recall_{k}": k / 250 for k in (10, 50, 100)} | {"click.auc": 0.6, "click.items": 4622.0}
    result = {"name": "x", "rows_per_s": 1.0} | {
        f"{split}.{k}": v for split in ("valid", "test") for k, v in found.items()
    }
    figure = draw(write(tmp_path / "run", lines, result))
    assert "test recall@100 0.4000" in texts(figure)[1]
    assert "valid, best 0.2000" in words(panel(figure, "recall@100"))
    assert [bar.get_height() for bar in panel(figure, "Found in the best K items").patches] == [0.04, 0.2, 0.4] * 2
    cells = {row[0]: list(row[1:]) for row in zip(*(c.cells for c in summary_table(result).columns), strict=True)}
    assert (cells["recall@50"], cells["items"]) == (["0.2000"] * 2, ["4,622"] * 2)
