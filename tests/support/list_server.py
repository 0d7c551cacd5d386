"""An HTTPS server of lists, with certificates of its own, that does what a test says."""

from __future__ import annotations

import gzip
import hashlib
import select
import socket
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import trustme

#: What a path gives: octets, or a function that answers a request by hand.
Page = bytes | Callable[[BaseHTTPRequestHandler], None]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        lists = self.server.lists
        lists.asked.append((self.path, dict(self.headers)))
        page = lists.pages.get(self.path)
        if callable(page):
            self.close_connection = True
            page(self)
            return
        if page is None:
            self.send_error(404)
            return
        etag = f'"{hashlib.sha256(page).hexdigest()[:16]}"'
        if self.headers.get("If-None-Match") == etag:
            self.send_response(304)
            self.send_header("ETag", etag)
            self.end_headers()
            return
        packed = gzip.compress(page)
        self.send_response(200)
        self.send_header("ETag", etag)
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(packed)))
        self.end_headers()
        self.wfile.write(packed)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    lists: ListServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that go away are what is tested."""


class ListServer:
    """Serve `pages` on https://localhost; use it as a context."""

    def __init__(self, directory: Path, name: str = "localhost") -> None:
        """Make a certificate for this name; what signs it lies in `ca`."""
        self.pages: dict[str, Page] = {}
        #: Path and headers of every request.
        self.asked: list[tuple[str, dict[str, str]]] = []
        authority = trustme.CA()
        self.ca = directory / f"ca-{name}.pem"
        authority.cert_pem.write_to_path(str(self.ca))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name).configure_cert(context)
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.lists = self
        # Not on accept: a client that says nothing would hold all others.
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def url(self, path: str) -> str:
        """Give the URL of a path."""
        return f"https://localhost:{self._server.server_port}{path}"

    def __enter__(self) -> ListServer:
        """Start."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Proxy:
    """An HTTP proxy that passes CONNECT on and counts it; use it as a context."""

    def __init__(self) -> None:
        """Bind it."""
        self.connects: list[str] = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def do_CONNECT(self) -> None:
                proxy.connects.append(self.path)
                host, _, port = self.path.rpartition(":")
                with socket.create_connection((host, int(port))) as there:
                    self.send_response(200)
                    self.end_headers()
                    ends = {self.connection: there, there: self.connection}
                    while True:
                        for ready in select.select(list(ends), [], [], 10)[0]:
                            octets = ready.recv(65536)
                            if not octets:
                                return
                            ends[ready].sendall(octets)

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Proxy:
        """Start."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
