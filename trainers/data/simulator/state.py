"""What has happened so far: the part of a world that changes from slot to slot."""

import numpy as np

from livetrain.trainers.data.simulator.settings import SLOT_MS, START_MS
from livetrain.trainers.data.simulator.world import World

BURST_STARTS, BURST_ENDS = 0.05, 0.3  # chance per slot that a room's burst starts, or ends
COOLING_MIN, CALMING_MIN = 20.0, 45.0  # time constants of a room's heat and of a user's excitement
VIDEO_SIGNAL, LIVE_SIGNAL = 0.7, 1.0  # excitement from an action in either domain
VISITS = 8  # of a user, the last ones, to which friends are led


class State:
    """Bursts, heat, excitement, follows and visits.

    heat_r and excitement_u are sums over earlier slots' actions, each forgotten exponentially, so that an action makes
    the next ones likelier for a while (a Hawkes process in steps of a slot).
    """

    def __init__(self, world: World):
        self._world = world
        self.burst = np.zeros(len(world.rooms), bool)
        self.heat = np.zeros(len(world.rooms), np.float32)
        self.excitement = np.zeros(len(world.users), np.float32)
        self._gained = np.zeros(len(world.users), np.float32)
        self._on_air = np.full(len(world.streamers), -1, np.int64)
        self._followed = np.zeros(0, np.int64)  # new (user, author) pairs, rising; favourites are not among them
        users = len(world.users) + 1  # the last one is nobody, whom those without a friend have for one
        self._visited = np.full((users, VISITS), -1)  # streamers
        self._visits = np.zeros(users, np.int64)

    def enter(self, slot: int) -> np.ndarray:
        """Go on to a slot of the log, counted from 0; return the rooms on air all through it, by topic."""
        self.heat *= np.float32(np.exp(-SLOT_MS / 60_000 / COOLING_MIN))
        self.excitement += self._gained
        self.excitement *= np.float32(np.exp(-SLOT_MS / 60_000 / CALMING_MIN))
        self._gained[:] = 0
        rooms, begin = self._world.rooms, START_MS + slot * SLOT_MS
        # Rooms are by rising start, so those that have begun are a prefix.
        begun = np.searchsorted(rooms.start, begin, side="right")
        active = np.flatnonzero(rooms.end[:begun] >= begin + SLOT_MS)
        active = active[np.argsort(rooms.topic[active], kind="stable")]
        drawn = self._world.settings.random("bursts", slot).random(len(active), dtype=np.float32)
        burst = self.burst[active]
        self.burst[active] = np.where(burst, drawn >= BURST_ENDS, drawn < BURST_STARTS)
        self._on_air[:] = -1
        self._on_air[rooms.streamer[active]] = active
        return active

    def room_of(self, streamer: np.ndarray) -> np.ndarray:
        """Return the room that each streamer has on air in this slot, or -1; so of streamer -1, who is none."""
        return np.where(streamer < 0, -1, self._on_air[streamer])

    def follows(self, user: np.ndarray, author: np.ndarray) -> np.ndarray:
        """Return which users follow which authors by now."""
        wanted, old = self._pair(user, author), (self._world.users.favourites[user] == author[:, None]).any(axis=1)
        place = np.searchsorted(self._followed, wanted)
        return old | (np.append(self._followed, -1)[place] == wanted)

    def follow(self, user: np.ndarray, author: np.ndarray) -> None:
        """Remember new follows."""
        new = np.unique(self._pair(user, author))
        self._followed = np.insert(self._followed, np.searchsorted(self._followed, new), new)

    def of_friends(self, user: np.ndarray) -> np.ndarray:
        """Return (n, FRIENDS * VISITS) the streamers whom each user's friends have visited of late; -1 is none."""
        friends = self._world.users.friends[user]
        return self._visited[friends].reshape(len(user), friends.shape[1] * VISITS)

    def visit(self, user: np.ndarray, streamer: np.ndarray) -> None:
        """Remember visits, the newest last; a user may come more than once."""
        order = np.argsort(user, kind="stable")
        user, streamer = user[order], streamer[order]
        turn = np.arange(len(user)) - np.searchsorted(user, user)
        self._visited[user, (self._visits[user] + turn) % VISITS] = streamer
        np.add.at(self._visits, user, 1)

    def excite(self, user: np.ndarray, signal: float) -> None:
        """Add to users' excitement from the next slot on; a user may come more than once."""
        np.add.at(self._gained, user, np.float32(signal))

    def warm(self, room: np.ndarray, actions: np.ndarray) -> None:
        """Add to rooms' heat; a room may come more than once."""
        np.add.at(self.heat, room, actions.astype(np.float32))

    def _pair(self, user: np.ndarray, author: np.ndarray) -> np.ndarray:
        return user * np.int64(self._world.authors) + author
