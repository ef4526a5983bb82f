"""An HTTP server that answers, or misbehaves, as a test says."""

import http.server
import json
import threading
from typing import Any


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Keep quiet."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        fake: Fake = self.server.fake  # type: ignore[attr-defined]
        fake.requests.append((self.path, json.loads(body), self.headers.get("Authorization"), self.client_address))
        reply = fake.replies(self.path, self.headers) if callable(fake.replies) else fake.replies
        if reply is None:  # say nothing and hang up
            self.close_connection = True
            return
        if reply == "hang":
            fake.released.wait(10)
            self.close_connection = True
            return
        if isinstance(reply, bytes):  # said as it is, and then the end
            self.wfile.write(reply)
            self.close_connection = True
            return
        status, document = reply
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Fake:
    def __init__(self) -> None:
        self.replies: Any = (200, {"header": {"revision": "5"}})
        self.requests: list[Any] = []
        self.released = threading.Event()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.fake = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def farewell(status: int, *lines: Any, chunked: bool | None = None) -> bytes:
    """Return an answer that announces the end of its connection; `chunked` None: with a length."""
    body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    framing = f"Content-Length: {len(body)}\r\n"
    if chunked is not None:
        framing = "Transfer-Encoding: chunked\r\n" if chunked else ""
    if chunked:
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    return f"HTTP/1.1 {status} X\r\nConnection: close\r\n{framing}\r\n".encode() + body


def unused_url() -> str:
    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    url = f"http://127.0.0.1:{server.server_address[1]}"
    server.server_close()
    return url
