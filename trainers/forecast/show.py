"""A forecast for people: a table, sentences, and a picture; and for programs."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import NullFormatter, ScalarFormatter
from rich.table import Table

from livetrain.configs.schema.hardware import Hardware
from livetrain.trainers.forecast.cost import PARTS
from livetrain.trainers.forecast.forecast import Forecast
from livetrain.trainers.observe.report.panels import COLORS, MORE_COLORS, header, legend_beside, missing, panel

_PLACES = {"gpu": "GPU", "host": "host"}


def table(found: Sequence[Forecast]) -> Table:
    """Return a table with a column for each number of workers; those that cannot be are left out."""
    fitting = [one for one in found if one.refused is None]
    out = Table("", title="milliseconds of a step by part, GiB of the rank that holds most")
    for one in fitting:
        out.add_column(f"{one.workers:,} workers" if one.workers > 1 else "1 worker", justify="right", no_wrap=True)

    def line(name: str, *cells: str, end: bool = False) -> None:
        out.add_row(name, *cells, end_section=end)

    line("rows of a step", *(f"{one.batch:,}" for one in fitting))
    line("rows per worker", *(f"{one.batch / one.workers:,.0f}" for one in fitting), end=True)
    shown = [part for part in PARTS if any(one.parts[part] > 0 for one in fitting)]
    for part in shown:
        line(part, *(_ms(one.parts[part]) for one in fitting))
    line("step", *(_ms(one.seconds) for one in fitting))
    drawn = [one.simulated for one in fitting if one.simulated]
    line("step, simulated: median", *(_ms(each.median) for each in drawn))
    line("step, simulated: 95 %", *(_ms(each.p95) for each in drawn), end=True)
    line("rows/s", *(f"{one.rows_per_s:,.0f}" for one in fitting))
    line("efficiency", *(f"{one.efficiency:.2f}" for one in fitting))
    line("readers", *(f"{one.readers:.2f}" for one in fitting))
    line("limited by", *(one.limit for one in fitting), end=True)
    for place, kinds in _kinds(fitting).items():
        for kind in kinds:
            line(f"{_PLACES[place]}: {kind}", *(f"{one.memory.get(place, {}).get(kind, 0):,.2f}" for one in fitting))
        sums = [(sum(one.memory.get(place, {}).values()), one.room.get(place, 0)) for one in fitting]
        line(f"{_PLACES[place]}: all, of", *(f"{held:,.2f} of {room:,.0f}" for held, room in sums), end=True)
    return out


def remarks(found: Sequence[Forecast], hardware: Hardware, ids: str) -> list[str]:
    """Return what is to be known of the table.

    Args:
        found: the forecasts.
        hardware: the machines.
        ids: where lengths and frequencies of ids are from.
    """
    out = [f"{one.workers:,} workers: {one.refused}" for one in found if one.refused]
    for one in found:
        if one.refused is None:
            limit = f"{one.workers:,} workers: limited by {one.limit} ({PARTS[one.limit]})"
            advice = ", ".join(f"{each.change} {each.gain:.2f}" for each in one.advice)
            out.append(
                f"{limit}; times the rows/s, forecast: {advice}"
                if advice
                else f"{limit}; no change tried gives 5 % more"
            )
    return [*out, f"{hardware.name}; {ids}", *_assumed(hardware)]


def _assumed(hardware: Hardware) -> list[str]:
    return [text for text in hardware.sources if "assumed" in text or "Nothing" in text]


def plain(found: Sequence[Forecast], hardware: Hardware, ids: str) -> dict[str, Any]:
    """Return all of it as plain values, for JSON. Arguments as of `remarks`."""
    out = []
    for one in found:
        values: dict[str, Any] = {"workers": one.workers, "batch": one.batch}
        if one.refused is not None:
            out.append(values | {"refused": one.refused})
            continue
        values |= {"seconds": one.seconds, "parts": one.parts, "rows_per_s": one.rows_per_s}
        values |= {
            "efficiency": one.efficiency,
            "readers": one.readers,
            "limit": one.limit,
            "memory_gib": one.memory,
            "room_gib": one.room,
        }
        values["simulated"] = vars(one.simulated) if one.simulated else None
        values["advice"] = [vars(each) for each in one.advice]
        out.append(values)
    return {"hardware": hardware.model_dump(mode="json"), "ids": ids, "forecasts": out}


def draw(found: Sequence[Forecast], name: str, hardware: Hardware) -> Figure:
    """Return a picture: a step by its parts, rows per second beside those at the efficiency of the first, memory."""
    fitting = [one for one in found if one.refused is None]
    figure = Figure(figsize=(19, 6))
    top = header(figure, f"{name}: forecast", [hardware.name, "nothing here was run"])
    below = (0, 0, 1, 1 - top / figure.get_figheight())
    figure.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.2, h_pad=0.2, wspace=0.04, rect=below))
    step, rate, held = figure.subplots(1, 3)
    labels = [f"{one.workers:,}" for one in fitting]
    _bars(step, labels, {part: [1e3 * one.parts[part] for one in fitting] for part in PARTS})
    drawn = [one.simulated for one in fitting if one.simulated]
    if drawn:
        places = range(len(drawn))
        step.plot(places, [1e3 * each.median for each in drawn], "o", color="#222222", label="simulated, median")
        step.plot(places, [1e3 * each.p95 for each in drawn], "^", color="#222222", label="simulated, 95 %")
    panel(step, "A step", "workers", "milliseconds")
    legend_beside(step)
    workers, rates = [one.workers for one in fitting], [one.rows_per_s for one in fitting]
    rate.plot(workers, rates, "o-", color=COLORS[0], label="forecast")
    alike = [rates[0] / workers[0] * each for each in workers]
    rate.plot(workers, alike, "--", color="#6B6B6B", label=f"as efficient as {workers[0]:,}")
    rate.set(xscale="log", yscale="log", xticks=workers)
    rate.xaxis.set_major_formatter(ScalarFormatter())
    rate.xaxis.set_minor_formatter(NullFormatter())
    panel(rate, "Rows per second", "workers")
    legend_beside(rate)
    kinds = _kinds(fitting)
    place = "gpu" if "gpu" in kinds else "host"
    _bars(held, labels, {kind: [one.memory[place].get(kind, 0) for one in fitting] for kind in kinds[place]})
    panel(held, f"{_PLACES[place]} memory of the fullest rank", "workers", "GiB")
    if kinds[place]:
        legend_beside(held)
    else:
        missing(held, "of each kind less than 0.005 GiB")
    return figure


def _kinds(found: Sequence[Forecast]) -> dict[str, list[str]]:
    out: dict[str, dict[str, None]] = {}
    for one in found:
        for place, kinds in one.memory.items():
            out.setdefault(place, {}).update(dict.fromkeys(kind for kind, size in kinds.items() if size >= 0.005))
    return {place: list(kinds) for place, kinds in out.items()}


def _bars(axes: Any, labels: list[str], series: dict[str, list[float]]) -> None:
    below = [0.0] * len(labels)
    for number, (name, values) in enumerate(series.items()):
        if any(values):
            axes.bar(labels, values, bottom=below, label=name, color=(COLORS + MORE_COLORS)[number % 12], width=0.6)
            below = [start + value for start, value in zip(below, values, strict=True)]


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.2f}"
