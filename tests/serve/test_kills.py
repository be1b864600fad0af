"""The command that kills servers, stores and publishers: a story of it, and that what is wrong is noticed."""

import pytest

from benchmarks import chaos_serve

pytestmark = pytest.mark.slow


def test_a_story_of_kills_ends_well_and_what_is_wrong_is_noticed(program, tmp_path, monkeypatch):
    pytest.importorskip("lmdb")
    monkeypatch.setattr(chaos_serve, "PROGRAM", program)
    chaos_serve.prepare(tmp_path)
    stage = chaos_serve.Stage(1, 1, tmp_path, 3)
    stage.play()
    stage.check()
    assert stage.tale.failures == []
    assert len(stage.tale.kills) == 3
    assert stage.tale.answers["whole"] > 0
    assert stage.tale.answers["told"] > 0
    for whole in (True, False):
        answer = next(each for each in stage.answers if each.whole == whole and each.scores is not None)
        answer.scores += 1e-3
        stage.tale.failures.clear()
        stage.check()
        assert any("has other scores" in failure for failure in stage.tale.failures)
        answer.scores -= 1e-3
    answer.fence -= 1
    stage.tale.failures.clear()
    stage.check()
    assert stage.tale.failures
    answer.fence, answer.refused, answer.scores = answer.fence + 1, "Refused: the request is wrong", None
    stage.tale.failures.clear()
    stage.check()
    assert any("refused: Refused" in failure for failure in stage.tale.failures)
