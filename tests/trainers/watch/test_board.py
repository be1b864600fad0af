"""What `livetrain watch` shows: its JSON, its alarms, its page in a browser, and what Prometheus reads."""

import json
import re
import time
import urllib.error
import urllib.request

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from livetrain.configs.errors import BadInput, NotNow
from livetrain.trainers.runtime import runlog
from livetrain.trainers.watch import opened
from livetrain.trainers.watch.effects import Measures
from livetrain.trainers.watch.page import page
from livetrain.trainers.watch.serve import Server
from tests.browser import tab
from tests.trainers.watch.streams import BEGIN, close, open_stream, samples

MEASURES = Measures(
    {"click": '"click"', "gift": '"gift"'},
    {"conversion": ("gift", "click")},
    {"click": '"click_score"'},
    {"channel": '"channel"'},
)


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    folder = open_stream(tmp_path_factory.mktemp("watched") / "live")
    for number in range(40):
        close(folder, number, samples(60, number), late=number % 2)
    return folder


def follower(folder, alarms=(), behind=0.0, increments=4):
    """A follower's run with two lines; the newer one is published, and began where the older ended."""
    for day, first in (("2026-11-28", 0), ("2026-11-29", 2)):
        (folder / day).mkdir(parents=True)
        for number in range(first, increments):
            end = BEGIN + 300 * (number + 1)
            auc = 0.7 + 0.01 * number + (0.1 if day == "2026-11-29" else 0)
            figures = {"click.auc": auc, "click.pcoc": 1.1, "new.click.auc": 0.6, "rows": 60.0}
            runlog.note(folder / day, "eval", step=number, split="stream", **figures)
            told = {"start": end - 300, "end": end, "alarms": list(alarms), "behind_s": behind, "open": not alarms}
            runlog.note(folder / day, "increment", step=number, **told)
    (folder / "line.json").write_text('{"line": "2026-11-29"}')
    return folder


def board(*folders, late=0, measures=MEASURES, hours=24, metrics=None):
    found = opened([str(folder) for folder in folders], metrics, measures, hours, late)
    found.look(wholly=True)
    return found


def test_the_json_says_what_the_minutes_say(live, tmp_path):
    (part,) = board(live).data()["parts"]
    plots = {plot["title"]: plot for plot in part["plots"]}
    assert list(plots) == [
        *("Exposures in 1 min", "Put aside in 1 min", "click", "gift", "conversion", "Calibration"),
        *("click by channel", "gift by channel", "conversion by channel", "Calibration of click by channel"),
    ]
    (series,) = plots["Exposures in 1 min"]["series"]
    assert series["x"] == [BEGIN + 60 * number for number in range(40)]
    assert series["y"] == [60.0] * 40
    assert plots["Put aside in 1 min"]["series"][0]["y"] == [number % 2 for number in range(40)]
    tables = [samples(60, number).to_pandas() for number in range(40)]
    assert plots["click"]["series"][0]["y"] == pytest.approx([table["click"].mean() for table in tables])
    pcoc = [table["click_score"].sum() / table["click"].sum() for table in tables]
    assert plots["Calibration"]["series"][0]["y"] == pytest.approx(pcoc)
    assert [each["label"] for each in plots["click by channel"]["series"]][-1] == "(none)"
    whole, by = part["tables"]
    assert whole["columns"] == ["", "exposures", "click", "gift", "conversion", "PCOC of click"]
    assert [row[:2] for row in whole["rows"]] == [["last 15 min", "900"], ["last 1 d", "2,400"]]
    assert {row[0] for row in by["rows"]} == {"friend", "hot", 'near"by', "(none)"}
    assert dict(part["facts"])["closed up to"] == "2026-11-30 12:40:00 UTC"


def test_long_times_are_shown_in_bins_that_add_up(tmp_path):
    folder = open_stream(tmp_path / "live")
    for number in range(0, 600):
        close(folder, number, samples(3, number) if number % 100 == 0 else None)
    (part,) = board(folder, hours=24).data()["parts"]
    exposures, click = part["plots"][0]["series"][0], part["plots"][1]["series"][0]
    assert len(exposures["x"]) == 200  # of three minutes
    assert sum(exposures["y"]) * 3 == pytest.approx(18)
    assert len(click["x"]) == 6
    (part,) = board(folder, hours=1).data()["parts"]
    assert len(part["plots"][0]["series"][0]["x"]) == 60


def alarms(found):
    return [alarm["what"] for alarm in found.data()["alarms"]]


def test_a_sound_stream_raises_no_alarm(live):
    assert alarms(board(live)) == []


def test_scores_that_are_off_raise_one_alarm(tmp_path):
    folder = open_stream(tmp_path / "live")
    for number in range(40):
        close(folder, number, samples(60, number, factor=1.0 if number < 25 else 0.4))
    found = board(folder)
    assert alarms(found) == ["calibration of click"]
    tables = [samples(60, number, 1.0 if number < 25 else 0.4).to_pandas() for number in range(10, 40)]
    foretold, came = (sum(table[name].sum() for table in tables) for name in ("click_score", "click"))
    assert (
        f"{foretold:.0f} of click were foretold in the last 30 min, and {came} came"
        in (found.data()["alarms"][0]["text"])
    )


def test_scores_that_are_off_in_a_slice_are_told_with_it(tmp_path):
    folder = open_stream(tmp_path / "live")
    for number in range(40):
        rows = samples(60, number)
        click = pc.if_else(rows["channel"].is_null(), pa.scalar(0, pa.int8()), rows["click"])
        close(folder, number, rows.set_column(0, "click", click))
    assert alarms(board(folder)) == ["calibration of click where channel is (none)"]


def test_an_action_that_stops_is_told_and_an_exposure_too(tmp_path):
    folder = open_stream(tmp_path / "live")
    for number in range(60):
        close(folder, number, samples(60, number, gifts=number < 40))
    assert alarms(board(folder)) == ["no gift"]
    for number in range(60, 80):
        close(folder, number, None)
    assert alarms(board(folder)) == ["no exposure"]


def test_a_stream_that_lags_or_cannot_be_read_is_told(tmp_path):
    folder = open_stream(tmp_path / "live")
    close(folder, 0, samples(5, 0))
    assert alarms(board(folder, late=300)) == ["lag"]
    assert alarms(board(folder, late=0)) == []
    found = board(folder)
    close(folder, 1, samples(5, 0))
    (part,) = (folder / "date=2026-11-30/time=120100/lane=0").glob("part-0.parquet")
    part.write_bytes(b"no parquet")
    found.look()
    assert alarms(found) == ["cannot be read"]
    close(folder, 2, samples(5, 0))
    part.unlink()
    import pyarrow.parquet as pq

    pq.write_table(samples(5, 0), part)
    found.look()
    assert alarms(found) == []


def test_a_follower_shows_what_was_published_before_it_was_learned(tmp_path):
    found = board(follower(tmp_path / "din-follow"), measures=None)
    (part,) = found.data()["parts"]
    plots = {plot["title"]: plot for plot in part["plots"]}
    assert list(plots) == [
        *("Prequential auc", "Prequential auc by slice", "Prequential pcoc", "Behind the stream"),
    ]
    (series,) = plots["Prequential auc"]["series"]
    assert (series["label"], series["x"]) == ("click", [BEGIN + 300 * number for number in range(1, 5)])
    assert series["y"] == pytest.approx([0.7, 0.71, 0.72, 0.73])  # the older line's, which was published then
    assert alarms(found) == []


def test_a_line_that_is_over_is_not_read_again(tmp_path, monkeypatch):
    folder, read = follower(tmp_path / "din-follow"), []
    whole = runlog.read
    monkeypatch.setattr(runlog, "read", lambda run: read.append(run.name) or whole(run))
    found = board(folder, measures=None)
    first = found.data()["parts"]
    with (folder / "2026-11-29/metrics.jsonl").open("a") as log:
        log.write("{}\n")
    found.look()
    assert read == ["2026-11-28", "2026-11-29", "2026-11-29"]
    assert found.data()["parts"][0]["plots"] == first[0]["plots"]


def test_a_followers_alarms_are_told(tmp_path):
    folder = follower(tmp_path / "din-follow", alarms=["click.pcoc"], behind=2000.0)
    found = board(folder, measures=None)
    assert alarms(found) == ["drift of click.pcoc", "lag of the training"]
    assert "is 1.1000" in found.data()["alarms"][0]["text"]
    assert "nothing is published" in found.data()["alarms"][0]["text"]
    lines = [json.loads(line) | {"time": time.time() - 7200} for line in (folder / "2026-11-29/metrics.jsonl").open()]
    for day in ("2026-11-28", "2026-11-29"):
        (folder / day / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found.look()
    assert alarms(found)[-1] == "no increment"
    (folder / "line.json").write_text("{")
    found.look()
    assert alarms(found)[0] == "cannot be read"


def test_folders_that_are_nothing_are_named(tmp_path, live):
    with pytest.raises(NotNow, match="start `livetrain stream` first"):
        opened([str(tmp_path)], None, None, 24, 0)
    with pytest.raises(BadInput, match="one page shows one stream"):
        opened([str(live), str(live)], None, None, 24, 0)
    with pytest.raises(BadInput, match="--metrics: the stream is no local folder"):
        opened(["s3://bucket/live"], None, None, 24, 0)
    run = str(follower(tmp_path / "din-follow"))
    with pytest.raises(
        BadInput, match="--label: is of a stream, and .*din-follow is a follower's run; name the stream"
    ):
        opened([run], None, MEASURES, 24, 0)
    with pytest.raises(BadInput, match="--metrics: is of a stream"):
        opened([run], tmp_path / "metrics", None, 24, 0)
    opened([str(live), run], tmp_path / "metrics", MEASURES, 24, 0)


def ask(server, path):
    with urllib.request.urlopen(f"{server.address}{path}", timeout=30) as answer:
        return answer.headers, answer.read().decode()


def test_what_is_served(live, tmp_path):
    with Server(board(live, follower(tmp_path / "din-follow")), "127.0.0.1", 0) as server:
        headers, text = ask(server, "")
        assert headers["Content-Type"].startswith("text/html")
        assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", text)
        headers, text = ask(server, "data.json?1")
        assert [part["name"] for part in json.loads(text)["parts"]] == [str(live), "din-follow"]
        lines = ask(server, "metrics")[1].splitlines()
        newest = samples(60, 39).to_pandas()
        click = f'livetrain_stream_mean{{stream="{live}",measure="click",by="",value=""}}'
        assert [float(line.removeprefix(click)) for line in lines if line.startswith(click)] == pytest.approx(
            [newest["click"].mean()]
        )
        assert any(r'value="near\"by"' in line for line in lines)
        assert 'livetrain_follow_figure{run="din-follow",figure="click.pcoc"} 1.1' in lines
        assert "livetrain_watch_alarms 0.0" in lines
        assert len(lines) - len(set(line for line in lines if line.startswith("# TYPE"))) > 20
        with pytest.raises(urllib.error.HTTPError, match="404"):
            ask(server, "other")
        with pytest.raises(BadInput, match="--port"):
            Server(board(live), "127.0.0.1", server.server_address[1])


def test_words_of_samples_stay_words_in_the_page(live):
    data = board(live).data()
    data["parts"][0]["name"] = "</script><script>throw 1</script>"
    text = page(data)
    assert "<script>throw" not in text
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text)[1]
    assert json.loads(found) == data
    assert len(page()) < 20_000


SHOWN = "document.body?.dataset.drawn"


@pytest.mark.slow  # starts a browser
def test_a_browser_draws_a_page_that_stands_still(live, tmp_path):
    data = board(live).data()
    data["alarms"] = [{"of": "live", "what": "<b>lag</b>", "text": "it is late"}]
    (tmp_path / "page.html").write_text(page(data))
    with tab(tmp_path / "profile") as browser:
        browser.open(tmp_path / "page.html", SHOWN)
        titles = browser.run("[...document.querySelectorAll('h3')].map(each => each.textContent)")
        assert titles == [plot["title"] for plot in data["parts"][0]["plots"]]
        curves = browser.run(
            "[...document.querySelectorAll('figure')].map(each => each.querySelectorAll('path.curve').length)"
        )
        assert curves == [len(plot["series"]) for plot in data["parts"][0]["plots"]]
        assert browser.run("document.title") == "(1!) livetrain watch"
        assert browser.run("document.querySelector('#state').innerText").split("\n")[0] == "1 alarm"
        assert browser.run("document.querySelector('#state li b').textContent") == "⚠ live: <b>lag</b>"
        assert browser.run("document.querySelectorAll('table').length") == 2
        assert "newest: all" in browser.run("document.querySelector('svg[role=img]').getAttribute('aria-label')")
        key = "document.querySelector('svg[role=img]').dispatchEvent(new KeyboardEvent('keydown', {key: 'Home'}))"
        browser.run(key)
        assert browser.run("document.querySelector('output').textContent") == "11-30 12:00 UTC: all 60"
        wide = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        assert browser.run(wide)
        assert not browser.errors


@pytest.mark.slow  # starts a browser
def test_a_browser_follows_a_page_that_is_served_and_says_when_it_has_ended(tmp_path):
    folder = open_stream(tmp_path / "live")
    for number in range(20):
        close(folder, number, samples(60, number))
    found = board(folder)
    with tab(tmp_path / "profile") as browser:
        with Server(found, "127.0.0.1", 0) as server:
            browser.ask("Page.navigate", url=server.address)
            browser.wait(SHOWN)
            assert browser.run("document.querySelector('#state').innerText").strip() == "✓ No alarm"
            close(folder, 20, samples(77, 20))
            found.look()
            browser.wait("document.querySelector('figure output').textContent == 'newest: all 77'")
        browser.wait("document.title.startsWith('(1!)')")
        assert "does not answer" in browser.run("document.querySelector('#state').innerText")
