"""A follower's ranks: rank 0 decides what is next, and all do it.

Nothing of what is decided depends on what another rank knows: rank 0 waits for the stream, opens and checks the files
of an increment, and sends what every rank needs. So ranks step together, and none waits for a batch that will not come.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from livetrain.cluster.stream import anchor, telling
from livetrain.cluster.stream.windows import Increment, Shed, Stream, increment, moment, shed
from livetrain.cluster.stream.words import CURRENT, Asked, Begin, End, LeaveOut, Take, Word, current
from livetrain.configs.errors import BadInput, NotNow, may_pass
from livetrain.configs.load import dump_recipe
from livetrain.trainers.data.read.increment import damage
from livetrain.trainers.data.read.spread import Looking
from livetrain.trainers.runtime import manifest, ranks, run_folder, runlog, signals
from livetrain.trainers.runtime.signals import Stopped
from livetrain.trainers.train import ids, preflight
from livetrain.trainers.train.increments import Learned, Line, checked, newest
from livetrain.trainers.train.loop import Job
from livetrain.trainers.train.stopping import Listener

T = TypeVar("T")

_LOOK_S, _NIGHT_S, _LAG_S = 0.5, 15.0, 60.0  # between two looks at the stream and at the nights, and two words on lag


class Following:
    """One rank's part in following a stream: `Following(asked, device).run()`.

    Args:
        asked: what for.
        device: this rank's. The default process group exists already.
        published: told that there may be something to publish; None where another process looks for it.
    """

    def __init__(self, asked: Asked, device: torch.device, published: Callable[[], None] | None = None) -> None:
        self.asked, self.device = asked, device
        self.lines: list[Line] = []  # the one that is published, and perhaps one that catches up
        self._published = published or (lambda: None)
        self._listener = Listener(asked.run)
        self._stream: Stream | None = None
        self._refused: set[str] = set()  # nights that cannot be followed, and why none can be looked for: said once
        self._looked = self._saved = self._lagged = time.monotonic()
        self._turn = 0
        self._alarmed: set[str] = set()
        self._silent = False
        self._away: str | None = None  # why an increment that is closed could not be read
        self._staged = ""

    def run(self) -> dict[str, Any]:
        """Follow until told to stop, or until all is learned; return what was.

        Raises:
            Stopped: it was told to.
            BadInput: there is no night or no stream, or an increment cannot be learned.
        """
        try:
            for begin in self._agreed(self._first):
                self._begin(begin)
            while not isinstance(word := self._agreed(self._next), End):
                self._do(word)
            for line in self.lines:
                line.saver.wait()
            return {"taken": self.lines[0].taken, "step": self.lines[0].step, "line": self.lines[0].job.run.name}
        finally:
            for line in self.lines:
                line.__exit__(None, None, None)

    def _agreed(self, work: Callable[[], T]) -> T:
        """Return what rank 0 finds, on every rank; raise what it raises on every rank."""
        found: Any = None
        if ranks.is_main():
            try:
                found = work()
            except (Exception, Stopped) as error:
                ranks.from_main(error)
                raise
        found = ranks.from_main(found)
        if isinstance(found, BaseException):
            raise found
        return found

    def _note(self, text: str) -> None:
        if ranks.is_main():
            runlog.note(self.asked.run, "note", text=text)

    def _stage(self, text: str) -> None:
        """Say what is being done, once: a follower waits for most of its time."""
        if ranks.is_main() and text != self._staged:
            self._staged = text
            runlog.note(self.asked.run, "stage", text=text)

    # What rank 0 decides.

    def _first(self) -> list[Begin]:
        """Return the lines to begin with: the newest night's, and before it the one that is ahead of it, if any is."""
        night = anchor.newest(self.asked.recipe, self.asked.runs, self.asked.nights)
        day, before = anchor.day_of(night), current(self.asked.run)
        begins = [self._line(night, beside=False)]
        if before is not None and before < day and self.asked.follow.handover == "beside":
            ahead, own = (newest(self.asked.line(each)) for each in (before, day))
            if ahead is not None and (own is None or own["position"]["taken"] < ahead["position"]["taken"]):
                old = night.with_name(f"{self.asked.recipe.name}-{before}")
                begins = [self._line(old, beside=False), self._line(night, beside=True)]
        taken = [newest(begin.job.run) for begin in begins]
        since = min(b.since if at is None else at["position"]["taken"] for b, at in zip(begins, taken, strict=True))
        self._stream = Stream(self.asked.follow.path, self.asked.every, since)
        return begins

    def _line(self, night: Path, beside: bool) -> Begin:
        """Return how the line of a night begins, once it is known that it can.

        Raises:
            BadInput: what a run is refused for too.
        """
        folder = self.asked.line(anchor.day_of(night))
        recipe = anchor.line_recipe(self.asked.recipe, night if night.exists() else folder)
        found = newest(folder)
        path = Path(night, "checkpoints", "none") if found else run_folder.find_checkpoint(night, "best")
        say = self._note if found is None else (lambda text: None)
        sources, statistics = preflight.check(recipe, say, Looking(spare=self.asked.run / ".looked"))
        folder.mkdir(parents=True, exist_ok=True)
        manifest.write_text(folder / "config.yaml", dump_recipe(recipe))
        job = Job(recipe, folder, sources, statistics, test=False, track=True)
        job.plan(recipe, ranks.world(), self.device.type)
        return Begin(job, path, anchor.first_second(recipe), beside)

    def _next(self) -> Word:
        """Wait for something to be done; a word of nothing at all shows the others that this rank is alive."""
        stop = time.monotonic() + _LAG_S
        assert self._stream is not None  # since `_first`
        while True:
            if any(signals.asked(self.asked.run, name) for name in (signals.STOP, signals.AGAIN)):
                raise Stopped
            self._stream.look()
            if (begin := self._night()) is not None:
                return begin
            for place in self._order():
                if (word := self._due(place)) is not None:
                    return word
            if self.asked.once:
                if (why := self._stream.failed or self._away) is not None:
                    raise NotNow(f"not all that is closed is learned: {why}")
                return End()
            self._published()
            self._wait()
            if time.monotonic() > stop:
                return None

    def _order(self) -> list[int]:
        """Return the lines in the order in which they are asked: where both have something to do they take turns."""
        self._turn = (self._turn + 1) % len(self.lines)
        return [*range(self._turn, len(self.lines)), *range(self._turn)]

    def _night(self) -> Begin | None:
        """Return the beginning of a line from another night, where there is one that the newest line is not of."""
        if time.monotonic() - self._looked < _NIGHT_S and not self.asked.once:
            return None
        self._looked = time.monotonic()
        latest = self.lines[-1].job.run.name
        try:
            night = anchor.newest(self.asked.recipe, self.asked.runs, self.asked.nights)
        except BadInput as error:
            if not may_pass(error) and str(error) not in self._refused:
                self._refused.add(str(error))
                self._note(f"ALARM: no new night is seen: {error}")
            return None
        day = anchor.day_of(night)
        if day == latest or day in self._refused:
            return None
        beside = self.asked.follow.handover == "beside" and day > latest and len(self.lines) == 1
        try:
            found = self._line(night, beside)
        except BadInput as error:
            if not may_pass(error):
                self._refused.add(day)
                self._note(f"the night {day} is not followed: {error}")
            return None
        self._note(f"the night {day} is there: " + ("its line catches up" if beside else "all starts over from it"))
        return found

    def _due(self, place: int) -> Word:
        """Return what a line has to do, if it has anything."""
        line, follow, every = self.lines[place], self.asked.follow, self.asked.every
        assert self._stream is not None
        minutes = self._stream.minutes
        if place == 0 and (left := shed(minutes, line.taken, every, follow.shed_after)) is not None:
            return LeaveOut(place, left)
        found = increment(minutes, line.taken, every)
        if found is None:
            return None
        self._away = None
        try:
            for minute in found.minutes:
                if (wrong := damage(self._stream.path, minute)) is not None:
                    return self._spoilt(place, found, wrong)
            self._stage(f"learning {found}, {found.rows:,} events")
            source = checked(line.recipe, self._stream.path, list(found.minutes), line.ids)
        except BadInput as error:
            if may_pass(error):
                self._away = str(error)
                self._stage(f"waiting: {error}")
                return None
            return self._spoilt(place, found, str(error))
        more = increment(minutes, found.end, every) is not None
        caught = place == 1 and found.end >= self.lines[0].taken
        save = source is not None and (not more or caught or time.monotonic() - self._saved >= every)
        return Take(place, found, source, save)

    def _spoilt(self, place: int, found: Increment, wrong: str) -> LeaveOut:
        """Return that an increment is left out which cannot be learned, if damaged data may be.

        Raises:
            BadInput: they may not.
        """
        if self.asked.recipe.data.on_corrupt == "stop":
            raise BadInput(f"{wrong}; write the minute again, or set data.on_corrupt: skip to leave {found} out")
        self._note(f"ALARM: {found} is left out: {wrong}")
        return LeaveOut(place, Shed(found.start, found.end, len(found.minutes), found.rows))

    def _wait(self) -> None:
        line, feed = self.lines[0], self._stream
        assert feed is not None
        until = moment((line.taken // self.asked.every + 1) * self.asked.every)
        quiet = time.monotonic() - feed.came
        self._stage(f"waiting for the stream to close {until}" if feed.failed is None else f"waiting: {feed.failed}")
        if (silent := quiet > telling.SILENT * self.asked.every) and not self._silent:
            self._note(f"ALARM: the stream has closed no minute for {telling.span(quiet)}; see whether it is at work")
        self._silent = silent
        if time.monotonic() - self._lagged > _LAG_S:
            self._lagged = time.monotonic()
            line.log.write("lag", step=line.step, **telling.lag(line.taken, feed.newest))
        time.sleep(_LOOK_S)

    # What all ranks do.

    def _do(self, word: Word) -> None:
        match word:
            case Begin():
                if not word.beside:
                    self._close(list(self.lines))
                self._begin(word)
            case Take():
                self._take(word)
            case LeaveOut():
                self._leave_out(word)

    def _begin(self, begin: Begin) -> None:
        line = Line(begin.job, self.device, begin.night, begin.since, self._listener)
        self.lines.append(line.__enter__())
        if len(self.lines) == 1:
            self._now_current()
        if ranks.is_main():
            assert self._stream is not None
            self._stream.again(min(each.taken for each in self.lines))
            self._note(f"{line.recipe.name} has learned up to {moment(line.taken)}")

    def _take(self, word: Take) -> None:
        line, found = self.lines[word.place], word.increment
        if found.start > line.taken:
            self._note(f"there is no minute of {moment(line.taken)} to {moment(found.start)}, so none is learned")
        learned = line.take(word.source, found.end)
        if word.save:
            line.save()
            self._saved = time.monotonic()
        if ranks.is_main():
            self._tell(word, learned)
        if len(self.lines) > 1 and self.lines[1].taken >= self.lines[0].taken:
            self.lines[1].saver.wait()
            self._close([self.lines[0]])
            self._now_current()
        if ranks.is_main():
            assert self._stream is not None
            self._stream.forget(min(each.taken for each in self.lines))
        if word.save and ranks.world() == 1:
            line.saver.wait()
            self._published()

    def _leave_out(self, word: LeaveOut) -> None:
        line, left = self.lines[word.place], word.left
        line.leave_out(left.end, left.minutes, left.rows)
        line.log.write("left_out", step=line.step, start=left.start, end=left.end, minutes=left.minutes, rows=left.rows)
        total = line.position["shed"]
        self._note(
            f"LEFT OUT: {moment(left.start)} to {moment(left.end)}, {left.minutes:,} minutes of {left.rows:,} events; "
            f"since the night {total['minutes']:,} minutes with {total['rows']:,} events"
        )

    def _close(self, lines: list[Line]) -> None:
        for line in lines:
            line.__exit__(None, None, None)
            self.lines.remove(line)

    def _now_current(self) -> None:
        """Let the first line be the one that is published; those before it keep no checkpoints."""
        self._alarmed = set(self.lines[0].position.get("alarms", ()))
        if not ranks.is_main():
            return
        name = self.lines[0].job.run.name
        manifest.write_json(self.asked.run / CURRENT, {"line": name})
        for left in self.asked.run.glob("????-??-??"):
            if left.name < name:
                shutil.rmtree(left / "checkpoints", ignore_errors=True)

    def _tell(self, word: Take, learned: Learned) -> None:
        """Write what came of an increment: for machines to the line's log, and for people."""
        line, found = self.lines[word.place], word.increment
        assert self._stream is not None
        lag = telling.lag(found.end, self._stream.newest)
        if learned.figures:
            line.log.write("eval", step=line.step, split="stream", **learned.figures)
        line.log.write(
            "increment",
            step=line.step,
            start=found.start,
            end=found.end,
            rows=found.rows,
            minutes=len(found.minutes),
            took_s=learned.seconds,
            alarms=learned.alarms,
            alarmed=len(learned.alarms),
            open=learned.open,
            shed_minutes=line.position["shed"]["minutes"],
            shed_rows=line.position["shed"]["rows"],
            tables={name: ids.figures(line.sharded, name) for name in ids.tables(line.sharded)},
            **lag,
        )
        who = "" if word.place == 0 else f"{line.recipe.name}, which catches up: "
        self._note(who + telling.line(line, found, learned, lag))
        if word.place == 0 and found.rows:
            for text in telling.alarms(line, learned, self._alarmed):
                self._note(text)
            self._alarmed = set(learned.alarms)
