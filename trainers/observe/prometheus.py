"""Newest figures as Prometheus gauges: a run's through Ray's own metrics endpoint, and others as text."""

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

# Key of a training line, or of one about a stream -> what its gauge is called and says. Ray puts `ray_` before names.
GAUGES = {
    "step": ("livetrain_step", "Optimizer steps done"),
    "loss": ("livetrain_loss", "Training loss"),
    "rows_per_s": ("livetrain_rows_per_s", "Rows trained a second on all workers"),
    "data_wait": ("livetrain_data_wait", "Share of the time that rank 0 waits for data"),
}
OF_STREAM = {
    "behind_s": ("livetrain_behind_seconds", "Event time from what is learned to the newest closed minute"),
    "behind_clock_s": ("livetrain_behind_clock_seconds", "Time from the last event that is learned to now"),
    "alarmed": ("livetrain_alarms", "Figures of the last increment that raise an alarm"),
    "open": ("livetrain_gate_open", "1 while what is learned is published"),
    "shed_rows": ("livetrain_shed_rows", "Events that were left out since the night"),
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

    told = GAUGES | OF_STREAM
    gauges = {key: Gauge(title, about, tag_keys=("run",)) for key, (title, about) in told.items()}

    def listen(kind: str, content: dict[str, Any]) -> None:
        if kind in ("train", "increment", "lag"):
            for key, gauge in gauges.items():
                if key in content:
                    gauge.set(float(content[key]), tags={"run": name})

    return [listen]


def exposition(gauges: Iterable[tuple[str, str, Mapping[str, str], float]]) -> str:
    """Return gauges in Prometheus' text format (prometheus.io/docs/instrumenting/exposition_formats).

    Args:
        gauges: name, help, tags and value of each; those of one name may come apart.

    Example:
        >>> print(exposition([("lag_seconds", "How late", {"stream": 'a"b'}, 42.0)]), end="")
        # HELP lag_seconds How late
        # TYPE lag_seconds gauge
        lag_seconds{stream="a\\"b"} 42.0
    """
    lines: dict[str, list[str]] = {}
    for name, about, tags, value in gauges:
        written = ",".join(f'{key}="{_escaped(text)}"' for key, text in tags.items())
        begun = lines.setdefault(name, [f"# HELP {name} {about}", f"# TYPE {name} gauge"])
        begun.append(f"{name}{{{written}}} {value}" if written else f"{name} {value}")
    return "".join(f"{line}\n" for part in lines.values() for line in part)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
