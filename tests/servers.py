"""A web server in the test process, which serves bytes with ranges and can be told to misbehave."""

from __future__ import annotations

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server:
    """Serves ``files`` by their paths, and ``content`` under every other path.

    ``cut_after``: bytes after which the next answers end. ``codes``: of the next answers instead
    of files. Paths that begin with ``/missing`` are not there. ``ranges``: what was asked for.
    ``slow``: an event for which an answer waits after every 64 kB.
    """

    def __init__(self, content: bytes = b"") -> None:
        self.cut_after: list[int] = []
        self.content = content
        self.files: dict[str, bytes] = {}
        self.etag: str | None = '"one"'
        self.ranges: list[str | None] = []
        self.asked: list[str] = []
        self.codes: list[int] = []
        self.slow: threading.Event | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                return

            def do_GET(self) -> None:
                outer.answer(self)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        self.root = f"http://127.0.0.1:{self.http.server_port}"
        self.url = f"{self.root}/data.bin"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Send a file, or what is left of it."""
        asked = handler.headers.get("Range")
        self.ranges.append(asked)
        self.asked.append(handler.path)
        if self.codes or handler.path.startswith("/missing"):
            handler.send_error(self.codes.pop(0) if self.codes else 404)
            return
        content, start = self.files.get(handler.path, self.content), 0
        match = re.fullmatch(r"bytes=(\d+)-", asked or "")
        if match and handler.headers.get("If-Range", self.etag) == self.etag:
            start = int(match[1])
            if start >= len(content):
                handler.send_error(416)
                return
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if self.etag:
            handler.send_header("ETag", self.etag)
        handler.send_header("Content-Length", str(len(content) - start))
        handler.end_headers()
        end = start + self.cut_after.pop(0) if self.cut_after else len(content)
        for first in range(start, min(end, len(content)), 2**16):
            handler.wfile.write(content[first : min(end, first + 2**16)])
            if self.slow is not None:
                handler.wfile.flush()
                self.slow.wait(0.05)

    def close(self) -> None:
        """Stop serving."""
        self.http.shutdown()
        self.http.server_close()
