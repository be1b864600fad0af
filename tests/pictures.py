"""Whether a matplotlib figure can be read: for tests of pictures, by the boxes that its artists take on the page."""

from collections.abc import Iterator

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.path import Path
from matplotlib.text import Text
from matplotlib.transforms import Bbox

SLACK = 1.0  # pixels by which boxes may touch: a text's box is a little larger than its ink


def check(figure: Figure) -> None:
    """Assert that a figure can be read: see `faults`."""
    found = faults(figure)
    assert not found, "\n".join(found)


def faults(figure: Figure) -> list[str]:
    """Return a sentence for each text over another, each text that leaves the page, and each legend over data.

    Data are lines, points, bars and error bars. What lies in the background is none: lines of zorder 1 and below, as
    a threshold or a diagonal, and patches below zorder 1.
    """
    FigureCanvasAgg(figure).draw()
    boxes = [(text, text.get_window_extent()) for text in texts(figure)]
    out = [f"{_named(boxes[one][0])} lies over {_named(boxes[two][0])}" for one, two in _meeting([b for _, b in boxes])]
    page = figure.bbox
    for text, box in boxes:
        if min(box.x0 - page.x0, box.y0 - page.y0, page.x1 - box.x1, page.y1 - box.y1) < -SLACK:
            out.append(f"{_named(text)} leaves the page")
    for axes in figure.axes:
        own = [axes.get_legend()] if axes.get_legend() else []
        for legend in (*own, *figure.legends):
            box = legend.get_window_extent()
            out += [f"the legend lies over {what} of '{_title(axes)}'" for what in _data_in(axes, box)]
    return out


def texts(artist: Artist) -> Iterator[Text]:
    """Yield the texts that are drawn as part of an artist; ticks out of view are not."""
    if not artist.get_visible():
        return
    if isinstance(artist, Text):
        if artist.get_text().strip():
            yield artist
    elif isinstance(artist, Axis):
        for tick in artist._update_ticks():  # those in view; there is no public way to them
            yield from texts(tick)
        for text in (artist.label, artist.offsetText):
            yield from texts(text)
    else:
        hidden = isinstance(artist, Axes) and not artist.axison
        for child in artist.get_children():
            if not (hidden and isinstance(child, Axis)):
                yield from texts(child)


def _meeting(boxes: list[Bbox]) -> list[tuple[int, int]]:
    """Return the pairs of boxes that meet."""
    x0, y0, x1, y1 = np.array([box.extents for box in boxes]).reshape(-1, 4).T
    wide = np.minimum.outer(x1, x1) - np.maximum.outer(x0, x0)
    high = np.minimum.outer(y1, y1) - np.maximum.outer(y0, y0)
    return [(one, two) for one, two in np.argwhere((wide > SLACK) & (high > SLACK)) if one < two]


def _meet(one: Bbox, two: Bbox) -> bool:
    wide = min(one.x1, two.x1) - max(one.x0, two.x0)
    high = min(one.y1, two.y1) - max(one.y0, two.y0)
    return wide > SLACK and high > SLACK


def _data_in(axes: Axes, box: Bbox) -> list[str]:
    """Return what data of a panel lies in a box of the page; what is clipped away does not count."""
    seen = Bbox.intersection(box, axes.bbox)
    if seen is None or not axes.get_visible():
        return []
    found = []
    for artist in axes.get_children():
        if not artist.get_visible():
            continue
        if isinstance(artist, Line2D) and artist.get_zorder() > 1:
            points = artist.get_transform().transform(np.column_stack(artist.get_data(orig=False)).astype(float))
            joined = artist.get_linestyle() not in ("None", "none", "", " ")
            crossed = _path(points).intersects_bbox(seen, filled=False) if joined and len(points) > 1 else False
            if crossed or any(seen.contains(*point) for point in points):
                found.append(f"the line '{artist.get_label()}'")
        elif isinstance(artist, LineCollection) and artist.get_zorder() > 1:
            paths = [_path(artist.get_transform().transform(path.vertices)) for path in artist.get_paths()]
            if any(path.intersects_bbox(seen, filled=False) for path in paths if len(path.vertices) > 1):
                found.append("an error bar")
        elif isinstance(artist, PathCollection):
            points = artist.get_offset_transform().transform(np.ma.filled(artist.get_offsets(), np.nan))
            if any(seen.contains(*point) for point in points):
                found.append(f"a point of '{artist.get_label()}'")
        elif isinstance(artist, Patch) and artist is not axes.patch and artist.get_zorder() >= 1:
            found += ["a bar"] if _meet(artist.get_window_extent(), seen) else []
    return list(dict.fromkeys(found))


def _path(points: np.ndarray) -> Path:
    """Return the way through points; one that is not finite breaks it."""
    return Path(points).cleaned(remove_nans=True)


def _named(text: Text) -> str:
    return f"'{' '.join(text.get_text().split())}'"


def _title(axes: Axes) -> str:
    return axes.get_title(loc="left") or axes.get_title() or str(axes.get_label())
