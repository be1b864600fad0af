"""A run's figures reach Ray's own Prometheus endpoint."""

import logging
import socket
import time
import urllib.request
from collections.abc import Iterator

import pytest
import ray

from livetrain.cluster import launch
from livetrain.trainers.observe import prometheus
from livetrain.trainers.runtime import runlog
from tests import samples


@pytest.fixture
def endpoint() -> Iterator[str]:
    """Ray on this machine, and the address at which Prometheus would ask it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _metrics_export_port=port,
        _system_config={"metrics_report_interval_ms": 200},
    )
    yield f"http://127.0.0.1:{port}/metrics"
    ray.shutdown()


def ask(endpoint: str, name: str) -> float | None:
    """Return the value of one of the run's gauges, or None where it is not there yet."""
    try:
        text = urllib.request.urlopen(endpoint, timeout=5).read().decode()
    except OSError:
        return None
    lines = [line for line in text.splitlines() if line.startswith(f"ray_{name}{{") and 'run="small"' in line]
    return float(lines[0].rsplit(" ", 1)[1]) if lines else None


@pytest.mark.slow
def test_a_runs_newest_figures_reach_the_endpoint(endpoint, tmp_path):
    data = samples.write(tmp_path / "data", rows=480)
    launch.train(samples.recipe(data, train__epochs=1), tmp_path)
    last = [line for line in runlog.read(tmp_path / "small") if line["kind"] == "train"][-1]
    end = time.monotonic() + 60
    while (step := ask(endpoint, "livetrain_step")) != last["step"] and time.monotonic() < end:
        time.sleep(0.1)
    assert step == 5
    for key, (name, _) in prometheus.GAUGES.items():
        assert ask(endpoint, name) == pytest.approx(last[key], rel=1e-6)


def test_without_ray_there_are_none():
    assert not ray.is_initialized()
    assert prometheus.listeners("small") == []
