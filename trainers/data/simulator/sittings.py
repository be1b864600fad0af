"""When users sit down with the app, and how many live rooms and videos a sitting shows them."""

from dataclasses import dataclass

import numpy as np

from livetrain.trainers.data.simulator.settings import DAY_MS, SLOT_MS, SLOTS, START_MS
from livetrain.trainers.data.simulator.world import World, through_the_day

LIVE_MS, VIDEO_MS = 90_000, 40_000  # what an exposure adds to the length of a sitting
LONGEST_MS = 2 * 3_600_000


@dataclass(frozen=True)
class Moments:
    """Exposures of one domain on one day, in time order; which item is shown is not decided yet."""

    user: np.ndarray  # (n,) int64, row of Users
    time: np.ndarray  # (n,) int64, epoch ms; no user has two at the same time
    border: np.ndarray  # (SLOTS + 1,) positions where the slots begin

    def slot(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (users, times) of a slot of the day."""
        part = slice(self.border[number], self.border[number + 1])
        return self.user[part], self.time[part]


def of_day(world: World, day: int) -> tuple[Moments, Moments]:
    """Draw the moments of live rooms and of videos on a day.

    A user's sittings are Poisson, start at busy hours, and hold Poisson numbers of live exposures and of videos, spread
    evenly over the sitting's length.
    """
    random, users = world.settings.random("sittings", day), world.users
    user = np.repeat(np.arange(len(users)), random.poisson(users.sessions))
    live, video = random.poisson(users.live_length[user]), random.poisson(users.video_length[user])
    length = np.minimum(LIVE_MS * live + VIDEO_MS * video, LONGEST_MS)
    start = through_the_day(random.random(len(user))) * (DAY_MS - length - SLOT_MS) / DAY_MS
    opening = START_MS + day * DAY_MS

    def moments(number: np.ndarray) -> Moments:
        row = np.repeat(np.arange(len(user)), number)
        within = (start[row] + random.random(len(row)) * length[row]).astype(np.int64)
        return _in_order(user[row], opening + within, opening)

    return moments(live), moments(video)


def _in_order(user: np.ndarray, time: np.ndarray, opening: int) -> Moments:
    order = np.lexsort((time, user))
    user, time = user[order], time[order]
    while (same := (user[1:] == user[:-1]) & (time[1:] <= time[:-1])).any():
        time[1:][same] = time[:-1][same] + 1
    order = np.lexsort((user, time))
    time = time[order]
    return Moments(user[order], time, np.searchsorted(time, opening + SLOT_MS * np.arange(SLOTS + 1)))
