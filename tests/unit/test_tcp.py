"""DNS over TCP as RFC 7766 has it: pipelined, out of order, bounded."""

from __future__ import annotations

import socket
import struct
import time

import dns.message

from tests.conftest import Serve
from tests.support.questions import CORPORATE, PERSONAL, message
from tests.support.upstream import Asked, Reply, Upstream, answer


def framed(name: str, number: int) -> bytes:
    """Make a query with its length in front."""
    wire = message(name, id=number).to_wire()
    return struct.pack("!H", len(wire)) + wire


def receive(client: socket.socket, count: int) -> list[dns.message.Message]:
    """Read whole messages."""
    data = b""
    found: list[dns.message.Message] = []
    while len(found) < count:
        chunk = client.recv(65536)
        assert chunk, f"closed after {len(found)} of {count}"
        data += chunk
        while len(data) >= 2 and len(data) >= 2 + (length := int(struct.unpack("!H", data[:2])[0])):
            found.append(dns.message.from_wire(data[2 : 2 + length]))
            data = data[2 + length :]
    return found


def slow_for_some(query: dns.message.Message, asked: Asked) -> Reply:
    """Answer, but let names with `slow` in front wait."""
    if asked.name.startswith("slow"):
        time.sleep(0.3)
    return answer(query, f"{asked.name}. 300 IN A 192.0.2.1")


def test_queries_are_pipelined_and_answered_out_of_order(serve: Serve, upstream: Upstream) -> None:
    """What is ready comes first; each answer has the ID of its query."""
    upstream.script = slow_for_some
    blockd = serve([upstream.address])
    with socket.create_connection(("127.0.0.1", blockd.port), source_address=(CORPORATE, 0)) as client:
        client.settimeout(5)
        client.sendall(framed("slow.example", 1) + b"".join(framed("tiktok.com", at) for at in range(2, 50)))
        got = receive(client, 49)
    assert [reply.id for reply in got] == [*range(2, 50), 1]
    assert got[-1].answer


def test_a_query_in_pieces_is_read(serve: Serve, upstream: Upstream) -> None:
    """Octet by octet, faster than the idle time."""
    blockd = serve([upstream.address])
    with socket.create_connection(("127.0.0.1", blockd.port), source_address=(CORPORATE, 0)) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.settimeout(5)
        for octet in framed("tiktok.com", 7):
            client.sendall(bytes([octet]))
            time.sleep(0.002)
        assert receive(client, 1)[0].id == 7


def test_more_than_may_be_at_once_waits_and_is_answered(serve: Serve, upstream: Upstream) -> None:
    """300 misses through a window of 10: all are answered."""
    upstream.script = slow_for_some
    blockd = serve([upstream.address], server={"tcp": {"queries_at_once": 10}})
    with socket.create_connection(("127.0.0.1", blockd.port), source_address=(PERSONAL, 0)) as client:
        client.settimeout(10)
        client.sendall(b"".join(framed(f"n{at}.example", at) for at in range(1, 301)))
        got = receive(client, 300)
    assert sorted(reply.id for reply in got) == list(range(1, 301))
    assert all(reply.answer for reply in got)


def test_who_says_no_more_still_gets_the_answer(serve: Serve, upstream: Upstream) -> None:
    """A half-closed connection is answered, then closed."""
    upstream.script = slow_for_some
    blockd = serve([upstream.address])
    with socket.create_connection(("127.0.0.1", blockd.port), source_address=(PERSONAL, 0)) as client:
        client.settimeout(5)
        client.sendall(framed("slow.example", 9))
        client.shutdown(socket.SHUT_WR)
        assert receive(client, 1)[0].id == 9
        assert client.recv(1) == b""


def test_malformed_queries_are_answered_like_over_udp(serve: Serve, upstream: Upstream) -> None:
    """FORMERR, and the connection goes on."""
    blockd = serve([upstream.address])
    with socket.create_connection(("127.0.0.1", blockd.port), source_address=(CORPORATE, 0)) as client:
        client.settimeout(5)
        client.sendall(struct.pack("!H", 12) + b"\0\5" + b"\0" * 10 + framed("tiktok.com", 6))
        got = receive(client, 2)
    assert [(reply.id, int(reply.rcode())) for reply in got] == [(5, 1), (6, 3)]


def test_ipv6_is_served_too(serve: Serve, upstream: Upstream) -> None:
    """UDP and TCP on [::1]; the reply comes from the address that was asked."""
    upstream.script = slow_for_some
    blockd = serve([upstream.address])
    with socket.create_connection(("::1", blockd.port)) as client:
        client.settimeout(5)
        client.sendall(framed("a.example", 3))
        assert receive(client, 1)[0].answer
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.sendto(message("a.example").to_wire(), ("::1", blockd.port))
        wire, peer = client.recvfrom(1500)
        assert peer[:2] == ("::1", blockd.port)
        assert dns.message.from_wire(wire).answer


def test_a_wildcard_listener_replies_from_the_address_that_was_asked(serve: Serve, upstream: Upstream) -> None:
    """Bound to 0.0.0.0 and asked on 127.0.0.5: the reply is from there (IP_PKTINFO)."""
    upstream.script = slow_for_some
    from tests.support.daemon import free_port

    port = free_port()
    blockd = serve([upstream.address], server={"listen": [f"0.0.0.0:{port}", f"[::]:{port}"]})
    for name in ("a.example", "slow.example", "tiktok.com"):
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.bind((CORPORATE, 0))
            client.settimeout(5)
            client.sendto(message(name).to_wire(), ("127.0.0.5", port))
            assert client.recvfrom(1500)[1] == ("127.0.0.5", port)
    for host in ("127.0.0.5", "::1"):
        with socket.create_connection((host, port)) as client:
            client.settimeout(5)
            client.sendall(framed("a.example", 4))
            assert receive(client, 1)[0].answer
    assert blockd.process is not None


def test_a_half_closed_client_gets_what_was_ready_at_once(serve: Serve, upstream: Upstream) -> None:
    """Blocks and cache hits are written before the close, however fast the client closes its half."""
    blockd = serve([upstream.address])
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", blockd.port), source_address=(CORPORATE, 0)) as client:
            client.settimeout(5)
            client.sendall(b"".join(framed("tiktok.com", at) for at in (1, 2, 3)))
            client.shutdown(socket.SHUT_WR)
            assert [reply.id for reply in receive(client, 3)] == [1, 2, 3]
            assert client.recv(1) == b""


def test_the_bound_on_connections_holds_and_strangers_take_none(serve: Serve, upstream: Upstream) -> None:
    """A burst leaves no more than the bound; who may not ask is not let in at all."""
    blockd = serve([upstream.address], server={"clients": ["127.0.0.0/24"], "tcp": {"connections": 10}})
    burst = [socket.create_connection(("127.0.0.1", blockd.port), source_address=("127.0.0.7", 0)) for _ in range(60)]
    strangers = [
        socket.create_connection(("127.0.0.1", blockd.port), source_address=("127.0.9.9", 0)) for _ in range(12)
    ]
    deadline = time.monotonic() + 5
    while blockd.metric("blockd_tcp_closed_total", reason="stranger") < 12:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert blockd.metric("blockd_tcp_connections") <= 10
    assert blockd.metric("blockd_tcp_closed_total", reason="for_another") == 50
    for connection in (*burst, *strangers):
        connection.close()
