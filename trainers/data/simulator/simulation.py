"""Simulate a world from beginning to end."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from livetrain.trainers.data.simulator import live, people, profiles, sittings, videos, world, write
from livetrain.trainers.data.simulator.profiles import Ids
from livetrain.trainers.data.simulator.records import TRUTH, Recorder
from livetrain.trainers.data.simulator.settings import SLOTS, Settings, day_name
from livetrain.trainers.data.simulator.state import State
from livetrain.trainers.data.simulator.world import World

VERSION = 1  # of the model; a change of what is drawn raises it


def simulate(settings: Settings, out: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> dict:
    """Write a world's raw files and truth below `out`.

    Memory: the latent state (a few hundred bytes per user, streamer, room and video), one day's moments, and
    write.BUFFER rows per file; benchmarks/results/simulator.md has figures.

    Args:
        settings: the world's size and dials.
        out: a new or empty folder.
        progress: told (slots done, slots in all).

    Returns:
        Rows by file.

    Raises:
        BadInput: `out` is not empty or cannot be written.
    """
    with write.folder(out, version=VERSION, settings=asdict(settings)) as draft:
        drawn = world.build(settings)
        ids, files = Ids(drawn), write.Files(draft)
        _write_profiles(drawn, ids, draft)
        if settings.social:
            write.whole(draft / people.FRIENDS, [people.friends(drawn, ids)])
            files.add(people.FOLLOWS, people.followed(drawn, ids))
        if settings.content:
            write.whole(draft / "kuailive/streamer_emb_64.parquet", people.vectors(drawn, ids))
            write.whole(draft / "kuailive/interest.csv", [people.interests(drawn, ids)])
        _live_through(drawn, Recorder(drawn, ids, files), files, progress)
        files.close_all()
        return files.rows


def _write_profiles(drawn: World, ids: Ids, draft: Path) -> None:
    tables = {
        "kuailive/user.csv": profiles.users,
        "kuailive/streamer.csv": profiles.streamers,
        "kuailive/room.csv": profiles.rooms,
        "kuailive-m3/live_room_meta.parquet": profiles.room_meta,
        "kuailive-m3/photo_meta.parquet": profiles.video_meta,
        "kuailive-m3/photo_tag.csv": profiles.video_tags,
        "kuailive-m3/author_profile.csv": profiles.authors,
    }
    for name, table in tables.items():
        write.whole(draft / name, [table(drawn, ids)])
    write.whole(draft / "kuailive-m3/live_emb_64.parquet", profiles.room_vectors(drawn, ids))
    write.whole(draft / "kuailive-m3/photo_emb_128.parquet", profiles.video_vectors(drawn, ids))
    np.save(draft / "kuailive/title_embeddings.npy", profiles.titles(drawn))


def _live_through(drawn: World, recorder: Recorder, files: write.Files, progress: Callable[[int, int], None]) -> None:
    settings = drawn.settings
    state, feed, player = State(drawn), live.Feed(drawn), videos.Player(drawn)
    for day, weight in enumerate(world.popularity(settings, drawn.streamers)):
        shown_live, shown_videos = sittings.of_day(drawn, day)
        player.open(day)
        for of_day in range(SLOTS):
            slot = day * SLOTS + of_day
            active = state.enter(slot)
            recorder.videos(player.slot(slot, state, *shown_videos.slot(of_day)))
            recorder.live(slot, feed.slot(slot, state, active, weight, *shown_live.slot(of_day)))
            progress(slot + 1, settings.days * SLOTS)
        files.close(TRUTH.format(day=day_name(day)))
