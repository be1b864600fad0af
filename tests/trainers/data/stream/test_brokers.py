"""Streams from brokers: Kafka by librdkafka's mock cluster, a NATS server that is killed and restarted, a bucket."""

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow.fs as fs
import pytest

from livetrain.configs.errors import BadInput
from livetrain.configs.stream_spec import load_stream
from livetrain.trainers.data.read.files import open_filesystem
from livetrain.trainers.data.stream import join
from livetrain.trainers.data.stream.lane import run_lane
from tests import store
from tests.trainers.data.stream import logs

MINUTES = {"every_s": 1800, "wait_s": 3600, "lateness_s": 60}


@pytest.fixture(scope="module")
def one_day(tmp_path_factory):
    return logs.drawn_and_prepared(tmp_path_factory.mktemp("one-day"), 8, 120, seed=9)


def test_kafka_is_read_from_the_manifests_offsets(one_day, tmp_path, monkeypatch):
    from confluent_kafka import Producer

    monkeypatch.setattr(join, "SPAN_ROWS", 25)  # so that there is something left to close after a kill
    raw, told, days = one_day
    producer = Producer({"bootstrap.servers": "none", "test.mock.num.brokers": 1, "session.timeout.ms": 6000})
    broker = next(iter(producer.list_topics(timeout=10).brokers.values()))
    for table, rows in told.items():
        for at, row in rows:
            producer.produce(table, json.dumps(row), key=str(row["user_id"]), timestamp=at)
        producer.produce(table, None, key="0", timestamp=rows[-1][0])  # a tombstone
    assert producer.flush(20) == 0
    source = {"kind": "kafka", "servers": f"{broker.host}:{broker.port}", "options": {"session.timeout.ms": 6000}}
    jobs = {"read": {"every_s": 0.01, "messages": 60}, "join": {"every_s": 0.01}}
    path = logs.spec(tmp_path / "stream.yaml", raw / "events.yaml", source, **MINUTES, idle_s=3600, jobs=jobs)
    logs.drained_with_kills(path, tmp_path / "out", 2)
    assert logs.samples(tmp_path / "out").equals(days)
    counted = logs.counts(tmp_path / "out")
    assert counted["messages"] == sum(map(len, told.values())) + 3
    assert counted["poison"] == 3
    assert counted["late"] == 0


def test_options_that_kafka_does_not_know_are_named(tmp_path):
    from livetrain.configs.stream_spec import KafkaSource
    from livetrain.trainers.data.stream.sources.kafka import Kafka

    with pytest.raises(BadInput, match=r"librdkafka does not take the options of a:1 .*group.idd"):
        Kafka(KafkaSource(kind="kafka", servers="a:1", options={"group.idd": "x"}))


class Message:
    """A message of Kafka, or an error that stands among messages."""

    def __init__(self, offset: int, wrong=None):
        self._offset, self._wrong = offset, wrong

    def error(self):
        return self._wrong

    def value(self) -> bytes:
        return b"{}"

    def topic(self) -> str:
        return "shows"

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self._offset

    def timestamp(self) -> tuple[int, int]:
        return 1, logs.BEGIN


def test_messages_that_came_with_an_error_are_not_lost():
    """The consumer stands behind them already."""
    from confluent_kafka import KafkaError

    from livetrain.configs.stream_spec import KafkaSource
    from livetrain.trainers.data.stream.sources.kafka import Kafka

    source = Kafka(KafkaSource(kind="kafka", servers="127.0.0.1:9"))
    source.close()
    given = [[Message(0), Message(-1, KafkaError(KafkaError._TRANSPORT)), Message(1)], [Message(2)], []]
    source._consumer = SimpleNamespace(consume=lambda most, wait: given.pop(0), pause=None, resume=None)
    place = ("shows", "0")
    source._places["shows", 0] = place
    taken, failed = list[str](), 0
    while given:
        try:
            for found in source.poll({place}, 9):
                taken += found.names
        except OSError:
            failed += 1
    assert (taken, failed) == (["offset 0", "offset 1", "offset 2"], 1)


class Server:
    """A NATS server with JetStream that keeps its files."""

    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._folder = folder
        self.start()

    def start(self) -> None:
        command = [
            Path(sys.executable).with_name("nats-server"),
            "-js",
            "-sd",
            str(self._folder),
            "-a",
            "127.0.0.1",
            "-p",
            str(self.port),
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 0.2):
                return
            time.sleep(0.05)
        raise AssertionError("the server does not start")

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


def test_a_nats_server_that_is_killed_and_restarted_costs_nothing(one_day, tmp_path):
    import nats

    raw, told, days = one_day
    server = Server(tmp_path / "nats")

    async def publish() -> None:
        client = await nats.connect(f"nats://127.0.0.1:{server.port}")
        stream = client.jetstream()
        await stream.add_stream(name="LIVE", subjects=["live.>"])
        rows = sorted(((at, table, row) for table, rows in told.items() for at, row in rows), key=lambda each: each[:2])
        for _, table, row in rows:
            await stream.publish(f"live.{table}", json.dumps(row).encode())
        await client.close()

    asyncio.run(publish())
    source = {"kind": "nats", "servers": f"nats://127.0.0.1:{server.port}", "stream": "LIVE"}
    jobs = {"read": {"every_s": 0.01, "messages": 40}, "join": {"every_s": 0.01}}
    path = logs.spec(tmp_path / "stream.yaml", raw / "events.yaml", source, **MINUTES, idle_s=3600, jobs=jobs)
    tree = path.read_text()
    for table in logs.FEEDS:
        tree = tree.replace(f"topic: {table}\n", f"topic: live.{table}\n")
    path.write_text(tree)
    said: list[str] = []
    kills = 0

    def tell(words: str) -> None:
        nonlocal kills
        said.append(words)
        if words.startswith("closed") and kills < 1:
            kills += 1
            server.kill()
            threading.Timer(0.7, server.start).start()

    (tmp_path / "out").mkdir()
    try:
        run_lane(load_stream(path), tmp_path / "out", 0, True, tell)
    finally:
        server.kill()
    assert logs.samples(tmp_path / "out").equals(days)
    assert logs.counts(tmp_path / "out")["messages"] == sum(map(len, told.values()))
    assert any("source bus does not answer" in words for words in said)
    assert "source bus answers again" in said


@pytest.mark.slow
def test_files_in_a_bucket_are_read_like_files_in_a_folder(one_day, tmp_path):
    raw, told, days = one_day
    for table, rows in told.items():
        logs.land(tmp_path / "land", table, rows, every=3_600_000, disorder=30_000)
    with store.served() as uri:
        filesystem, root = open_filesystem(uri)
        fs.copy_files(str(tmp_path / "land"), root, destination_filesystem=filesystem)
        path = logs.spec(tmp_path / "stream.yaml", raw / "events.yaml", {"kind": "folder", "path": uri}, **MINUTES)
        logs.drain(path, tmp_path / "out")
    assert logs.samples(tmp_path / "out").equals(days)
    assert not list((tmp_path / "out").rglob("copy-*"))
