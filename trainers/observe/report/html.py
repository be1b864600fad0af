"""A page as one file for a browser: plots to point at, zoom into and hide curves of, tables and links. No network.

Bokeh draws it: kept by many, BSD, some MB to install. Its script of 1.3 MB is packed, as browsers have unpacked by
themselves since 2023; a page then weighs some 500 KB. Of what else there is, plotly's script weighs 4.6 MB, Vega needs
a package of 30 MB to be put into a page, and pygal's pages fetch their script from the network.
"""

import base64
import gzip
import json
from collections.abc import Sequence
from functools import cache
from html import escape
from typing import Any

from bokeh.core.types import ID
from bokeh.embed import json_item
from bokeh.models import (
    ColumnDataSource,
    FixedTicker,
    HoverTool,
    LogAxis,
    LogTicker,
    NumeralTickFormatter,
    PrintfTickFormatter,
    Range1d,
)
from bokeh.models.annotations import Legend
from bokeh.plotting import figure
from bokeh.resources import Resources

from livetrain.trainers.observe.report import panels as look
from livetrain.trainers.observe.report.page import Band, Page, Panel, Plot, Series, Stack, Table
from livetrain.trainers.observe.report.panels import GREY, HAIR

MARKERS = {
    "o": "circle", "s": "square", "^": "triangle", "D": "diamond", "v": "inverted_triangle", "P": "plus", "X": "x",
    "<": "hex", ">": "asterisk", "p": "star_dot", "h": "hex_dot", "*": "star", "": "dot",
}  # fmt: skip
DATA = "data"  # names the glyphs that stand for figures, in tests too
STYLE = """
body{font:14px/1.45 system-ui,sans-serif;color:#222;margin:24px auto;max-width:1500px;padding:0 20px}
h1{margin:0 0 8px;overflow-wrap:anywhere}h2{margin:32px 0 6px;overflow-wrap:anywhere}h3{margin:14px 0 0}
p,small,summary,dt{color:#6b6b6b}p{margin:2px 0 8px;white-space:pre-line}
dl{display:flex;flex-wrap:wrap;gap:4px 28px;margin:0}dl div{display:flex;gap:6px}dd{margin:0;overflow-wrap:anywhere}
.band{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(330px,100%),1fr));gap:8px 24px}
.band>div{min-width:0}.words{text-align:left!important}
.scroll{overflow-x:auto}table{border-collapse:collapse;margin:6px 0}th,td{padding:3px 14px 3px 0;text-align:right}
th{color:#6b6b6b;font-weight:500;border-bottom:1px solid #ccc}td{font-variant-numeric:tabular-nums}
.key span{display:inline-block;margin-right:16px}.key i{display:inline-block;width:10px;height:10px;margin-right:5px}
.missing{background:#f6f6f6;color:#6b6b6b;padding:60px 12px;text-align:center}
"""
START = """
(async () => {
  const unpacked = id => {
    const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), letter => letter.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  };
  const script = document.createElement("script");
  script.textContent = await unpacked("bokeh");
  document.head.append(script);
  for (const item of JSON.parse(await unpacked("plots"))) await Bokeh.embed.embed_item(item);
  document.body.dataset.drawn = "yes";
})();
"""


def html(page: Page) -> str:
    """Return a page as HTML that needs nothing beside it."""
    plots: list[dict[str, Any]] = []
    facts = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in page.facts)
    links = ", ".join(f'<a href="{escape(name)}">{escape(name)}</a> ({escape(what)})' for name, what in page.links)
    parts = [
        f"<h1>{escape(page.name)}</h1><dl>{facts}</dl>",
        f"<p>Beside this page: {links}</p>" if links else "",
        _table(page.figures) if page.figures else "<p>not evaluated yet</p>",
        *(_band(band, plots) for band in page.bands),
        *(_table(table) for table in page.tables),
        _notes(page.notes),
    ]
    data = _packed(json.dumps(plots, allow_nan=False, separators=(",", ":")))
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">',
            f"<title>{escape(page.name)}</title><style>{STYLE}</style></head><body>",
            *parts,
            f'<script type="text/plain" id="plots">{data}</script>',
            f'<script type="text/plain" id="bokeh">{_bokeh()}</script><script>{START}</script></body></html>\n',
        ]
    )


@cache
def _bokeh() -> str:
    return _packed("\n".join(Resources(mode="inline", components=["bokeh"], minified=True).js_raw))


def _packed(text: str) -> str:
    """Return a text, compressed, in letters; the same text gives the same."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def _table(table: Table) -> str:
    def cells(row: Sequence[str], tag: str) -> str:
        kinds = [' class="words"' if place < table.left else "" for place in range(len(row))]
        return "".join(f"<{tag}{kind}>{escape(word)}</{tag}>" for kind, word in zip(kinds, row, strict=True))

    rows = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in table.rows)
    head = f"<thead><tr>{cells(table.columns, 'th')}</tr></thead>"
    about = f"<p>{escape(table.about)}</p>" if table.about else ""
    return f'<h2>{escape(table.title)}</h2><div class="scroll"><table>{head}<tbody>{rows}</tbody></table></div>{about}'


def _notes(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f"<details><summary>Notes of the log ({len(notes)})</summary><ul>{items}</ul></details>" if notes else ""


def _band(band: Band, plots: list[dict[str, Any]]) -> str:
    color = f' style="color:{band.color}"' if band.color else ""
    title = f"<h2{color}>{escape(band.title)} <small>{escape(band.about)}</small></h2>" if band.title else ""
    return f'{title}<div class="band">{"".join(_panel(panel, plots) for panel in band.panels)}</div>'


def _panel(panel: Panel, plots: list[dict[str, Any]]) -> str:
    """Return a panel's place, and add what is drawn there to the plots."""
    head = f"<h3>{escape(panel.title)}</h3><p>{escape(panel.about)}</p>"
    if panel.missing:
        return f'<div>{head}<div class="missing">{escape(panel.missing)}</div></div>'
    place = f"plot{len(plots)}"
    drawn = _stack(panel) if isinstance(panel, Stack) else _plot(panel)
    plots.append(dict(json_item(drawn, ID(place))))
    key = ""
    if isinstance(panel, Stack) and panel.key:
        parts = [part for _, parts, _ in panel.rows for part in parts]
        spans = (f'<span><i style="background:{part.color}"></i>{escape(part.label)}</span>' for part in parts)
        key = f'<p class="key">{"".join(spans)}</p>'
    return f'<div>{head}<div id="{place}"></div>{key}</div>'


def _figure(height: int, **more: Any) -> Any:
    tools = "pan,box_zoom,reset,save"
    drawn: Any = figure(height=height, sizing_mode="stretch_width", tools=tools, toolbar_location="above", **more)
    drawn.toolbar.logo, drawn.toolbar.autohide, drawn.outline_line_color = None, True, None
    drawn.axis.axis_line_color, drawn.axis.major_tick_line_color, drawn.axis.minor_tick_line_color = GREY, None, None
    drawn.axis.axis_label_text_font_style, drawn.axis.axis_label_text_color = "normal", GREY
    drawn.grid.grid_line_color = HAIR
    return drawn


def _plot(plot: Plot) -> Any:
    kinds: dict[str, Any] = {
        f"{axis}_axis_type": "log" if log else "linear" for axis, log in zip("xy", plot.log, strict=True)
    }
    drawn = _figure(max(250, 32 * len(plot.names or ()) + 90), x_axis_label=plot.x, y_axis_label=plot.y, **kinds)
    for axis in drawn.axis:
        if isinstance(axis, LogAxis):  # by default ticks of one decade lie over each other
            axis.update(
                ticker=LogTicker(mantissas=[1, 2, 5], desired_num_ticks=4), formatter=PrintfTickFormatter(format="%.3g")
            )
    dashed = {"line_color": GREY, "line_dash": "dashed"}
    if plot.steps:
        drawn.xaxis.formatter = NumeralTickFormatter(format="0,0")
        drawn.x_range = Range1d(start=0, end=1.04 * max(max(series.x) for series in plot.series) or 1)
    if plot.diagonal:
        ends = [value for series in plot.series for values in (series.x, series.y) for value in values]
        drawn.line([min(ends), max(ends)], [min(ends), max(ends)], **dashed)
    if plot.names is not None:
        _name_rows(drawn, plot.names)
        if plot.level is not None:
            drawn.line([plot.level] * 2, [-0.6, len(plot.names) - 0.4], **dashed)
    elif plot.level is not None:
        last = max((max(series.x) for series in plot.series), default=1)
        drawn.line([0, last], [plot.level] * 2, **dashed)
    glyphs = {series.label: _series(drawn, plot, series) for series in plot.series}
    if plot.key:
        items = [(look.fitting(label, 2.6, 10), glyph) for label, glyph in glyphs.items()]
        drawn.add_layout(Legend(items=items, click_policy="hide", border_line_color=None), "right")
    return drawn


def _name_rows(drawn: Any, names: Sequence[str]) -> None:
    drawn.y_range = Range1d(start=len(names) - 0.4, end=-0.6)
    drawn.yaxis.ticker = FixedTicker(ticks=list(range(len(names))))
    drawn.yaxis.major_label_overrides = {place: look.fitting(name, 2.2, 10) for place, name in enumerate(names)}


def _series(drawn: Any, plot: Plot, series: Series) -> list[Any]:
    """Draw a series and its intervals, and say of each point what it is where one points at it."""
    x, y = ([float(f"{value:.6g}") for value in values] for values in (series.x, series.y))
    sideways = plot.names is not None
    data: dict[str, Any] = {"x": x, "y": y, "value": [f"{value:.6g}" for value in (x if sideways else y)]}
    shown = [(plot.x if sideways else plot.y or plot.title, "@value")]
    if plot.names is not None:
        data["at"] = [plot.names[int(place)] for place in series.y]
        shown = [("", "@at"), *shown]
    else:
        data["at"], data["label"] = [f"{value:,.6g}" for value in x], [series.label] * len(x)
        shown = [("", "@label"), (plot.x, "@at"), *shown]
    if series.low is not None and series.high is not None:
        ends = list(zip(series.low, series.high, strict=True))
        data["interval"] = ["-" if None in pair else f"{pair[0]:.4g} to {pair[1]:.4g}" for pair in ends]
        shown.append(("95 %", "@interval"))
    for number, (name, words) in enumerate(series.more.items()):
        data[f"more{number}"] = list(words)
        shown.append((name, f"@more{number}"))
    source, color = ColumnDataSource(data), series.color
    glyphs: list[Any] = []
    if series.low is not None and series.high is not None:
        bars = [bar for bar in zip(x, y, series.low, series.high, strict=True) if None not in bar]
        across, up, low, high = (list(ends) for ends in zip(*bars, strict=True)) if bars else ([],) * 4
        places = (low, up, high, up) if sideways else (across, low, across, high)
        glyphs.append(drawn.segment(*places, line_color=color, line_width=1.5, line_alpha=0.6))
    if series.form in ("line", "faint"):
        faint = series.form == "faint"
        style: dict[str, Any] = {"line_width": 1 if faint else 2, "line_alpha": 0.35 if faint else 1}
        glyphs.append(drawn.line("x", "y", source=source, line_color=color, name=DATA, **style))
    marker = "star" if series.form == "star" else MARKERS.get(series.marker, "circle")
    fill = "white" if series.form == "hollow" else color
    style = {"size": {"star": 15, "line": 5 if len(x) > 1 else 8}.get(series.form, 8), "fill_color": fill}
    if series.form != "faint" and not (series.form == "line" and len(x) > 40):
        glyphs.append(drawn.scatter("x", "y", source=source, marker=marker, line_color=color, name=DATA, **style))
    drawn.add_tools(HoverTool(renderers=glyphs[-1:], tooltips=shown, mode="mouse"))
    return glyphs


def _stack(stack: Stack) -> Any:
    data: dict[str, list[Any]] = {name: [] for name in ("row", "left", "right", "color", "part", "bar", "end")}
    for row, (name, parts, word) in enumerate(stack.rows):
        left = 0.0
        for part in parts:
            values = (row, left, left + part.size, part.color, part.label, name, word)
            for column, value in zip(data.values(), values, strict=True):
                column.append(value)
            left += part.size
    drawn = _figure(max(90, 32 * len(stack.rows) + 50))
    _name_rows(drawn, [name for name, _, _ in stack.rows])
    drawn.grid.grid_line_color, drawn.xaxis.visible = None, False
    bars = drawn.hbar("row", left="left", right="right", height=0.7, fill_color="color", line_color="white",
                      source=ColumnDataSource(data), name=DATA)  # fmt: skip
    whole = max(data["right"])
    named = [place for place in range(len(data["row"])) if data["right"][place] - data["left"][place] > 0.08 * whole]
    if not stack.key:
        middles = [(data["left"][place] + data["right"][place]) / 2 for place in named]
        style = {"text_align": "center", "text_baseline": "middle", "text_font_size": "12px"}
        drawn.text(middles, [data["row"][p] for p in named], [data["part"][p] for p in named],
                   text_color=[look.letters_on(data["color"][p]) for p in named], **style)  # fmt: skip
    drawn.x_range = Range1d(start=0, end=whole)
    drawn.add_tools(HoverTool(renderers=[bars], tooltips=[("", "@bar"), ("", "@part"), ("", "@end")]))
    return drawn
