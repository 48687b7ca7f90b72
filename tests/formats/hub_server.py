"""A small hub on the loopback interface: model info, and files with ranges and entity tags."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer(ThreadingHTTPServer):
    """Serves one repository. The public attributes steer and record what happens."""

    daemon_threads = True

    def __init__(self, repo_id: str, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repo_id = repo_id
        self.files = files
        self.announced: dict[str, int] = {}  # sizes that differ from the truth
        self.break_after: dict[str, int] = {}  # bytes after which a file's next transfers break
        self.breaks_left = 0
        self.requests: list[tuple[str, str, str | None]] = []  # method, file, Range

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def downloads(self) -> list[tuple[str, str | None]]:
        return [(name, span) for method, name, span in self.requests if method == "GET"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._file(send_body=False)

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/"):
            self._info()
        else:
            self._file(send_body=True)

    def _info(self) -> None:
        if not self.path.startswith(f"/api/models/{self.server.repo_id}"):
            self._reply(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
            return
        siblings = [
            {
                "rfilename": name,
                "size": self.server.announced.get(name, len(data)),
                "blobId": "0" * 40,
            }
            for name, data in self.server.files.items()
        ]
        info = {"id": self.server.repo_id, "sha": COMMIT, "siblings": siblings, "tags": []}
        self._reply(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def _file(self, *, send_body: bool) -> None:
        prefix = f"/{self.server.repo_id}/resolve/{COMMIT}/"
        name = self.path.removeprefix(prefix)
        span = self.headers.get("Range")
        data = self.server.files.get(name)
        if self.path.startswith(prefix):
            self.server.requests.append((self.command, name, span))
        if data is None:
            self._reply(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        start = int(span.removeprefix("bytes=").split("-")[0]) if span else 0
        headers = {
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        if span:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._reply(206 if span else 200, data[start:], headers, name=name, send_body=send_body)

    def _reply(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str],
        *,
        name: str = "",
        send_body: bool = True,
    ) -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        limit = self.server.break_after.get(name)
        if not send_body:
            return
        if limit is not None and self.server.breaks_left > 0:
            self.server.breaks_left -= 1
            self.wfile.write(body[:limit])
            self.wfile.flush()
            self.connection.close()
            self.close_connection = True
            return
        self.wfile.write(body)


@contextmanager
def hub_server(repo_id: str, files: dict[str, bytes]) -> Iterator[HubServer]:
    """Run a hub for the duration of a with statement."""
    server = HubServer(repo_id, files)
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
