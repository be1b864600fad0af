import math

import pytest
from matplotlib.figure import Figure

from tests.pictures import check, faults


def figure_and_axes(**more):
    figure = Figure(figsize=(6, 4), dpi=100, layout="constrained")
    return figure, figure.add_subplot(**more)


def test_a_picture_that_can_be_read_has_no_faults():
    figure, axes = figure_and_axes()
    axes.plot([0, 1, 2], [0.1, math.nan, 0.2], label="curve")
    axes.set_title("title", loc="left")
    axes.set_ylim(0, 1)
    axes.legend(loc="upper right")
    check(figure)


def test_texts_over_each_other_and_over_the_edge_are_named():
    figure, axes = figure_and_axes()
    axes.set_axis_off()
    axes.text(0.5, 0.5, "one long text", transform=axes.transAxes)
    axes.text(0.52, 0.51, "another", transform=axes.transAxes)
    figure.text(0.95, 0.02, "a text that is cut", ha="left")
    assert faults(figure) == ["'one long text' lies over 'another'", "'a text that is cut' leaves the page"]
    with pytest.raises(AssertionError, match="'one long text' lies over 'another'"):
        check(figure)


def test_texts_that_are_not_drawn_do_not_count():
    figure, axes = figure_and_axes()
    axes.text(0.5, 0.5, "seen", transform=axes.transAxes)
    axes.text(0.5, 0.5, "hidden", transform=axes.transAxes, visible=False)
    axes.set_xticks([0, 1, 50, 50.001], ["a", "b", "out of view", "out of view, too"])
    axes.set_xlim(0, 2)
    check(figure)
    axes.set_xlim(0, 60)
    assert "'out of view' lies over 'out of view, too'" in faults(figure)


@pytest.mark.parametrize(
    ("draw", "named"),
    [
        (lambda axes: axes.plot([0, 0.99, 1], [0, 0.97, 0], label="curve"), "the line 'curve'"),
        (lambda axes: axes.plot([0, 2], [0, 1.9], label="curve"), "the line 'curve'"),  # no vertex lies in the legend
        (lambda axes: axes.scatter([0.95], [0.95], label="dots"), "a point of 'dots'"),
        (lambda axes: axes.bar([0.5, 0.95], [0.2, 0.95], 0.1, label="bars"), "a bar"),
        (lambda axes: axes.errorbar([0.9], [0.5], [0.45], fmt="none", label="bars"), "an error bar"),
    ],
)
def test_a_legend_over_data_is_named(draw, named):
    figure, axes = figure_and_axes()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    draw(axes)
    axes.set_title("panel", loc="left")
    axes.legend(loc="upper right")
    assert faults(figure) == [f"the legend lies over {named} of 'panel'"]
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    check(figure)


def test_a_legend_may_lie_over_the_background():
    figure, axes = figure_and_axes()
    axes.plot([0, 0.2], [0, 0.2], label="curve")
    axes.axhline(0.95, zorder=1)
    axes.axvspan(0, 1, zorder=0)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.legend(loc="upper right")
    check(figure)
