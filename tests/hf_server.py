"""A small stand-in for the Hugging Face Hub: it serves files of a dataset over real HTTP, and misbehaves on demand.

Covered: HEAD and GET of /datasets/<repo>/resolve/main/<file> as the Hub answers them (a redirect to a storage host, the
sha256 as X-Linked-Etag, X-Linked-Size, X-Repo-Commit), Range, 404 and 416. Not covered: tokens, xet, other routes.
"""

from __future__ import annotations

import hashlib
import re
import socket
import struct
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c0ffee" + "0" * 34


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one answer about a file.

    status: this code instead of the file. wrong: other bytes, of the right length. stop_after: the body ends after so
    many bytes, and `how` it does: `close` (before the length it announced), `reset` (the connection is torn down),
    `short` (no length was announced, so that the end looks regular), `hang` (nothing more comes).
    """

    status: int = 0
    stop_after: int = -1
    how: str = "close"
    wrong: bool = False
    method: str = "GET"


@dataclass(frozen=True)
class Request:
    method: str
    file: str
    first_byte: int  # of the Range asked for, 0 without one
    status: int
    sent: int  # bytes of the file


class Hub:
    """`with Hub(files) as hub`: hub.url is for HF_ENDPOINT, hub.requests says what was asked, hub.faults what to do."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.faults: dict[str, list[Fault]] = {}  # by file: one for each answer, in order
        self.always: dict[str, Fault] = {}  # by file: when the list is used up
        self.ranges = True  # whether Range is understood
        self.requests: list[Request] = []  # of the files, not of the redirects to them
        self.released = threading.Event()  # ends a `hang`
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{port}"
        self.storage = f"http://localhost:{port}/storage"  # another host, as the Hub's storage is

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    def asked(self, file: str, method: str = "GET") -> list[Request]:
        return [r for r in self.requests if r.file == file and r.method == method]

    def fault_for(self, file: str, method: str) -> Fault:
        waiting = self.faults.get(file, [])
        for fault in waiting:
            if fault.method == method:
                waiting.remove(fault)
                return fault
        fault = self.always.get(file, Fault())
        return fault if fault.method == method else Fault()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._resolve()

    def do_GET(self) -> None:
        if self.path.startswith("/storage/"):
            self._send_file(self.path.removeprefix("/storage/"))
        else:
            self._resolve()

    def _resolve(self) -> None:
        """The Hub's own answer: what the file is, and where its bytes lie."""
        match = re.fullmatch(r"/datasets/[^/]+/[^/]+/resolve/main/(?P<file>[^?]+)", self.path)
        name = match["file"] if match else self.path
        fault = self.hub.fault_for(name, "HEAD") if self.command == "HEAD" else Fault()
        data = self.hub.files.get(name)
        status = fault.status or (302 if data is not None else 404)
        self._note(name, status) if self.command == "HEAD" else None
        self.send_response(status)
        self.send_header("X-Repo-Commit", COMMIT)
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        if status == 302:
            assert data is not None
            self.send_header("Location", f"{self.hub.storage}/{name}")
            self.send_header("X-Linked-Size", str(len(data)))
            self.send_header("X-Linked-Etag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("ETag", '"a-git-blob-and-not-the-file"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send_file(self, name: str) -> None:
        data = self.hub.files[name]
        fault = self.hub.fault_for(name, "GET")
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")) if self.hub.ranges else None
        first = int(asked[1]) if asked else 0
        if fault.status or first >= len(data):
            status = fault.status or 416
            self._note(name, status, first)
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = data[first:]
        whole = len(body)
        if fault.wrong:
            body = bytes(255 - byte for byte in body)
        if fault.stop_after >= 0:
            body = body[: fault.stop_after]
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        if fault.how == "short":
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(whole))
        self.end_headers()
        self._note(name, 206 if asked else 200, first, len(body))
        self.wfile.write(body)
        self.wfile.flush()
        if len(body) < whole or fault.how == "short":
            self._break_off(fault.how)

    def _break_off(self, how: str) -> None:
        self.close_connection = True
        if how == "hang":
            self.hub.released.wait()
        elif how == "reset":  # closing with a linger time of 0 sends RST
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def _note(self, file: str, status: int, first: int = 0, sent: int = 0) -> None:
        self.hub.requests.append(Request(self.command, file, first, status, sent))

    def log_message(self, *_: object) -> None:
        pass
