"""A page of one explained request: a file of its own, with nothing that is loaded from elsewhere."""

import html
from typing import Any

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 0 0 2rem; } td, th { padding: .2rem .8rem; text-align: right; }
td.name, th.name { text-align: left; } tr:nth-child(even) { background: #8881; }
.bar { display: inline-block; height: .7rem; } .up { background: #1f77b4; } .down { background: #d62728; }
tr.chosen { font-weight: 600; } code { overflow-wrap: anywhere; }
"""
_WIDE = 160  # pixels of the longest bar


def page(content: dict[str, Any]) -> str:
    """Return a page.

    Args:
        content: `request`, `candidates` and `candidate` of `explain.Explained`.
    """
    request, candidate = content["request"], content["candidate"]
    told = {name: value for name, value in request.items() if name != "user"}
    rows = sorted(content["candidates"], key=lambda row: (row["place"] is None, row["place"]))
    headings = list(dict.fromkeys(name for row in rows for name in row))
    parts = [
        f"<h1>Request {_text(request['request_id'])}</h1>",
        _table(["", ""], [[name, _text(value)] for name, value in told.items()]),
        "<h2>The user</h2>",
        _table(["feature", "value"], [[name, _text(value)] for name, value in request["user"].items()]),
        f"<h2>{len(rows)} candidates</h2>",
        _table(
            headings,
            [[_text(row.get(name)) for name in headings] for row in rows],
            chosen=next((at for at, row in enumerate(rows) if row.items() <= candidate.items()), None),
        ),
    ]
    for task, each in candidate["tasks"].items():
        longest = max([abs(part) for part in each["parts"].values()], default=1) or 1
        found = [
            [name, f"{part:+.4f}", _bar(part / longest), _text(candidate["features"][name])]
            for name, part in each["parts"].items()
        ]
        found += [["all of them together, besides", f"{each['rest']:+.4f}", "", ""]]
        words = f"{each['score']:.4f}; {each['scale']} {each['value']:+.4f}, of {candidate['background']}"
        parts += [
            f"<h2>{_text(task)} of {_text(candidate['item'])}: {_text(words)} {each['base']:+.4f}</h2>",
            _table(["feature", "adds", "", "value"], found),
        ]
    title = html.escape(str(request["request_id"]))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Request {title}</title>'
        f"<style>{_STYLE}</style>{''.join(parts)}</html>\n"
    )


def _text(value: Any) -> str:
    shown = f"{value:.6g}" if isinstance(value, float) else "" if value is None else str(value)
    return html.escape(shown)


def _bar(share: float) -> str:
    return f'<span class="bar {"up" if share > 0 else "down"}" style="width:{abs(share) * _WIDE:.0f}px"></span>'


def _table(headings: list[str], rows: list[list[str]], chosen: int | None = None) -> str:
    head = "".join(f"<th{_name(at)}>{_text(heading)}</th>" for at, heading in enumerate(headings))
    body = "".join(
        f"<tr{' class=chosen' if at == chosen else ''}>"
        + "".join(f"<td{_name(place)}>{cell}</td>" for place, cell in enumerate(row))
        + "</tr>"
        for at, row in enumerate(rows)
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _name(place: int) -> str:
    return ' class="name"' if place == 0 else ""
