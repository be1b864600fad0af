"""The Python client, which is a file to be copied and no part of the package."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "serve/clients/livetrain_client.py"

_spec = importlib.util.spec_from_file_location("livetrain_client", SOURCE)
assert _spec is not None
assert _spec.loader is not None
client = importlib.util.module_from_spec(_spec)
sys.modules["livetrain_client"] = client
_spec.loader.exec_module(client)


def asked_in_go(go: str, url: str, place: Path) -> None:
    """Have the Go client ask a server for vectors and compare their scores; an AssertionError if they differ."""
    environment = {"GOFLAGS": "-mod=mod", "GOPROXY": "off", "LIVETRAIN_VECTORS": str(place), "LIVETRAIN_SERVER": url}
    done = subprocess.run(
        [go, "test", "-count=1", "-run", "Vectors", "-v", "./..."],
        cwd=SOURCE.parent / "go",
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASS: TestAServerGivesTheVectorsScores" in done.stdout, done.stdout + done.stderr
