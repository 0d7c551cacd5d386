"""Records that a stranger can have written into a file that blockd reads: they cost no other record anything."""

from __future__ import annotations

import time
from pathlib import Path

import dns.query
import pytest

from tests.conftest import Serve
from tests.support.questions import ask, message, rcode
from tests.support.upstream import Upstream, answer

LAPTOP, GUEST = "00:16:3e:00:47:11", "00:16:3e:00:99:01"
KEA4 = "address,hwaddr,client_id,valid_lifetime,expire,subnet_id,fqdn_fwd,fqdn_rev,hostname,state"
KEA6 = (
    "address,duid,valid_lifetime,expire,subnet_id,pref_lifetime,lease_type,iaid,prefix_len,fqdn_fwd,fqdn_rev,hostname"
)


def lease_files(end: int) -> dict[str, str]:
    """Give what a guest can have each server write: names, client IDs, DUIDs, and lines that were cut."""
    quoted = "}}\\012lease 127.0.40.3 {{"
    kea = [KEA4, f'127.0.40.1,{LAPTOP},,9,{end},1,0,0,"x,0', f'127.0.40.9,{GUEST},ff:ff,9,{end},1,0,0,"x&#x2c0,0']
    kea += ["127.0.40.1", f"127.0.40.1,{GUEST},,9,soon,1,0,0,x,0", f"127.0.40.1,{GUEST},,9,{end},1,0,0,x,7"]
    kea6 = [KEA6, f"::1,00:03:00:01:{LAPTOP},9,{end},1,9,0,7,128,0,0,x"]
    kea6 += [f"2001:db8::9,00:03:00:01:00:00:00:00:00:00,9,{end},1,9,0,7,128,0,0,"]
    dnsmasq = [f"{end} {LAPTOP} 127.0.40.2 * *", f"{end} 7 2001:db8::9 * 00:03:00:01:ff:ff:ff:ff:ff:ff"]
    dnsmasq += [f"{end} * 127.0.40.9", f"-1 {GUEST} 127.0.40.2 * *", "duid 00:03:00:01"]
    dhcpd = ["lease 127.0.40.3 {", f"  ends epoch {end};", f"  hardware ethernet {LAPTOP};", "}"]
    dhcpd += ["lease 127.0.40.9 {", "  ends never;", f"  hardware ethernet {GUEST};", f'  uid "{quoted}";']
    dhcpd += [f'  client-hostname "{quoted} ends never; }}";', "}"]
    dhcpd += ['ia-na "\\001\\002" {', "  iaaddr 127.0.40.3 {", "    ends soon;", "  }", "}"]
    files = {"kea": kea, "kea6": kea6, "dnsmasq": dnsmasq, "dhcpd": dhcpd}
    return {name: "".join(f"{line}\n" for line in lines) for name, lines in files.items()}


row = pytest.mark.row


@row("lease-records")
def test_what_a_guest_sends_to_a_dhcp_server_frees_no_device(serve: Serve, upstream: Upstream, tmp_path: Path) -> None:
    """Useless DUIDs, names with braces, quotes and commas, records that cannot be read: each costs itself alone."""
    upstream.script = lambda query, asked: answer(query, f"{asked.name}. 300 IN A 192.0.2.1")
    files = lease_files(int(time.time()) + 3_600)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "devices.csv").write_text(f"mac,hostname,serial\n{LAPTOP},laptop-7,SER-4711\n")
    blockd = serve(
        [upstream.address],
        groups={
            "corporate": {"inventory": [{"file": str(tmp_path / "devices.csv")}]},
            "personal": {"networks": ["127.0.40.0/24", "::1/128"]},
        },
        devices={
            "leases": [{"file": str(tmp_path / name), "format": name.removesuffix("6")} for name in files],
            "stands": "1s",
        },
    )
    began = time.monotonic()
    while time.monotonic() < began + 2:
        for client in ("127.0.40.1", "127.0.40.2", "127.0.40.3"):
            assert rcode(ask(blockd, "www.tiktok.com", client=client)) == "NXDOMAIN", client
        over_ipv6 = dns.query.udp(message("www.tiktok.com"), "::1", port=blockd.port, timeout=10)
        assert rcode(over_ipv6) == "NXDOMAIN"
        assert rcode(ask(blockd, "www.tiktok.com", client="127.0.40.9")) == "NOERROR"
    for name in files:
        assert blockd.metric("blockd_lease_file_current", file=str(tmp_path / name)) == 1
    assert blockd.metric("blockd_records_skipped", source="leases", file=str(tmp_path / "kea")) == 3
