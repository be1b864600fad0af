"""Subjects of NATS JetStream, by nats-py. A subject is one partition; offsets are sequences of its stream.

A consumer that the server forgets (a restart, a lost connection) is made again at the next sequence, and one that skips
a message, which the server counts, too: nothing is acknowledged, and nothing rests on what the server remembers.
"""

import asyncio
import logging
from collections.abc import Coroutine, Iterator
from typing import Any

from livetrain.configs.errors import BadInput
from livetrain.configs.stream_spec import NatsSource
from livetrain.trainers.data.stream.clock import Place
from livetrain.trainers.data.stream.sources.base import Messages

_PATIENCE_S = 5.0  # for the server's answer
_WAIT_S = 0.2  # for messages
_TURN = 5_000  # messages of one call


class Nats:
    """A source of subjects of one stream of JetStream.

    Raises:
        BadInput: nats-py is not installed.
    """

    def __init__(self, told: NatsSource):
        try:
            import nats
        except ImportError:
            raise BadInput("a source of kind nats needs nats-py; pip install 'livetrain[nats]'") from None
        logging.getLogger("nats").setLevel(logging.CRITICAL)  # what fails is told by the lane
        self._nats, self._told = nats, told
        self._loop = asyncio.new_event_loop()
        self._client: Any = None
        self._subjects: dict[Place, str] = {}
        self._next: dict[Place, int] = {}
        self._ends: dict[Place, int] = {}
        self._sure: dict[Place, float] = {}  # when the server last knew what pulls
        self._pulls: dict[Place, tuple[Any, int]] = {}  # what pulls, and the consumer's own next number

    def _asked(self, work: Coroutine) -> Any:
        from nats.errors import Error

        try:
            return self._loop.run_until_complete(asyncio.wait_for(work, 2 * _PATIENCE_S))
        except (Error, OSError, TimeoutError) as error:
            self._pulls.clear()  # made again at the next sequence
            raise OSError(str(error) or type(error).__name__) from error

    async def _stream(self) -> Any:
        """Return JetStream's context, of a connection that is made where there is none."""
        if self._client is None or self._client.is_closed:
            servers = self._told.servers.split(",")
            self._client = await self._nats.connect(
                servers, connect_timeout=_PATIENCE_S, max_reconnect_attempts=-1, reconnect_time_wait=0.2,
                allow_reconnect=True, error_cb=_quiet,
            )  # fmt: skip
        return self._client.jetstream(timeout=_PATIENCE_S)

    def partitions(self, topic: str) -> list[str]:
        return ["0"]

    def open(self, place: Place, topic: str, offset: Any) -> None:
        self._asked(self._open(place, topic, offset))

    async def _open(self, place: Place, topic: str, offset: Any) -> None:
        stream = await self._stream()
        state = (await stream.stream_info(self._told.stream)).state
        if offset is not None and offset > 1 and not state.first_seq <= offset <= state.last_seq + 1:
            raise BadInput(
                f"stream {self._told.stream} has sequences {state.first_seq} to {state.last_seq}, and {topic} goes on "
                f"at {offset}: messages are lost; restore them, or begin in a new folder"
            )
        self._subjects[place], self._next[place] = topic, offset or 1
        try:
            self._ends[place] = (await stream.get_last_msg(self._told.stream, topic)).seq
        except self._nats.js.errors.NotFoundError:
            self._ends[place] = 0

    def poll(self, places: set[Place], most: int) -> Iterator[Messages]:
        for place in sorted(places & self._subjects.keys()):
            left = most
            while left > 0:
                found = self._asked(self._fetch(place, min(left, _TURN), _WAIT_S if left == most else 0.01))
                if not found:
                    break
                self._next[place] = found[-1].metadata.sequence.stream + 1
                left -= len(found)
                yield Messages(
                    place,
                    [message.data for message in found],
                    [f"sequence {message.metadata.sequence.stream}" for message in found],
                    [int(message.metadata.timestamp.timestamp() * 1000) for message in found],
                    range(len(found)),
                    self._next[place],
                )

    async def _fetch(self, place: Place, most: int, wait: float) -> list[Any]:
        """Return what comes next, in the order of the stream and without a gap."""
        from nats.js import api

        if place not in self._pulls:
            config = api.ConsumerConfig(
                deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE,
                opt_start_seq=self._next[place],
                ack_policy=api.AckPolicy.NONE,
                inactive_threshold=600.0,
                mem_storage=True,
            )
            stream = await self._stream()
            pull = await stream.pull_subscribe(self._subjects[place], stream=self._told.stream, config=config)
            self._pulls[place] = (pull, 1)
        pull, number = self._pulls[place]
        try:
            found = await pull.fetch(most, timeout=wait)
        except TimeoutError:
            if not self._client.is_connected:
                raise
            if self._loop.time() - self._sure.get(place, 0.0) > _PATIENCE_S:
                await pull.consumer_info()  # an error where the server has forgotten it
                self._sure[place] = self._loop.time()
            return []
        whole: list[Any] = []
        for message in found:
            if message.metadata.sequence.consumer != number:
                self._pulls.pop(place)  # it skips one
                return whole
            whole.append(message)
            number += 1
        self._pulls[place] = (pull, number)
        return whole

    def ended(self, place: Place) -> bool:
        return self._next[place] > self._ends[place]

    def close(self) -> None:
        async def leave() -> None:
            if self._client is not None and not self._client.is_closed:
                await self._client.close()

        self._loop.run_until_complete(leave())
        self._loop.close()


async def _quiet(error: Exception) -> None:
    """Say nothing: what fails is told where it was asked."""
