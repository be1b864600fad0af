"""What a simulated world is made from: the few choices of its user, and the documented constants of the model.

The constants marked "published" are figures of KuaiLive's and KuaiLive-M3's authors, those marked "measured" were
measured on KuaiLive's public files by others, and the rest are decisions of this model. benchmarks/simulator.py puts
the published and measured figures beside those of a simulated world.
"""

import zlib
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np

from livetrain.configs.errors import BadInput

FIRST_DAY = date(2025, 5, 25)  # in UTC+8, as KuaiLive's p_date
UTC8_MS = 8 * 3_600_000
DAY_MS = 86_400_000
SLOT_MS = 600_000  # states (bursts, excitement, who is on air) change at slot borders only
SLOTS = DAY_MS // SLOT_MS
START_MS = (FIRST_DAY - date(1970, 1, 1)).days * DAY_MS - UTC8_MS  # epoch ms at which day 0 begins

TOPICS = (
    *("shop", "talent", "game", "chat", "relationship", "food"),
    *("music", "outdoors", "dance", "fitness", "education", "news"),
)
TOPIC_SHARE = np.arange(1, len(TOPICS) + 1) ** -0.5 / (np.arange(1, len(TOPICS) + 1) ** -0.5).sum()
TASKS = ("click", "effective_view", "like", "comment", "follow", "gift")
EFFECTIVE_S = 30.0  # a view of at least so many seconds is effective

# Share of a day's activity per hour of UTC+8: an evening peak, a smaller one at noon, a trough from 2 to 6.
HOURS = (
    *(3.2, 2.0, 1.3, 0.9, 0.8, 1.0, 1.7, 2.8, 3.6, 4.2, 4.7, 5.4),
    *(6.2, 5.2, 4.5, 4.4, 4.6, 5.0, 5.6, 6.3, 7.3, 7.6, 6.9, 4.8),
)


@dataclass(frozen=True)
class Settings:
    """A world's size and dials.

    Args:
        users: number of users, at least 20.
        days: days of log, from 2025-05-25 on.
        seed: of everything that is random; the same settings give the same bytes.
        conflict: c in [0, 1]. Over users and topics, the correlation of the interest behind click and watch time with
            the one behind like, comment and gift is 1 - 2c.
        transfer: rho in [0, 1]. The correlation of a user's interests in short videos with those in live rooms.
        social: share in [0, 1] of the live exposures that lead to a streamer whom a friend has visited. 0: nobody has
            friends, and there are no files of people.
        content: share in [0, 1] of the squared length of a streamer's vector that comes of who the streamer is. 0:
            there are no such vectors, and no topics that users chose when they registered.
    """

    users: int
    days: int
    seed: int
    conflict: float = 0.5
    transfer: float = 0.7
    social: float = 0.0
    content: float = 0.0

    def __post_init__(self) -> None:
        if self.users < 20:
            raise BadInput(f"--users {self.users}: a world needs at least 20 users")
        if self.users > 10**8:
            raise BadInput(f"--users {self.users:.3g}: choose at most 100 million users")
        if not 1 <= self.days <= 365:
            raise BadInput(f"--days {self.days}: choose 1 to 365 days")
        if not 0 <= self.seed < 2**32:
            raise BadInput(f"--seed {self.seed}: a seed is from 0 to {2**32 - 1:,}")
        for name in ("conflict", "transfer", "social", "content"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadInput(f"--{name} {getattr(self, name)}: choose a strength from 0 to 1")

    @property
    def end_ms(self) -> int:
        """Epoch ms at which the log ends; nothing is recorded later."""
        return START_MS + self.days * DAY_MS

    def random(self, purpose: str, *index: int) -> np.random.Generator:
        """Return the random stream of one purpose and place, such as ("live", slot).

        Streams of different purposes or places are independent, so no draw depends on how work is cut into pieces.
        """
        return np.random.default_rng(
            np.random.SeedSequence(self.seed, spawn_key=(zlib.crc32(purpose.encode()), *index))
        )


def day_name(day: int) -> str:
    """Return the date of day 0, 1, ... as YYYY-MM-DD in UTC+8."""
    return (FIRST_DAY + timedelta(days=day)).isoformat()


def count(text: str) -> int:
    """Return the number that a person wrote: 500, 20k, 1.5m.

    Raises:
        BadInput: it is no such number.
    """
    factor = {"k": 1_000, "m": 1_000_000}.get(text[-1:].lower(), 1)
    digits = text[:-1] if factor > 1 else text
    try:
        value = float(digits) * factor
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise BadInput(f"--users {text}: write a number such as 500, 20k or 1.5m")
    if value != int(value):
        raise BadInput(f"--users {text}: that is no whole number of users")
    return int(value)
