import re

import pytest

from livetrain.trainers.observe.report.contents import PARTS, contents
from livetrain.trainers.observe.report.report import write_report
from tests.browser import tab
from tests.trainers.observe.report.test_report import evaluations, outcome, timed, training, write

TASKS = ("click", "like", "<b>gift & co</b>")
DRAWN = "document.body?.dataset.drawn == 'yes'"
POINTS = """Bokeh.documents.flatMap(document => document.roots())
  .map(plot => plot.renderers.filter(glyph => glyph.name == "data").map(glyph => glyph.data_source.get_length()))"""
PLACE = """(() => {{  // of a point of the first plot, in pixels of the window
  const plot = Bokeh.documents[{plot}].roots()[0], view = Bokeh.index.roots.find(view => view.model === plot);
  view.el.scrollIntoView();
  const {{x, y}} = plot.renderers.filter(glyph => glyph.name == "data").at(-1).data_source.data;
  const box = view.el.getBoundingClientRect();
  return [box.x + view.frame.x_scale.compute(x[{point}]), box.y + view.frame.y_scale.compute(y[{point}])];
}})()"""
TOOLTIP = """(function told(root) {
  return [...root.querySelectorAll("*")].flatMap(node => [
    ...(node.classList.contains("bk-tooltip-row-value") ? [node.innerText.trim()] : []),
    ...(node.shadowRoot ? told(node.shadowRoot) : []),
  ]);
})(document)"""


def cells(selector):
    return f"[...document.querySelectorAll({selector!r})].map(cell => cell.textContent)"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    lines = [line | {f"{task}.loss": 0.4 for task in TASKS} for line in timed(training())]
    lines += [{"kind": "note", "text": "labels: </script><script>throw 1</script>"}]
    result = outcome(TASKS) | {"cut": {}, "skipped_rows": 0, "test.click.auc_low": 0.7, "test.click.auc_high": 0.75}
    result |= {"tables": {"user": {"rows": 1000, "occupied": 300, "occupancy": 0.3, "ids": 357, "collisions": 57}}}
    run = write(tmp_path_factory.mktemp("runs") / "run", [*lines, *evaluations(TASKS)], result)
    write_report(run)
    return run


def test_a_page_is_light_and_asks_for_nothing(run):
    page = (run / "report.html").read_text(encoding="utf-8")
    assert len(page) < 650_000
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", page)
    assert "<b>gift" not in page
    assert "<script>throw" not in page


@pytest.mark.slow  # starts a browser
def test_a_browser_shows_every_plot_table_and_link(run, tmp_path):
    with tab(tmp_path / "profile") as browser:
        browser.open(run / "report.html", DRAWN)
        points = browser.run(POINTS)
        # of each task the loss as logged and smoothed, the metric by its line, points and star, bins and lengths
        assert points == [[150, 150], [3, 3, 1], [4], [3]] * 3 + [[len(PARTS)]]
        shown = [panel for band in contents(run).bands for panel in band.panels]
        assert browser.run(cells("h3")) == [panel.title for panel in shown]
        first = browser.run(cells("table:first-of-type td"))
        assert first[:5] == ["click", "0.7312 (0.7000-0.7500)", "0.7123", "1.0400", "1,234"]
        heads = browser.run(cells("h2"))
        assert [head.strip() for head in heads] == ["test, 5,000 rows", *TASKS, "All figures", "Embedding tables"]
        assert browser.run("[...document.querySelectorAll('table')].map(table => table.rows.length)") == [4, 22, 2]
        assert browser.run(cells("table:last-of-type td"))[-6:] == ["user", "", "1,000", "300", "30.0%", "57"]
        assert browser.run(cells("a")) == ["metrics.jsonl", "result.json"]
        assert browser.run(cells("details li")) == ["labels: </script><script>throw 1</script>"]
        assert not browser.errors


@pytest.mark.slow  # starts a browser
def test_a_point_tells_what_it_is(run, tmp_path):
    with tab(tmp_path / "profile") as browser:
        browser.open(run / "report.html", DRAWN)
        told = {}
        for plot, point in ((1, 0), (2, 1), (3, 0), (10, 1)):
            browser.point(*browser.run(PLACE.format(plot=plot, point=point)))
            told[plot] = browser.wait(TOOLTIP)
            browser.point(0, 0)
        assert told[1] == ["test", "3,000", "0.7312", "0.7 to 0.75"]
        assert told[2][:3] == ["click", "0.2", "0.22"]
        assert told[2][-2:] == ["250", "0.22"]
        assert told[10][0] == TASKS[2]
        assert told[3][:2] == ["0 (12)", "0.61"]
        assert not browser.errors


@pytest.mark.slow  # starts a browser
def test_what_goes_wrong_in_a_page_is_seen(tmp_path):
    """The browser that the other tests look through is not blind."""
    page = tmp_path / "page.html"
    page.write_text(
        "<body data-drawn=yes><img src='http://nowhere.invalid/a.png'><script>console.error('ill')</script>"
    )
    with tab(tmp_path / "profile") as browser:
        browser.open(page, DRAWN)
        browser.wait("document.readyState == 'complete'")
        text = " ".join(browser.errors)
    assert "ill" in text
    assert "http://nowhere.invalid/a.png" in text
