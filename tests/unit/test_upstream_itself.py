"""An upstream server that this machine cannot ask: itself, or behind an interface that is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from blockd.endpoint import Endpoint
from blockd.policy import inputs
from blockd.policy.inputs import read_inputs
from blockd.problems import InputError
from blockd.settings.upstreams import read_upstream
from tests.support.daemon import Blockd, config, free_port
from tests.support.upstream import Upstream


def problems(tmp_path: Path, listen: list[str], upstream: dict[str, Any]) -> list[str]:
    """Read a config; give what is wrong."""
    values = config([], 5353, 9353, server={"listen": listen}, upstream=upstream)
    values["apps"] = {"builtin": True}
    (tmp_path / "blockd.yaml").write_text(yaml.safe_dump(values))
    try:
        read_inputs(tmp_path / "blockd.yaml")
    except InputError as error:
        return [str(problem) for problem in error.problems]
    return []


@pytest.mark.parametrize(
    ("listen", "server", "is_itself"),
    [
        ("127.0.0.1:5300", "127.0.0.1:5300", True),
        ("127.0.0.1:5300", "127.0.0.1:5301", False),
        ("127.0.0.1:5300", "127.0.0.2:5300", False),
        ("127.0.0.1:5300", "[::1]:5300", False),
        ("0.0.0.0:53", "127.0.0.53", True),
        ("0.0.0.0:53", "0.0.0.0", True),
        ("127.0.0.1:53", "0.0.0.0", True),
        ("[::1]:53", "::", True),
        ("10.0.0.1:53", "0.0.0.0", False),
        ("0.0.0.0:53", "192.0.2.1", False),
        ("0.0.0.0:53", "[::1]:53", False),
        ("[::]:53", "::1", True),
        ("[::]:53", "2001:db8::53", False),
        ("[2001:db8::1]:53", "2001:db8:0::1", True),
    ],
)
def test_it_is_found_by_address_port_and_family(tmp_path: Path, listen: str, server: str, is_itself: bool) -> None:
    """In the servers and in those of a zone, with place and what to write."""
    for upstream, key in (
        ({"servers": ["192.0.2.53", server]}, "upstream.servers.1"),
        ({"servers": ["192.0.2.53"], "zones": {"corp.example": [server]}}, "upstream.zones.corp.example.0"),
    ):
        found = problems(tmp_path, [listen], upstream)
        assert bool(found) == is_itself, found
        for problem in found:
            assert f": {key}: " in problem
            assert f"is this resolver itself (server.listen {listen}" in problem
            assert "write the addresses of the resolvers" in problem


def test_resolv_conf_is_looked_at_line_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own address, a link-local one with and without interface; lines that are none are left out."""
    file = tmp_path / "resolv.conf"
    monkeypatch.setattr(inputs, "RESOLV_CONF", file)
    upstream = {"servers": "system"}
    file.write_text("# here\nnameserver 192.0.2.53\nnameserver 127.0.0.1\n")
    found = problems(tmp_path, ["0.0.0.0:53"], upstream)
    assert len(found) == 1
    assert found[0].startswith(f"{file}:3: nameserver: 127.0.0.1:53 is this resolver itself (server.listen 0.0.0.0:53)")
    assert problems(tmp_path, ["127.0.0.1:5300"], upstream) == []
    file.write_text(
        "nameserver fe80::1%lo\nnameserver fe80::2%1\nnameserver fe80::3\nnameserver x%lo\nnameserver ::1%lo\n"
    )
    assert problems(tmp_path, ["127.0.0.1:53"], upstream) == []
    servers = read_inputs(tmp_path / "blockd.yaml").default_servers()
    assert [str(server) for server in servers] == ["[fe80::1%lo]:53", "[fe80::2%1]:53"]
    file.write_text("search example.com\n\nnameserver fe80::1%none0\n")
    found = problems(tmp_path, ["127.0.0.1:53"], upstream)
    assert found == [
        f'{file}:3: nameserver: [fe80::1%none0]:53: there is no interface "none0"; "ip link" lists them: '
        "correct the name or the server"
    ]
    file.write_text("nameserver fe80::3\n")
    assert "names no server" in problems(tmp_path, ["127.0.0.1:53"], upstream)[0]


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("fe80::1%eth0", "[fe80::1%eth0]:53"),
        ("[fe80::1%eth0.5]:5353", "[fe80::1%eth0.5]:5353"),
        ("[fe80::1%12]", "[fe80::1%12]:53"),
        ("fe80::1", "needs its interface"),
        ("[2001:db8::1%eth0]:53", "is not link-local"),
        ("[::1%lo]:53", "is not link-local"),
        ("10.0.0.1%eth0", "is not link-local"),
        ("[fe80::1%]:53", "no address and port"),
        ("[fe80::1%a/b]:53", "no address and port"),
        ("[fe80::1%a b]:53", "no address and port"),
        ("[fe80::1%sixteen-letters-]:53", "no address and port"),
        ("[fe80::1%eth0]:0", "needs a port"),
    ],
)
def test_scopes_are_read_and_written(text: str, written: str) -> None:
    """Of link-local IPv6 addresses, and of no others."""
    if not written.startswith("["):
        with pytest.raises(ValueError, match=written):
            read_upstream(text)
        return
    server = read_upstream(text)
    assert str(server) == written
    assert read_upstream(str(server)) == server
    assert Endpoint.from_native(("dns", str(server.address), server.scope, server.port, "")) == server


def test_the_daemon_does_not_start_and_a_reload_is_refused(tmp_path: Path) -> None:
    """With the place and what to write; `check` says the same."""
    with Upstream() as upstream, Blockd(tmp_path, [upstream.address]) as blockd:
        blockd.values["upstream"]["servers"] = [upstream.address, f"127.0.0.1:{blockd.port}"]
        for done in (blockd.reload(), blockd.run("check")):
            assert done.returncode == 1
            assert "is this resolver itself" in done.stdout + done.stderr
    other = tmp_path / "other"
    other.mkdir()
    alone = Blockd(other, [f"127.0.0.1:{free_port()}"])
    alone.values["upstream"]["servers"] = [f"[::1]:{alone.port}"]
    alone.write()
    with pytest.raises(AssertionError, match="is this resolver itself"):
        alone.start()
