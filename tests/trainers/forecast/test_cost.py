"""A step's time from work and machines, against figures worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest

from livetrain.trainers.forecast.cost import COMPILED_CALLS, cores, parts, stretches
from tests.trainers.forecast.works import machines, work


def sheet(**changes):
    """Round figures: 1 TB/s of memory, 100 GB/s inside, 10 GB/s between, 1 TFLOP/s, 10 us per operator."""
    us = {"operator": 10, "group": 100, "row": 0, "intra": 20, "inter": 5, "peer": 1}
    values = {"memory_gb_s": 1000, "intra_gb_s": 100, "inter_gb_s": 10, "reached": {}, "workers_per_node": 4, "us": us}
    values["tflops"] = dict.fromkeys(("float32", "tf32", "bfloat16"), 1)
    made = machines()
    return type(made).model_validate(made.model_dump() | values | changes)


def test_one_rank_exchanges_nothing():
    found = parts(work(1), sheet())
    assert all(found[part] == 0 for part in ("skew", "inside", "between", "all_reduce", "latency"))
    assert found["dense"] == pytest.approx(1e9 / 1e12 + 2e7 / 1e12)
    assert found["tables"] == pytest.approx(1100 * (128 + 256) / 1e12)
    assert found["calls"] == pytest.approx((100 * 10 + 100) / 1e6 - found["dense"] - found["tables"])


def test_a_cpu_calls_operators_and_then_computes():
    found = parts(work(1), sheet(device="cpu"))
    assert found["calls"] == pytest.approx((100 * 10 + 100) / 1e6)


def test_eight_ranks_on_two_nodes():
    found = parts(work(8), sheet())
    served = np.arange(1, 9) * 100.0
    served[0] += 1000
    sent = 64 * served
    assert found["inside"] == pytest.approx(2 * (sent * 3 / 8).mean() / 100e9)
    assert found["between"] == pytest.approx(2 * (sent * 4 / 8).mean() / 10e9)
    over = (served.max() - served.mean()) * ((128 + 256) / 1e12 + 2 * 64 * (3 / 8 / 100e9 + 4 / 8 / 10e9))
    assert found["skew"] == pytest.approx(over)
    link = min(100e9, 4 * 10e9)
    assert found["all_reduce"] == pytest.approx(2 * 7 / 8 * (1e3 + 1e6) / link)
    assert found["latency"] == pytest.approx((2 * (20 + 4 * 1) + 2 * (20 + 5 * 1)) / 1e6)


def test_pooled_embeddings_of_a_node_are_added_up_before_they_leave_it():
    one = work(8)
    none = np.zeros(len(one.loads.sent))
    pooled = none.copy()
    pooled[1] = 1e6  # on rank 0
    flat = replace(one, loads=replace(one.loads, sent=none, pooled=pooled))
    stepped = replace(flat, loads=replace(flat.loads, stepped=none + 1))
    assert stretches(flat, sheet()).between[0] == pytest.approx(1e6 * 4 / 8 / 10e9)
    assert stretches(stepped, sheet()).between[0] == pytest.approx(1e6 / 4 * 4 / 8 * 1 / 10e9)
    assert stretches(stepped, sheet()).inside[0] == pytest.approx(1e6 * 3 / 4 / 100e9)


def test_a_compiled_network_calls_less():
    eager, compiled = (stretches(work(1, compiled=each), sheet()) for each in (False, True))
    assert compiled.calls == pytest.approx((100 * 10 * COMPILED_CALLS + 100) / 1e6)
    assert compiled.dense < eager.dense


def test_four_workers_on_two_cores_take_twice_as_long():
    shared = sheet(device="cpu", cores=2)
    assert cores(1.0, 0.0, work(2), shared) == 0
    assert cores(1.0, 0.0, work(4), shared) == pytest.approx(1.0)
    assert cores(1.0, 0.5, work(2), shared) == pytest.approx(0.5)


def test_a_step_waits_for_its_reader():
    ample = sheet()
    assert cores(1.0, 3.0, work(1), ample) == pytest.approx(2.0)
    assert cores(1.0, 3.0, work(1, threads=2), ample) == pytest.approx(0.5)
    assert cores(1.0, 3.0, work(1, threads=4), ample) == 0
