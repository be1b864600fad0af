"""A run's newest figures as Prometheus gauges, through Ray's own metrics endpoint, where there is a Ray."""

import sys
from collections.abc import Callable
from typing import Any

# Key of a training line -> what its gauge is called and says. Ray puts `ray_` before the names.
GAUGES = {
    "step": ("livetrain_step", "Optimizer steps done"),
    "loss": ("livetrain_loss", "Training loss"),
    "rows_per_s": ("livetrain_rows_per_s", "Rows trained a second on all workers"),
    "data_wait": ("livetrain_data_wait", "Share of the time that rank 0 waits for data"),
}


def listeners(name: str) -> list[Callable[[str, dict[str, Any]], None]]:
    """Return what sets a run's gauges when told its log lines (kind, content): nothing where Ray is not running.

    Args:
        name: the run, each gauge's tag `run`.
    """
    ray = sys.modules.get("ray")  # a process that belongs to Ray has imported it
    if ray is None or not ray.is_initialized():
        return []
    from ray.util.metrics import Gauge

    gauges = {key: Gauge(title, about, tag_keys=("run",)) for key, (title, about) in GAUGES.items()}

    def listen(kind: str, content: dict[str, Any]) -> None:
        if kind == "train":
            for key, gauge in gauges.items():
                gauge.set(content[key], tags={"run": name})

    return [listen]
