"""Live exposures of one slot: which rooms are shown, and what users do there."""

from dataclasses import dataclass

import numpy as np

from livetrain.trainers.data.simulator import chances
from livetrain.trainers.data.simulator.chances import Chances
from livetrain.trainers.data.simulator.settings import EFFECTIVE_S, Settings
from livetrain.trainers.data.simulator.state import LIVE_SIGNAL, State
from livetrain.trainers.data.simulator.world import World, cumulative, draw_topics, draw_within

# Share of exposures by where they come from; the rest is drawn evenly from all rooms on air.
POPULAR, PERSONAL, FOLLOWED = 0.35, 0.30, 0.15
SECOND_TOPIC = 0.4  # weight of a streamer's second topic beside the room's own
MORE_LIKES, MORE_COMMENTS, MORE_GIFTS = 0.25, 0.35, 0.25  # chance of one more action of the kind, again and again
LATE_GIFTS = 0.12  # measured: 12.0 % of gifts match no view by time
PRICE_MEDIAN, PRICE_USER, PRICE_GIFT = 0.35, 2.0, 2.2  # gift price; log deviations between users and between gifts
PRICE_MOST = 56_246  # measured


@dataclass(frozen=True)
class Exposures:
    """(n,) each, by time; what the truth knows of live exposures."""

    user: np.ndarray  # int64, row of Users
    room: np.ndarray  # int64, row of Rooms
    time: np.ndarray  # int64, epoch ms
    source: np.ndarray  # int8: 0 popular, 1 personal, 2 followed, 3 random, 4 a friend
    followed: np.ndarray  # bool, before the exposure
    chances: Chances
    click: np.ndarray  # bool
    watch_ms: np.ndarray  # int64, 0 without a click
    effective: np.ndarray  # bool
    follow: np.ndarray  # bool
    likes: np.ndarray  # int64, number of likes
    comments: np.ndarray
    gifts: np.ndarray
    gift_ms: np.ndarray  # int64, when the gifts are sent, epoch ms
    price: np.ndarray  # int64, of each gift

    def __len__(self) -> int:
        return len(self.user)


class Feed:
    """Shows rooms and draws what users do.

    An exposure comes from one of four sources: rooms by popularity, rooms on a topic drawn by softmax of the user's
    interest, streamers he follows from the start, and rooms at random. Where a source has nothing on air the topic, or
    else popularity, takes its place. A slot shows a room to a user at most once. Where users have friends, a share of
    all exposures leads to streamers whom a friend has visited of late instead.
    """

    def __init__(self, world: World):
        self._world = world
        self._topics = cumulative(world.users.live_click)

    def slot(
        self, slot: int, state: State, active: np.ndarray, weight: np.ndarray, user: np.ndarray, time: np.ndarray
    ) -> Exposures:
        """Draw a slot's exposures and what follows from them.

        Args:
            slot: counted from the log's start.
            state: before the slot; the actions drawn here are added to it.
            active: rooms on air, by topic.
            weight: (S,) today's popularity of streamers.
            user, time: (n,) who looks when.
        """
        if not len(active):
            user, time = user[:0], time[:0]
        room, source = self._show(self._random("feed", slot), state, active, weight, user)
        if self._world.settings.social:
            room, source = self._led(self._random("led by friends", slot), state, user, room, source)
        _, first = np.unique(user * np.int64(len(self._world.rooms)) + room, return_index=True)
        first.sort()
        user, time, room, source = user[first], time[first], room[first], source[first]
        shown = self._act(self._random("actions", slot), state, user, room, time, source)
        self._remember(state, shown)
        return shown

    def _random(self, purpose: str, slot: int) -> np.random.Generator:
        return self._world.settings.random(purpose, slot)

    def _show(
        self, random: np.random.Generator, state: State, active: np.ndarray, weight: np.ndarray, user: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        if not len(user):
            return np.zeros(0, np.int64), np.zeros(0, np.int8)
        rooms = self._world.rooms
        source = np.searchsorted(np.cumsum([POPULAR, PERSONAL, FOLLOWED]), random.random(len(user)), side="right")
        favourites = self._world.users.favourites[user]
        friend = state.room_of(favourites[np.arange(len(user)), random.integers(0, favourites.shape[1], len(user))])
        source = np.where((source == 2) & (friend < 0), 1, source)
        topic = np.where(source == 1, draw_topics(random, self._topics[user]), -1)
        drawn = active[draw_within(random, topic, rooms.topic[active], weight[rooms.streamer[active]])]
        evenly = active[random.integers(0, len(active), len(user))]
        return np.select([source == 2, source == 3], [friend, evenly], drawn), source.astype(np.int8)

    def _led(
        self, random: np.random.Generator, state: State, user: np.ndarray, room: np.ndarray, source: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Let friends lead the share `social` of the exposures, or all that a friend can lead."""
        rooms = state.room_of(state.of_friends(user))
        passed = np.cumsum(rooms >= 0, axis=1)
        number = passed[:, -1]
        drawn = np.floor(random.random(len(user)) * number).astype(np.int64)
        chosen = rooms[np.arange(len(user)), (passed > drawn[:, None]).argmax(axis=1)]
        chance = self._world.settings.social * len(user) / max((number > 0).sum(), 1)
        led = (number > 0) & (random.random(len(user)) < chance)
        return np.where(led, chosen, room), np.where(led, 4, source).astype(np.int8)

    def _act(
        self,
        random: np.random.Generator,
        state: State,
        user: np.ndarray,
        room: np.ndarray,
        time: np.ndarray,
        source: np.ndarray,
    ) -> Exposures:
        settings, rooms, users = self._world.settings, self._world.rooms, self._world.users
        streamer = rooms.streamer[room]
        followed = state.follows(user, streamer)
        left_s = (np.minimum(rooms.end[room], settings.end_ms) - time) / 1000
        traits = {name: getattr(users, name)[user] for name in ("bias", "patience", "warmth", "purse")}
        true = chances.live(self._inputs(state, user, room, streamer), traits, followed, left_s, settings.conflict)

        number = len(user)
        click = random.random(number) < true.click
        watch_s = np.where(click, chances.watch(random, true.stay, left_s), 0.0)
        effective = click & (watch_s >= EFFECTIVE_S)
        given = np.maximum(true.effective_view, 1e-300)  # actions need an effective view; their chances are given one

        def acts(chance: np.ndarray) -> np.ndarray:
            return effective & (random.random(number) < chance / given)

        def times(acted: np.ndarray, more: float) -> np.ndarray:
            return np.where(acted, random.geometric(1 - more, number), 0)

        likes, comments = times(acts(true.like), MORE_LIKES), times(acts(true.comment), MORE_COMMENTS)
        follow, gifts = acts(true.follow), times(acts(true.gift), MORE_GIFTS)
        late = random.random(number) < LATE_GIFTS
        share = 0.05 + 0.95 * random.random(number)
        sent_s = np.where(late, watch_s + share * (left_s - watch_s), share * watch_s)
        price = np.exp(
            np.log(PRICE_MEDIAN) + PRICE_USER * traits["purse"] + PRICE_GIFT * random.standard_normal(number)
        )
        return Exposures(
            *(user, room, time, source, followed, true, click),
            watch_ms=np.floor(1000 * watch_s).astype(np.int64),
            effective=effective,
            follow=follow,
            likes=likes,
            comments=comments,
            gifts=gifts,
            gift_ms=time + np.floor(1000 * sent_s).astype(np.int64),
            price=np.clip(np.ceil(price), 1, PRICE_MOST).astype(np.int64),
        )

    def _inputs(self, state: State, user: np.ndarray, room: np.ndarray, streamer: np.ndarray) -> dict[str, np.ndarray]:
        users, streamers = self._world.users, self._world.streamers
        topic, second = self._world.rooms.topic[room], streamers.second[streamer]
        return {
            "interest": affinity(users.live_click, user, topic, second),
            "value": affinity(users.live_value, user, topic, second),
            "quality": streamers.quality[streamer],
            "charm": streamers.charm[streamer],
            "burst": state.burst[room],
            "heat": np.log1p(state.heat[room]),
            "excited": np.minimum(state.excitement[user], 3.0),
            "favourite": (users.favourites[user] == streamer[:, None]).any(axis=1),
            "friend": (state.of_friends(user) == streamer[:, None]).any(axis=1),
        }

    def _remember(self, state: State, shown: Exposures) -> None:
        streamer = self._world.rooms.streamer[shown.room]
        state.follow(shown.user[shown.follow], streamer[shown.follow])
        if self._world.settings.social:
            state.visit(shown.user[shown.click], streamer[shown.click])
        hot = np.flatnonzero((shown.likes > 0) | (shown.comments > 0))
        state.excite(shown.user[hot], LIVE_SIGNAL)
        acted = np.flatnonzero(shown.likes + shown.comments + shown.gifts)
        state.warm(shown.room[acted], (shown.likes + shown.comments + shown.gifts)[acted])


def affinity(interest: np.ndarray, user: np.ndarray, topic: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return (n,) how much users like rooms: (x_topic + w x_second) / sqrt(1 + w^2), w = SECOND_TOPIC.

    Over users its variance is 1, except where a room is on the streamer's second topic itself.
    """
    return (interest[user, topic] + SECOND_TOPIC * interest[user, second]) / np.sqrt(1 + SECOND_TOPIC**2)


def action_times(shown: Exposures, number: np.ndarray, settings: Settings, purpose: str, slot: int) -> tuple:
    """Place the actions of effective views.

    Args:
        shown: the exposures.
        number: (n,) actions of one kind at each.
        settings: of the world.
        purpose: names the kind, for its random stream.
        slot: of `shown`, counted from the log's start.

    Returns:
        (m,) row of `shown` and (m,) epoch ms: action i of k falls into the i-th k-th of the view, so none coincide.
    """
    row = np.repeat(np.arange(len(shown)), number)
    turn = np.arange(len(row)) - np.repeat(np.cumsum(number) - number, number)
    share = (turn + settings.random(purpose, slot).random(len(row))) / number[row]
    return row, shown.time[row] + np.floor(share * shown.watch_ms[row]).astype(np.int64)
