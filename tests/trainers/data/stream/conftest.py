"""What all tests of streams share."""

import pytest


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    """What SIGKILL leaves behind does not depend on what is on the disk yet."""
    monkeypatch.setattr("os.fsync", lambda handle: None)
