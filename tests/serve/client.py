"""The Python client, which is a file to be copied and no part of the package."""

import importlib.util
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "serve/clients/livetrain_client.py"

_spec = importlib.util.spec_from_file_location("livetrain_client", SOURCE)
assert _spec is not None
assert _spec.loader is not None
client = importlib.util.module_from_spec(_spec)
sys.modules["livetrain_client"] = client
_spec.loader.exec_module(client)
