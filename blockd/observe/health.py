"""/metrics, /healthz, /readyz and the lists for firewalls, over HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from twisted.internet.defer import Deferred

from blockd.observe.rendering import SharedPage, paced
from blockd.transport.http import HttpListener, Refused, Request, Response, is_host_of

#: A dashboard or two, and people; half of it for one address, behind which may be all of these.
MAX_CONNECTIONS, MAX_CONNECTIONS_OF_CLIENT = 64, 32

#: The list of all apps.
ALL = "all.json"
TEXT, JSON = "text/plain; charset=utf-8", "application/json"
#: Of every answer: what is shown here is for no page of others.
FIELDS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}


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


class AdminPages:
    """What operators and dashboards look at."""

    def __init__(
        self,
        metrics: SharedPage[bytes],
        lists: SharedPage[dict[str, bytes]],
        alive: AliveCheck,
        ready: Callable[[], dict[str, Any]],
        hosts: Callable[[], frozenset[str]],
    ) -> None:
        """``ready()`` says what is in force, and with `is_ready` whether queries may be sent here.

        ``lists`` gives the lists for firewalls by the name of their file, ``hosts()`` the hosts that requests may name.
        """
        self._metrics, self._lists, self._alive, self._ready, self._hosts = metrics, lists, alive, ready, hosts
        self.listener = HttpListener(self._answer, MAX_CONNECTIONS, MAX_CONNECTIONS_OF_CLIENT, keeps_alive=True)

    def _answer(self, request: Request) -> Response | Deferred[Response]:
        if request.method not in ("GET", "HEAD"):
            return Response(405, b"expected GET or HEAD\n", {"Content-Type": TEXT, "Allow": "GET, HEAD", **FIELDS})
        if not is_host_of(request.host, request.local, self._hosts()):
            text = f"{request.host} is not known here; add it to admin.hosts if it is meant for this server"
            raise Refused(421, text)
        if request.path == "/metrics":
            return self._metrics.get().addCallback(lambda page: _page(200, page, CONTENT_TYPE_LATEST))
        if request.path == "/healthz":
            return _page(200, b"alive\n") if self._alive.is_alive else _page(503, b"a serve thread stands still\n")
        if request.path == "/readyz":
            state = self._ready()
            return _page(200 if state["is_ready"] else 503, json.dumps(state, indent=1).encode() + b"\n", JSON)
        if request.path.startswith("/egress/"):
            name = request.path.removeprefix("/egress/")
            return self._lists.get().addCallback(lambda lists: _list(lists, name))
        return _page(404, b"there are /metrics, /healthz, /readyz and /egress/all.json\n")


def _page(status: int, body: bytes, content_type: str = TEXT) -> Response:
    return Response(status, body, {"Content-Type": content_type, **FIELDS})


def _list(lists: dict[str, bytes], name: str) -> Response:
    if name not in lists:
        return _page(404, f"there is no such list; there are {', '.join(lists)}\n".encode())
    return _page(200, lists[name], JSON if name == ALL else TEXT)


def lists_page(lists: dict[str, list[str]]) -> dict[str, bytes]:
    """Write the lists for firewalls: one of all in JSON, and one of each app in lines."""
    files = {f"{app}.txt": "".join(f"{one}\n" for one in paced(lines)).encode() for app, lines in lists.items()}
    return {ALL: json.dumps(lists, indent=1).encode() + b"\n", **files}


def metrics_page(families: Iterable[Metric]) -> bytes:
    """Write metrics as Prometheus reads them, family after family, with pauses for others."""

    class _Registry:
        def collect(self) -> Iterator[Metric]:
            for family in paced(families):
                # An iterator is all that is asked of them.
                family.samples = paced(family.samples)  # type: ignore[assignment]
                yield family

    page: bytes = generate_latest(_Registry())
    return page
