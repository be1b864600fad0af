import io

import pytest
import torch
from rich.console import Console

from livetrain.configs.errors import BadInput
from livetrain.configs.load import load_recipe
from livetrain.trainers.export import export, latency
from livetrain.trainers.export.rows import golden_inputs, held_out_rows
from livetrain.trainers.runtime.run_folder import find_checkpoint
from tests import samples


@pytest.fixture(scope="module")
def measured(small_run):
    return latency.compare(small_run, rounds=1)


@pytest.mark.slow
def test_every_way_to_store_tables_is_timed_on_the_same_calls(measured):
    assert [m.quantize for m in measured] == ["none", "float16", "int8"]
    for m in measured:
        assert len(m.rank) == len(m.forward) == 30
        assert min(m.rank + m.forward) > 0
        assert m.candidates == 500
        assert m.parity["largest_difference_of_rank"] < 1e-6
    tables = [m.sizes["tables"] for m in measured]
    assert tables[0] == measured[2].sizes["float32"]["tables"] == 2 * tables[1]
    assert measured[0].parity["click.auc"]["file"] == measured[2].parity["click.auc"]["model"]


@pytest.mark.slow
def test_the_table_shows_sizes_auc_latency_and_the_gain(measured):
    head, *lines = latency.cells(measured)
    assert {len(line) for line in lines} == {len(head)}
    assert [line[0] for line in lines] == ["trained", "", "float16", "", "int8", ""]
    assert [line[head.index("user")] for line in lines] == ["once", "repeated"] * 3
    by_name = dict(zip(head, lines[0], strict=True))
    assert by_name["AUC"] == f"{measured[0].parity['click.auc']['file']:.5f}"
    assert float(by_name["p50 ms"]) <= float(by_name["p99 ms"])
    text = io.StringIO()
    Console(file=text, width=80).print(latency.latency_table(measured))
    assert "500 candidates of one user, one thread" in text.getvalue()
    for line in lines:
        for cell in filter(None, line):
            assert cell in text.getvalue()


def test_percentiles_and_rates_are_of_all_calls():
    seconds = [0.001] * 97 + [0.1] * 3
    sizes, parity = {"tables": 2e6, "file": 3e6}, {"a.auc": {"file": 0.5}, "b.auc": {"file": None}}
    one = latency.Measured("int8", sizes, parity, 500, seconds, [2 * s for s in seconds])
    head, once, repeated = latency.cells([one])
    assert once == ("int8", "2.00", "3.00", "0.50000 -", "once", "1.00", "100.00", "125,945", "2.00x")
    assert repeated[4:] == ("repeated", "2.00", "200.00", "62,972", "")


def test_both_ways_are_asked_for_the_same_scores(small_run):
    recipe = load_recipe(small_run / "config.yaml")
    model = export.plain_model(recipe, find_checkpoint(small_run, "best"))
    scorer = export.script(model, recipe, "none")
    rows = held_out_rows(recipe, 500)
    requests = latency._requests(golden_inputs(rows), rows["rows"], latency.user_features(recipe, None))
    seen = set()
    for request in requests:
        found, wanted = scorer.rank(*request["rank"])["click"], scorer(*request["forward"])["click"]
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
        assert found.shape == (500,)
        assert found.unique().numel() > 10
        seen.add(float(found[0]))
    assert len(seen) > 20


def test_the_candidate_is_what_histories_are_made_of_or_what_is_named(tmp_path):
    recipe = samples.recipe(tmp_path)
    assert latency.user_features(recipe, None) == ["user", "history", "rating", "rate"]
    assert latency.user_features(recipe, ["user", "rate"]) == ["movie", "history", "rating"]
    with pytest.raises(BadInput, match=r"--candidate: there is no feature 'movi' \(did you mean"):
        latency.user_features(recipe, ["movi"])
    lonely = samples.recipe(tmp_path, model={"kind": "lr"}, features={"rate": {"type": "dense"}}, tables={})
    with pytest.raises(BadInput, match="name them with --candidate"):
        latency.user_features(lonely, None)
    assert latency.user_features(lonely, ["rate"]) == []
