"""The block page: which app, by whose decision, what it takes, how to be exempted; for phones, without scripts."""

from __future__ import annotations

import http.client
import socket

from blockd.transport.block_page import Blocked, page
from tests.conftest import Serve
from tests.support.daemon import Blockd, free_port
from tests.support.questions import CORPORATE, PERSONAL, addresses, ask
from tests.support.upstream import Upstream


def get(
    port: int, host: str, *, client: str = CORPORATE, method: str = "GET", address: str = "127.0.0.1"
) -> tuple[int, dict[str, str], str]:
    """Get the page as a browser of a device would."""
    connection = http.client.HTTPConnection(address, port, timeout=5, source_address=(client, 0))
    connection.putrequest(method, "/video/1?x=<script>", skip_host=True)
    connection.putheader("Host", host)
    connection.endheaders()
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, {k.lower(): v for k, v in response.getheaders()}, text


def start(serve: Serve, upstream: Upstream) -> tuple[Blockd, int]:
    """Serve with a sinkhole on this machine."""
    port = free_port()
    policies = {"corporate": {"block": ["tiktok"], "answer": "sinkhole", "sinkhole": {"ipv4": "127.0.0.1"}}}
    block_page = {
        "listen": [f"127.0.0.1:{port}"],
        "exemption": "Ask your security team, with your line manager's word.\n",  # as a YAML block ends
    }
    answers = {"organization": "The Department's security board", "contact": "mailto:security@dept.example"}
    return serve([upstream.address], policies=policies, block_page=block_page, answers=answers), port


def test_a_blocked_name_leads_to_the_page(serve: Serve, upstream: Upstream) -> None:
    """The name resolves to the sinkhole, and the page there says all that a user needs."""
    blockd, port = start(serve, upstream)
    assert addresses(ask(blockd, "www.tiktok.com", client=CORPORATE)) == ["127.0.0.1"]
    status, headers, text = get(port, f"www.tiktok.com:{port}")
    assert status == 403
    for words in (
        "TikTok is blocked on this network",
        "You asked for www.tiktok.com.",
        "The Department&#x27;s security board decided that TikTok, which TikTok Pte. Ltd. (ByteDance Ltd.) runs,",
        "<dt>Contacts, content, location</dt><dd>Cabinet Office, statement of 16 March 2023 on government devices</dd>",
        "Ask your security team, with your line manager&#x27;s word.",
        'href="mailto:security@dept.example?subject=Exemption%20for%20TikTok"',
        'name="viewport" content="width=device-width,initial-scale=1"',
    ):
        assert words in text, words
    assert "<script" not in text
    assert CORPORATE not in text
    assert headers["cache-control"] == "no-store"
    assert headers["content-security-policy"].startswith("default-src 'none'; style-src 'sha256-")
    assert get(port, "www.tiktok.com", method="POST")[0] == 403
    assert get(port, "www.tiktok.com", method="HEAD")[2] == ""
    assert blockd.metric("blockd_block_page_requests_total", result="blocked") == 3


def test_what_is_not_blocked_for_this_device_has_another_page(serve: Serve, upstream: Upstream) -> None:
    """Another name, a bare address, no name at all, a device of another group: it is no proof of anything."""
    blockd, port = start(serve, upstream)
    for host in (
        "plain.example",
        f"127.0.0.1:{port}",
        "[::1]",
        "",
        "<b>x</b>",
        "x" * 5000,
        "a..b",
        "www.tiktok.com.evil.example",
    ):
        status, _, text = get(port, host)
        assert status == 404, host
        assert "Nothing is served here" in text
        assert "<b>x" not in text
    assert get(port, "www.tiktok.com", client=PERSONAL)[0] == 404
    assert get(port, "WWW.TikTok.com.")[0] == 403
    assert blockd.metric("blockd_block_page_requests_total", result="other") == 9


def test_https_is_refused_at_once(serve: Serve, upstream: Upstream) -> None:
    """Nothing listens beside the page: a browser hears so in a round trip, and sees no forged certificate."""
    _, port = start(serve, upstream)
    with socket.socket() as client:
        client.settimeout(2)
        assert client.connect_ex(("127.0.0.1", 443)) == 111, "connection refused"
    with socket.create_connection(("127.0.0.1", port), timeout=2) as client:
        client.sendall(b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + b"\0" * 100 + b"\r\n\r\n")
        assert b"400" in client.recv(100).split(b"\r\n")[0]


def test_everything_on_the_page_is_escaped() -> None:
    """Title, owner, name, texts and links: nobody's words become markup, or a link that runs something."""
    evil = '"><script>x</script>'
    made = page(Blocked(evil, evil, evil, {evil: evil}, evil, f"javascript:{evil}", evil))
    assert "<script" not in made
    assert "href" not in made
    assert page(Blocked("n", "T", None, {}, None, None, None)).count("<h2>") == 2
