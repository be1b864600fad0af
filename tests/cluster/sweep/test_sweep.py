"""What a sweep makes of its trials, by folders that are written here as trials leave them: no Ray."""

import contextlib
import json
import math
import shutil
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread
from rich.console import Console

from livetrain.cluster import launch, ray_workers
from livetrain.cluster.sweep import Sweep, Trial, driver, parallel, plots, resume, tune
from livetrain.cluster.sweep.board import Board, trials_table
from livetrain.cluster.sweep.driver import at_once, trial_recipe
from livetrain.cluster.sweep.importance import Importance, importance
from livetrain.cluster.sweep.search import Search, scheduler
from livetrain.cluster.sweep.trials import Settings
from livetrain.cluster.sweep.words import short
from livetrain.configs.errors import BadInput, NotNow
from livetrain.configs.load import load_recipe
from livetrain.configs.schema import Cluster
from livetrain.configs.space import parse_space
from livetrain.trainers.runtime import runlog
from tests import pictures, samples

SPACE = {
    "optimizers.dense.lr": {"log_uniform": [1e-4, 1e-1]},
    "model.units": {"choice": [[8], [16, 8]]},
    "model.dropout": {"uniform": [0, 0.5], "when": {"model.units": [[16, 8]]}},
}
STEPS = 20  # an epoch


def write(sweep: Sweep, number: int, aucs: list[float | None], state: str = "finished") -> Trial:
    """Add a trial that was evaluated four times an epoch, as its log would say it."""
    trial = Trial(number, sweep.space.sample(sweep.settings.seed, number), state)
    run = sweep.run(trial)
    run.mkdir(parents=True)
    for place, auc in enumerate(aucs, start=1):
        step = place * STEPS // 4
        runlog.note(run, "train", step=step, epoch=step / STEPS)
        loss = None if auc is None else 1 - auc
        runlog.note(run, "eval", step=step, split="valid", **{"click.auc": auc, "click.log_loss": loss})
    lines = sweep.evaluations(trial)
    trial.scores, trial.epoch = (lines[-1]["scores"], lines[-1]["epoch"]) if lines else ([], 0.0)
    if state == "finished":
        (run / "result.json").write_text("{}")
    sweep.trials.append(trial)
    return trial


@pytest.fixture
def sweep(tmp_path) -> Sweep:
    """A sweep of ten trials, of which six have run."""
    recipe = samples.recipe(tmp_path / "data", train__epochs=1, train__evaluate_every=0.25)
    found = Sweep(tmp_path / "sweep", recipe, parse_space(SPACE), Settings(metrics=["valid/auc"], samples=10))
    found.create()
    write(found, 0, [0.60, 0.70, 0.72, 0.71])
    write(found, 1, [0.50], "stopped")
    write(found, 2, [0.61, 0.69, 0.74, 0.75])
    write(found, 3, [], "failed").error = "Traceback\n  File x\nValueError: no\n"
    write(found, 4, [0.66, 0.68], "running")
    write(found, 5, [None, 0.6, 0.65, 0.66])
    found.save()
    return found


def test_a_trial_is_judged_by_the_checkpoint_that_it_keeps(sweep):
    assert [trial.scores for trial in sweep.trials] == [[0.72], [0.50], [0.75], [], [0.68], [0.66]]
    assert [line["scores"] for line in sweep.evaluations(sweep.trials[5])] == [[None], [0.6], [0.65], [0.66]]
    assert [line["epoch"] for line in sweep.evaluations(sweep.trials[0])] == [0.25, 0.5, 0.75, 1.0]


def test_another_metric_is_read_at_the_same_checkpoint(tmp_path, sweep):
    other = Sweep(sweep.folder, sweep.recipe, sweep.space, Settings(metrics=["valid/log_loss - valid/auc"]))
    assert other.evaluations(sweep.trials[0])[-1]["scores"] == [pytest.approx(0.28 - 0.72)]
    assert other.metrics[0].sign == -1


def test_the_folder_says_all_that_the_sweep_was(sweep):
    again = Sweep.open(sweep.folder)
    assert again.trials == sweep.trials
    assert (again.recipe, again.space.domains, again.settings) == (sweep.recipe, sweep.space.domains, sweep.settings)
    assert again.best is again.trials[2]
    assert again.frame.equals(sweep.frame)
    with pytest.raises(BadInput, match=r"this folder holds no sweep \(sweep.json is missing\)"):
        Sweep.open(sweep.folder.parent)
    with pytest.raises(BadInput, match=r"did you mean '.*sweep'"):
        Sweep.open(sweep.folder.parent / "sweeep")


def test_the_table_has_every_trial_and_the_errors(sweep):
    assert sweep.frame["trial"].tolist() == [2, 0, 5, 4, 1, 3]
    assert sweep.frame["valid/auc"].tolist()[:5] == [0.75, 0.72, 0.66, 0.68, 0.50]
    console = Console(record=True, width=160)
    console.print(trials_table(sweep))
    text = console.export_text()
    assert "ValueError: no" in text
    assert "File x" not in text
    assert text.index("│   002") < text.index("│   000") < text.index("│   003")


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12))
def test_the_front_is_what_no_trial_beats(points):
    recipe = samples.recipe("data", tasks={"click": {"label": "label"}, "like": {"label": "label"}})
    settings = Settings(metrics=["valid/click.auc", "valid/like.log_loss"], scheduler="none")
    found = Sweep(Path("nowhere"), recipe, parse_space(SPACE), settings)
    found.trials = [Trial(n, {}, "finished", [float(a), float(b)]) for n, (a, b) in enumerate(points)]
    found.trials.append(Trial(len(points), {}, "stopped", [9.0, -9.0]))
    front = {trial.number for trial in found.front}
    for n, (a, b) in enumerate(points):
        better = [(c, d) for c, d in points if c >= a and d <= b and (c, d) != (a, b)]
        assert (n in front) == (not better)
    kept = [trial.scores for trial in found.front]
    assert all(one[0] >= two[0] for one, two in pairwise(kept))
    assert len(points) not in front


def test_the_winner_is_a_recipe_with_its_origin_and_no_defaults(sweep, tmp_path):
    (tmp_path / "winner.yaml").write_text(sweep.winner())
    recipe = load_recipe(tmp_path / "winner.yaml")
    assert recipe == sweep.recipe_of(sweep.trials[2]).model_copy(update={"name": None})
    assert sweep.winner().startswith(
        "# Trial 2 of 6 of the sweep sweep, chosen on the validation split: valid/auc = 0.75"
    )
    assert "topology" not in sweep.winner()
    assert (
        load_recipe(_written(tmp_path, sweep.winner(0))).optimizers.dense.lr
        == sweep.trials[0].values["optimizers.dense.lr"]
    )
    for number, sentence in ((1, "trial 1 is stopped"), (3, "trial 3 is failed"), (9, "there is no trial 9")):
        with pytest.raises(BadInput, match=sentence):
            sweep.winner(number)
    sweep.trials = sweep.trials[3:5]
    with pytest.raises(BadInput, match="no trial has finished yet"):
        sweep.winner()


def _written(folder: Path, text: str) -> Path:
    (folder / "other.yaml").write_text(text)
    return folder / "other.yaml"


def test_what_was_begun_goes_on_before_anything_new(sweep):
    ended = []
    search = Search(sweep, lambda number, gave_up: ended.append((number, gave_up)))
    first, second = search.suggest("a"), search.suggest("b")
    assert (first["number"], second["number"]) == (4, 6)
    assert first["values"] == sweep.trials[4].values
    assert second["values"] == sweep.space.sample(sweep.settings.seed, 6)
    assert json.loads((sweep.folder / "sweep.json").read_text())["trials"][6]["state"] == "waiting"
    assert [search.suggest(name)["number"] for name in "cde"] == [7, 8, 9]
    assert search.suggest("f") == Search.FINISHED
    search.on_trial_complete("b", None, error=True)
    assert ended == [(6, True)]


def test_asha_knows_what_earlier_trials_reached(sweep):
    """Trials 0, 2 and 5 and the stopped 1 have passed the first rung, at .25: .60, .61, none and .50."""
    asha, new = scheduler(sweep), SimpleNamespace(trial_id="new")
    rungs = {milestone: sorted(recorded.values()) for milestone, recorded in asha._brackets[0]._rungs}
    assert rungs == {0.25: [-math.inf, 0.50, 0.60, 0.61], 0.75: [0.65, 0.72, 0.74]}
    asha.on_trial_add(None, new)
    assert asha.on_trial_result(None, new, {"epoch": 0.25, "score": 0.55}) == "STOP"
    asha.on_trial_add(None, new := SimpleNamespace(trial_id="newer"))
    assert asha.on_trial_result(None, new, {"epoch": 0.25, "score": 0.62}) == "CONTINUE"
    assert asha.on_trial_result(None, new, {"epoch": 1.0, "score": 0.76}) == "CONTINUE"


def test_optuna_is_told_of_earlier_trials_and_searches_better_than_chance(tmp_path, sweep):
    sweep.settings = Settings(metrics=["valid/auc"], samples=60, search="optuna")
    search = Search(sweep, lambda number, gave_up: None)
    study = search._sampler._study
    states = [trial.state.name for trial in study.trials]
    assert states == ["COMPLETE", "PRUNED", "COMPLETE", "FAIL", "COMPLETE"]  # trial 4 goes on
    assert [t.params["optimizers.dense.lr"] for t in study.trials[:2]] == [
        trial.values["optimizers.dense.lr"] for trial in sweep.trials[:2]
    ]
    assert study.trials[1].intermediate_values == {5: 0.5}
    sweep.trials = []
    shutil.rmtree(sweep.folder / "trials")

    def settle(number: int, _gave_up: bool) -> None:
        """A trial is the better, the nearer its rate is to 3e-3, and with two layers."""
        trial = sweep.trials[number]
        off = abs(math.log10(trial.values["optimizers.dense.lr"] / 3e-3))
        trial.scores, trial.state = [0.9 - 0.1 * off - 0.05 * (trial.values["model.units"] == [8])], "finished"

    search = Search(sweep, settle)
    for number in range(60):
        search.suggest(str(number))
        search.on_trial_complete(str(number), {})
    chance = [sweep.space.sample(1, n)["optimizers.dense.lr"] for n in range(30)]
    late = [trial.values["optimizers.dense.lr"] for trial in sweep.trials[30:]]
    assert np.mean(np.abs(np.log10(np.array(late) / 3e-3))) < 0.6 * np.mean(np.abs(np.log10(np.array(chance) / 3e-3)))
    assert all(("model.dropout" in t.values) == (t.values["model.units"] == [16, 8]) for t in sweep.trials)
    assert search._sampler._study.trials[-1].state == optuna.trial.TrialState.COMPLETE


def test_importance_finds_the_key_that_matters(tmp_path):
    recipe = samples.recipe(tmp_path, train__epochs=1, train__evaluate_every=0.25)
    found = Sweep(tmp_path / "sweep", recipe, parse_space(SPACE), Settings(metrics=["valid/auc"], samples=30))
    found.create()
    for number in range(30):
        rate = found.space.sample(1, number)["optimizers.dense.lr"]
        auc = 0.8 - 0.05 * abs(math.log10(rate / 3e-3))
        # Later evaluations, which not all have, would say otherwise.
        write(found, number, [auc, 0.9 - number / 100], "stopped") if number % 2 else write(found, number, [auc])
    told = importance(found)
    assert (told.epoch, told.trials) == (0.25, 30)
    assert sum(mean for _, mean, _ in told.shares.values()) == pytest.approx(1)
    low, mean, high = told.shares["optimizers.dense.lr"]
    assert 0.7 < low <= mean <= high <= 1
    assert mean > 0.9
    assert all(low < 0.05 for key, (low, _, _) in told.shares.items() if key != "optimizers.dense.lr")
    assert told.caution == ""
    assert told == importance(found)  # the same trials say the same


def test_few_trials_are_told_and_their_intervals_are_wide(sweep):
    told = importance(sweep)
    assert told.trials == 4  # trial 5 has no AUC at the evaluation that all of them reached
    assert told.caution == "Caution: 4 trials are few for 3 keys; take the order as a hint"
    assert max(high - low for low, _, high in told.shares.values()) > 0.5
    text = " ".join(text.get_text() for text in pictures.texts(plots.draw(sweep)["importance"]))
    assert "Caution: 4 trials are few" in text
    alike = Importance({"a": (0.2, 0.5, 0.8), "b": (0.1, 0.4, 0.7)}, 20, 1.0)
    assert alike.caution == "Caution: the intervals of the first two keys overlap; their order may be chance"
    assert Importance({"a": (0.8, 0.9, 1.0), "b": (0.0, 0.1, 0.2)}, 20, 1.0).caution == ""
    for trial in sweep.trials:
        shutil.rmtree(sweep.run(trial) if trial.number > 1 else sweep.folder / "none", ignore_errors=True)
    assert importance(sweep) is None


def test_plots_of_a_sweep_at_any_time(sweep, monkeypatch):
    monkeypatch.setattr("livetrain.cluster.sweep.importance.RESAMPLES", 5)
    names = {path.stem: path for path in plots.write(sweep)}
    assert set(names) == {"parallel", "importance", "curves", "best"}
    for path in names.values():
        picture = imread(path)
        assert picture.shape[1] >= 800
        assert picture[..., :3].min() < 0.5
    sweep.settings = Settings(metrics=["valid/auc", "valid/log_loss"], scheduler="none")
    sweep.__dict__.pop("metrics")
    for trial in sweep.trials:
        trial.scores = [*trial.scores, *(1 - score for score in trial.scores)]
    assert "pareto" in sweep.plots()
    sweep.trials = []
    assert len(sweep.plots()) == 5


def test_the_live_table_counts_and_a_log_has_a_line_an_event(sweep):
    console = Console(record=True, width=200)
    with Board(sweep, console) as board:
        board.started(sweep.trials[4])
        board.ended(sweep.trials[2])
        board.ended(sweep.trials[3])
    assert [line.split(":")[0] for line in console.export_text().splitlines()] == [
        "trial 004 starts", "trial 002 finished at epoch 1.00", "trial 003 failed at epoch 0.00", "trial 003",
    ]  # fmt: skip
    terminal = Console(record=True, width=160, force_terminal=True)
    with Board(sweep, terminal):
        pass
    text = terminal.export_text()
    assert "3 finished, 1 running, 1 stopped, 1 failed of 10 trials" in text
    assert "│   002" in text


LONG = "the_rooms_that_the_user_has_watched_in_the_last_thirty_days"
MANY = {
    "optimizers.dense.lr": {"log_uniform": [1e-4, 1e-1]},
    "optimizers.sparse.lr": {"log_uniform": [5e-3, 1e-1]},
    "optimizers.sparse.weight_decay": {"choice": [0, 1e-6, 1e-5, 1e-4]},
    "optimizers.schedule.decay": {"choice": ["constant", "linear", "cosine"]},
    "optimizers.schedule.final": {"uniform": [0, 0.2], "when": {"optimizers.schedule.decay": ["linear", "cosine"]}},
    "optimizers.schedule.warmup_steps": {"integer": [0, 100]},
    "model.attention": {"choice": [[{"query": ["user", LONG], "events": [LONG]}], []]},
    "model.units": {"choice": [[2**place] for place in range(24)]},
    "model.dropout": {"uniform": [0, 0.3]},
    "data.batch_size": {"choice": [768, 1536, 3072]},
    f"features.{LONG}.max_length": {"integer": [5, 50]},
    "tables.user.optimizer.lr": {"log_uniform": [1e-3, 1e-1]},
}


@pytest.mark.parametrize(
    ("space", "count", "metrics", "least", "most"),
    [
        (SPACE, 0, ["valid/auc"], 0.6, 0.7),
        (SPACE, 1, ["min: valid/log_loss"], 0.6, 0.7),
        (SPACE, 3, ["valid/auc"], 0.7, 0.7),
        (MANY, 30, [f"max: {' + '.join(['0.125 * valid/click.auc'] * 6)}", "valid/log_loss"], 0.5, 0.75),
        (MANY, 12, ["valid/auc"], 0.712345, 0.712346),
    ],
)
def test_the_plots_can_be_read_whatever_the_sweep(tmp_path, monkeypatch, space, count, metrics, least, most):
    """Of no trial, one and many; of many keys with long names; all alike, nearly so, or undefined."""
    monkeypatch.setattr("livetrain.cluster.sweep.importance.RESAMPLES", 5)
    recipe = samples.recipe(tmp_path, train__epochs=1, train__evaluate_every=0.25)
    folder = tmp_path / (f"{LONG}-sweep-20261129-120000" if space is MANY else "sweep")
    found = Sweep(folder, recipe, parse_space(space), Settings(metrics=metrics, samples=max(count, 1)))
    found.create()
    for number in range(count):
        auc = least + (most - least) * number / count
        state = ("finished", "finished", "stopped", "running", "failed")[number % 5]
        write(found, number, [None] if number % 7 == 6 else [auc - 0.1, auc - 0.02, auc, auc][: 4 - number % 3], state)
    for figure in plots.draw(found).values():
        pictures.check(figure)


def test_the_lines_say_which_trial_they_are_and_the_best_one_stands_out(sweep):
    figure = parallel.draw(sweep, plots.facts(sweep))
    axes, key = figure.axes
    lines = {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}
    assert set(lines) == {"000", "001", "002", "004", "005"}  # 003 has failed
    assert lines["002"].get_color() == parallel.BEST
    assert lines["002"].get_zorder() > max(line.get_zorder() for name, line in lines.items() if name != "002")
    assert set(lines) <= {text.get_text() for text in axes.texts}
    assert [text.get_text() for text in axes.get_xticklabels()] == [
        "dense.lr",
        "model.units",
        "model.dropout",
        "valid/auc",
    ]
    heights = [line.get_ydata()[-1] for _, line in sorted(lines.items())]
    assert heights == pytest.approx([(auc - 0.5) / 0.25 for auc in (0.72, 0.5, 0.75, 0.68, 0.66)])
    assert key.get_ylim() == (0.5, 0.75)
    assert lines["001"].get_linestyle() == "--"
    assert "the best" in " ".join(text.get_text() for text in figure.texts)


def test_where_less_is_better_the_scale_is_turned(sweep):
    other = Sweep(sweep.folder, sweep.recipe, sweep.space, Settings(metrics=["valid/log_loss"]), sweep.trials)
    for trial in other.trials:
        trial.scores = [1 - score for score in trial.scores]
    axes, key = parallel.draw(other, plots.facts(other)).axes
    assert key.get_ylim() == pytest.approx((0.5, 0.25))
    best = next(line for line in axes.get_lines() if line.get_label() == "002")
    assert best.get_ydata()[-1] == 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_numbers_are_spread_so_that_none_lies_over_another(places):
    places = sorted(places)
    moved = parallel.spread(places, 0.04, 1.0)
    assert all(two - one >= 0.04 - 1e-9 for one, two in pairwise(moved))
    assert max(moved) <= 1 + 1e-9
    apart = all(two - one >= 0.04 for one, two in pairwise(places))
    assert not apart or moved == pytest.approx(places)


def test_names_say_of_what_they_are():
    keys = [
        "optimizers.dense.lr",
        "train.seed",
        "seed",
        "tables.user.optimizer.lr",
        "tables.user.dim",
        "features.user.dim",
    ]
    said = ["dense.lr", "train.seed", "seed", "user.optimizer.lr", "tables.user.dim", "features.user.dim"]
    assert [short(key, keys) for key in keys] == said


def test_a_trial_is_a_run_of_the_sweeps_group(sweep):
    recipe = trial_recipe(sweep, sweep.trials[2])
    assert (recipe.name, recipe.cluster.max_failures, recipe.wandb) == ("002", 0, None)
    assert recipe.optimizers.dense.lr == sweep.trials[2].values["optimizers.dense.lr"]
    wandb = {"project": "p", "mode": "offline"}
    for group, wanted in ((None, "sweep"), ("mine", "mine")):
        sweep.recipe = samples.recipe("data", wandb=wandb | ({"group": group} if group else {}))
        assert trial_recipe(sweep, sweep.trials[2]).wandb.group == wanted


@pytest.mark.parametrize(
    ("nodes", "workers", "cpus", "cuda", "wanted"),
    [
        ([{"CPU": 2}], 1, 1, False, 2),
        ([{"CPU": 2}], 0, 1, False, 2),
        ([{"CPU": 2}], 2, 1, False, 1),
        ([{"CPU": 7}], 2, 1.5, False, 2),
        ([{"CPU": 3}, {"CPU": 3}], 1, 2, False, 2),  # not three: a worker lies on one node
        ([{"CPU": 64, "GPU": 8}, {"CPU": 64, "GPU": 8}], 4, 1, True, 4),
        ([{"CPU": 4, "GPU": 8}], 2, 1, True, 2),
        ([{"CPU": 64}, {"CPU": 4, "GPU": 1}], 1, 1, True, 1),
    ],
)
def test_as_many_trials_at_once_as_there_is_room(monkeypatch, nodes, workers, cpus, cuda, wanted):
    dead = {"Alive": False, "Resources": {"CPU": 999, "GPU": 999}}
    monkeypatch.setattr("ray.nodes", lambda: [dead, *({"Alive": True, "Resources": node} for node in nodes)])
    monkeypatch.setattr("livetrain.cluster.capacity._groups", list)
    recipe = samples.recipe("data", cluster={"workers": workers, "cpus_per_worker": cpus})
    assert at_once(recipe, cuda) == wanted


def test_a_trial_in_its_own_process_needs_a_gpu_that_is_there(monkeypatch):
    monkeypatch.setattr("livetrain.cluster.capacity._groups", list)
    for gpus, wanted in ((0, False), (1, True)):
        node = {"Alive": True, "Resources": {"CPU": 2, "GPU": gpus}}
        monkeypatch.setattr("ray.nodes", lambda node=node: [node])
        assert ray_workers.on_gpus(Cluster(workers=0)) == wanted


def test_no_room_for_a_single_trial_is_said(monkeypatch):
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2}}])
    monkeypatch.setattr("livetrain.cluster.capacity._groups", list)
    with pytest.raises(BadInput, match="3 workers of 1 CPU each do not fit .* room for 2 on 1 node;"):
        at_once(samples.recipe("data", cluster={"workers": 3}), cuda=False)


@pytest.mark.parametrize(
    ("space", "settings", "sentence"),
    [
        ({"optimizers.dense.lrr": {"uniform": [0.1, 0.2]}}, {}, "unknown key optimizers.dense.lrr"),
        ({"train.epochs": {"uniform": [1, 2]}}, {}, "wanted a whole number"),
        (
            {"model.attention": {"choice": [[{"query": ["user"], "events": ["film"]}]]}},
            {},
            "no sequence feature 'film'",
        ),
        ({"train.seed": {"choice": [1]}}, {"metrics": ["valid/ctr.auc"]}, "no run of this recipe writes valid/ctr.auc"),
        ({"train.seed": {"choice": [1]}}, {"metrics": ["valid/click.pcoc"]}, "which way|more or less of it"),
        ({"train.seed": {"choice": [1]}}, {"metrics": []}, "sweep: metrics"),
        ({"train.seed": {"choice": [1]}}, {"samples": 0}, "sweep: samples got 0"),
        ({"train.seed": {"choice": [1]}}, {"search": "grid"}, "sweep: search got 'grid', wanted one of random, optuna"),
        ({"train.seed": {"choice": [1]}}, {"smaples": 3}, "unknown key smaples"),
        (
            {"train.seed": {"choice": [1]}},
            {"metrics": ["valid/auc", "valid/gauc"], "scheduler": "asha"},
            "join them in one expression, or use --scheduler none",
        ),
        (
            {"data.batch_size": {"choice": [96, 120]}, "data.shards": {"choice": [12, 16]}},
            {},
            "batch_size=120, data.shards=16 do not go together: data.batch_size: 120 rows do not divide",
        ),
    ],
)
def test_a_bad_sweep_is_refused_before_anything_is_there(tmp_path, space, settings, sentence):
    data = samples.write(tmp_path / "data", rows=200)
    with pytest.raises(BadInput, match=sentence) as error:
        tune(samples.recipe(data), space, tmp_path / "sweep", **settings)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "sweep").exists()


def test_missing_data_are_said_before_anything_is_there(tmp_path):
    with pytest.raises(BadInput, match=r"data\.path: there is no folder"):
        tune(samples.recipe(tmp_path / "no"), {"train.seed": {"choice": [1]}}, tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


ONE_CLASS = {"train.seed": {"choice": [1, 2]}}


def _of_one_class(data: Path) -> Path:
    file = data / "valid/part-0.parquet"
    table = pq.read_table(file)
    pq.write_table(
        table.set_column(table.schema.get_field_index("label"), "label", pa.array([0] * len(table), pa.int8())), file
    )
    return data


@pytest.mark.parametrize("record", ["", "[]", "{}", '{"trials": 1, "settings": {}}'])
def test_a_record_that_is_none_is_said(sweep, record):
    (sweep.folder / "sweep.json").write_text(record)
    with pytest.raises(BadInput, match="sweep.json: this is no record of a sweep; put it back"):
        Sweep.open(sweep.folder)


@pytest.mark.parametrize(("refusal", "tried_again"), [(NotNow, True), (BadInput, False)])
def test_only_what_no_retry_mends_ends_a_trial(sweep, monkeypatch, refusal, tried_again):
    def refuses(*_, **__):
        raise refusal("another process is training this run")

    monkeypatch.setattr(launch, "train", refuses)
    monkeypatch.setattr(driver, "_report", lambda *_: None)
    with pytest.raises(NotNow) if tried_again else contextlib.nullcontext():
        driver._trial(sweep.folder, sweep.recipe, str(Path.cwd()), {"number": 6, "values": {}})
    assert (sweep.run(Trial(6, {})) / "error.txt").exists() is not tried_again


def test_a_calibration_without_a_positive_is_said_before_any_trial_too(tmp_path):
    recipe = samples.recipe(_of_one_class(samples.write(tmp_path / "data", rows=200)))
    with pytest.raises(BadInput, match="click.pcoc is undefined on valid, for it needs a label above 0; "):
        tune(recipe, ONE_CLASS, tmp_path / "sweep", metrics=["min:valid/click.pcoc"])


@pytest.mark.parametrize("again", [False, True])
def test_a_metric_that_the_data_leave_undefined_is_said_before_any_trial(tmp_path, again):
    """Also where an earlier sweep is to go on: what --resume says names another way out."""
    data = _of_one_class(samples.write(tmp_path / "data", rows=200))
    recipe = samples.recipe(data)
    if again:
        Sweep(tmp_path / "sweep", recipe, parse_space(ONE_CLASS), Settings(metrics=["valid/auc"])).create()
    with pytest.raises(BadInput) as error:
        resume(tmp_path / "sweep") if again else tune(recipe, ONE_CLASS, tmp_path / "sweep")
    assert str(error.value) == (
        "--metric 'valid/auc': click.auc is undefined on valid, for it needs rows of both classes; start a sweep by "
        "another metric, such as valid/click.log_loss, or with other rows as valid"
    )
    assert (tmp_path / "sweep").exists() == again


def test_a_sweep_without_a_single_score_says_what_is_undefined(sweep):
    for trial in sweep.trials:
        trial.scores = [None]
    write(sweep, 6, [None, None])
    with pytest.raises(BadInput) as error:
        _ = sweep.best
    assert str(error.value) == (
        f"{sweep.folder}: valid/auc is undefined in the 4 trials that have finished, for click.auc needs rows of both "
        "classes in valid; start a sweep by another --metric, or with other rows as valid"
    )
    assert sweep.plots()


def test_an_expression_without_a_value_is_said_to_be_that(tmp_path, sweep):
    other = Sweep(sweep.folder, sweep.recipe, sweep.space, Settings(metrics=["max: valid/auc / (valid/auc - 0.72)"]))
    other.trials = [Trial(0, sweep.trials[0].values, "finished", [None])]
    with pytest.raises(BadInput, match="that have finished, for its expression gives no number; start a sweep by"):
        _ = other.best


def test_a_sweep_that_has_ended_without_a_trial_is_not_to_be_resumed(sweep):
    sweep.trials = [Trial(number, {}, "failed") for number in range(10)]
    with pytest.raises(BadInput, match=r"none of its 10 trials has finished; sweep\.json says why; mend it"):
        _ = sweep.best
    sweep.trials.pop()
    with pytest.raises(BadInput, match="no trial has finished yet; go on with --resume"):
        _ = sweep.best


def test_the_log_is_read_as_the_run_chose(sweep):
    """Of a trial whose AUC is undefined the checkpoint of the least log loss is kept, and other metrics are its."""
    other = Sweep(sweep.folder, sweep.recipe, sweep.space, Settings(metrics=["valid/log_loss"]))
    trial, run = Trial(7, {}), other.run(Trial(7, {}))
    run.mkdir(parents=True)
    for step, loss in ((5, 0.4), (10, 0.2), (15, 0.3)):
        runlog.note(run, "eval", step=step, split="valid", **{"click.auc": None, "click.log_loss": loss})
    assert [line["scores"] for line in other.evaluations(trial)] == [[0.4], [0.2], [0.2]]


@pytest.mark.parametrize(
    ("select", "metric"),
    [(None, "valid/auc"), ("log_loss", "valid/log_loss"), ("click.gauc", "valid/gauc"), ("like.auc", "valid/like.auc")],
)
def test_without_a_metric_a_sweep_chooses_as_its_runs_do(tmp_path, monkeypatch, select, metric):
    monkeypatch.setattr(driver, "_search", lambda sweep: sweep)
    tasks = {name: {"label": "label"} for name in ("click", "like")}
    recipe = samples.recipe(samples.write(tmp_path / "data", rows=200), tasks=tasks, train__select=select)
    assert tune(recipe, {"train.seed": {"choice": [1]}}, tmp_path / "sweep").settings.metrics == [metric]


def test_two_sweeps_of_one_second_have_a_folder_each(tmp_path, monkeypatch):
    data = samples.write(tmp_path / "data", rows=200)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("livetrain.cluster.sweep.driver.time.strftime", lambda form: "20261129-120000")
    monkeypatch.setattr("livetrain.cluster.sweep.driver._search", lambda sweep: sweep)
    folders = [tune(samples.recipe(data), ONE_CLASS).folder for _ in range(3)]
    assert [folder.name for folder in folders] == [
        f"small-sweep-20261129-120000{tail}" for tail in ("", "-2", "-3")
    ]  # fmt: skip
    assert all((folder / "sweep.json").exists() for folder in folders)


def test_two_sweeps_do_not_share_a_folder(tmp_path, monkeypatch):
    """While one has it, another is told so before it changes anything there."""
    data = samples.write(tmp_path / "data", rows=200)
    recipe, seen = samples.recipe(data), []

    def search(first):
        with pytest.raises(BadInput, match="this sweep is running already"):
            tune(recipe, {"train.seed": {"choice": [5]}}, tmp_path / "sweep")
        seen.append((first.folder / "space.yaml").read_text())
        return first

    monkeypatch.setattr("livetrain.cluster.sweep.driver._search", search)
    tune(recipe, ONE_CLASS, tmp_path / "sweep")
    assert "5" not in seen[0]
    with pytest.raises(BadInput, match="a sweep is there already; go on with it by --resume"):
        tune(recipe, ONE_CLASS, tmp_path / "sweep")
