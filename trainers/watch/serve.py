"""A board as a page of this machine: Python's own server, for one machine's eyes."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from livetrain.configs.errors import BadInput, short
from livetrain.trainers.watch.board import Board
from livetrain.trainers.watch.page import page


class Server(ThreadingHTTPServer):
    """Serves `/` (the page), `/data.json` and `/metrics` (Prometheus), in threads of its own. A context manager.

    Args:
        board: what is shown.
        host: of the address; 127.0.0.1 is seen on this machine alone.
        port: 0 for a free one.

    Raises:
        BadInput: the address cannot be had.
    """

    daemon_threads = allow_reuse_address = True

    def __init__(self, board: Board, host: str, port: int) -> None:
        self.board = board
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise BadInput(
                f"--port: {host}:{port} cannot be served ({short(error)}); choose another --port or --host"
            ) from error

    def __enter__(self) -> "Server":
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()

    @property
    def address(self) -> str:
        """The page's."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}/"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        if self.path.split("?")[0] == "/":
            self._answer("text/html; charset=utf-8", page())
        elif self.path.split("?")[0] == "/data.json":
            self._answer("application/json", json.dumps(self.server.board.data(), allow_nan=False))
        elif self.path.split("?")[0] == "/metrics":
            self._answer("text/plain; version=0.0.4; charset=utf-8", self.server.board.metrics())
        else:
            self.send_error(404)

    def _answer(self, kind: str, text: str) -> None:
        content = text.encode()
        self.send_response(200)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(content))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: a page that asks every few seconds would fill the terminal."""
