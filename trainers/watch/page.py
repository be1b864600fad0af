"""The page of `livetrain watch`: one file without anything beside it, for dark rooms and tired eyes.

It draws what `Board.data` says: given within the page it stands still, else it is asked for every few seconds. Alarms
come first, in words, and in the tab's title; every curve can be read with the keys, and without colours.
"""

import json
from typing import Any

EVERY_S = 5  # between two looks of the page
_STYLE = """
:root{color-scheme:light dark;--ink:#1d1d1f;--dim:#5c5c63;--paper:#fff;--hair:#dcdce0;--bad:#9c1c00;--good:#00623f}
@media(prefers-color-scheme:dark){:root{--ink:#ececef;--dim:#a5a5ad;--paper:#16161a;--hair:#3a3a42;--bad:#ff9c80;
--good:#6fd3a7}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);margin:20px auto;max-width:1500px;
padding:0 20px}
h1{font-size:1.3em;margin:0}h2{margin:28px 0 4px;overflow-wrap:anywhere}h3{font-size:1em;margin:0}
p,dt,figcaption{color:var(--dim);margin:0}ul{padding:0;margin:0;list-style:none}
#state{border-left:8px solid var(--good);padding:8px 16px;margin:12px 0}#state.bad{border-color:var(--bad)}
#state strong{font-size:1.5em;color:var(--good)}#state.bad strong{color:var(--bad)}
#state li{margin:8px 0;font-size:1.1em}
#state li b{color:var(--bad)}
dl{display:flex;flex-wrap:wrap;gap:4px 28px;margin:6px 0}dl div{display:flex;gap:8px}dd{margin:0;font-weight:600}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(400px,100%),1fr));gap:20px 28px}
figure{margin:0;min-width:0}svg{width:100%;height:auto;display:block;font-size:12px}svg:focus-visible{outline:2px solid}
text{fill:var(--dim)}.axis{stroke:var(--hair)}.level{stroke:var(--dim);stroke-dasharray:5 4}
.curve{fill:none;stroke-width:2}.at{stroke:var(--dim)}
.key{display:flex;flex-wrap:wrap;gap:2px 16px;color:var(--ink)}.key svg{display:inline-block;width:26px;height:12px}
output{display:block;min-height:1.5em;font-variant-numeric:tabular-nums}
.scroll{overflow-x:auto}table{border-collapse:collapse;margin:6px 0}caption{text-align:left;font-weight:600}
th,td{padding:3px 16px 3px 0;text-align:right;font-variant-numeric:tabular-nums}
th{font-weight:500;color:var(--dim);border-bottom:1px solid var(--hair)}th:first-child,td:first-child{text-align:left}
.missing{background:var(--hair);padding:50px 12px;text-align:center}
"""
_SCRIPT = """
"use strict";
const given = document.getElementById("data").textContent.trim();
const SHAPES = ["", "8 4", "2 3", "10 3 2 3", "14 4", "4 4 1 4"];
const WIDE = 480, HIGH = 190, LEFT = 54, RIGHT = 10, TOP = 8, LOW = 24;

function make(name, content, attributes = {}) {
  const drawn = ["svg", "path", "line", "text"].includes(name);
  const made = drawn ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  for (const part of [content].flat()) if (part !== null && part !== undefined) made.append(part);
  return made;
}
const when = (time, days) => new Date(1000 * time).toISOString().slice(days ? 5 : 11, 16).replace("T", " ");
function figure(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(4)));
}
function ticks(low, high) {
  const rough = (high - low) / 4, ten = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(each => each * ten).find(each => each >= rough);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-9; at += step) found.push(at);
  return found;
}
function colour(series) {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  return dark ? `color-mix(in srgb, ${series.color} 60%, white)` : series.color;
}

function plot(panel) {
  const head = [make("h3", panel.title), make("p", panel.about)];
  if (panel.missing) return make("figure", [...head, make("div", panel.missing, {class: "missing"})]);
  const xs = panel.series.flatMap(each => each.x), ys = panel.series.flatMap(each => each.y);
  if (panel.level !== null) ys.push(panel.level);
  const x0 = Math.min(...xs), x1 = Math.max(...xs, x0 + 1);
  let y0 = Math.min(...ys), y1 = Math.max(...ys);
  if (y0 > 0 && y0 < 0.6 * y1) y0 = 0;
  const room = (y1 - y0 || Math.abs(y1) || 1) * 0.08;
  y1 += room;
  if (y0 !== 0) y0 -= room;
  const px = x => LEFT + (x - x0) / (x1 - x0) * (WIDE - LEFT - RIGHT);
  const py = y => HIGH - LOW - (y - y0) / (y1 - y0) * (HIGH - LOW - TOP);
  const parts = ticks(y0, y1).flatMap(at => [
    make("line", null, {class: "axis", x1: LEFT, x2: WIDE - RIGHT, y1: py(at), y2: py(at)}),
    make("text", figure(at), {x: LEFT - 6, y: py(at) + 4, "text-anchor": "end"}),
  ]);
  const days = x1 - x0 > 86400;
  for (const [share, anchor] of [[0, "start"], [0.5, "middle"], [1, "end"]]) {
    const at = x0 + share * (x1 - x0);
    parts.push(make("text", when(at, days), {x: px(at), y: HIGH - 6, "text-anchor": anchor}));
  }
  if (panel.level !== null) {
    const y = py(panel.level);
    parts.push(make("line", null, {class: "level", x1: LEFT, x2: WIDE - RIGHT, y1: y, y2: y}));
  }
  panel.series.forEach((each, number) => {
    const places = each.x.map((x, at) => `${px(x).toFixed(1)} ${py(each.y[at]).toFixed(1)}`);
    const path = each.x.length > 1 ? `M${places.join("L")}` : `M${places[0]}h.01`;
    const style = `stroke:${colour(each)};stroke-dasharray:${SHAPES[number % SHAPES.length]};stroke-linecap:round`;
    const thick = each.x.length > 1 ? "" : ";stroke-width:7";
    parts.push(make("path", null, {class: "curve", d: path, style: style + thick}));
  });
  const at = make("line", null, {class: "at", y1: TOP, y2: HIGH - LOW, visibility: "hidden"});
  const last = panel.series.map(each => `${each.label} ${figure(each.y.at(-1))}`).join(", ");
  const svg = make("svg", [...parts, at], {viewBox: `0 0 ${WIDE} ${HIGH}`, tabindex: 0, role: "img",
    "aria-label": `${panel.title}, ${when(x0, true)} to ${when(x1, true)} UTC; newest: ${last}`});
  const told = make("output", `newest: ${last}`);
  const times = [...new Set(xs)].sort((a, b) => a - b);
  let place = times.length - 1;
  const tell = () => {
    at.setAttribute("x1", px(times[place])); at.setAttribute("x2", px(times[place]));
    at.setAttribute("visibility", "visible");
    const found = panel.series.map(each => [each.label, each.y[each.x.indexOf(times[place])]]);
    told.textContent = `${when(times[place], true)} UTC: ` +
      found.filter(([, y]) => y !== undefined).map(([label, y]) => `${label} ${figure(y)}`).join(", ");
  };
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect(), x = (event.clientX - box.left) / box.width * WIDE;
    const time = x0 + (x - LEFT) / (WIDE - LEFT - RIGHT) * (x1 - x0);
    place = times.reduce((best, each, now) => Math.abs(each - time) < Math.abs(times[best] - time) ? now : best, 0);
    tell();
  });
  svg.addEventListener("keydown", event => {
    const step = {ArrowLeft: -1, ArrowRight: 1, Home: -times.length, End: times.length}[event.key];
    if (!step) return;
    event.preventDefault();
    place = Math.max(0, Math.min(times.length - 1, place + step));
    tell();
  });
  const names = panel.key ? make("div", panel.series.map((each, number) => make("span", [
    make("svg", make("line", null, {x1: 0, x2: 26, y1: 6, y2: 6, style:
      `stroke:${colour(each)};stroke-width:3;stroke-dasharray:${SHAPES[number % SHAPES.length]}`}),
      {viewBox: "0 0 26 12", "aria-hidden": true}), ` ${each.label}`])), {class: "key"}) : null;
  return make("figure", [...head, svg, names, told]);
}

function table(panel) {
  const head = make("tr", panel.columns.map(word => make("th", word, {scope: "col"})));
  const rows = panel.rows.map(row => make("tr", row.map(word => make("td", word))));
  const made = make("table", [make("caption", panel.title), make("thead", head), make("tbody", rows)]);
  return make("div", made, {class: "scroll", tabindex: 0, role: "region", "aria-label": panel.title});
}

function draw(data) {
  state(data.alarms, `as of ${new Date(1000 * data.time).toISOString().slice(0, 19).replace("T", " ")} UTC`);
  document.getElementById("parts").replaceChildren(...data.parts.map(part => make("section", [
    make("h2", part.name),
    make("dl", part.facts.map(([name, value]) => make("div", [make("dt", name), make("dd", value)]))),
    ...part.tables.map(table),
    make("div", part.plots.map(plot), {class: "plots"}),
  ])));
  document.body.dataset.drawn = data.time;
}

function state(alarms, word) {
  const many = alarms.length, place = document.getElementById("state");
  const title = many === 0 ? "No alarm" : many === 1 ? "1 alarm" : `${many} alarms`;
  document.title = `${many ? `(${many}!) ` : ""}livetrain watch`;
  document.getElementById("time").textContent = word;
  const lines = alarms.map(each => make("li", [make("b", `\\u26a0 ${each.of}: ${each.what}`), make("br"), each.text]));
  if (place.dataset.shown === JSON.stringify(alarms)) return;  // or a screen reader would say it every few seconds
  place.dataset.shown = JSON.stringify(alarms);
  place.className = many ? "bad" : "";
  place.replaceChildren(make("strong", (many ? "" : "\\u2713 ") + title), make("ul", lines));
}

let busy = false;
async function look() {
  if (document.activeElement?.closest("svg") || document.querySelector("svg:hover")) return;  // somebody reads a curve
  if (busy) return;
  busy = true;
  try {
    const answer = await fetch("data.json", {cache: "no-store", signal: AbortSignal.timeout(30000)});
    if (!answer.ok) throw new Error(answer.statusText);
    draw(await answer.json());
  } catch (error) {
    const text = "`livetrain watch` does not answer; what stands below is old. Start it again, or see to its machine.";
    state([{of: "this page", what: "has no news", text}],
      `asked in vain at ${new Date().toISOString().slice(11, 19)} UTC`);
  } finally {
    busy = false;
  }
}
if (given) draw(JSON.parse(given));
else { look(); setInterval(look, 1000 * EVERY_S); }
"""


def page(data: dict[str, Any] | None = None) -> str:
    """Return the page.

    Args:
        data: of `Board.data`, for a page that stands still; None for one that asks for it.
    """
    given = "" if data is None else json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    script = _SCRIPT.replace("EVERY_S", str(EVERY_S))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<link rel="icon" href="data:,"><title>livetrain watch</title><style>{_STYLE}</style></head>
<body><main><h1>livetrain watch</h1><p id="time">loading; all times are UTC</p>
<div id="state" role="status" aria-live="polite"></div><div id="parts"></div></main>
<script type="application/json" id="data">{given}</script><script>{script}</script></body></html>
"""
