"""An object store like S3, on a port of this machine: `python -m tests.store` serves until it is ended."""

import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server


class _Quiet(WSGIRequestHandler):
    def log(self, *arguments) -> None:
        """Say nothing of each request."""


def _server(conditions: bool) -> BaseWSGIServer:
    """Return a server of one request after the other, so that what moto looks up first and writes then is one step."""
    from moto.server import DomainDispatcherApplication, create_backend_app

    moto = DomainDispatcherApplication(create_backend_app)

    def application(environ, start):
        kept = environ if conditions else {k: v for k, v in environ.items() if not k.startswith("HTTP_IF_")}
        return moto(kept, start)

    return make_server("127.0.0.1", 0, application, threaded=False, request_handler=_Quiet)


def _made(server: BaseWSGIServer, bucket: str) -> str:
    """Return the URI of a new bucket."""
    address = f"127.0.0.1:{server.server_port}"
    urllib.request.urlopen(urllib.request.Request(f"http://{address}/{bucket}", method="PUT")).close()
    return f"s3://any:key@{bucket}/in/it?scheme=http&endpoint_override={address}&region=us-east-1"


@contextmanager
def served(conditions: bool = True) -> Iterator[str]:
    """Serve from a thread of this process, and yield the URI of a folder in a bucket.

    Args:
        conditions: whether If-Match and If-None-Match are heeded, as not every store does.
    """
    server = _server(conditions)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield _made(server, "models")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


if __name__ == "__main__":
    with served() as uri:
        print(uri, flush=True)
        threading.Event().wait()
