"""Lists that are zones: transferred whole or by what changed (RFC 5936, RFC 1995), signed where there is a key."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import dns.exception
import dns.name
import dns.query
import dns.rdatatype
import dns.serial
import dns.tsig
import dns.xfr
import dns.zone

from blockd.lists.keys import read_key
from blockd.lists.remote import FetchError, Remote, State

#: Seconds without an octet.
SILENCE = 20.0


def fetch_zone(remote: Remote, state: State, progress: Callable[[int, int | None], None]) -> State:
    """Ask for a zone, and write it to `remote.candidate` as a master file if it is another than the one in use.

    FetchError says why there is none, and then there is no candidate.
    """
    # What was refused, or waits for a reload, is newer than what is in use: asked for is what came after it.
    newest = next((file for file in (remote.refused, remote.arrived) if file.exists()), remote.path)
    known = _read(remote, newest)
    try:
        key = None if remote.key is None else read_key(remote.key.name, remote.key.algorithm, remote.key.file)
        zone = known or dns.zone.Zone(remote.zone, relativize=False)
        before = _serial(known)
        try:
            _receive(remote, zone, key)
        except (dns.exception.DNSException, ValueError, KeyError):
            if known is None:
                raise
            # Differences that do not fit what is here, or a primary that has none: all of it, then.
            zone = dns.zone.Zone(remote.zone, relativize=False)
            _receive(remote, zone, key)
        serial = zone.get_soa().serial
        in_use = before if newest == remote.path else _serial(_read(remote, remote.path))
        if in_use is not None and dns.serial.Serial(serial) < in_use:
            raise FetchError(f"its serial goes back, from {in_use} to {serial}")
        if serial == in_use:
            # The primary is back where we are: what was refused, or waits, it has no more.
            for file in (remote.refused, remote.arrived):
                file.unlink(missing_ok=True)
        elif serial != before:
            if before is not None and dns.serial.Serial(serial) < before:
                # Older than what was refused, and so no difference to it.
                zone = dns.zone.Zone(remote.zone, relativize=False)
                _receive(remote, zone, key)
            _write(remote, zone, progress)
    except (dns.exception.DNSException, OSError, ValueError, KeyError, EOFError, FetchError) as error:
        with suppress(OSError):
            remote.candidate.unlink()
        raise error if isinstance(error, FetchError) else FetchError(_words(error)) from None
    return replace(state, url=remote.url)


def _read(remote: Remote, file: Path) -> dns.zone.Zone | None:
    """Read the zone as it is kept; none when it is not there, or is none."""
    with suppress(OSError, dns.exception.DNSException, ValueError, KeyError):
        zone: dns.zone.Zone = dns.zone.from_file(str(file), remote.zone, relativize=False)
        zone.get_soa()
        return zone
    return None


def _serial(zone: dns.zone.Zone | None) -> int | None:
    return None if zone is None else int(zone.get_soa().serial)


def _receive(remote: Remote, zone: dns.zone.Zone, key: dns.tsig.Key | None) -> None:
    assert remote.server is not None
    host, port = remote.server
    query, _ = dns.xfr.make_query(zone, keyring=key, keyname=None if key is None else key.name)
    dns.query.inbound_xfr(host, zone, query, port, timeout=SILENCE, lifetime=remote.patience)


def _write(remote: Remote, zone: dns.zone.Zone, progress: Callable[[int, int | None], None]) -> None:
    """Write a master file, the SOA first: it says what every owner ends with."""
    octets = 0
    with remote.candidate.open("w") as file:
        for name in sorted(zone):
            sets = sorted(zone[name], key=lambda rdataset: rdataset.rdtype != dns.rdatatype.SOA)
            for line in (f"{text}\n" for rdataset in sets for text in rdataset.to_text(name).splitlines()):
                octets += len(line)
                if octets > remote.largest_octets:
                    raise FetchError(f"it is larger than {remote.largest_octets >> 20} MiB; largest_mb allows more")
                file.write(line)
            progress(octets, None)
        file.flush()
        os.fsync(file.fileno())


def _words(error: Exception) -> str:
    """Say in a line what went wrong."""
    if isinstance(error, dns.exception.Timeout):
        return f"the server was silent for {SILENCE:g} s"
    if isinstance(error, dns.tsig.PeerError | dns.tsig.BadSignature | dns.exception.DNSException):
        return f"the transfer failed: {type(error).__name__}: {error}".splitlines()[0][:200]
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
