"""/metrics, /healthz and /readyz over HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from twisted.web.resource import Resource
from twisted.web.server import Request

from blockd.transport.http import BoundedSite

#: A dashboard or two, and people.
MAX_CONNECTIONS = 64


class _Page(Resource):
    isLeaf = True

    def __init__(self, content_type: str, page: Callable[[], tuple[int, bytes]]) -> None:
        super().__init__()
        self._content_type = content_type
        self._page = page

    def render_GET(self, request: Request) -> bytes:
        code, body = self._page()
        request.setResponseCode(code)
        request.setHeader("content-type", self._content_type)
        return body


class AliveCheck:
    """Whether every serve thread turned since the last look."""

    def __init__(self, beats: Callable[[], list[int]]) -> None:
        """``beats()`` gives the turns of each thread."""
        self._beats = beats
        self._last: list[int] = []
        self.is_alive = True

    def look(self) -> None:
        """Compare with the last look; threads turn four times a second at least."""
        beats = self._beats()
        self.is_alive = all(now != before for now, before in zip(beats, self._last, strict=False))
        self._last = beats


class _Lists(Resource):
    isLeaf = True

    def __init__(self, lists: Callable[[], dict[str, list[str]]]) -> None:
        super().__init__()
        self._lists = lists

    def render_GET(self, request: Request) -> bytes:
        path = b"/".join(request.postpath or []).decode(errors="replace")
        lists = self._lists()
        if path == "all.json":
            request.setHeader("content-type", "application/json")
            return json.dumps(lists, indent=1).encode() + b"\n"
        app = path.removesuffix(".txt")
        request.setHeader("content-type", "text/plain; charset=utf-8")
        if app == path or app not in lists:
            request.setResponseCode(404)
            known = ", ".join(["all.json", *(f"{name}.txt" for name in lists)])
            return f"there is no such list; there are {known}\n".encode()
        return "".join(f"{one}\n" for one in lists[app]).encode()


def admin_site(
    registry: CollectorRegistry,
    alive: AliveCheck,
    ready: Callable[[], dict[str, Any]],
    lists: Callable[[], dict[str, list[str]]],
) -> Any:
    """Build the site. ``ready()`` says what is in force, and what is wrong with it; ``lists()`` what is refused."""

    def healthz() -> tuple[int, bytes]:
        return (200, b"alive\n") if alive.is_alive else (503, b"a serve thread stands still\n")

    def readyz() -> tuple[int, bytes]:
        return 200, json.dumps(ready(), indent=1).encode() + b"\n"

    root: Any = Resource()
    root.putChild(b"metrics", _Page(CONTENT_TYPE_LATEST, lambda: (200, generate_latest(registry))))
    root.putChild(b"healthz", _Page("text/plain; charset=utf-8", healthz))
    root.putChild(b"egress", _Lists(lists))
    root.putChild(b"readyz", _Page("application/json", readyz))
    return BoundedSite(root, MAX_CONNECTIONS)
