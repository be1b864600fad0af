"""Short videos of one slot: which are shown, and what users do."""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from livetrain.trainers.data.simulator import chances
from livetrain.trainers.data.simulator.state import VIDEO_SIGNAL, State
from livetrain.trainers.data.simulator.world import World, cumulative, draw_topics, draw_within

POPULAR, PERSONAL = 0.35, 0.45  # share of plays by where they come from; the rest is drawn evenly


@dataclass(frozen=True)
class Plays:
    """(n,) each, by time."""

    user: np.ndarray  # int64, row of Users
    video: np.ndarray  # int64, row of Videos
    time: np.ndarray  # int64, epoch ms
    watch_ms: np.ndarray  # int64
    complete: np.ndarray  # bool
    like: np.ndarray  # bool
    followed: np.ndarray  # bool, before
    follow: np.ndarray  # bool

    def __len__(self) -> int:
        return len(self.user)


class Player:
    """Shows videos that are uploaded by the day, and draws what users do with them."""

    def __init__(self, world: World):
        self._world = world
        self._topics = cumulative(world.users.video_click)
        self._shelf, self._shelf_topics, self._weight = np.zeros(0, int), np.zeros(0, int), np.zeros(0)

    def open(self, day: int) -> None:
        """Put out the videos that are uploaded by `day`."""
        videos = self._world.videos
        there = np.flatnonzero(videos.born <= day)
        self._shelf = there[np.argsort(videos.topic[there], kind="stable")]
        self._shelf_topics, self._weight = videos.topic[self._shelf], videos.weight[self._shelf]

    def slot(self, slot: int, state: State, user: np.ndarray, time: np.ndarray) -> Plays:
        """Draw a slot's plays; `state` takes in what they change."""
        videos, users = self._world.videos, self._world.users
        random = self._world.settings.random("videos shown", slot)
        source = np.searchsorted([POPULAR, POPULAR + PERSONAL], random.random(len(user)), side="right")
        wanted = np.where(source == 1, draw_topics(random, self._topics[user]), -1)
        place = draw_within(random, wanted, self._shelf_topics, self._weight)
        video = self._shelf[np.where(source == 2, random.integers(0, len(self._shelf), len(user)), place)]

        topic, author = videos.topic[video], videos.author[video]
        followed = state.follows(user, author)
        interest, value = users.video_click[user, topic], users.video_value[user, topic]
        excited = np.minimum(state.excitement[user], 3.0)
        calm = np.zeros(len(user))

        def happens(weights: dict[str, float], offset: np.ndarray = calm) -> np.ndarray:
            chance = expit(chances.logit(weights, offset, interest=interest, value=value, excited=excited))
            return random.random(len(user)) < chance

        complete = happens(chances.VIDEO_COMPLETE, 0.5 * users.patience[user])
        like = happens(
            chances.VIDEO_LIKE, users.warmth[user] - chances.balance("video_like", self._world.settings.conflict)
        )
        follow = happens(chances.VIDEO_FOLLOW, users.warmth[user]) & ~followed
        share = np.where(complete, 1.0, random.beta(0.6, 1.8, len(user)))
        watch_ms = np.maximum(np.floor(share * videos.duration_ms[video]), 200).astype(np.int64)
        state.follow(user[follow], author[follow])
        state.excite(user[like], VIDEO_SIGNAL)
        return Plays(user, video, time, watch_ms, complete, like, followed, follow)
