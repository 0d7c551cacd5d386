"""Lists over HTTPS: asked for when they may have changed, bounded in every way."""

from __future__ import annotations

import hashlib
import os
import ssl
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import (
    DecodeError,
    HTTPError,
    IncompleteRead,
    LocationParseError,
    MaxRetryError,
    NewConnectionError,
    ProtocolError,
    SSLError,
)
from urllib3.exceptions import TimeoutError as HttpTimeoutError

from blockd.lists.remote import ARRIVED, REFUSED, FetchError, Remote, State

#: Seconds without an octet, on connecting and on reading; the whole of a fetch has `PATIENCE`.
SILENCE = 20.0
#: Hops of a redirect; each is HTTPS.
REDIRECTS = 5
CHUNK_OCTETS = 1 << 16
#: What a server may say of an ETag that we give back; a larger one is as good as none.
HEADER_OCTETS = 1_024


def fetch(remote: Remote, state: State, progress: Callable[[int, int | None], None]) -> State:
    """Ask for the list, and write it to `remote.candidate` if it is another than the one in use.

    Gives what the server said of it. FetchError says why there is none, and then there is no candidate.
    """
    headers = {"Accept-Encoding": "gzip", "User-Agent": "blockd"}
    # What was fetched before, and refused or not in use yet, is as well known as what is.
    if state.url == remote.url and _beside(remote, state.known_of).exists():
        headers |= {"If-None-Match": state.etag} if state.etag else {}
        headers |= {"If-Modified-Since": state.modified} if state.modified else {}
    try:
        reply = _open(remote, headers)
        if reply.status == 304 and not headers.keys() & {"If-None-Match", "If-Modified-Since"}:
            raise FetchError("the server says that nothing changed, and was not asked")
        if reply.status == 304:
            return state
        if reply.status != 200:
            raise FetchError(f"the server says {reply.status} {str(reply.reason or '')[:80]!r}")
        _save(remote, reply, progress)
    except (HTTPError, OSError, ValueError, zlib.error, FetchError) as error:
        with suppress(OSError):
            remote.candidate.unlink()
        raise error if isinstance(error, FetchError) else FetchError(_words(error)) from None
    known_of = next((end for end in ("", ARRIVED, REFUSED) if _same(remote.candidate, _beside(remote, end))), None)
    if known_of is not None:
        # The server is back where we are: what is newer is nothing that waits any more.
        newer = {"": (remote.arrived, remote.refused), ARRIVED: (remote.refused,)}.get(known_of, ())
        for file in (remote.candidate, *newer):
            file.unlink(missing_ok=True)
    return replace(
        state,
        url=remote.url,
        etag=_header(reply, "ETag"),
        modified=_header(reply, "Last-Modified"),
        known_of=known_of or "",
    )


def _beside(remote: Remote, ending: str) -> Path:
    return remote.path.with_name(remote.path.name + ending)


def _open(remote: Remote, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
    """Follow redirects by hand: each hop is HTTPS, checked as the first one was, and its body is not read."""
    url = remote.url
    for _ in range(REDIRECTS + 1):
        reply = _pool(remote, url).request(
            "GET", url, headers=headers, redirect=False, retries=False, preload_content=False
        )
        location = reply.headers.get("Location")
        if reply.status not in (301, 302, 303, 307, 308) or not location:
            return reply
        reply.close()
        url = urljoin(url, location)
        if urlsplit(url).scheme != "https":
            raise FetchError(f"it leads to {url[:200]!r}, which is not HTTPS")
    raise FetchError(f"it leads on and on, more than {REDIRECTS} times; the last: {url[:200]!r}")


def _pool(remote: Remote, url: str) -> urllib3.PoolManager:
    try:
        context = ssl.create_default_context(cafile=None if remote.ca is None else str(remote.ca))
    except (OSError, ssl.SSLError) as error:
        raise FetchError(f"ca: {remote.ca}: {error.strerror or error}") from None
    timeout = urllib3.Timeout(connect=SILENCE, read=SILENCE)
    host = urlsplit(url).hostname or ""
    proxy = None if proxy_bypass(host) else getproxies().get("https")
    if proxy:
        return urllib3.ProxyManager(proxy, ssl_context=context, timeout=timeout)
    return urllib3.PoolManager(ssl_context=context, timeout=timeout)


def _save(remote: Remote, reply: urllib3.BaseHTTPResponse, progress: Callable[[int, int | None], None]) -> None:
    """Write the body, uncompressed as it comes, never more than is allowed."""
    said = reply.headers.get("Content-Length", "")
    whole = int(said) if said.isascii() and said.isdigit() and not reply.headers.get("Content-Encoding") else None
    limit = remote.largest_octets
    too_large = f"it is larger than {limit >> 20} MiB; largest_mb allows more"
    if whole is not None and whole > limit:
        raise FetchError(too_large)
    octets = 0
    with remote.candidate.open("wb") as file:
        for chunk in _unpacked(reply):
            octets += len(chunk)
            if octets > limit:
                raise FetchError(too_large)
            file.write(chunk)
            progress(octets, whole)
        file.flush()
        os.fsync(file.fileno())
    if not octets:
        raise FetchError("the list is empty")


def _unpacked(reply: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    """Give the body piece by piece, never more at once than a chunk: a small answer must not become a gigabyte.

    Its end must be said by the protocol, and by the compression if there is one: what is cut off is no list.
    """
    if reply.headers.get("Content-Length") is None and not reply.headers.get("Transfer-Encoding"):
        raise FetchError("the server does not say where it ends, so that a part would pass for the whole")
    encoding = (reply.headers.get("Content-Encoding") or "identity").strip().lower()
    pieces = iter(lambda: reply.read(CHUNK_OCTETS, decode_content=False), b"")
    if encoding == "identity":
        yield from pieces
        return
    if encoding not in ("gzip", "x-gzip"):
        raise FetchError(f"it is encoded as {encoding[:40]!r}, which was not asked for")
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
    for piece in pieces:
        packed = piece
        while packed and not unpacker.eof:
            if chunk := unpacker.decompress(packed, CHUNK_OCTETS):
                yield chunk
            packed = unpacker.unconsumed_tail
    if not unpacker.eof:
        raise FetchError("it was cut off: its compression has no end")


def _header(reply: urllib3.BaseHTTPResponse, name: str) -> str | None:
    value = reply.headers.get(name)
    return value if value and len(value) <= HEADER_OCTETS and value.isprintable() else None


def _same(one: Path, other: Path) -> bool:
    """Compare two files without holding either."""
    try:
        if one.stat().st_size != other.stat().st_size:
            return False
        with one.open("rb") as a, other.open("rb") as b:
            return hashlib.file_digest(a, "sha256").digest() == hashlib.file_digest(b, "sha256").digest()
    except OSError:
        return False


def _words(error: Exception) -> str:
    """Say in a line what went wrong, for an operator who does not know urllib3."""
    if isinstance(error, MaxRetryError) and error.reason is not None:
        error = error.reason
    if isinstance(error, ProtocolError) and error.args and isinstance(error.args[-1], IncompleteRead):
        error = error.args[-1]
    if isinstance(error, SSLError):
        return f"TLS: {_first(error)}"
    if isinstance(error, NewConnectionError):
        return f"no connection: {_first(error).rpartition(': ')[2]}"
    if isinstance(error, HttpTimeoutError):
        return f"the server was silent for {SILENCE:g} s"
    if isinstance(error, IncompleteRead):
        return f"it was cut off: {error.partial} octets came, {error.expected} more were to come"
    if isinstance(error, ProtocolError):
        return f"it was cut off: {_first(error)}"
    if isinstance(error, DecodeError | zlib.error):
        return "it is said to be compressed, and cannot be read as that"
    if isinstance(error, LocationParseError):
        return "it leads to something that is no URL"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return _first(error)


def _first(error: BaseException) -> str:
    return (str(error.args[-1] if error.args else error).splitlines() or [type(error).__name__])[0][:200]
