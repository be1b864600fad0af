import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livetrain.cli import main
from livetrain.trainers.data.write.ids import string_id, string_ids

# From XXH64's reference implementation (seed 0): the empty string and "abc", unsigned.
KNOWN = {"": 0xEF46DB3751D8E999, "abc": 0x44BC2CF5AD770999}


@pytest.mark.parametrize("text", KNOWN)
def test_an_id_is_the_reference_hash_read_as_signed(text):
    assert string_id(text) % 2**64 == KNOWN[text]
    assert -(2**63) <= string_id(text) < 2**63


def test_documented_values_hold():
    assert [string_id(text) for text in ("", "F", "é")] == [
        -1205034819632174695,
        -878615982807369771,
        1717938401253289848,
    ]


def test_no_normalisation():
    composed, decomposed = "\u00e9", "e\u0301"
    assert len({string_id(text) for text in (composed, decomposed, " é", "É")}) == 4


@settings(deadline=None)
@given(st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)))
def test_columns_hash_as_their_values(texts):
    wanted = [None if text is None else string_id(text) for text in texts]
    column = pa.array(texts, pa.string())
    for form in (column, column.dictionary_encode(), pa.chunked_array([column[:1], column[1:]], pa.string())):
        ids = string_ids(form)
        assert ids.type == pa.int64()
        assert ids.to_pylist() == wanted


def test_the_command_prints_an_id_per_line(capfd, monkeypatch):
    monkeypatch.setattr("sys.argv", ["livetrain", "hash", "F", "é", ""])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 0
    assert capfd.readouterr().out.split() == ["-878615982807369771", "1717938401253289848", "-1205034819632174695"]
