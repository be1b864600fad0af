"""What happened, as rows of the raw files and of the truth."""

import numpy as np

from livetrain.trainers.data.simulator import live, people, profiles
from livetrain.trainers.data.simulator.live import Exposures
from livetrain.trainers.data.simulator.profiles import Ids
from livetrain.trainers.data.simulator.settings import SLOTS, TASKS, day_name
from livetrain.trainers.data.simulator.videos import Plays
from livetrain.trainers.data.simulator.world import World
from livetrain.trainers.data.simulator.write import Files

PAGES = np.array(["live_square", "feed", "follow", "nearby", "friend"])  # live_source_category by source
ENTERED = np.array(["click", "slide_up", "click", "slide_up", "click"])  # enter_live_action
TRUTH = "truth/date={day}/part-0.parquet"


class Recorder:
    """Writes a world's events to the files of KuaiLive, KuaiLive-M3 and the truth."""

    def __init__(self, world: World, ids: Ids, files: Files):
        self._world, self._ids, self._files = world, ids, files

    def live(self, slot: int, shown: Exposures) -> None:
        """Record a slot's live exposures; slots count from the log's start."""
        key = self._key(shown, np.arange(len(shown)))
        self._kuailive(slot, shown, key)
        self._m3(shown)
        true = {f"p_{task}": getattr(shown.chances, task) for task in TASKS}
        labels = (shown.click, shown.effective, shown.likes, shown.comments, shown.follow, shown.gifts)
        self._files.add(
            TRUTH.format(day=day_name(slot // SLOTS)),
            key
            | true
            | {"expected_watch_time": shown.chances.watch_time}
            | {task: (label > 0).astype(np.int8) for task, label in zip(TASKS, labels, strict=True)}
            | {
                "watch_time": (shown.watch_ms / 1000).astype(np.float32),
                "gift_value": (shown.gifts * shown.price).astype(np.float32),
            },
        )

    def _key(self, shown: Exposures, row: np.ndarray, time: np.ndarray | None = None) -> dict[str, np.ndarray]:
        room = shown.room[row]
        return {
            "user_id": self._ids.user[shown.user[row]],
            "live_id": self._ids.room[room],
            "streamer_id": self._ids.streamer[self._world.rooms.streamer[room]],
            "timestamp": shown.time[row] if time is None else time,
        }

    def _kuailive(self, slot: int, shown: Exposures, key: dict[str, np.ndarray]) -> None:
        add, settings = self._files.add, self._world.settings
        click = shown.click
        clicks = {name: column[click] for name, column in key.items()}
        add("kuailive/click.csv", clicks | {"watch_live_time": shown.watch_ms[click]})
        add("kuailive/negative.csv", {name: column[~click] for name, column in key.items()})
        for kind, number in (("comment", shown.comments), ("like", shown.likes)):
            row, time = live.action_times(shown, number, settings, kind, slot)
            add(f"kuailive/{kind}.csv", self._key(shown, row, time))
        row = np.repeat(np.arange(len(shown)), shown.gifts)
        turn = np.arange(len(row)) - np.repeat(np.cumsum(shown.gifts) - shown.gifts, shown.gifts)
        # The first gift at its own time, the others backwards from it, one per millisecond: a combo.
        gifts = self._key(shown, row, shown.gift_ms[row] - turn)
        add("kuailive/gift.csv", gifts | {"gift_price": shown.price[row]})
        if settings.social:
            followed = self._key(shown, np.flatnonzero(shown.follow), (shown.time + shown.watch_ms)[shown.follow])
            add(people.FOLLOWS, {name: followed[name] for name in ("user_id", "streamer_id", "timestamp")})

    def _m3(self, shown: Exposures) -> None:
        click = np.flatnonzero(shown.click)
        user, live_id, author, start = self._key(shown, click).values()
        source, none = shown.source[click], np.zeros(len(click), np.int64)
        self._files.add(
            "kuailive-m3/live_interaction.csv",
            {
                **{"user_id": user, "live_id": live_id, "author_id": author},
                "live_play_start_timestamp": profiles.stamps(start),
                "live_play_end_timestamp": profiles.stamps(start + shown.watch_ms[click]),
                "p_date": profiles.p_date(start),
                "live_source_category": PAGES[source],
                "enter_live_action": ENTERED[source],
                "is_auto_play": (source == 1).astype(np.int64),
                "is_follow_enter": shown.followed[click].astype(np.int64),
                "is_follow_leave": (shown.followed | shown.follow)[click].astype(np.int64),
                "play_duration": shown.watch_ms[click],
                "like_cnt": shown.likes[click],
                "comment_cnt": shown.comments[click],
                "send_gift_cnt": shown.gifts[click],
                "send_gift_num": shown.gifts[click],
                "follow_author_cnt": shown.follow[click].astype(np.int64),
                **{name: none for name in ("cancel_follow_author_cnt", "share_cnt", "report_live_cnt")},
            },
        )
        user, live_id, author, time = self._key(shown, np.flatnonzero(~shown.click)).values()
        self._files.add(
            "kuailive-m3/live_show.parquet",
            {"live_id": live_id, "user_id": user, "author_id": author, "show_timestamp": profiles.stamps(time)},
        )

    def videos(self, plays: Plays) -> None:
        """Record plays of short videos."""
        author = self._world.videos.author[plays.video]
        self._files.add(
            "kuailive-m3/photo_play.parquet",
            {
                "user_id": self._ids.user[plays.user],
                "photo_id": self._ids.video[plays.video],
                "author_id": self._ids.author[author],
                "enter_timestamp": profiles.stamps(plays.time),
                "leave_timestamp": profiles.stamps(plays.time + plays.watch_ms),
                "enter_play_type": np.full(len(plays), "slide_up"),
                "is_complete_play": plays.complete.astype(np.int64),
                "like_status_type": plays.like.astype(np.int64),
                "is_follow_before_play": plays.followed.astype(np.int64),
                "is_follow_after_play": (plays.followed | plays.follow).astype(np.int64),
            },
        )
