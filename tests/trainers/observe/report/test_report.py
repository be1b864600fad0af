import json
import math

import pytest
import yaml
from matplotlib.image import imread

from livetrain.configs.errors import BadInput
from livetrain.trainers.observe.report.contents import PARTS, contents
from livetrain.trainers.observe.report.report import draw, write_report
from livetrain.trainers.observe.report.summary import summary_table, table_lines
from livetrain.trainers.train.probes import step_times
from tests import pictures

POINTS = [{"mean_p": p, "mean_y": p * 1.1, "count": 250} for p in (0.05, 0.2, 0.4, 0.7)]
LENGTHS = [
    {"length": name, "auc": auc, "rows": rows, "positives": 5}
    for name, auc, rows in (("0", 0.61, 12), ("6-10", 0.74, 1000), (">100", 0.8, 1000))
]


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


def panel(page, title):
    """Return the one panel whose title is `title`, apart from what follows."""
    panels = [panel for band in page.bands for panel in band.panels]
    titles = [panel.title.partition(" (")[0].partition(":")[0] for panel in panels]
    return panels[titles.index(title)]


def facts(page):
    return dict(page.facts)


MANY = ("click", "long_view", "follow.live", "gift", "like", "share", "report", "h", "i", "j", "k", "a_task" * 12)


@pytest.mark.parametrize("tasks", [("click",), MANY[:5], MANY])
def test_a_finished_run_can_be_read(tmp_path, tasks):
    lines = [*training(), *evaluations(tasks), *evaluations(tasks, "test", [3000])]
    run = write(tmp_path / ("a_long_name_of_a_run-" * 9), timed(lines), outcome(tasks))
    pictures.check(draw(run))


def test_both_files_appear_whole(tmp_path):
    path = write_report(write(tmp_path / "run", training(), outcome()))
    assert path == tmp_path / "run" / "report.png"
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "metrics.jsonl",
        "report.html",
        "report.png",
        "result.json",
    ]
    assert imread(path).shape[1] == 1600


def timed(lines):
    parts = {f"ms.{part}": 1.0 for part in list(PARTS)[:-1]} | {"ms.step": 10.0}
    return [line | parts if line["kind"] == "train" else line for line in lines]


def test_awkward_runs_can_be_read(tmp_path):
    """One step, nan, rare labels, slices and gates with long names, sixty features."""
    names = [f"a_slice_with_a_rather_long_name_{i}" for i in range(6)]
    tasks = ("click", "rare")
    sliced = {f"test.{name}.{key}": 0.5 for name in names for key in ("share", "rows", "click.auc", "rare.auc")}
    result = outcome(tasks) | sliced | {"test.click.auc": math.nan, "test.click.auc_low": 0.1, "wall_s": 98765.0}
    rare = [{"mean_p": p, "mean_y": y, "count": 12} for p, y in ((1e-5, 0.0), (3e-4, 1e-3), (0.02, 0.01))]
    result["curves"]["rare"] = {"calibration": rare, "auc_by_length": LENGTHS[:1]}
    gates = {
        f"gate.level{i}.{'long_' * 9}.{e}{j}": 0.125 for i in range(8) for j in range(4) for e in ("own", "shared")
    }
    pairs = {f"grad.cos.{'first_' * 9}{i}.{'second_' * 9}": i / 10 for i in range(9)}
    more = gates | pairs | {"grad.conflict": 0.5, f"grad.{'first_' * 9}.weight": 1.5, "ms.step": math.nan}
    lines = [{"kind": "train", "step": 1_234_567, "time": 1.8e9, "click.loss": 1e-7, "rare.loss": math.nan} | more]
    run = write(tmp_path / "run", lines, result)
    recipe = {"data": {"path": "data/" + "a_long_path/" * 30, "batch_size": 8}, "model": {"kind": "x" * 90}}
    recipe |= {"features": {f"f{i}": {} for i in range(60)}, "tables": {}, "tasks": dict.fromkeys(tasks, {})}
    (run / "config.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    pictures.check(draw(run))
    assert facts(contents(run))["recipe"] == "60 features, 0 tables, 2 tasks, batch 8"
    calibration = panel(contents(run), "Calibration")
    assert not calibration.missing


def test_facts_name_the_run(tmp_path):
    recipe = {"data": {"path": "data/ml-1m", "batch_size": 512}, "model": {"kind": "din"}, "cluster": {"workers": 2}}
    recipe |= {"features": {"a": {}, "b": {}}, "tables": {"a": {}}, "tasks": {"click": {"kind": "binary"}}}
    recipe |= {"optimizers": {"dense": {"kind": "adam", "lr": 1e-3}}}
    run = write(tmp_path / "run", [line | {"time": 1.8e9} for line in training(100)])
    (run / "config.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    assert contents(run).facts == [
        ("model", "din"),
        ("recipe", "2 features, 1 table, 1 task, batch 512, adam 0.001"),
        ("data", "data/ml-1m"),
        ("workers", "2"),
        ("steps", "100"),
        ("rows/s", "41,000"),
        ("ended", "2027-01-15 08:00 UTC"),
    ]
    assert (contents(run).bands[0].title, contents(run).bands[0].about) == ("click", "binary")
    result = {"workers": 3, "device": "cuda", "wall_s": 754.0, "best_step": 60, "rows_per_s": 52310.4}
    assert facts(contents(write(run, [], result))).items() >= {
        ("workers", "3"), ("device", "cuda"), ("time", "12 min 34 s"), ("steps", "100 (best 60)"), ("rows/s", "52,310")
    }  # fmt: skip
    links = [name for name, _ in contents(run).links]
    assert links == ["config.yaml", "metrics.jsonl", "result.json"]


def test_figures_come_first_for_every_task(tmp_path):
    result = outcome(MANY[:5]) | {"test.click.auc_low": 0.70, "test.click.auc_high": 0.75, "test.like.auc": None}
    result |= {"test.watch.xauc": 0.61, "test.watch.mae": 12.5}
    table = contents(write(tmp_path / "run", training(), result)).figures
    assert table.title == "test, 5,000 rows"
    assert list(table.columns) == ["task", "AUC", "xAUC", "GAUC", "PCOC", "positives"]
    rows = {row[0]: row[1:] for row in table.rows}
    assert list(rows) == [*MANY[:5], "watch"]
    assert rows["click"] == ["0.7312 (0.7000-0.7500)", "-", "0.7123", "1.0400", "1,234"]
    assert rows["like"][0] == "undefined"
    assert rows["watch"] == ["-", "0.6100", "-", "-", "-"]


def test_titles_and_points_say_what_was_measured(tmp_path):
    lines = [*training(), *evaluations(), *evaluations(split="test", steps=[2000])]
    page = contents(write(tmp_path / "run", lines, outcome()))
    calibration = panel(page, "Calibration")
    assert calibration.title == "Calibration (test)"
    assert calibration.about == "PCOC 1.040; 250 rows per point; bars: 95 %; dashed: ideal"
    auc = panel(page, "AUC")
    assert auc.about == "line: valid, best 0.7300; star: test 0.7200"
    assert [(series.form, *series.x, *series.y) for series in auc.series][1] == ("star", 2000, 0.72)
    lengths = panel(page, "AUC by history length")
    assert lengths.names == ["0 (12)", "6-10 (1,000)", ">100 (1,000)"]
    assert lengths.words == ["0.6100", "0.7400", "0.8000"]
    (one,) = lengths.series
    assert one.x == (0.61, 0.74, 0.8)
    wide = [high - low for low, high in zip(one.low, one.high, strict=True)]
    assert wide[0] > 1.2 * wide[1] > 0


def test_an_interval_is_told_with_the_test_split(tmp_path):
    result = outcome() | {"test.click.auc_low": 0.7, "test.click.auc_high": 0.75}
    auc = panel(contents(write(tmp_path / "run", training(), result)), "AUC")
    assert auc.about.endswith("star: test 0.7312 (0.7000-0.7500)")
    assert (auc.series[-1].low, auc.series[-1].high) == ([0.7], [0.75])


def test_rare_labels_have_logarithmic_axes(tmp_path):
    points = [{"mean_p": p, "mean_y": y, "count": 100} for p, y in ((1e-4, 0.0), (1e-3, 0.01), (5e-3, 0.02))]
    result = outcome()
    result["curves"]["click"]["calibration"] = points
    shown = panel(contents(write(tmp_path / "run", [], result)), "Calibration")
    assert shown.log == (True, True)
    some, none = shown.series
    assert (list(some.x), list(some.y)) == ([1e-3, 5e-3], [0.01, 0.02])
    assert (list(none.x), list(none.y), none.more["observed"]) == ([1e-4], [5e-5], ["0"])
    assert 0.01 < none.high[0] < 0.1  # of a hundred rows
    assert "hollow: none observed" in shown.about


def test_missing_parts_are_named(tmp_path):
    page = contents(write(tmp_path / "run", [*training(), *evaluations()], {}))
    assert panel(page, "AUC").about == "line: valid, best 0.7300; no test split evaluated"
    assert panel(page, "Calibration").missing == "drawn when the run has ended"
    assert page.figures is None
    bare = contents(write(tmp_path / "bare", [], {"rows_per_s": 10.0}))
    assert [panel.missing for panel in bare.bands[0].panels] == [
        "no training steps logged",
        *["no split evaluated"] * 3,
    ]
    assert panel(bare, "Where a step's time goes").missing == "no step times logged"
    pictures.check(draw(tmp_path / "bare"))
    result = outcome(splits=["valid"])
    result["curves"]["click"]["auc_by_length"] = []
    page = contents(write(tmp_path / "no_lengths", [], result))
    assert panel(page, "AUC by history length").missing == "no history lengths evaluated"
    assert panel(page, "Calibration").title == "Calibration (valid)"


def test_a_resumed_run_shows_each_step_once_and_torn_lines_do_not_count(tmp_path):
    run = write(tmp_path / "run", [*training(1000)])
    again = [{"kind": "train", "step": step, "loss": 9.0, "rows_per_s": 1.0} for step in (980, 1000, 1020)]
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st\n' + "".join(json.dumps(line) + "\n" for line in again) + '{"kind": "tra')
    (line,) = panel(contents(run), "Training loss").series
    assert list(line.x) == list(range(20, 1021, 20))
    assert list(line.y)[-4:] == [pytest.approx(0.4 + 50 / 1160), 9.0, 9.0, 9.0]


def test_nan_and_null_are_left_out(tmp_path):
    lines = [
        *training(200),
        {"kind": "train", "step": 220, "loss": math.nan},
        {"kind": "eval", "step": 200, "click.auc": None},
    ]
    result = outcome() | {"test.click.auc": math.nan, "test.click.pcoc": None}
    page = contents(write(tmp_path / "run", lines, result))
    assert len(panel(page, "Training loss").series[0].x) == 10
    assert page.figures.rows[0][1] == "undefined"
    assert "PCOC" not in panel(page, "Calibration").about
    logged = contents(write(tmp_path / "logged", [*training(200), *evaluations()], result))
    assert panel(logged, "AUC").about == "line: valid, best 0.7300; test undefined"


def test_a_line_of_one_step_is_no_spike(tmp_path):
    """At an evaluation a run logs ahead of its turn."""
    lines = [{"kind": "train", "step": step, "loss": 0.5} for step in (*range(20, 641, 20), 660)]
    lines.insert(-1, {"kind": "train", "step": 641, "loss": 5.0})
    (line,) = panel(contents(write(tmp_path / "run", lines)), "Training loss").series
    assert list(line.x) == [*range(20, 621, 20), 641, 660]
    assert line.y[-2] == pytest.approx((20 * 0.5 + 5.0) / 21)


def test_a_long_log_makes_no_long_page(tmp_path):
    lines = [{"kind": "train", "step": step, "loss": 0.5} for step in range(1, 5001)]
    raw, smooth = panel(contents(write(tmp_path / "run", lines)), "Training loss").series
    assert len(raw.x) == len(smooth.x) <= 300
    assert raw.x[-1] == 5000
    for curve in (raw, smooth):
        assert list(curve.y) == pytest.approx([0.5] * len(raw.x))  # at both ends too


def test_several_tasks_have_a_band_each_and_numbers_their_own_metrics(tmp_path):
    lines = [line | {"click.loss": 0.4, "watch.loss": 4000 / line["step"]} for line in training()]
    lines += [line | {"watch.xauc": 0.6} for line in evaluations()]
    result = outcome() | {"test.watch.xauc": 0.61, "test.watch.mae": 12.5, "test.watch.rmse": 30.25}
    result["curves"]["watch"] = {"calibration": [], "auc_by_length": []}
    click, watch, _ = contents(write(tmp_path / "run", lines, result)).bands
    assert [band.title for band in (click, watch)] == ["click", "watch"]
    assert click.color != watch.color
    assert [panel.title for panel in watch.panels] == ["Training loss", "xAUC"]
    assert [band.panels[0].log for band in (click, watch)] == [(False, False), (False, True)]
    assert watch.panels[1].about == "line: valid, best 0.6000; star: test 0.6100"
    cells = {row[0]: list(row[1:]) for row in zip(*(c.cells for c in summary_table(result).columns), strict=True)}
    assert cells["MAE"][-1] == "12.5000"
    assert cells["RMSE"][-1] == "30.2500"


def test_slices_stand_below_the_whole(tmp_path):
    result = outcome() | {"test.new.share": 0.1, "test.new.rows": 500.0, "test.new.click.auc": 0.65}
    result |= {"test.new.click.auc_low": 0.6, "test.new.click.auc_high": 0.7}
    result |= {"test.old.share": 0.0, "test.old.rows": 0.0, "test.old.click.auc": None}
    shown = panel(contents(write(tmp_path / "run", [], result)), "AUC by slice")
    assert shown.names == ["all (5,000)", "new (500)", "old (0)"]
    assert shown.words == ["0.7312", "0.6500", "-"]
    (one,) = shown.series
    assert (one.x, one.y, one.low, one.high) == ((0.7312, 0.65), (0, 1), (None, 0.6), (None, 0.7))
    assert shown.level == 0.7312


def test_gates_have_a_bar_each(tmp_path):
    gates = {"gate.click.own0": 0.7, "gate.click.shared0": 0.3, "gate.click.entropy": 0.88}
    gates |= {"gate.level0.like.own0": 0.02, "gate.level0.like.shared0": 0.98, "gate.level0.like.entropy": 0.14}
    run = write(tmp_path / "run", [line | gates for line in training(100)], outcome())
    rows = panel(contents(run), "Use of experts").rows
    assert [(name, word) for name, _, word in rows] == [("click", "entropy 0.88"), ("level0.like", "entropy 0.14")]
    assert [part.size for _, parts, _ in rows for part in parts] == [0.7, 0.3, 0.02, 0.98]
    pictures.check(draw(run))


def test_combined_gradients_have_cosines_and_weights(tmp_path):
    found = {"grad.conflict": 0.5, "grad.cos.click.like": -0.25, "grad.cos.click.gift": 0.5}
    found |= {"grad.click.weight": 1.5, "grad.like.weight": 0.5, "grad.click.norm": 3.0}
    page = contents(write(tmp_path / "run", [line | found for line in training(100)], outcome()))
    cosines, weights = (panel(page, f"{title} of the tasks' gradients") for title in ("Cosines", "Weights"))
    assert cosines.about.startswith("50% of steps conflict")
    assert [series.label for series in cosines.series] == ["click, like  -0.25", "click, gift  +0.50"]
    assert [series.label for series in weights.series] == ["click  1.50", "like  0.50"]
    pictures.check(draw(tmp_path / "run"))


def test_a_plain_sum_has_no_panel_of_weights(tmp_path):
    measured = {"grad.click.weight": 1.0, "grad.like.weight": 1.0, "grad.cos.click.like": 0.1, "grad.conflict": 0.0}
    page = contents(write(tmp_path / "measured", [line | measured for line in training(100)], outcome()))
    assert [panel.title.partition(" ")[0] for panel in page.bands[-2].panels] == ["Cosines"]


def test_of_many_pairs_those_that_conflict_most_are_drawn(tmp_path):
    pairs = {f"grad.cos.a.b{i}": i / 10 for i in range(9)} | {"grad.conflict": 0.0}
    page = contents(write(tmp_path / "run", [line | pairs for line in training(100)], outcome()))
    cosines = panel(page, "Cosines of the tasks' gradients")
    assert [series.label for series in cosines.series] == [f"a, b{i}  +{i / 10:.2f}" for i in range(6)]
    assert "the 6 of 9 pairs that conflict most" in cosines.about


def test_a_steps_time_is_cut_into_its_parts(tmp_path):
    parts = {"data_wait": 1.0, "id_exchange": 2.0, "dense_forward": 4.0, "optimizer": 2.0}
    slow = {f"ms.{part}": 100 * spent for part, spent in parts.items()} | {"ms.step": 1000.0}  # the first line
    lines = [line | {f"ms.{part}": spent for part, spent in parts.items()} | {"ms.step": 10.0} for line in training()]
    lines[0] |= slow
    lines[2] |= {"ms.step": 12.0}  # a checkpoint, say
    lines[-1] |= {"step": lines[-2]["step"] + 10}  # half as many steps count half
    times = panel(contents(write(tmp_path / "run", lines)), "Where a step's time goes")
    mean = 10 + 2 / 148.5
    assert times.title.endswith(": 10.0 ms")
    ((_, found, _),) = times.rows
    sizes = dict(zip(PARTS, [part.size for part in found], strict=True))
    assert {part: size for part, size in sizes.items() if size} == pytest.approx(parts | {"rest": mean - 9})
    assert [part.label for part in found[:3]] == ["data wait 10%", "id exchange 20%", "embedding forward 0%"]


def test_the_parts_drawn_are_the_parts_measured():
    assert list(PARTS) == [*step_times.PARTS, "rest"]


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


ROOM = {"rows": 960, "occupied": 900, "occupancy": 0.9375, "ids": 900, "collisions": 0}
ROOM |= {"admitted": 5000, "evicted": 1200, "expired": 2900, "refused": 40, "waiting": 7}


def test_a_report_says_what_became_of_the_ids_of_tables(tmp_path):
    movie = {"rows": 1000, "occupied": 300, "occupancy": 0.3, "ids": 357, "collisions": 57}
    result = outcome(("click",)) | {"tables": {"movie": movie, "room": ROOM}}
    shown = next(t for t in contents(write(tmp_path / "both", training(), result)).tables if "tables" in t.title)
    assert shown.columns[-5:] == ["admitted", "evicted", "expired", "refused", "waiting"]
    assert shown.rows[0][2:] == ["1,000", "300", "30.0%", "57", "", "", "", "", ""]
    assert shown.rows[1][2:] == ["960", "900", "93.8%", "0", "5,000", "1,200", "2,900", "40", "7"]
    result = outcome(("click",)) | {"tables": {"movie": movie}}  # as most runs: no columns for nothing
    shown = next(t for t in contents(write(tmp_path / "one", training(), result)).tables if "tables" in t.title)
    assert shown.columns[-1] == "ids that share a row"


def test_tables_in_words():
    result = {
        "tables": {
            "movie": {"rows": 1000, "occupied": 300, "occupancy": 0.3, "ids": 357, "collisions": 57},
            "age": {"rows": 7, "occupied": 7, "occupancy": 1.0, "ids": None, "collisions": None},
            "room": ROOM,
        },
        "cut": {"history": 12, "rating": 0},
        "skipped_rows": 3,
    }
    assert table_lines(result) == [
        "table movie: 300 of 1,000 rows in use (30.0%); about 57 of 357 ids share a row",
        "table age: 7 of 7 rows in use (100.0%); the table is full, give it more rows",
        "table room: 900 of 960 rows in use (93.8%) by ids of their own; 5,000 admitted, 1,200 evicted, 2,900 expired, "
        "40 refused, 7 waiting",
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
    run = write(tmp_path / "run", lines, result)
    page = contents(run)
    assert page.figures.rows == [["click", "0.4000", "0.6000"]]
    assert panel(page, "recall@100").about == "line: valid, best 0.2000; star: test 0.4000"
    recalls = panel(page, "Found in the best K items").series
    assert [(series.label, list(series.x), list(series.y)) for series in recalls] == [
        (split, [10, 50, 100], [0.04, 0.2, 0.4]) for split in ("valid", "test")
    ]
    pictures.check(draw(run))
    cells = {row[0]: list(row[1:]) for row in zip(*(c.cells for c in summary_table(result).columns), strict=True)}
    assert (cells["recall@50"], cells["items"]) == (["0.2000"] * 2, ["4,622"] * 2)
