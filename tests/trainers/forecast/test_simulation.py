"""The simulation of all ranks at once ends when a slow one, event by event, ends; without delays it is the formula."""

import heapq
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from livetrain.configs.machines import load_hardware
from livetrain.trainers.forecast import simulation
from livetrain.trainers.forecast.cost import parts
from livetrain.trainers.forecast.simulation import Drawn, draw, run, simulate
from tests.trainers.forecast.works import machines, work


def event_by_event(steps, world):
    """Return when the last rank ends each step: ranks compute, arrive, and go on when a collective has ended."""
    events = [(0.0, rank, 0, 0) for rank in range(world)]  # (time, rank, step, stretch that begins)
    arrived, ends = {}, [0.0] * len(steps)
    heapq.heapify(events)
    while events:
        now, rank, step, stretch = heapq.heappop(events)
        if step == len(steps):
            continue
        done = now + steps[step].computes[stretch, rank]
        if stretch == len(steps[step].collectives):  # none follows: on to the next step
            ends[step] = max(ends[step], done)
            heapq.heappush(events, (done, rank, step + 1, 0))
            continue
        there = arrived.setdefault((step, stretch), [])
        there.append(done)
        if len(there) == world:
            for other in range(world):
                heapq.heappush(events, (max(there) + steps[step].collectives[stretch], other, step, stretch + 1))
    return ends


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_all_ranks_at_once_end_when_they_end_event_by_event(world, count, collectives, seed):
    rng = np.random.default_rng(seed)
    steps = [Drawn(rng.random((collectives + 1, world)), rng.random(collectives)) for _ in range(count)]
    np.testing.assert_allclose(run(iter(steps), world), event_by_event(steps, world))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("world", [1, 4])
def test_without_delays_and_draws_a_step_takes_what_the_formula_says(world, device, monkeypatch):
    monkeypatch.setattr(simulation, "_lookups", lambda work, rng: work.loads.lookups)
    hardware, one = machines(device=device), work(world)
    found = simulate(one, hardware, steps=5)
    wanted = sum(parts(one, hardware).values())
    assert (found.median, found.p95, found.mean) == pytest.approx((wanted, wanted, wanted))


def test_delays_make_steps_longer_and_more_so_on_more_ranks():
    quiet = machines()
    late = quiet.model_copy(update={"delays": quiet.delays.model_copy(update={"deviation": 0.3})})
    few, many = (simulate(work(world), late).median / simulate(work(world), quiet).median for world in (2, 64))
    assert 1 < few < many


def test_stalls_show_in_the_tail():
    quiet = machines()
    delays = quiet.delays.model_copy(update={"stalls": 0.005, "stall_ms": 50.0})
    found = simulate(work(16), quiet.model_copy(update={"delays": delays}))
    assert found.p95 > 3 * found.median


def test_a_seed_draws_the_same_again():
    hardware = load_hardware("h100")
    assert simulate(work(8), hardware, seed=1) == simulate(work(8), hardware, seed=1)
    assert simulate(work(8), hardware, seed=1) != simulate(work(8), hardware, seed=2)


def test_lookups_are_drawn_by_the_shards_parts():
    one = work(4)
    rng = np.random.default_rng(0)
    drawn = np.stack([simulation._lookups(one, rng) for _ in range(2000)])
    np.testing.assert_allclose(drawn.mean(axis=0), one.loads.lookups, rtol=0.02)
    for table in (0, 1):  # every lookup falls somewhere
        own = one.loads.table == table
        assert np.ptp(drawn[:, own].sum(axis=1)) == 0
    columns = replace(one.loads, piece=np.zeros(len(one.loads.piece), int))  # shards of other columns of all rows
    drawn = simulation._lookups(replace(one, loads=columns), rng)
    assert len(set(drawn[one.loads.table == 1])) == 1


def test_a_drawn_step_has_a_stretch_before_each_collective_and_one_after_the_last():
    (step,) = draw(work(4), machines(), 1, 0)
    assert step.computes.shape == (len(step.collectives) + 1, 4)
