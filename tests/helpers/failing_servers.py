"""MLflow servers that fail: they listen, and do something wrong."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requests
from helpers.servers import free_port


@contextmanager
def refusing() -> Iterator[str]:
    """A port on which no process listens."""
    yield f"http://127.0.0.1:{free_port()}"


@contextmanager
def hanging() -> Iterator[str]:
    """A server that accepts every connection and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(100)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


class _Failing(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_error(500)

    do_POST = do_PUT = do_GET

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def failing(handler: type[_Failing] = _Failing) -> Iterator[str]:
    """A server that answers 500 to everything."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@contextmanager
def refusing_paths(address: str, answers: dict[str, tuple[int, str]]) -> Iterator[str]:
    """The server at `address`, but paths that contain a key get that status and body."""

    class Proxy(_Failing):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            refused = [answer for part, answer in answers.items() if part in self.path]
            if refused:
                status, content = refused[0][0], refused[0][1].encode()
            else:
                kept = {"Content-Type": self.headers.get("Content-Type", "")}
                url = f"{address}{self.path}"
                done = requests.request(self.command, url, data=body, headers=kept, timeout=60)
                status, content = done.status_code, done.content
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_PUT = do_PATCH = do_GET

    with failing(Proxy) as proxy:
        yield proxy


KINDS = {"refuses": refusing, "hangs": hanging, "answers 500": failing}
