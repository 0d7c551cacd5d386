"""Records of other people's zones, from text to the wire; dnspython is loaded when there is one."""

from __future__ import annotations

#: Types that are about the zone, or about messages, and no data of a name.
NO_DATA = {"ANY", "AXFR", "IXFR", "OPT", "TSIG", "TKEY", "NS", "SOA", "DNAME", "CNAME"}


def record_data(kind: str, text: str) -> tuple[int, bytes]:
    """Give a record's type and its data on the wire. ValueError when it cannot be read."""
    import dns.exception
    import dns.rdata
    import dns.rdatatype

    try:
        rdtype = dns.rdatatype.from_text(kind)
        if kind in NO_DATA:
            raise ValueError(f"{kind} is no data of a name")
        data = dns.rdata.from_text("IN", rdtype, text, relativize=False)
        return int(rdtype), bytes(data.to_wire() or b"")
    except (dns.exception.DNSException, ValueError) as error:
        raise ValueError(f"{kind} {text}: {error}") from None
