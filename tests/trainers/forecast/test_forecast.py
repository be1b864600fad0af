"""A recipe's forecast as a whole, on machines that are not there."""

import json
import sys

import numpy as np
import pytest

from livetrain.cli import main as cli
from livetrain.configs.errors import BadInput
from livetrain.configs.load import dump_recipe, load_recipe
from livetrain.configs.machines import load_hardware, names
from livetrain.trainers.data.read.lookups import Looked
from livetrain.trainers.forecast import forecast, show
from livetrain.trainers.forecast.cost import PARTS
from livetrain.trainers.forecast.forecast import Forecaster, changes, check_division
from livetrain.trainers.forecast.loads import different, loads
from livetrain.trainers.train import sharding
from livetrain.trainers.train.replication import settled
from tests import samples
from tests.trainers.recall import tastes


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["livetrain", "plan", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code or 0, *capsys.readouterr()

    return call


@pytest.fixture
def path(tmp_path):
    recipe = samples.recipe(tmp_path / "data")
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    return str(tmp_path / "recipe.yaml")


def load(path):
    return lambda more: load_recipe(path, list(more))


@pytest.mark.parametrize("name", names())
def test_every_file_that_comes_along_forecasts(name, path):
    one, two = Forecaster(load(path), load_hardware(name)).all([1, 2], advised=False)
    assert one.efficiency == 1
    assert set(one.parts) == set(two.parts) == set(PARTS)
    assert one.parts["latency"] == 0 < two.parts["latency"]
    assert one.rows_per_s * one.seconds == pytest.approx(96)
    assert two.simulated.median > 0


def test_advice_gives_what_it_says(path):
    hardware = load_hardware("h100")
    (found,) = Forecaster(load(path), hardware).all([2])
    assert found.advice  # a batch of 96 rows leaves a GPU waiting
    for advice in found.advice:
        again = load_recipe(path, advice.change.split())
        (other,) = Forecaster(lambda more, again=again: load_recipe(again, list(more)), hardware).all(
            [2], advised=False
        )
        assert other.rows_per_s / found.rows_per_s == pytest.approx(advice.gain)
        assert advice.gain >= 1.05


def test_what_does_not_fit_is_a_line_beside_what_does(path):
    big = [
        "tables.movie.rows=2000000000",
        "tables.movie.dim=64",
        "tables.movie.memory=gpu",
        "tables.movie.sharding=row_wise",
    ]
    few, many = Forecaster(lambda more: load_recipe(path, [*big, *more]), load_hardware("h100")).all([2, 12])
    assert "movie" in few.refused
    assert many.refused is None
    assert many.efficiency == 1
    assert any("2 workers" in line for line in show.remarks([few, many], load_hardware("h100"), "assumed"))


def test_lookups_of_shards_are_those_of_the_batch(path):
    recipe = settled(load_recipe(path, ["cluster.workers=4", "tables.movie.sharding=row_wise"]), 4)
    plan = sharding.dry_plan(recipe, 4, "cpu")
    skewed = {"movie": Looked(1.0, np.array([7]), np.array([0.9]))}
    for known in (None, skewed):
        found = loads(recipe, plan, known)
        at = list(plan.tables).index("movie")
        asked = found.lookups[found.table == at]
        assert asked.sum() == pytest.approx(96 * (1 + 3))  # an id, and half of a list of six
    assert asked.max() > 96 * 0.9


def test_numbers_of_workers_that_do_not_divide_are_said_at_once(path):
    with pytest.raises(
        BadInput, match=r"12 data.shards do not divide among 8 workers; data.shards=24 would for all of 2, 8, 12"
    ):
        check_division(load_recipe(path), [2, 8, 12])


@pytest.mark.parametrize(("kind", "workers"), [("als", 4), ("item_cf", 1)])
def test_what_is_fitted_has_no_steps_to_forecast(call, tmp_path, kind, workers):
    recipe = tastes.recipe(tmp_path, model={"kind": kind, "key": "item", "history": "history"}, train={})
    (tmp_path / "fitted.yaml").write_text(dump_recipe(recipe))
    code, _, error = call(str(tmp_path / "fitted.yaml"), "--workers", str(workers))
    assert code == 2
    assert f"model.kind: '{kind}' is fitted and not trained by steps" in " ".join(error.split())


def test_changes_keep_to_the_machines(path):
    hardware = load_hardware("cpu")
    (found,) = Forecaster(load(path), hardware).all([2], advised=False)
    assert not any(
        "precision" in change or "threads" in change for change in changes(load_recipe(path), found, hardware)
    )


def test_the_command_prints_draws_and_writes_json(call, path, tmp_path):
    code, out, _ = call(path, "--workers", "1,2", "--hardware", "cpu")
    assert code == 0
    assert "2 workers: limited by" in out
    assert (tmp_path / "plan.png").stat().st_size > 10_000
    code, out, _ = call(path, "--workers", "2", "--hardware", "h100", "--json")
    assert code == 0
    (found,) = json.loads(out)["forecasts"]
    assert found["workers"] == 2
    assert sum(found["parts"].values()) == pytest.approx(found["seconds"])


def test_rows_per_worker_are_those_of_the_workers_asked_for(call, path):
    words = ("data.batch_size_per_worker=3", "--workers", "4", "--hardware", "cpu", "--json")  # 12 shards: 3 of each
    code, out, _ = call(path, *words)
    assert code == 0
    assert json.loads(out)["forecasts"][0]["batch"] == 12


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--hardware", "h1000"), "--hardware: 'h1000' is no file, nor a name that is known (did you mean 'h100'?)"),
        (("--workers", "8,x"), "--workers: 'x' is no number of workers from 1 to 4,096; write them as 8,64,256"),
        (("--workers", "5"), "data.shards: 12 shards do not divide among 5 workers"),
        (("--workers", "3,5"), "--workers: 12 data.shards do not divide among 5 workers"),
        (("--out", "plan.xyz"), "--out: 'plan.xyz' is no picture's name; end it with .png, .svg, .pdf, .jpg"),
        (("--out", "no/plan.png"), "no/plan.png: cannot write here (no is no folder that can be written to)"),
        (("--hardware", "own.yaml"), "own.yaml, line 2: unknown key cours (did you mean 'cores'?)"),
    ],
)
def test_what_is_wrong_is_one_sentence(call, path, tmp_path, words, said):
    (tmp_path / "own.yaml").write_text("name: ours\ncours: 4\n")
    code, _, err = call(path, *words)
    assert code == 2
    assert said in " ".join(err.split())


def test_data_tell_lengths_and_frequencies(tmp_path):
    samples.write(tmp_path / "data")
    found, where = forecast.known(samples.recipe(tmp_path / "data"))
    assert found["history"].mean == pytest.approx(3.3, abs=0.5)  # lists of 0 to 8, of which 6 are kept
    assert "sampled" in where
    found, where = forecast.known(samples.recipe(tmp_path / "nowhere"))
    assert not found
    assert "nowhere" in where


def test_ids_that_repeat_are_asked_for_once_by_each_rank():
    rng, known = np.random.default_rng(0), Looked(1.0, np.array([5, 90]), np.array([0.3, 0.2]))
    chances = np.full(100, 0.5 / 100)
    chances[[5, 90]] += known.share
    drawn = [np.unique(rng.choice(100, 40, p=chances)) for _ in range(3000)]
    seen = np.mean([np.bincount(each // 25, minlength=4) for each in drawn], axis=0)
    np.testing.assert_allclose(different(known, 100, True, 4, 40.0), seen, rtol=0.05)


def test_a_gpus_ranks_ask_for_a_row_once(path):
    known = {"movie": Looked(1.0, np.array([7]), np.array([1.0])), "history": Looked(0.0)}
    asked = {}
    for device, world in (("cpu", 4), ("cuda", 4), ("cuda", 1)):
        recipe = settled(load_recipe(path, [f"cluster.workers={world}", "tables.movie.sharding=row_wise"]), world)
        found = loads(recipe, plan := sharding.dry_plan(recipe, world, device), known)
        asked[device, world] = found.lookups[found.table == list(plan.tables).index("movie")].sum()
    # One movie: by each of four ranks on GPUs. One rank sends no ids, and looks all of them up.
    assert asked == pytest.approx({("cpu", 4): 96, ("cuda", 4): 4, ("cuda", 1): 96})


@pytest.mark.parametrize(
    ("change", "hardware", "compiled"),
    [
        (["train.accumulate=1"], "h100", True),
        (["train.accumulate=2"], "h100", False),
        (["train.compile=false"], "h100", False),
        (["train.accumulate=1"], "cpu", False),
    ],
)
def test_a_network_is_forecast_as_compiled_where_a_run_compiles_it(path, change, hardware, compiled):
    forecaster = Forecaster(load(path), load_hardware(hardware))
    _, work, _ = forecaster.work(load_recipe(path, change))
    assert work.compiled is compiled
