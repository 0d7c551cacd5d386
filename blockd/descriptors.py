"""How many descriptors there are, and who may have how many: what strangers can open leaves room for what we need."""

from __future__ import annotations

import resource
from dataclasses import dataclass

from blockd.problems import StartError

#: Exchange sockets that a thread has of each family, at most and at least. Fewer ports are easier to guess.
SOURCE_SOCKETS, FEWEST_SOURCE_SOCKETS = 256, 16
#: Descriptors that a thread may have open for each of them: two families, and as many worn ones.
SOCKETS_A_SOURCE = 4
#: Descriptors for everything else: files, pipes, children, streams to upstreams, commands, admin address, firewalls.
RESERVE = 384
#: Descriptors of a thread beside its sockets.
A_THREAD = 3


@dataclass(frozen=True)
class Shares:
    """What the limit allows."""

    source_sockets: int
    tcp_connections: int
    #: What is less than it should be, and what to do; None where nothing is.
    warning: str | None


def raise_limit() -> int:
    """Raise the limit of open files (RLIMIT_NOFILE) as far as this process may; give it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return 1 << 30 if hard == resource.RLIM_INFINITY else hard


def share_out(limit: int, threads: int, addresses: int, connections: int) -> Shares:
    """Give shares of a limit: to exchanges first, then to clients' connections, up to what the config says.

    StartError when too few are left to ask upstreams from ports that nobody can guess.
    """
    fixed = RESERVE + threads * (A_THREAD + addresses)
    enough = fixed + threads * SOCKETS_A_SOURCE * SOURCE_SOCKETS + connections
    # Clients keep a quarter of what there is, however little.
    for_clients = min(connections, max(0, limit - fixed) // 4)
    sources = min(SOURCE_SOCKETS, max(0, limit - fixed - for_clients) // (threads * SOCKETS_A_SOURCE))
    advice = f"raise it to {enough} (LimitNOFILE= of the unit, or ulimit -Hn), or set server.threads lower"
    if sources < FEWEST_SOURCE_SOCKETS:
        text = f"the limit of open files is {limit}, which leaves {sources} exchange sockets for a thread"
        raise StartError(f"{text}, and {FEWEST_SOURCE_SOCKETS} are needed; {advice}")
    streams = min(connections, limit - fixed - threads * SOCKETS_A_SOURCE * sources)
    if limit >= enough:
        return Shares(sources, streams, None)
    text = f"the limit of open files is {limit}: {sources} of {SOURCE_SOCKETS} exchange sockets for a thread and family"
    return Shares(sources, streams, f"{text}, {streams} of {connections} TCP connections; {advice}")
