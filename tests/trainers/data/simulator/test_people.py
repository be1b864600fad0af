"""What lies beside KuaiLive's files: friends who lead where they were, vectors, interests; nothing if not asked for."""

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from livetrain.configs.errors import BadInput
from livetrain.trainers.data.simulator import Settings, oracle, people, simulate, world
from livetrain.trainers.data.simulator.live import Feed
from livetrain.trainers.data.simulator.profiles import Ids
from livetrain.trainers.data.simulator.state import VISITS, State
from livetrain.trainers.runtime import manifest

SOCIAL = 0.2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("people") / "world"
    simulate(Settings(1500, 3, 5, social=SOCIAL, content=0.5), out)
    return out


@pytest.fixture(scope="module")
def sql(folder):
    names = {path.stem: f"'{path}'" for path in folder.glob("kuailive*/*.*")}
    return lambda query: duckdb.sql(query.format(**names)).fetchnumpy()


def test_what_is_not_asked_for_changes_no_byte_of_the_rest(tmp_path):
    files = {}
    for name, chosen in {"plain": {}, "content": {"content": 0.5}, "social": {"social": 0.5}}.items():
        simulate(Settings(60, 1, 7, **chosen), tmp_path / name)
        files[name] = manifest.read(tmp_path / name)["files"]
    more = {"kuailive/streamer_emb_64.parquet", "kuailive/interest.csv"}
    assert files["content"].keys() - files["plain"].keys() == more
    assert {name: files["content"][name] for name in files["plain"]} == files["plain"]
    assert files["social"].keys() - files["plain"].keys() == {"kuailive/follow.csv", "kuailive/friend.csv"}
    assert files["social"]["kuailive/click.csv"] != files["plain"]["kuailive/click.csv"]


def test_a_friend_has_one_for_a_friend_and_ids_are_of_one_person():
    drawn = world.build(Settings(301, 1, 3, social=0.1))
    friends = drawn.users.friends
    for user, own in enumerate(friends):
        assert all(user in friends[other] for other in own if other < 301)
        assert user not in own
    assert (friends == 301).sum() == friends.shape[1]  # one is left over in every turn
    ids = Ids(drawn)
    pairs = people.friends(drawn, ids)
    told = {
        tuple(sorted(pair))
        for pair in zip(*(pairs[name].to_pylist() for name in ("user_id", "friend_id")), strict=True)
    }
    wanted = {
        tuple(sorted((int(ids.user[a]), int(ids.user[b])))) for a, own in enumerate(friends) for b in own if b < 301
    }
    assert told == wanted
    assert len(pairs) == len(told)
    assert not set(ids.user.tolist()) & set(ids.author.tolist())
    assert world.build(Settings(301, 1, 3)).users.friends.shape == (301, 0)


def test_friends_lead_the_share_that_is_asked_for_and_only_where_they_were():
    drawn = world.build(Settings(400, 1, 3, social=SOCIAL))
    state, feed = State(drawn), Feed(drawn)
    active = state.enter(60)
    random = np.random.default_rng(0)
    on_air = np.unique(drawn.rooms.streamer[active])
    user = random.integers(0, 400, 3000)
    for _ in range(3):
        state.visit(np.arange(0, 400, 2), random.choice(on_air, 200))
    visited = state.of_friends(user)
    room, source = feed._led(random, state, user, np.zeros(3000, np.int64), np.zeros(3000, np.int8))
    led = source == 4
    assert led.mean() == pytest.approx(SOCIAL, abs=4.5 * np.sqrt(SOCIAL * (1 - SOCIAL) / 3000))
    assert (visited[led] == drawn.rooms.streamer[room[led], None]).any(axis=1).all()
    assert (room[~led] == 0).all()
    none = State(drawn)
    none.enter(60)
    assert not feed._led(random, none, user, room, np.zeros(3000, np.int8))[1].any()


def test_the_newest_visits_are_remembered():
    state = State(world.build(Settings(50, 1, seed=2, social=0.1)))
    state.visit(np.array([4, 4, 7]), np.array([1, 2, 3]))
    state.visit(np.array([7] + [4] * (VISITS - 1)), np.arange(10, 10 + VISITS))
    assert sorted(state._visited[4]) == [2, *range(11, 10 + VISITS)]
    assert sorted(state._visited[7]) == [-1] * (VISITS - 2) + [3, 10]


def test_a_friend_was_there_before_and_about_the_share_of_visits_is_due_to_friends(sql):
    """The page of M3's plays says that a friend led there."""
    found = sql("""
        with plays as (select *, epoch_ms(live_play_start_timestamp) began from read_csv({live_interaction})),
        ties as (select user_id, friend_id from read_csv({friend})
                 union all select friend_id, user_id from read_csv({friend})),
        led as (select * from plays where live_source_category = 'friend')
        select (select count(*) from led) led, (select count(*) from plays) plays,
            (select count(*) from led where exists (select 1 from ties t, plays p where t.user_id = led.user_id
             and p.user_id = t.friend_id and p.author_id = led.author_id and p.began < led.began)) known""")
    assert found["known"][0] == found["led"][0] > 200
    assert 0.7 * SOCIAL < found["led"][0] / found["plays"][0] < 1.3 * SOCIAL


def test_labels_come_up_as_often_as_the_truth_says_where_friends_lead(folder):
    truth = oracle.read(folder, ["click", "p_click", "effective_view", "p_effective_view"])
    for task in ("click", "effective_view"):
        for part in np.array_split(np.argsort(truth[f"p_{task}"]), 8):
            true = truth[f"p_{task}"][part]
            assert abs(truth[task][part].sum() - true.sum()) < 4.5 * np.sqrt((true * (1 - true)).sum()) + 1


def test_follows_are_those_from_before_and_those_of_the_log(sql):
    found = sql("""
        select count(*) filter (f.timestamp < 1748102400000) before,
            count(*) filter (f.timestamp >= 1748102400000) later,
            count(*) filter (i.user_id is not null and f.timestamp >= 1748102400000) told,
            count(distinct (f.user_id, f.streamer_id)) pairs, count(*) all_of
        from read_csv({follow}) f left join read_csv({live_interaction}) i on i.user_id = f.user_id and
            i.author_id = f.streamer_id and i.follow_author_cnt = 1
            and epoch_ms(i.live_play_start_timestamp) <= f.timestamp""")
    assert found["later"][0] == found["told"][0] > 20
    assert found["before"][0] > 1500 * 2
    assert found["pairs"][0] == found["all_of"][0]


def test_a_streamers_vector_tells_who_that_is_as_much_as_is_asked_for():
    def vectors(content):
        drawn = world.build(Settings(20_000, 1, 4, content=content))
        table = pa.concat_tables(people.vectors(drawn, Ids(drawn)))
        return drawn.streamers, np.stack(table["embedding"].to_numpy())

    for content in (0.2, 0.8):
        streamers, found = vectors(content)
        assert found.shape[1] == 64
        assert (found**2).sum(1).mean() == pytest.approx(1, abs=0.1)
        inputs = [np.eye(12)[streamers.topic], np.eye(12)[streamers.second], streamers.quality[:, None]]
        known = np.concatenate([*inputs, streamers.charm[:, None]], axis=1)
        told = known @ np.linalg.lstsq(known, found, rcond=None)[0]
        assert (told**2).sum() / (found**2).sum() == pytest.approx(content, abs=0.06)


def test_users_choose_what_interests_them():
    drawn = world.build(Settings(4000, 1, 4, content=0.5))
    chosen = people.interests(drawn, Ids(drawn))["topics"].to_pylist()
    lists = [text.split("+") for text in chosen]
    assert all(1 <= len(own) == len(set(own)) <= 3 for own in lists)
    places = {topic: place for place, topic in enumerate(world.TOPICS)}
    taken = np.zeros((4000, 12), bool)
    for user, own in enumerate(lists):
        taken[user, [places[topic] for topic in own]] = True
    assert drawn.users.live_click[taken].mean() > drawn.users.live_click[~taken].mean() + 0.3


def test_other_files_hold_the_streamers_and_users_that_there_are(folder, sql):
    known = pq.read_table(folder / "kuailive/streamer_emb_64.parquet")
    assert known["streamer_id"].to_pylist() == sql("from read_csv({streamer})")["streamer_id"].tolist()
    assert set(sql("from read_csv({interest})")["user_id"]) == set(sql("from read_csv({user})")["user_id"])


@pytest.mark.parametrize("dial", ["social", "content"])
def test_dials_out_of_range_are_refused(dial):
    with pytest.raises(BadInput, match=f"--{dial} 1.5: choose a strength from 0 to 1"):
        Settings(100, 1, 1, **{dial: 1.5})
