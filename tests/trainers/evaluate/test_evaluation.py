import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from livetrain.modules.metrics import binary
from livetrain.modules.metrics.histogram import BINS, LIMIT
from livetrain.modules.metrics.lengths import LENGTH_NAMES
from livetrain.modules.tasks.binary import Binary
from livetrain.trainers.evaluate.evaluation import EXACT_ROWS, Evaluation
from livetrain.trainers.evaluate.intervals import Bootstrap

TASKS = ["click", "stay"]
SAMPLE = 700  # rows, fewer than there are, so that the sample of groups must shrink

# A rank of the two-rank runs: it takes its share of the rows and writes what it computed.
RANK = """
import json, sys, time
from datetime import timedelta
import numpy as np, torch, torch.distributed as dist
from livetrain.modules.tasks.binary import Binary
from livetrain.trainers.evaluate import gather
from livetrain.trainers.evaluate.evaluation import Evaluation
from livetrain.trainers.evaluate.intervals import Bootstrap
tasks = {"click": Binary(), "stay": Binary()}
tasks["click"].measure_lists([3, 10])
gather._CHUNK = 500  # several chunks per column, the last ones empty on one rank
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
data = {k: torch.from_numpy(v) for k, v in np.load(f"{folder}/data.npz").items()}
rows = len(data["weights"])
shares = {"uneven": [(0, 1300), (1300, rows)], "one_rank_empty": [(0, 0), (0, rows)]}
found = {}
for share, parts in shares.items():
    start, stop = parts[rank]
    for memory in ("exact", "bounded"):
        evaluation = Evaluation(
            tasks, memory=memory, sample_rows=int(sys.argv[3]), slices=["low", "none"], bootstrap=Bootstrap(20, 3)
        )
        for at in range(start, stop, 256):
            evaluation.update(**{k: v[at : min(at + 256, stop)] for k, v in data.items()})
        found[f"{share}.{memory}"] = [evaluation.compute(), evaluation.curves()]
empty = Evaluation(tasks)
found["nothing"] = [empty.compute(), empty.curves()]
dist.distributed_c10d._set_pg_timeout(timedelta(seconds=1))  # as cluster.timeout_s does
class Slow(Binary):
    def figures(self, labels, logits, groups=None):
        time.sleep(3)
        return super().figures(labels, logits, groups)
slow = Evaluation({"click": Slow()})
slow.update(**{k: v[:100, :1] if v.dim() == 2 else v[:100] for k, v in data.items() if k != "slices"})
found["slow"] = [slow.compute(), {}]
with open(f"{folder}/{rank}.json", "w") as file:
    json.dump(found, file)
dist.destroy_process_group()
"""


def data(size=3000, seed=0) -> dict[str, torch.Tensor]:
    generator = np.random.default_rng(seed)
    logits = generator.normal([-1, -2], [1.0, 0.7], (size, 2)).astype(np.float32)
    logits[:, 1] = np.round(logits[:, 1], 1)
    labels = (generator.random((size, 2)) < binary.sigmoid(logits)).astype(np.float32)
    labels[generator.random((size, 2)) < [0.0, 0.3]] = np.nan
    columns = {
        "logits": logits,
        "labels": labels,
        "weights": (generator.random(size) < 0.95).astype(np.float32),
        "groups": generator.integers(0, 2**62, 150)[generator.integers(0, 150, size)],
        "lengths": generator.geometric(0.08, size) - 1,
        "slices": (generator.random(size) < 0.3).astype(np.int64),  # bit 1, of the slice "none", is never set
        "numbers": np.arange(size),
    }
    return {name: torch.from_numpy(column) for name, column in columns.items()}


def evaluate(columns, memory="exact", step=256, lists=None, **options) -> Evaluation:
    kinds = {task: Binary() for task in TASKS}
    if lists:
        kinds["click"].measure_lists(lists)
    evaluation = Evaluation(kinds, memory=memory, **options)
    for start in range(0, len(columns["weights"]), step):
        evaluation.update(**{name: column[start : start + step] for name, column in columns.items()})
    return evaluation


def known(columns, t):
    """Return labels, logits, groups and lengths of the rows that count for task t, as numpy arrays."""
    labels = columns["labels"][:, t]
    kept = (columns["weights"] != 0) & ~labels.isnan()
    return tuple(x[kept].numpy() for x in (labels, columns["logits"][:, t], columns["groups"], columns["lengths"]))


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """What two processes joined by gloo computed: by rank, by scenario, metrics and curves."""
    folder = tmp_path_factory.mktemp("ranks")
    np.savez(folder / "data.npz", **{name: column.numpy() for name, column in data().items()})
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", RANK]
    ranks = [subprocess.Popen([*command, str(r), str(folder), str(SAMPLE)], cwd=root) for r in range(2)]
    try:
        assert [process.wait(timeout=120) for process in ranks] == [0, 0]
    finally:
        for process in ranks:
            process.kill()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("t", [0, 1])
def test_exact_metrics_are_those_of_the_kept_rows(t):
    columns = data()
    found = evaluate(columns).compute()
    labels, logits, groups, _ = known(columns, t)
    expected = {
        "auc": binary.auc(labels, logits),
        "gauc": binary.gauc(labels, logits, groups),
        "uauc": binary.uauc(labels, logits, groups),
        "log_loss": binary.log_loss(labels, logits),
        "ne": binary.normalised_entropy(labels, logits),
        "pcoc": binary.pcoc(labels, logits),
        "positives": labels.sum(),
    }
    mine = {key.split(".")[1]: value for key, value in found.items() if key.startswith(TASKS[t])}
    assert mine == pytest.approx(expected, abs=1e-12)
    assert found["rows"] == (columns["weights"] != 0).sum()
    assert all(type(value) is float for value in found.values())


def test_padding_and_unknown_labels_do_not_count():
    columns = data()
    expected = evaluate(columns).compute()
    padding = columns["weights"] == 0
    columns["logits"][padding] = math.nan
    columns["logits"][columns["labels"].isnan()] = 99.0
    columns["labels"][padding] = 1.0
    columns["weights"][~padding] = 0.3
    assert evaluate(columns).compute() == expected
    assert evaluate(columns, step=77).compute() == expected


def test_half_precision_logits_and_a_later_overwritten_batch():
    columns = data()
    columns["logits"] = columns["logits"].bfloat16()
    evaluation = evaluate(columns)
    rounded = evaluate(columns | {"logits": columns["logits"].float()}).compute()
    columns["logits"].zero_()
    columns["labels"].zero_()
    assert evaluation.compute() == rounded


def test_without_groups_and_lengths():
    columns = data()
    del columns["groups"], columns["lengths"]
    for memory in ("exact", "bounded"):
        evaluation = evaluate(columns, memory)
        found = evaluation.compute()
        assert not [key for key in found if "gauc" in key or "uauc" in key]
        assert found["click.auc"] > 0.6
        assert evaluation.curves()["click"]["auc_by_length"] == []


def test_groups_belong_in_every_update():
    columns = data(64)
    evaluation = evaluate(columns)
    del columns["groups"]
    with pytest.raises(ValueError, match="every update"):
        evaluation.update(**columns)


@pytest.mark.parametrize("memory", ["exact", "bounded"])
def test_one_class_has_no_auc_but_a_loss(memory):
    columns = data(200)
    columns["labels"][:, 0] = 0.0
    evaluation = evaluate(columns, memory)
    found = evaluation.compute()
    assert all(math.isnan(found[f"click.{name}"]) for name in ("auc", "gauc", "uauc", "ne", "pcoc"))
    assert found["click.log_loss"] == pytest.approx(binary.log_loss(*known(columns, 0)[:2]))
    assert found["click.positives"] == 0
    assert found["stay.auc"] > 0.5
    assert evaluation.curves()["click"]["auc_by_length"] == []


@pytest.mark.parametrize("memory", ["exact", "bounded"])
def test_a_diverged_task_is_nan_and_the_other_is_not(memory):
    columns = data()
    columns["logits"][torch.nonzero(columns["weights"])[5], 0] = math.nan
    evaluation = evaluate(columns, memory)
    found = evaluation.compute()
    assert all(math.isnan(found[f"click.{name}"]) for name in ("auc", "gauc", "uauc", "log_loss", "ne", "pcoc"))
    assert all(math.isfinite(value) for key, value in found.items() if key.startswith("stay"))
    assert evaluation.curves()["click"] == {"calibration": [], "auc_by_length": []}


@pytest.mark.parametrize("memory", ["exact", "bounded"])
def test_curves(memory):
    columns = data()
    evaluation = evaluate(columns, memory)
    with pytest.raises(RuntimeError, match="compute"):
        evaluation.curves()
    evaluation.compute()
    curves = json.loads(json.dumps(evaluation.curves(), allow_nan=False))
    for t, task in enumerate(TASKS):
        labels, logits, _, lengths = known(columns, t)
        points = curves[task]["calibration"]
        assert sum(point["count"] for point in points) == len(labels)
        assert sum(p["count"] * p["mean_p"] for p in points) / len(labels) == pytest.approx(
            binary.sigmoid(logits).mean(), abs=1e-12 if memory == "exact" else 6e-5
        )
        edges = dict(
            zip(LENGTH_NAMES, [(0, 0), (1, 5), (6, 10), (11, 20), (21, 50), (51, 100), (101, 9e9)], strict=True)
        )
        buckets = {point["length"]: point for point in curves[task]["auc_by_length"]}
        for name, (low, high) in edges.items():
            inside = (low <= lengths) & (lengths <= high)
            expected = binary.auc(labels[inside], logits[inside])
            assert (name in buckets) == (not math.isnan(expected))
            if name in buckets:
                assert buckets[name]["rows"] == inside.sum()
                assert buckets[name]["positives"] == labels[inside].sum()
                assert buckets[name]["auc"] == pytest.approx(expected, abs=1e-12 if memory == "exact" else 1e-3)
        assert len(buckets) >= 4


@pytest.mark.parametrize("spread", [1.0, 1e-4, 40.0])
def test_bounded_auc_keeps_its_bound(spread):
    columns = data()
    columns["logits"] *= spread
    exact, bounded = evaluate(columns).compute(), evaluate(columns, "bounded").compute()
    for task in TASKS:
        assert abs(exact[f"{task}.auc"] - bounded[f"{task}.auc"]) <= bounded[f"{task}.auc_error"] + 1e-12
        for name in ("gauc", "uauc", "log_loss", "ne", "pcoc", "positives"):
            assert bounded[f"{task}.{name}"] == pytest.approx(exact[f"{task}.{name}"], rel=1e-12)
    if spread == 1.0:
        assert bounded["click.auc_error"] < 1e-3  # 3,000 distinct logits, a few of them in one bin
    assert bounded["rows"] == exact["rows"]
    assert bounded["gauc_groups_share"] == 1.0


def test_bounded_counts_infinite_and_extreme_logits():
    extremes = [-np.inf, np.finfo(np.float32).min, -LIMIT, LIMIT, np.finfo(np.float32).max, np.inf]
    evaluation = Evaluation({"click": Binary()}, memory="bounded")
    evaluation.update(torch.tensor(extremes)[:, None], torch.tensor([0.0, 0, 0, 1, 1, 1])[:, None], torch.ones(6))
    found = evaluation.compute()
    assert found["click.auc"] == 1.0
    assert found["click.log_loss"] == pytest.approx(math.exp(-LIMIT) / 3, rel=1e-6)


def test_bounded_memory_does_not_grow():
    columns = data()
    evaluation = Evaluation(dict.fromkeys(TASKS, Binary()), memory="bounded", sample_rows=100)
    for _ in range(5):
        evaluation.update(**columns)
    kept = evaluation._store
    for t, store in enumerate(kept.stores.values()):
        assert store.counts.shape[-1] == BINS
        assert store.counts.sum() == 5 * len(known(columns, t)[0])
    assert sum(len(part) for part in kept.sample.parts) == kept.sample.size <= 100


def test_sample_is_the_largest_that_fits_and_of_whole_groups():
    columns = data()
    whole = evaluate(columns).compute()
    groups = columns["groups"][columns["weights"] != 0].numpy()
    for budget in (200, SAMPLE, 1400):
        evaluation = evaluate(columns, "bounded", sample_rows=budget)
        found = evaluation.compute()
        share = found["gauc_groups_share"]
        (rows,) = evaluation._store.sample.parts
        assert len(rows) <= budget
        assert share < 1
        chosen = np.isin(groups, rows.groups)
        assert chosen.sum() == len(rows)
        assert found["click.gauc"] != pytest.approx(whole["click.gauc"], abs=1e-9)
        inside = np.isin(known(columns, 0)[2], rows.groups)
        expected = binary.gauc(*(x[inside] for x in known(columns, 0)[:3]))
        assert found["click.gauc"] == pytest.approx(expected, abs=1e-12)
        doubled = evaluate(columns, "bounded", sample_rows=10**9)._store.sample
        doubled.cut(round(-math.log2(share)) - 1)
        assert doubled.size > budget


def test_sample_picks_about_its_share_of_consecutive_ids():
    ids = torch.arange(20_000)
    evaluation = Evaluation({"click": Binary()}, memory="bounded", sample_rows=6_000)
    evaluation.update((ids % 7)[:, None].float(), (ids % 2)[:, None].float(), torch.ones(20_000), ids)
    assert evaluation.compute()["gauc_groups_share"] == 0.25
    assert abs(evaluation._store.sample.size - 5_000) < 250  # four deviations of a fair coin


def test_a_group_larger_than_the_sample_ends_in_nan():
    columns = data(100)
    columns["groups"].fill_(7)
    found = evaluate(columns, "bounded", sample_rows=10).compute()
    assert math.isnan(found["click.gauc"])
    assert math.isfinite(found["click.auc"])


@pytest.mark.parametrize("memory", ["exact", "bounded"])
def test_a_slice_has_the_figures_of_its_rows_alone(memory):
    columns = data()
    found = evaluate(columns, memory, lists=[5], slices=["low", "none"]).compute()
    inside = columns["slices"] == 1
    alone = evaluate({name: column[inside] for name, column in columns.items()}, memory, lists=[5]).compute()
    real = columns["weights"] != 0
    assert found["low.rows"] == alone.pop("rows") == (inside & real).sum()
    assert found["low.share"] == (inside & real).sum() / real.sum()
    alone.pop("gauc_groups_share", None)
    assert {name: found[f"low.{name}"] for name in alone} == pytest.approx(alone, rel=1e-12)
    whole = evaluate(columns, memory, lists=[5]).compute()
    assert {name: found[name] for name in whole} == whole
    assert (found["none.rows"], found["none.share"], found["none.click.positives"]) == (0, 0, 0)
    assert math.isnan(found["none.click.auc"])
    assert math.isnan(found["none.click.list_ndcg_5"])


@pytest.mark.parametrize("share", ["uneven", "one_rank_empty"])
@pytest.mark.parametrize("memory", ["exact", "bounded"])
def test_two_ranks_equal_one(two_ranks, share, memory):
    options = {"slices": ["low", "none"], "bootstrap": Bootstrap(20, 3), "lists": [3, 10]}
    evaluation = evaluate(data(), memory, sample_rows=SAMPLE, **options)
    expected = evaluation.compute()
    assert 0 < expected["low.click.list_ndcg_3_low"] < expected["low.click.list_ndcg_3"] < 1
    for found, curves in (rank[f"{share}.{memory}"] for rank in two_ranks):
        assert found == pytest.approx(expected, rel=1e-12, nan_ok=True)
        for name in ("auc", "gauc", "uauc", "positives"):
            assert [found[f"{task}.{name}"] for task in TASKS] == [expected[f"{task}.{name}"] for task in TASKS]
        assert found.get("gauc_groups_share") == expected.get("gauc_groups_share")
        for task in TASKS:
            assert curves[task]["auc_by_length"] == evaluation.curves()[task]["auc_by_length"]
            points = zip(curves[task]["calibration"], evaluation.curves()[task]["calibration"], strict=True)
            assert all(a == pytest.approx(b, rel=1e-12) for a, b in points)


def test_ranks_agree_on_every_figure(two_ranks):
    assert json.dumps(two_ranks[0]) == json.dumps(two_ranks[1])
    assert two_ranks[0]["uneven.bounded"][0]["gauc_groups_share"] < 1


def test_others_wait_longer_than_their_timeout_for_the_rank_that_sorts(two_ranks):
    """The figures come three seconds late, and a collective of the run's own group would fail after one."""
    assert two_ranks[1]["slow"][0]["rows"] > 100
    assert two_ranks[1]["slow"] == two_ranks[0]["slow"]


@pytest.mark.parametrize(
    ("asked", "rows", "bounded"),
    [("auto", EXACT_ROWS, False), ("auto", EXACT_ROWS + 1, True), ("exact", 10**12, False), ("bounded", 1, True)],
)
def test_memory_is_bounded_from_so_many_rows(asked, rows, bounded):
    assert Evaluation({"click": Binary()}, memory=asked, rows=rows).bounded == bounded


def test_no_rows_on_any_rank(two_ranks):
    found, curves = two_ranks[0]["nothing"]
    assert found["rows"] == found["click.positives"] == 0
    assert math.isnan(found["click.auc"])
    assert curves["stay"] == {"calibration": [], "auc_by_length": []}
