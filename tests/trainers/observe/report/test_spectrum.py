"""The picture of what frequency filters keep: it says of which run it is and how to read it."""

import math

import pytest
from matplotlib.image import imread

from livetrain.trainers.observe.report import spectrum
from tests import pictures

LONG = "what_the_user_has_watched_of_this_streamer_in_the_last_thirty_days"


def user(events: int, power: float = 1.0) -> dict:
    values = [power / (1 + place) for place in range(events // 2 + 1)]
    return {"events": events, "low": max(events // 8, 1), "power": values, "kept": [value / 3 for value in values]}


@pytest.mark.parametrize(
    ("run", "spectra"),
    [
        ("one", {"live": [user(8)]}),
        ("din-20261129", {"live": [user(8), user(20), user(35), user(50)], "video": [user(9), user(12)]}),
        (
            LONG * 2,
            {f"{LONG}_{place}": [user(500), user(8, math.nan), user(9, 0.0), user(50, 1e-30)] for place in (0, 1)},
        ),
    ],
)
def test_the_picture_can_be_read(run, spectra):
    figure = spectrum.draw(run, spectra)
    pictures.check(figure)
    assert len(figure.axes) == sum(map(len, spectra.values()))
    words = " ".join(text.get_text() for text in pictures.texts(figure))
    assert run[:20] in words
    assert "what the model's gates let through" in words


def test_it_appears_whole_and_only_where_there_is_something_to_draw(tmp_path):
    assert spectrum.write_spectrum(tmp_path, {"live": []}) is None
    path = spectrum.write_spectrum(tmp_path, {"live": [user(8)]})
    assert [file.name for file in tmp_path.iterdir()] == ["spectrum.png"]
    assert imread(path).shape[1] == 1600
