"""A headless Chromium that tests look through: it opens a page, answers what a script finds there, and points at it."""

import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_S = 60


class Tab:
    """A page, spoken to in Chrome's DevTools protocol through two pipes.

    Attributes:
        errors: what went wrong in the page: exceptions, console errors, and addresses that it asked the network for.
    """

    def __init__(self, to: int, back: int) -> None:
        self.errors: list[str] = []
        self._to, self._back = to, back
        self._number, self._session, self._left = 0, None, b""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command, and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            self._note(answer)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def open(self, path: Path, done: str) -> None:
        """Open a file, and wait until a script's value is true."""
        self.ask("Page.navigate", url=path.resolve().as_uri())
        self.wait(done)

    def wait(self, script: str) -> Any:
        """Return the first value of a script that is true, and not an empty list."""
        end = time.monotonic() + PATIENCE_S
        while not (found := self.run(script)):
            assert time.monotonic() < end, f"has not come: {script}; errors: {self.errors}"
            time.sleep(0.05)
        return found

    def run(self, script: str) -> Any:
        """Return the value of a script in the page."""
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def point(self, x: float, y: float) -> None:
        """Move the mouse to a place in pixels of the window."""
        self.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def _note(self, event: dict[str, Any]) -> None:
        method, about = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.errors.append(str(about["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and about["type"] in ("error", "assert"):
            self.errors.append(str(about["args"]))
        elif method == "Log.entryAdded" and about["entry"]["level"] == "error":
            self.errors.append(str(about["entry"]))
        elif method == "Network.requestWillBeSent" and not about["request"]["url"].startswith(
            ("file:", "data:", "blob:")
        ):
            self.errors.append(f"asks the network for {about['request']['url']}")

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            assert select.select([self._back], [], [], PATIENCE_S)[0], "the browser does not answer"
            got = os.read(self._back, 1 << 20)
            assert got, "the browser has ended"
            self._left += got
        message, _, self._left = self._left.partition(b"\0")
        return json.loads(message)


@contextmanager
def tab(profile: Path) -> Iterator[Tab]:
    """Open a browser with an empty page; a test without a browser is skipped.

    Args:
        profile: a new folder.
    """
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser here: none of {', '.join(NAMES)} is on the path (apt-get install chromium)")
    theirs, to = os.pipe()
    back, answers = os.pipe()
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"]
    options += [f"--user-data-dir={profile}", "--window-size=1400,1000", "--no-first-run"]
    redirected = f'exec "$@" 3<&{theirs} 4>&{answers}'  # where it looks for the pipes
    browser = subprocess.Popen(
        ["bash", "-c", redirected, "bash", program, *options],
        pass_fds=(theirs, answers),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs)
    os.close(answers)
    try:
        yield Tab(to, back)
    finally:
        os.close(to)  # it ends when its pipe does
        os.close(back)
        try:
            browser.wait(10)
        except subprocess.TimeoutExpired:
            browser.kill()
            browser.wait()
