"""A picture of the floors and rooms, as SVG: python docs/picture.py > house.svg

On every floor the rooms stand in columns: an arrow goes from a room to one further left, whose code it imports. What
follows from other arrows is left out. Arrows between floors are drawn at the right, once per pair of floors.
"""

import sys
import textwrap
from collections.abc import Iterator
from html import escape
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import structure  # noqa: E402

COLOURS = {"configs": "#8a63d2", "modules": "#3f7fd0", "trainers": "#2b9c74", "cluster": "#c98a1b", "cli": "#d0506b"}
WIDTH, EDGE = 1010, 860  # of all, of a floor
LEFT, STEP = 142, 148  # of the first column, from one column to the next
BOX, HIGH, ROW = 116, 40, 50  # a room's width and height, from one room to the one below
LANE = 16  # height of an arrow that passes a column
PAD, GAP = 14, 18  # within a floor, between two floors
Place = tuple[str, ...]  # a room, or (room, room, column) where an arrow passes


def draw(root: Path) -> str:
    """Return the picture of a tree."""
    members, graph = structure.folders(root), structure.arrows(root)
    rooms = _rooms(members)
    uses = structure.joined(graph, rooms)
    parts, y, bands = [], 0.0, {}
    for floor in reversed(structure.FLOORS):
        own = [name for name in rooms if name.startswith(f"{floor}/")]
        inside, high, width = _floor(root, floor, {name: rooms[name] for name in own}, uses, y)
        title = f"{len(members.get(floor, ()))} files of its own" if floor in members else ""
        parts += [
            f'<rect y="{y:g}" width="{EDGE}" height="{high:g}" rx="10" class="f" {_in(floor)}/>',
            f'<text x="16" y="{y + high / 2 + 1:g}" class="n">{floor}</text>',
            f'<text x="16" y="{y + high / 2 + 17:g}" class="s">{title}</text>',
            *inside,
            *_names(members.get(floor, []), LEFT + STEP * width, y + high / 2),
        ]
        bands[floor] = (y, high)
        y += high + GAP
    parts += _between(graph, bands)
    return _frame(parts, y - GAP)


def _rooms(members: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return room -> its modules, those of rooms within it too; a floor's own files are in none."""
    tops = [where for where in members if "/" in where]
    tops = [where for where in tops if not any(where.startswith(f"{other}/") for other in tops)]
    return {top: [m for where in members if f"{where}/".startswith(f"{top}/") for m in members[where]] for top in tops}


def _floor(
    root: Path, floor: str, rooms: dict[str, list[str]], uses: structure.Graph, top: float
) -> tuple[list[str], float, int]:
    """Return the parts of one floor below `top`, its height, and its number of columns."""
    needs = _reduced({name: uses[name] & set(rooms) for name in rooms})
    depth = _depths(needs)
    columns: list[list[Place]] = [[] for _ in range(max(depth.values(), default=0) + 1)]
    for name in rooms:
        columns[depth[name]].append((name,))
    chains = [
        [(one,), *((one, other, str(at)) for at in range(depth[one] - 1, depth[other], -1)), (other,)]
        for one in needs
        for other in sorted(needs[one])
    ]
    for chain in chains:
        for place in chain[1:-1]:
            columns[int(place[2])].append(place)
    middle = _arranged(columns, chains)
    height = max((sum(_room_for(place) for place in column) for column in columns), default=0) or HIGH + 10
    high = height + 2 * PAD - (ROW - HIGH)
    at = {place: (LEFT + STEP * column, top + high / 2 + y) for place, (column, y) in middle.items()}
    parts = [f'<path d="{_curve(chain, at)}" class="a" marker-end="url(#tip)"/>' for chain in chains]
    for name, modules in rooms.items():
        x, y = at[(name,)]
        label, size = name.removeprefix(f"{floor}/"), structure.lines(root, modules)
        told = f"{name} imports from: {', '.join(sorted(uses[name])) or 'no other room'}"
        parts.append(
            f"<g {_in(floor)}><title>{escape(told)}</title>"
            f'<rect x="{x}" y="{y - HIGH / 2}" width="{BOX}" height="{HIGH}" rx="6" class="r"/>'
            f'<text x="{x + BOX / 2}" y="{y - 2}" class="l">{label}</text>'
            f'<text x="{x + BOX / 2}" y="{y + 13}" class="c">{len(modules)} files, {size:,} lines</text></g>'
        )
    return parts, high, len(columns) if rooms else 0


def _names(modules: list[str], x: float, y: float) -> Iterator[str]:
    """Yield the names of a floor's own files, where there is room for them."""
    names = [name for module in modules if (name := module.rpartition(".")[2]) and module not in structure.FLOORS]
    rows = textwrap.wrap(", ".join(names), int((EDGE - x) / 6.5)) if EDGE - x > 3 * STEP else []
    for number, row in enumerate(rows):
        yield f'<text x="{x + 14:g}" y="{y + 4 + 16 * (number - (len(rows) - 1) / 2):g}" class="s">{row}</text>'


def _reduced(needs: structure.Graph) -> structure.Graph:
    """Return the arrows that do not follow from others."""

    def reach(name: str) -> set[str]:
        return {far for other in needs[name] for far in (other, *reach(other))}

    return {name: others - {far for other in others for far in reach(other)} for name, others in needs.items()}


def _depths(needs: structure.Graph) -> dict[str, int]:
    """Return the column of each room: right of all that it imports."""

    def depth(name: str) -> int:
        return max((depth(other) + 1 for other in needs[name]), default=0)

    return {name: depth(name) for name in needs}


def _room_for(place: Place) -> int:
    return ROW if len(place) == 1 else LANE


def _arranged(columns: list[list[Place]], chains: list[list[Place]]) -> dict[Place, tuple[int, float]]:
    """Return the column and the height, from a floor's middle, of each place: near those that it has arrows with."""
    linked: dict[Place, list[Place]] = {}
    for chain in chains:
        for one, other in zip(chain, chain[1:], strict=False):
            linked.setdefault(one, []).append(other)
            linked.setdefault(other, []).append(one)
    found: dict[Place, tuple[int, float]] = {}
    for _ in range(8):
        for number, column in enumerate(columns):

            def mean(place: Place) -> float:
                heights = [found[other][1] for other in linked.get(place, ()) if other in found]
                return sum(heights) / len(heights) if heights else 0.0

            column.sort(key=mean)
            y = -sum(map(_room_for, column)) / 2
            for place in column:
                found[place] = (number, y + _room_for(place) / 2)
                y += _room_for(place)
    return found


def _curve(chain: list[Place], at: dict[Place, tuple[float, float]]) -> str:
    """Return the path of an arrow from a room over the places that it passes to another one."""
    x, y = at[chain[0]]
    out = [f"M{x},{y:g}"]
    for number, place in enumerate(chain[1:], 1):
        left, height = at[place]
        end = left + BOX + (3 if number == len(chain) - 1 else 0)
        bend = (x - end) / 2
        out.append(f"C{x - bend:g},{y:g} {end + bend:g},{height:g} {end:g},{height:g}")
        if number < len(chain) - 1:
            out.append(f"H{left}")
        x, y = left, height
    return " ".join(out)


def _between(graph: structure.Graph, bands: dict[str, tuple[float, float]]) -> Iterator[str]:
    """Yield the arrows from floor to floor, with their numbers of imports."""
    order = structure.FLOORS
    pairs = [(one, other) for high, one in enumerate(order) for other in order[:high]]
    for one, other in pairs:
        count = sum(structure.floor(t) == other for m in graph if structure.floor(m) == one for t in graph[m])
        if not count:
            continue
        lane = order.index(one) - order.index(other)
        start = bands[one][0] + bands[one][1] * (0.9 - 0.1 * lane)
        end = bands[other][0] + bands[other][1] * (0.1 + 0.1 * lane)
        out = EDGE + 44 * lane  # where the curve would turn
        yield (
            f"<g {_in(one)}><title>{one} imports from {other}: {count}</title>"
            f'<path d="M{EDGE},{start:g} C{out},{start:g} {out},{end:g} {EDGE + 4},{end:g}" class="b"'
            f' stroke-width="{1 + count**0.5 / 7:.1f}" marker-end="url(#tip)"/>'
            f'<text x="{EDGE + 33 * lane - 4}" y="{(start + end) / 2 + 4:g}" class="k">{count}</text></g>'
        )


def _in(floor: str) -> str:
    return f'fill="{COLOURS[floor]}" stroke="{COLOURS[floor]}"'


def _frame(parts: list[str], height: float) -> str:
    style = """
.house text{fill:currentColor;stroke:none;font-family:inherit;font-size:12px}
.house .n{font-size:17px;font-weight:700}.house .s,.house .c{font-size:10.5px;opacity:.75}
.house .l,.house .c{text-anchor:middle}.house .l{font-weight:600;font-size:13px}
.house .f{fill-opacity:.08;stroke-opacity:.4}.house .r{fill-opacity:.2}
.house .a{fill:none;stroke:currentColor;stroke-width:1.2;opacity:.6}
.house .b{fill:none}.house .k{font-size:11px;text-anchor:end}
.house #tip path{fill:currentColor;stroke:none;opacity:.75}"""
    tip = (
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7"'
        ' markerUnits="userSpaceOnUse" orient="auto"><path d="M0,0L8,4L0,8Z"/></marker></defs>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="house" viewBox="-2 -2 {WIDTH + 4} {height + 4:g}" role="img"'
        f' aria-label="The floors and rooms, and which imports from which"><style>{style}</style>{tip}'
        f"{''.join(parts)}</svg>"
    ).replace("\n", "")


if __name__ == "__main__":
    print(draw(Path(__file__).parents[1]))
