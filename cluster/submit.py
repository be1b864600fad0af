"""Sending a recipe to a running Ray cluster, following it there, and bringing its end back."""

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from livetrain.cluster import parcel
from livetrain.cluster.parcel import Parcel, once, pack, size, staged
from livetrain.cluster.plugin_files import installed
from livetrain.configs.errors import BadInput, NotNow, without_credentials
from livetrain.configs.schema import Recipe
from livetrain.trainers.runtime.signals import INTERRUPTED

_POLL_S, _RECONNECTS, _STOP_S = 0.5, 5, 60.0

Say = Callable[[str], None]


class _Output:
    """A text that comes in pieces, and from its start again whenever the line broke; each part is written once."""

    def __init__(self, write: Say) -> None:
        self._write, self._written = write, 0

    async def read(self, pieces: AsyncIterator[str]) -> None:
        seen = 0
        async for text in pieces:
            self._add(seen, text)
            seen += len(text)

    def add_whole(self, text: str) -> None:
        self._add(0, text)

    def _add(self, start: int, text: str) -> None:
        new = text[max(self._written - start, 0) :]
        if new:
            self._written = start + len(text)
            self._write(new)


class NoAnswer(BadInput):
    """No cluster is at an address; perhaps not now."""


class Cluster:
    """A Ray cluster's jobs, reached through its dashboard.

    Args:
        address: the dashboard's URL, such as ``http://head:8265``.

    Raises:
        NoAnswer: nobody answers there.
        BadInput: what answers is no cluster, or does not accept the token.
    """

    def __init__(self, address: str) -> None:
        if not address.startswith(("http://", "https://")):
            raise BadInput(
                f"--address: '{without_credentials(address)}' is no dashboard's URL; "
                "give the one that `ray start --head` prints, as in http://head:8265"
            )
        if os.environ.get("RAY_AUTH_TOKEN"):
            os.environ.setdefault("RAY_AUTH_MODE", "token")  # who gives a token wants it to be used
        self.address = address.rstrip("/")
        self._shown = without_credentials(self.address)
        self._reach()
        from ray.job_submission import JobSubmissionClient

        for chatty in (
            "dashboard.modules.dashboard_sdk",
            "dashboard.modules.job.sdk",
            "_private.runtime_env.packaging",
        ):
            logging.getLogger(f"ray.{chatty}").setLevel(logging.WARNING)
        with self._said(), _only_address(self.address):
            self.client = JobSubmissionClient(self.address, headers=_headers())

    def find(self, job: str) -> Any | None:
        """Return Ray's details of a job, or None where the cluster knows no such id."""
        from ray.exceptions import AuthenticationError

        try:
            return self.client.get_job_info(job)
        except AuthenticationError:
            raise
        except RuntimeError as error:
            if "404" in str(error):
                return None
            raise

    def jobs(self, beginning: str) -> list[Any]:
        """Return Ray's details of all jobs that were sent under ids of this beginning."""
        return [found for found in self.client.list_jobs() if (found.submission_id or "").startswith(beginning)]

    def send(self, job: Parcel) -> None:
        """Upload the job's files and start it."""
        with staged(job.files) as folder, self._said():
            self.client.submit_job(
                entrypoint=job.entrypoint,
                submission_id=job.id,
                runtime_env={"working_dir": str(folder)},
                metadata={"recipe": job.recipe, "livetrain": version("livetrain"), "day": job.day},
            )

    def follow(self, job: str, write: Say) -> Any:
        """Write a job's output, from its start, as it comes; return Ray's details once the job has ended.

        A dropped connection is taken up again where it broke.

        Raises:
            ConnectionError: the cluster stays away.
        """
        output, failures = _Output(write), 0
        while True:
            complete = self._tail(job, output)
            try:
                details = self.client.get_job_info(job)
                if details.status.is_terminal() and not complete:
                    output.add_whole(self.client.get_job_logs(job))
            except Exception as error:
                failures += 1
                if failures > _RECONNECTS:
                    raise ConnectionError(
                        f"{self._shown} does not answer any more; job {job} may still run there, and the same "
                        "command attaches to it again"
                    ) from error
                time.sleep(2**failures * _POLL_S)
                continue
            if details.status.is_terminal():
                return details
            failures = 0
            time.sleep(_POLL_S)

    def stop(self, job: str) -> Any:
        """Stop a job and wait until it has ended; return Ray's details."""
        self.client.stop_job(job)
        end = time.monotonic() + _STOP_S
        while not (details := self.client.get_job_info(job)).status.is_terminal() and time.monotonic() < end:
            time.sleep(_POLL_S)
        return details

    def _tail(self, job: str, output: "_Output") -> bool:
        """Write a job's output as it comes; return whether it came to its end rather than broke off."""
        try:
            asyncio.run(output.read(self.client.tail_job_logs(job)))
        except Exception:
            return False
        return True

    def _reach(self) -> None:
        """Ask for the version first: Ray's own client waits minutes for an address behind which nobody is."""
        import requests

        try:
            answer = requests.get(f"{self.address}/api/version", timeout=10)
        except requests.RequestException as error:
            raise NoAnswer(
                f"--address: no Ray cluster answers at {self._shown} ({type(error).__name__}); check that the head "
                "node runs, with its dashboard, and that this machine reaches it"
            ) from error
        if answer.status_code in (401, 403):  # asked without the token: Ray's client will bring it
            return
        if answer.status_code != 200 or "ray_version" not in answer.text:
            raise BadInput(
                f"--address: what answers at {self._shown} is no Ray dashboard (HTTP {answer.status_code}); "
                "give the URL that `ray start --head` prints, as in http://head:8265"
            )

    @contextlib.contextmanager
    def _said(self) -> Iterator[None]:
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as error:
            if "required" in str(error).splitlines()[0].lower():
                raise BadInput(
                    f"--address: {self._shown} wants a token (HTTP 401); set RAY_AUTH_MODE=token and the cluster's "
                    "token as RAY_AUTH_TOKEN, or its file as RAY_AUTH_TOKEN_PATH (by default ~/.ray/auth_token)"
                ) from error
            raise BadInput(
                f"--address: {self._shown} does not accept this token (HTTP 403); "
                "set RAY_AUTH_TOKEN, or the file of RAY_AUTH_TOKEN_PATH, to the cluster's own"
            ) from error


def submit(
    recipe: Recipe,
    runs: Path,
    address: str,
    *,
    job_id: str | None = None,
    detach: bool = False,
    cancel_on_interrupt: bool = False,
    say: Say = print,
    write: Say = lambda text: print(text, end="", flush=True),
) -> int:
    """Train a recipe as a job of a running cluster and return the exit code of its end.

    The same id never runs twice: a second call attaches to the running job, or tells how the finished one ended.

    Args:
        recipe: the run, loaded and overridden.
        runs: folder of run folders as the cluster's nodes see it, absolute.
        address: the dashboard's URL.
        job_id: the job's id, by default the run's name and the date.
        detach: return once the job is there.
        cancel_on_interrupt: whether Ctrl-C stops the job; otherwise it only stops following it.
        say: told what happens, a sentence at a time.
        write: given the job's output as it comes.

    Returns:
        0 done; the command's own code where it failed; 1 where the cluster failed it; 130 stopped or interrupted.

    Raises:
        BadInput: the recipe cannot run elsewhere, the address does not answer, or the id is another job's.
    """
    job = pack(recipe, runs, job_id)
    cluster = Cluster(address)
    found = cluster.find(job.id)
    if found is None:
        _check_model(recipe)
        _say_what_stays(recipe, say)
        say(f"sending {len(job.files)} files, {size(job.files) / 2**20:.1f} MiB, as job {job.id}")
        try:
            cluster.send(job)
        except RuntimeError:
            found = cluster.find(job.id)  # somebody else sent it in this moment
            if found is None:
                raise
    if found is not None:
        _check_same(job, found)
        if found.status.is_terminal():
            _tell(job.id, found, say, again=True)
            return exit_code(found)
        say(f"job {job.id} is {str(found.status).lower()} already; attached to it")
    if detach:
        say(f"job {job.id} is on the cluster; the same command without --detach follows it")
        return 0
    return follow(cluster, job.id, cancel_on_interrupt, say, write)


def follow(cluster: Cluster, job: str, cancel_on_interrupt: bool, say: Say, write: Say) -> int:
    """Write a job's output until it ends, or until Ctrl-C; return the exit code of its end."""
    try:
        details = cluster.follow(job, write)
    except KeyboardInterrupt:
        if not cancel_on_interrupt:
            say(f"job {job} goes on; the same command attaches to it, `ray job stop {job}` ends it")
            return INTERRUPTED
        say(f"stopping job {job}")
        details = cluster.stop(job)
    _tell(job, details, say)
    return exit_code(details)


def ask(
    command: str,
    recipe: Recipe | None,
    runs: Path,
    address: str,
    say: Say,
    write: Say,
) -> int:
    """Run a command of livetrain as a job of its own, where a job would run; return its exit code.

    Raises:
        BadInput: as `submit` does.
    """
    job = once(command, recipe, runs)
    cluster = Cluster(address)
    if recipe is not None:
        _say_what_stays(recipe, say)
    cluster.send(job)
    return follow(cluster, job.id, True, say, write)


def night(
    recipe: Recipe, runs: Path, address: str, day: str | None, options: Sequence[str], say: Say, write: Say
) -> int:
    """Run a night as a job of a cluster and return its exit code; however often it is asked for, one job is at work.

    A job of this night that lives is followed. One of the same recipe and places that was sent for another day is
    followed too, and this night comes after it. A job that has ended is tried again, under the next number.

    Raises:
        NotNow: nobody answers at the address.
        BadInput: as `submit` does.
    """
    job = parcel.night(recipe, runs, day, options)
    try:
        cluster = Cluster(address)
    except NoAnswer as error:
        raise NotNow(str(error)) from None
    _say_what_stays(recipe, say)
    while True:
        living = next((found for found in cluster.jobs(f"nightly-{recipe.name}-") if _lives(found, job)), None)
        if living is not None:
            say(f"job {living.submission_id} is {str(living.status).lower()} already; attached to it")
            code = follow(cluster, living.submission_id, False, say, write)
            if (living.metadata or {}).get("day") == job.day or code == INTERRUPTED:
                return code
            continue
        tries = [found.submission_id.removeprefix(f"{job.id}-") for found in cluster.jobs(f"{job.id}-")]
        number = 1 + max((int(end) for end in tries if end.isdecimal()), default=0)
        numbered = replace(job, id=f"{job.id}-{number}")
        try:
            cluster.send(numbered)
        except RuntimeError:
            if cluster.find(numbered.id) is None:
                raise
            continue  # somebody else sent it in this moment
        return follow(cluster, numbered.id, False, say, write)


def _lives(found: Any, job: Parcel) -> bool:
    """Return whether a job of the cluster is the same night's, or another day's of the same, and has not ended."""
    return not found.status.is_terminal() and (found.metadata or {}).get("recipe") == job.recipe


def exit_code(details: Any) -> int:
    """Return the exit code that stands for a job's end."""
    status, code = str(details.status), details.driver_exit_code
    if status == "SUCCEEDED":
        return 0
    if status == "STOPPED":
        return INTERRUPTED
    return code if code and code > 0 else 1


def _check_model(recipe: Recipe) -> None:
    """Raise BadInput for what only building the model shows."""
    from livetrain.modules.fitted import fitted
    from livetrain.modules.model import Model
    from livetrain.trainers.evaluate.selection import check_select

    check_select(recipe)
    if fitted(recipe) is None:
        Model(recipe, device="meta", tables_device="meta")


def _say_what_stays(recipe: Recipe, say: Say) -> None:
    for package in installed(recipe):
        say(f"the plugin {package} is installed here and is not sent; the cluster's nodes need it installed too")


def _check_same(job: Parcel, found: Any) -> None:
    if (found.metadata or {}).get("recipe") != job.recipe:
        raise BadInput(
            f"--id: {job.id} is the id of a job with another recipe or --runs ({found.status}); "
            f"give another, as in --id {job.id}-2"
        )


def _tell(job: str, details: Any, say: Say, again: bool = False) -> None:
    """Say how a job ended. What its command printed is not repeated; what Ray reports in its place is."""
    status = str(details.status).lower()
    ended = time.strftime(" at %Y-%m-%d %H:%M", time.localtime(details.end_time / 1000)) if details.end_time else ""
    why = f" with exit code {details.driver_exit_code}" if details.driver_exit_code else ""
    if status == "failed" and details.driver_exit_code is None:
        why = f" before or beside its command: {' '.join((details.message or 'without a reason').split())}"
    say(f"job {job} {'has already ' if again else ''}{status}{why}{ended if again else ''}")
    if again and status != "succeeded":
        say(f"to try again, give another id, as in --id {job}-2; under the same name= the run goes on where it was")


def _headers() -> dict[str, str] | None:
    """Return the headers that Ray's own command line takes from RAY_JOB_HEADERS, for a proxy before the cluster."""
    text = os.environ.get("RAY_JOB_HEADERS")
    if not text:
        return None
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise BadInput('RAY_JOB_HEADERS: it must be a JSON object of headers, as in {"Authorization": "Bearer ..."}')
    return found


@contextlib.contextmanager
def _only_address(address: str) -> Iterator[None]:
    """Have Ray's client use this address: RAY_ADDRESS would silently replace it."""
    before = os.environ.get("RAY_API_SERVER_ADDRESS")
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ["RAY_API_SERVER_ADDRESS"]
        else:
            os.environ["RAY_API_SERVER_ADDRESS"] = before
