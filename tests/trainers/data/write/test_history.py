import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livetrain.trainers.data.write.history import Timeline

# Few keys and few moments, so that ties, empty histories and full ones are common; far-apart values, so that nothing
# depends on keys or times being small.
KEYS = st.sampled_from([-(2**62), 3, 5, 2**62])
TIMES = st.sampled_from([-(2**61), 0, 1, 2, 10**18])
EVENTS = st.lists(st.tuples(KEYS, TIMES, st.integers(0, 5)), max_size=30)


def columns(events):
    key, time, value = (np.array([event[n] for event in events], np.int64) for n in range(3))
    return key, time, value


def features(events, questions, limit):
    """What a sample would carry: for each question, its history's values, and its count, total and rate."""
    key, time, value = columns(events)
    timeline = Timeline(key, time)
    spans = timeline.before(*(np.array([question[n] for question in questions], np.int64) for n in range(2)))
    offsets, found = timeline.latest(spans, limit)
    lists = [value[found[a:b]].tolist() for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
    rates = timeline.rate(spans, value).tolist()
    return list(zip(lists, spans.count.tolist(), timeline.total(spans, value).tolist(), rates, strict=True))


def slow_features(events, questions, limit):
    """The same by the definition, one question at a time."""
    answers = []
    for key, time in questions:
        earlier = sorted((event for event in events if event[0] == key and event[1] < time), key=lambda event: event[1])
        values = [event[2] for event in earlier]
        rate = sum(values) / len(values) if values else float("nan")
        answers.append((values[-limit:] if limit else [], len(values), sum(values), rate))
    return answers


def assert_same(found, wanted):
    assert [answer[:3] for answer in found] == [answer[:3] for answer in wanted]
    np.testing.assert_array_equal([answer[3] for answer in found], [answer[3] for answer in wanted])


@settings(deadline=None)
@given(EVENTS, st.lists(st.tuples(st.one_of(KEYS, st.just(4)), TIMES), max_size=10), st.integers(0, 6))
def test_equals_the_definition(events, questions, limit):
    assert_same(features(events, questions, limit), slow_features(events, questions, limit))


@settings(deadline=None)
@given(EVENTS.filter(bool), st.data())
def test_what_happens_at_or_after_a_row_never_changes_it(events, data):
    """Every event at or after the row's time may be changed, dropped, moved later or joined by others."""
    key, time, _ = data.draw(st.sampled_from(events))
    later = st.tuples(KEYS, TIMES.filter(lambda moment: moment >= time), st.integers(0, 5))
    changed = []
    for event in events:
        changed += [event] if event[1] < time else data.draw(st.lists(later, max_size=2))
    changed += data.draw(st.lists(later, max_size=4))
    question = [(key, time)]
    assert_same(features(changed, question, 3), features(events, question, 3))


@settings(deadline=None)
@given(EVENTS.filter(bool))
def test_an_earlier_event_of_the_key_does_change_the_count(events):
    key, time, _ = max(events, key=lambda event: event[1])
    question = [(key, time + 1)]
    more = [*events, (key, time, 5)]
    assert features(more, question, 3)[0][1] == features(events, question, 3)[0][1] + 1


def test_ties_keep_the_order_of_arrival_and_newest_is_last():
    events = [(5, 2, 1), (5, 1, 2), (5, 2, 3), (3, 0, 4), (5, 2, 5)]
    assert features(events, [(5, 3)], 3)[0][0] == [1, 3, 5]
    assert features(events, [(5, 3)], 9)[0][0] == [2, 1, 3, 5]


def test_events_of_the_same_instant_are_not_earlier():
    assert features([(5, 2, 1), (5, 2, 3)], [(5, 2)], 3)[0][:2] == ([], 0)


def test_a_part_of_the_spans_gives_that_part_of_the_histories():
    events = [(n % 3, n // 4, n) for n in range(40)]
    key, time, _ = columns(events)
    timeline = Timeline(key, time)
    spans = timeline.before(key, time)
    offsets, found = timeline.latest(spans, 4)
    part_offsets, part = timeline.latest(spans[10:25], 4)
    np.testing.assert_array_equal(part, found[offsets[10] : offsets[25]])
    np.testing.assert_array_equal(part_offsets, offsets[10:26] - offsets[10])


@settings(deadline=None)
@given(EVENTS, st.lists(st.tuples(KEYS, TIMES), max_size=6), st.integers(1, 6))
def test_the_last_spans_are_those_of_the_cut_histories(events, questions, limit):
    key, time, value = columns(events)
    timeline = Timeline(key, time)
    spans = timeline.before(*(np.array([question[n] for question in questions], np.int64) for n in range(2)))
    totals = timeline.total(spans.last(limit), value).tolist()
    assert totals == [sum(answer[0]) for answer in slow_features(events, questions, limit)]


def test_float_totals_are_refused():
    timeline = Timeline(np.array([1, 1]), np.array([1, 2]))
    spans = timeline.before(np.array([1]), np.array([3]))
    with pytest.raises(TypeError, match="booleans or integers"):
        timeline.total(spans, np.array([0.5, 0.25]))
