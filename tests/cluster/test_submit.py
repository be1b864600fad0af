"""Jobs for real: a head node of this machine, with token authentication, and the command line against it."""

import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from livetrain.cluster import parcel, submit
from livetrain.configs.errors import BadInput, NotNow
from livetrain.configs.load import dump_recipe, load_recipe
from tests import heads, outside, samples
from tests.wheels import OUTSIDE, tracked

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def head(tmp_path_factory) -> Iterator[heads.Head]:
    with heads.started(tmp_path_factory.mktemp("home")) as started:
        yield started


@pytest.fixture
def recipe(tmp_path) -> Path:
    """A recipe file of one Ray worker, with its data beside it."""
    settled = samples.recipe(samples.write(tmp_path / "data"), cluster__workers=1, train__epochs=1)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(settled))
    return tmp_path / "recipe.yaml"


@pytest.mark.slow
def test_a_submitted_recipe_trains_once_whatever_the_number_of_submissions(head, recipe, tmp_path):
    words = ("submit", str(recipe), "--runs", str(tmp_path / "runs"), "--id", "once")
    first = head.livetrain(*words)
    assert first.code == 0, first.err
    assert "MiB, as job once" in first.err
    assert "checking the data" in first.out
    assert "test AUC" in first.out
    assert "job once succeeded" in first.err
    written = (tmp_path / "runs/small/result.json").stat().st_mtime_ns
    again = head.livetrain(*words)
    assert (again.code, again.out) == (0, "")
    assert "job once has already succeeded at 20" in again.err
    assert (tmp_path / "runs/small/result.json").stat().st_mtime_ns == written
    other = head.livetrain(*words, "train.epochs=3")
    assert other.code == 2
    assert "--id: once is the id of a job with another recipe" in other.err


@pytest.mark.slow
def test_a_plugin_travels_with_the_job_and_reaches_both_workers(head, recipe, tmp_path):
    """Only who submits, and who exports later, finds the package; on the cluster it is in the job's folder."""
    mine = {"PYTHONPATH": str(tmp_path / "mine")}
    outside.write(tmp_path / "mine", "of_mine")
    model = ("model={kind: of_mine}", "plugins=[of_mine.models]", "cluster.workers=2")
    words = ("submit", str(recipe), *model, "--runs", str(tmp_path / "runs"), "--id", "plugin")
    lost = head.livetrain(*words)
    assert (lost.code, lost.err.count("\n")) == (2, 1)
    assert "plugins: 'of_mine.models' is no module that Python finds" in lost.err
    sent = head.livetrain(*words, **mine)
    assert sent.code == 0, sent.out + sent.err
    run = tmp_path / "runs/small"
    assert "plugins: [of_mine.models]" in (run / "config.yaml").read_text()
    words = [sys.executable, "-m", "livetrain", "export", str(run)]
    exported = subprocess.run(
        words, env=heads.environment(tmp_path, **mine), cwd=tmp_path, capture_output=True, text=True
    )
    assert exported.returncode == 0, exported.stderr
    assert (run / "export/model.pt").exists()


@pytest.mark.slow
def test_the_documented_way_by_rays_own_command(head, recipe, wheel, tmp_path):
    """docs/guide/cluster.md, as it stands but for the addresses; what runs is the package in the job's folder."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs/guide/cluster.md").read_text(), re.DOTALL)
    (block,) = (block for block in blocks if "ray job submit" in block)
    block = block.replace("http://head:8265", head.address).replace("/shared/runs", str(tmp_path / "runs"))
    marked = "sed -i '1i print(\"this is\", __file__, flush=True)' livetrain/__main__.py"
    shutil.copy(wheel, recipe.parent)
    given = heads.environment(tmp_path, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=heads.TOKEN)
    script = block.replace("cd job\n", f"cd job\n{marked}\n")
    done = subprocess.run(["bash", "-ec", script], cwd=recipe.parent, env=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "runs/small/result.json").exists()
    (place,) = re.findall(r"this is (\S+)", done.stdout)
    assert not place.startswith(str(ROOT))


@pytest.mark.slow
def test_a_job_that_fails_gives_its_code_and_sentence(head, recipe, tmp_path):
    words = ("submit", str(recipe), "data.path=/no/such/data", "--runs", str(tmp_path / "runs"), "--id", "fails")
    failed = head.livetrain(*words)
    assert failed.code == 2
    assert "there is no folder /no/such/data/train" in failed.out
    assert "job fails failed with exit code 2" in failed.err
    again = head.livetrain(*words)
    assert again.code == 2
    assert "has already failed with exit code 2" in again.err
    assert "--id fails-2" in again.err


def read_until(command: subprocess.Popen, words: str) -> None:
    for line in command.stdout:
        if words in line:
            return
    raise AssertionError(f"'{words}' was never said: {command.stderr.read()}")


@pytest.mark.slow
def test_an_interrupt_leaves_the_job_or_stops_it_as_asked(head, recipe, tmp_path):
    words = ("submit", str(recipe), "train.epochs=100000", "--runs", str(tmp_path / "runs"), "--id", "long")
    sent = head.livetrain(*words, "--detach")
    assert (sent.code, sent.out) == (0, "")
    left = head.start(*words)
    read_until(left, "step ")
    left.send_signal(signal.SIGINT)
    _, err = left.communicate(timeout=60)
    assert left.returncode == 130
    assert "job long is running already; attached to it" in err
    assert "job long goes on" in err
    stopping = head.start(*words, "--cancel-on-interrupt")
    read_until(stopping, "checking the data")  # the output comes from its start
    stopping.send_signal(signal.SIGINT)
    _, err = stopping.communicate(timeout=90)
    assert stopping.returncode == 130
    assert "job long stopped" in err
    ended = head.livetrain(*words)
    assert ended.code == 130
    assert "has already stopped" in ended.err


@pytest.mark.slow
def test_the_doctor_examines_a_cluster_from_inside(head, recipe, tmp_path):
    words = (str(recipe), "--runs", str(tmp_path / "runs"))
    well = head.livetrain("doctor", *words, "cluster.workers=2")
    assert well.code == 0, well.out
    assert "all-to-all over gloo" in well.out
    ill = head.livetrain("doctor", *words, "data.path=/no/such/data")
    assert ill.code == 2
    assert "failed" in ill.out


@pytest.mark.slow
def test_a_night_is_a_job_of_the_cluster(head, tmp_path):
    """Its code is the command's own: done, done already, and not now. Asked for twice at once there is one job."""
    days = {"train": "2022-05-01..2022-05-01", "valid": "2022-05-02..2022-05-02", "test": "2022-05-03..2022-05-03"}
    for number, split in enumerate(days, 1):
        made = samples.write(tmp_path / "made" / split, rows=480, seed=number)
        shutil.copytree(made / "train", tmp_path / f"data/date=2022-05-0{number}")
    settled = samples.recipe(tmp_path / "data", data__days=days, cluster__workers=1, train__epochs=1)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(settled))
    words = (
        "nightly",
        str(tmp_path / "recipe.yaml"),
        "--runs",
        str(tmp_path / "runs"),
        "--publish",
        str(tmp_path / "m"),
    )
    first = head.start(*words)
    read_until(first, "checking the data")
    beside = head.livetrain(*words)  # as of a pod that is started again
    out, err = first.communicate(timeout=240)
    assert (first.returncode, beside.code) == (0, 0), out + err + beside.err
    assert "-1 is running already; attached to it" in beside.err
    assert "published as 2022-05-03.000001, fence 1" in out
    assert "published as 2022-05-03.000001, fence 1" in beside.out
    second = head.livetrain(*words)
    assert second.code == 0
    assert "-2 succeeded" in second.err
    assert "is published already" in second.out
    wrong = head.livetrain(*words, "--day", "2022-05-04")
    assert wrong.code == 4
    assert "has no partition date=2022-05-02" not in wrong.out
    assert "has no partition date=2022-05-04" in wrong.out


class Nights:
    """A cluster that knows jobs: id -> (status, digest of the recipe, day); those it is sent succeed when followed."""

    def __init__(self, known: dict[str, tuple[str, str, str]], taken: int = 0) -> None:
        self.known, self.sent, self.followed, self.taken = dict(known), [], [], taken

    def __call__(self, address: str) -> "Nights":
        return self

    def jobs(self, beginning: str) -> list[SimpleNamespace]:
        return [self.find(job) for job in self.known if job.startswith(beginning)]

    def find(self, job: str) -> SimpleNamespace | None:
        if job not in self.known:
            return None
        status, digest, day = self.known[job]
        metadata = {"recipe": digest, "day": day} if digest else None
        return SimpleNamespace(
            submission_id=job,
            status=Status(status),
            metadata=metadata,
            driver_exit_code=1 if status == "FAILED" else None,
            end_time=None,
            message="",
        )

    def send(self, job: parcel.Parcel) -> None:
        if self.taken:  # somebody else was a moment faster
            self.taken -= 1
            self.known[job.id] = ("RUNNING", job.recipe, job.day)
            raise RuntimeError("already exists")
        self.known[job.id] = ("RUNNING", job.recipe, job.day)
        self.sent.append(job.id)

    def follow(self, job: str, write) -> SimpleNamespace:
        self.followed.append(job)
        status, *rest = self.known[job]
        self.known[job] = ("FAILED" if status == "FAILING" else "SUCCEEDED", *rest)
        return self.find(job)


class Status(str):
    def is_terminal(self) -> bool:
        return self in ("SUCCEEDED", "FAILED", "STOPPED")


def ask_for_a_night(recipe: Path, monkeypatch, known: dict, taken: int = 0) -> tuple[int, Nights, str]:
    """Ask for the night of 2022-05-04; digests of `known` that are "own" are this night's."""
    settled = load_recipe(recipe)
    own = parcel.night(settled, Path("/runs"), None, ["--publish", "/m"]).recipe
    cluster = Nights({job: (a, own if b == "own" else b, c) for job, (a, b, c) in known.items()}, taken)
    monkeypatch.setattr(submit, "Cluster", cluster)
    monkeypatch.setattr(time, "strftime", lambda *words: "2022-05-04")
    said: list[str] = []
    code = submit.night(settled, Path("/runs"), "http://head", None, ["--publish", "/m"], said.append, said.append)
    return code, cluster, "\n".join(said)


NIGHT = "nightly-small-2022-05-0"


@pytest.mark.parametrize(
    ("known", "sent", "followed"),
    [
        ({}, ["4-1"], ["4-1"]),
        ({"4-1": ("FAILED", "own", "2022-05-04")}, ["4-2"], ["4-2"]),
        ({"4-1": ("STOPPED", "own", "2022-05-04"), "4-10": ("FAILED", "own", "2022-05-04")}, ["4-11"], ["4-11"]),
        ({"4-1": ("FAILED", "own", "2022-05-04"), "4-2": ("RUNNING", "own", "2022-05-04")}, [], ["4-2"]),
        ({"4-1": ("PENDING", "own", "2022-05-04")}, [], ["4-1"]),
        ({"3-1": ("RUNNING", "own", "2022-05-03")}, ["4-1"], ["3-1", "4-1"]),  # last night's is late
        ({"3-1": ("FAILING", "own", "2022-05-03")}, ["4-1"], ["3-1", "4-1"]),
        ({"4-1": ("RUNNING", "another", "2022-05-04")}, ["4-2"], ["4-2"]),  # another recipe, or other places
        ({"4-1": ("RUNNING", "", "")}, ["4-2"], ["4-2"]),  # from somewhere else
    ],
)
def test_a_night_that_lives_is_followed_and_not_sent_again(recipe, monkeypatch, known, sent, followed):
    code, cluster, said = ask_for_a_night(recipe, monkeypatch, {NIGHT + job: about for job, about in known.items()})
    assert code == 0
    assert cluster.sent == [NIGHT + job for job in sent]
    assert cluster.followed == [NIGHT + job for job in followed]
    assert ("already; attached to it" in said) == (followed != sent)


def test_a_night_that_is_followed_gives_its_own_code(recipe, monkeypatch):
    code, cluster, _ = ask_for_a_night(recipe, monkeypatch, {NIGHT + "4-1": ("FAILING", "own", "2022-05-04")})
    assert (code, cluster.sent) == (1, [])


def test_of_two_that_ask_at_once_one_sends(recipe, monkeypatch):
    code, cluster, said = ask_for_a_night(recipe, monkeypatch, {}, taken=1)
    assert (code, cluster.sent, cluster.followed) == (0, [], [NIGHT + "4-1"])
    assert "attached" in said


def test_a_cluster_that_is_away_is_asked_again_later(recipe):
    (port,) = heads.free_ports(1)
    with pytest.raises(NotNow, match="no Ray cluster answers"):
        submit.night(load_recipe(recipe), Path("/runs"), f"http://127.0.0.1:{port}", None, [], print, print)


@pytest.mark.parametrize(
    ("token", "sentence"),
    [
        pytest.param(None, "wants a token (HTTP 401)", marks=pytest.mark.slow),
        ("f" * 64, "does not accept this token (HTTP 403)"),
    ],
)
@pytest.mark.slow
def test_a_cluster_that_refuses_the_token_is_one_sentence(head, recipe, tmp_path, token, sentence):
    refused = head.livetrain("submit", str(recipe), "--runs", str(tmp_path / "runs"), token=token)
    assert refused.code == 2
    assert sentence in refused.err
    assert "RAY_AUTH_TOKEN" in refused.err
    assert refused.err.count("\n") == 1


def test_nobody_at_the_address():
    (port,) = heads.free_ports(1)
    with pytest.raises(BadInput, match=f"no Ray cluster answers at http://127.0.0.1:{port}"):
        submit.Cluster(f"http://127.0.0.1:{port}")


@pytest.mark.parametrize("address", ["head:6379", "ray://head:10001", "auto"])
def test_an_address_that_is_no_dashboard_url(address):
    with pytest.raises(BadInput, match="is no dashboard's URL; give the one"):
        submit.Cluster(address)


def test_somebody_else_at_the_address():
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>welcome</html>")

        def log_message(self, *arguments) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Other)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.raises(BadInput, match="is no Ray dashboard"):
        submit.Cluster(f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_headers_must_be_an_object(monkeypatch, text):
    monkeypatch.setenv("RAY_JOB_HEADERS", text)
    with pytest.raises(BadInput, match="RAY_JOB_HEADERS: it must be a JSON object"):
        submit._headers()


# What travels


def test_only_sources_and_the_recipe_travel(tmp_path):
    names = """
        __init__.py __main__.py api.py pyproject.toml configs/schema/recipe.py configs/recipes/mine.yaml configs/.env
        cluster/.hidden/x.py
        modules/models/din.py modules/__pycache__/din.pyc trainers/token.txt cluster/setup.sh data/a.parquet
        modules/layers/fused.cpp runs/a/config.yaml .git/config notes.py
    """
    for name in names.split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    found = parcel.sources(tmp_path)
    own = {
        "__init__.py",
        "__main__.py",
        "api.py",
        "configs/schema/recipe.py",
        "modules/models/din.py",
        "modules/layers/fused.cpp",
    }
    assert {name for name in found if not name.endswith("METADATA")} == {f"livetrain/{name}" for name in own}
    assert found["livetrain/modules/models/din.py"] == b"modules/models/din.py"


def test_every_source_travels():
    wanted = {f"livetrain/{path}" for path in tracked() if path.endswith(".py") and path.split("/")[0] not in OUTSIDE}
    assert len(wanted) > 200
    assert wanted == {name for name in parcel.sources() if name.endswith(".py")}


def test_the_sources_run_without_an_installation(tmp_path):
    for name, content in parcel.sources().items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    metadata = "importlib.metadata.distribution('livetrain').locate_file('x')"
    script = f"import importlib.metadata, livetrain.api; print(livetrain.api.__file__, {metadata})"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [(tmp_path / path).parent for path in done.stdout.split()] == [tmp_path / "livetrain", tmp_path]


def test_the_recipe_that_travels_is_the_resolved_one(recipe, tmp_path):
    settled = load_recipe(recipe, ["train.epochs=7", "cluster.address=head:6379"])
    job = parcel.pack(settled, Path("/shared/my runs"))
    assert job.id == f"small-{time.strftime('%Y-%m-%d')}"
    assert job.entrypoint == "python -m livetrain train recipe.yaml --runs '/shared/my runs'"
    (tmp_path / "sent.yaml").write_bytes(job.files["recipe.yaml"])
    sent = load_recipe(tmp_path / "sent.yaml")
    assert (sent.train.epochs, sent.cluster.address, sent.name) == (7, None, "small")


def test_a_run_without_a_name_takes_the_jobs(recipe, tmp_path):
    settled = load_recipe(recipe, ["name=null"])
    job = parcel.pack(settled, tmp_path)
    assert job.id == f"din-{time.strftime('%Y-%m-%d')}"
    assert f"name: {job.id}".encode() in job.files["recipe.yaml"]


@pytest.mark.parametrize(
    ("override", "runs", "sentence"),
    [
        ("data.path=data/ml-1m", "/runs", "data.path: 'data/ml-1m' is relative, .* as in data.path=/shared/ml-1m"),
        ("data.path=s3://me:secret@bucket/x", "/runs", "data.path: s3://bucket/x comes with a password"),
        ("train.warm_start=runs/x", "/runs", "train.warm_start: 'runs/x' is relative, .* absolute path that all nodes"),
        ("train.epochs=1", "runs", "--runs: 'runs' is relative, .* as in --runs /shared/runs"),
    ],
)
def test_what_only_this_machine_knows_is_refused(recipe, override, runs, sentence):
    with pytest.raises(BadInput, match=sentence) as caught:
        parcel.pack(load_recipe(recipe, [override]), Path(runs))
    assert "secret" not in str(caught.value)


def test_an_id_must_be_a_name(recipe):
    with pytest.raises(BadInput, match="--id: 'a/b' must be letters"):
        parcel.pack(load_recipe(recipe), Path("/runs"), "a/b")


def test_too_much_is_refused_with_its_largest_file():
    parcel.check_size({"a.py": b"1" * 10, "b.py": b"2" * 89}, limit=100)
    with pytest.raises(BadInput, match=r"^b\.py: with its .* and Ray takes less than"):
        parcel.check_size({"a.py": b"1" * 10, "b.py": b"2" * 90}, limit=100)


def test_the_limit_is_rays():
    from ray._private.ray_constants import GRPC_CPP_MAX_MESSAGE_SIZE

    assert parcel.LIMIT == GRPC_CPP_MAX_MESSAGE_SIZE


# How a job's end comes back


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 2, 2),
        ("FAILED", None, 1),
        ("FAILED", -9, 1),
        ("STOPPED", None, 130),
    ],
)
def test_exit_codes(status, code, expected):
    assert submit.exit_code(SimpleNamespace(status=status, driver_exit_code=code)) == expected


class Jobs:
    """Ray's client, on a line that breaks after a piece more each time, `breaks` times; `away` answers nothing else."""

    def __init__(self, *pieces: str, breaks: int = 0, away: bool = False) -> None:
        self.pieces, self.breaks, self.away, self.tails = pieces, breaks, away, 0

    async def tail_job_logs(self, job: str):
        self.tails += 1
        for index, piece in enumerate(self.pieces):
            yield piece
            if index + 1 == self.tails <= self.breaks:
                raise RuntimeError("closed")

    def get_job_info(self, job: str) -> SimpleNamespace:
        if self.away:
            raise ConnectionError("away")
        ended = self.tails > self.breaks or self.tails == len(self.pieces)
        return SimpleNamespace(status=SimpleNamespace(is_terminal=lambda: ended))

    def get_job_logs(self, job: str) -> str:
        return "".join(self.pieces)


@pytest.fixture
def cluster(monkeypatch) -> submit.Cluster:
    monkeypatch.setattr(submit, "_POLL_S", 0.0)
    cluster = object.__new__(submit.Cluster)
    cluster._shown = "http://head"
    return cluster


@pytest.mark.parametrize("breaks", [0, 2, 7, 8])
def test_a_broken_connection_repeats_and_loses_nothing(cluster, breaks):
    """More breaks than attempts in a row are allowed; the last of eight comes in the job's last words."""
    lines = [f"line {number}\n" for number in range(8)]
    cluster.client = Jobs(*lines, breaks=breaks)
    written = []
    assert cluster.follow("job", written.append).status.is_terminal()
    assert "".join(written) == "".join(lines)


def test_what_came_after_the_line_broke_for_good_is_fetched(cluster):
    cluster.client = Jobs("one\n", "two\n", breaks=1)
    cluster.client.get_job_info = lambda job: SimpleNamespace(status=SimpleNamespace(is_terminal=lambda: True))
    written = []
    cluster.follow("job", written.append)
    assert written == ["one\n", "two\n"]


def test_a_cluster_that_stays_away_is_given_up(cluster):
    cluster.client = Jobs("one\n", away=True)
    written = []
    with pytest.raises(ConnectionError, match="http://head does not answer any more; job small may still run"):
        cluster.follow("small", written.append)
    assert written == ["one\n"]


def test_two_submissions_at_once_make_one_job(monkeypatch, recipe, tmp_path):
    settled = load_recipe(recipe)
    job = parcel.pack(settled, tmp_path)
    details = SimpleNamespace(status="RUNNING", metadata={"recipe": job.recipe}, driver_exit_code=0)
    details.status = type("Status", (str,), {"is_terminal": lambda self: False})("RUNNING")
    answers = iter([None, details])

    class Raced:
        def __init__(self, address: str) -> None:
            pass

        def find(self, job: str):
            return next(answers)

        def send(self, job) -> None:
            raise RuntimeError("Job with submission_id small already exists.")

    monkeypatch.setattr(submit, "Cluster", Raced)
    said = []
    assert submit.submit(settled, tmp_path, "http://head", detach=True, say=said.append) == 0
    assert f"job {job.id} is running already; attached to it" in said
