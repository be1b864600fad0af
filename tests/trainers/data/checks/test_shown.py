"""What `livetrain data check` shows: tables, the picture, the exit code."""

import matplotlib.image
import numpy as np
import pytest
from rich.console import Console

from livetrain.configs.errors import BadInput
from livetrain.trainers.data.checks import plot, whole
from tests.trainers.data.checks.prepared import day_name, write


def shown(table) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text()


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    def spoil(number, rows):
        rows["room"] += 1000 * number
        rows["planted"] = rows["click"].astype(np.float32)

    return whole.check(write(tmp_path_factory.mktemp("spoilt"), spoil=spoil))


def test_the_tables_show_every_column_and_every_finding(checked):
    columns = shown(whole.columns_table(checked))
    assert all(name in columns for name in checked.dataset.schema.names)
    line = next(line for line in columns.splitlines() if " live_streamer " in line)
    cells = [cell.strip() for cell in line.split("│")[1:-1]]
    assert cells == ["live_streamer", "sequence", "int64 list", "length", "0", "0", "2", "5", "5"]
    findings = shown(whole.findings_table(checked))
    assert all(finding.subject in findings for finding in checked.findings)
    assert findings.count(" wrong ") == sum(finding.verdict == "wrong" for finding in checked.findings) > 0


def test_the_picture_shows_rates_unseen_ids_probes_and_lengths(checked, tmp_path):
    rates, unseen, probes, lengths = plot.draw(checked).axes
    (line,) = rates.get_lines()
    (label,) = [label for label in checked.labels if label.binary]
    assert line.get_ydata() == pytest.approx([day.mean for day in label.days])
    room = next(line for line in unseen.get_lines() if line.get_label() == "room")
    assert list(room.get_ydata()) == [1.0, 1.0, 1.0]
    assert probes.get_yticklabels()[-1].get_text() == "planted > click"
    assert probes.patches[-1].get_width() == pytest.approx(0.5)
    assert probes.patches[-1].get_facecolor() != probes.patches[0].get_facecolor()
    (step,) = lengths.get_lines()
    assert step.get_label() == "live_streamer, live_action: mean 2.5"
    assert day_name(0) in [unseen.xaxis.get_major_formatter()(tick, 0) for tick in unseen.get_xticks()]
    path = plot.write(checked, tmp_path / "check.png")
    assert matplotlib.image.imread(path).shape[:2] == (1000, 1600)
    assert [file.name for file in tmp_path.iterdir()] == ["check.png"]


def test_panels_without_data_say_so(tmp_path):
    roles = {"labels": [], "ids": ["user"], "dense": ["viewers"]}
    checked = whole.check(write(tmp_path, days=1, roles=roles))
    texts = [[text.get_text() for text in axes.texts] for axes in plot.draw(checked).axes]
    assert texts[0] == ["no label of 0 and 1"]
    assert texts[1] == ["no later part with ids"]
    assert texts[3] == ["no sequences"]


def test_a_picture_that_cannot_be_written_is_one_sentence(checked, tmp_path):
    with pytest.raises(BadInput, match="cannot be written .* name another file with --out"):
        plot.write(checked, tmp_path / "gone" / "check.png")
