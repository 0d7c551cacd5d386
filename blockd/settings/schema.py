"""Every key of the config file: its type, default, unit, and whether a reload or a restart takes it in."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from blockd.settings import usual
from blockd.settings.upstreams import Nat64Prefix, UpstreamServer
from blockd.settings.values import (
    DomainName,
    Duration,
    Endpoint,
    Growth,
    HostName,
    Network,
    NetworkValue,
    Percent,
    Printable,
    Upstreams,
)

Answer = Literal["nxdomain", "nodata", "refused", "null", "sinkhole", "drop"]
AppName = str

#: Keys that are read at start alone: a reload that changes one is refused and names it.
RESTART_KEYS = (
    "server.listen",
    "server.threads",
    "admin.listen",
    "admin.socket",
    "state.directory",
    "cache.size_mb",
    "block_page.listen",
    "transfer.listen",
    "exemptions.database",
    "egress.enabled",
    "egress.socket",
    "egress.listen",
    "egress.certificate",
    "egress.key",
    "egress.authority",
)


class Section(BaseModel):
    """A part of the config: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Tcp(Section):
    """Bounds of DNS over TCP (RFC 7766)."""

    connections: int = Field(4096, ge=1, le=100_000, description="Open connections in all.")
    connections_a_client: int = Field(64, ge=1, le=100_000, description="Open connections of one client.")
    queries_a_connection: int = Field(
        10_000, ge=1, le=1_000_000_000, description="Queries on one connection, then it is closed."
    )
    queries_at_once: int = Field(
        128, ge=1, le=100_000, description="Unanswered queries on one connection before reading stops."
    )
    idle: float = Field(
        10.0,
        ge=1,
        le=3_600,
        description="Seconds without a whole query or a reader until closed; twice with an answer owed.",
    )


class Forwarder(Section):
    """One whose word about who asked it is believed."""

    address: NetworkValue = Field(description="Where its queries come from: one address.")
    says: list[Literal["mac", "subnet", "proxy"]] = Field(
        min_length=1,
        description="What it writes itself, and takes away where a client wrote it: `mac` (EDNS 65001), `subnet` (EDNS "
        "Client Subnet), `proxy` (PROXY protocol v2).",
    )

    @field_validator("address")
    @classmethod
    def _one_address(cls, network: Network) -> Network:
        if network.num_addresses != 1:
            raise ValueError(f"expected one address, and found {network}: whoever is in it could be anybody")
        return network


class Server(Section):
    """Where and for whom queries are answered."""

    listen: list[Endpoint] = Field(
        min_length=1,
        description="Addresses for UDP and TCP; one whose family the host lacks is left out with a "
        "warning, if another one serves. Restart.",
    )
    threads: Literal["auto"] | int = Field("auto", description="Serve threads; auto is one a core. Restart.")
    clients: list[NetworkValue] | None = Field(
        None, description="Who may ask. Default: loopback, private ranges and every group's networks."
    )
    client_rate: int = Field(2_000, ge=1, le=1_000_000, description="Queries a second of one client (/32, /64).")
    client_burst: int = Field(4_000, ge=1, le=10_000_000, description="Queries at once of one client.")
    forwarders: list[Forwarder] = Field(
        default_factory=list,
        description="Forwarders that say who asked them, and are believed; of others it is ignored and counted.",
    )
    forwarder_rate: int = Field(
        50_000, ge=1, le=10_000_000, description="Queries a second of all the clients of one forwarder."
    )
    tcp: Tcp = Tcp()

    @field_validator("threads")
    @classmethod
    def _a_few(cls, threads: Literal["auto"] | int) -> Literal["auto"] | int:
        if isinstance(threads, int) and not 1 <= threads <= 256:
            raise ValueError("expected auto or a number from 1 to 256")
        return threads


class Admin(Section):
    """Where operators and dashboards look."""

    listen: Endpoint = Field(description="Address of /metrics, /healthz and /readyz. Restart.")
    socket: str = Field(usual.SOCKET, description="Path of the control socket. Restart.")
    hosts: list[HostName] = Field(
        default_factory=list,
        description="Names and addresses, beside the one of `listen`, that requests may have in `Host`.",
    )
    ready_needs_upstream: bool = Field(False, description="Whether /readyz is 503 while no upstream is usable.")
    metrics_max_age: Duration = Field(
        1.0,
        ge=0,
        le=60,
        description="How long one rendering of /metrics, and of the lists for firewalls, is shared.",
        json_schema_extra={"default": "1s"},
    )


class State(Section):
    """What outlives the daemon."""

    directory: str = Field("/var/lib/blockd", description="Directory of snapshots and their inputs. Restart.")


class UpstreamSettings(Section):
    """Who is asked what is not answered here."""

    servers: Literal["system"] | list[UpstreamServer] = Field(
        description=(
            "Addresses, the preferred first, link-local ones with their interface ([fe80::1%eth0]:53); "
            "system reads /etc/resolv.conf at each reload."
        )
    )
    zones: dict[DomainName, list[UpstreamServer]] = Field(
        default_factory=dict, description="Other servers for a zone and below."
    )
    nat64_prefixes: list[Nat64Prefix] = Field(
        default_factory=list,
        max_length=16,
        description=(
            "NAT64 prefixes of this network (RFC 6052), in which apps' IPv4 networks are recognised; 64:ff9b::/96, "
            "64:ff9b:1::/48 and those that upstream servers tell of (RFC 7050) need not be named."
        ),
    )
    nat64_discovery: bool = Field(
        True, description="Ask the servers for ipv4only.arpa, to learn their NAT64 prefixes (RFC 7050)."
    )
    trust_ad: bool = Field(False, description="Pass AD on: only for validating servers on a path nobody else can use.")
    pending: int = Field(20_000, ge=1, le=1_000_000, description="Queries that may wait for an upstream, in all.")
    pending_a_client: int = Field(200, ge=1, le=1_000_000, description="Queries of one client that may wait.")

    @field_validator("servers")
    @classmethod
    def _some(cls, servers: Literal["system"] | list[UpstreamServer]) -> Literal["system"] | list[UpstreamServer]:
        if not servers:
            raise ValueError("expected at least one server, or the word system")
        return servers


class Cache(Section):
    """What is kept of answers."""

    size_mb: int = Field(256, ge=1, le=1 << 20, description="Largest size, MiB, of the answer cache. Restart.")
    ttl_floor: int = Field(0, ge=0, le=3_600, description="Smallest TTL kept, seconds.")
    ttl_ceiling: int = Field(86_400, ge=1, le=604_800, description="Largest TTL kept, seconds.")
    negative_ttl_ceiling: int = Field(3_600, ge=0, le=10_800, description="Largest TTL of a negative answer, seconds.")
    stale: int = Field(
        86_400,
        ge=0,
        le=604_800,
        description="Seconds after its end that an answer is served when no upstream has a new one (RFC 8767).",
    )


class Reload(Section):
    """How changes are taken in."""

    watch: bool = Field(True, description="A changed file means a reload, after a second of quiet.")
    largest_shrink: Percent = Field(
        0.5,
        description="Share of its rules that an app or list may lose in a reload without `--accept`.",
        json_schema_extra={"default": "50%"},
    )
    largest_growth: Growth = Field(
        2.0,
        description="Share by which a list may grow in a reload without `--accept`, where it is more than 50 names.",
        json_schema_extra={"default": "200%"},
    )
    largest_unparsed: Percent = Field(
        0.2,
        description="Share of a list's lines that may give no name, and of an inventory's records with something that "
        "cannot be used.",
        json_schema_extra={"default": "20%"},
    )
    must_block: list[DomainName] = Field(
        default_factory=list, description="Names that some group must be refused, or nothing is reloaded."
    )
    must_allow: list[DomainName] = Field(
        default_factory=list, description="Names that no group may be refused, or nothing is reloaded."
    )
    never_block: list[DomainName] = Field(
        default_factory=list,
        description="Names that no list may block, nor anything below, nor all above; own zones and records always.",
    )


class Log(Section):
    """How the log is written, to stderr."""

    format: Literal["text", "json"] = Field("text", description="Lines for people, or one JSON object a line.")


class Apps(Section):
    """Where the catalogue comes from."""

    builtin: bool = Field(True, description="Read the apps that blockd ships.")
    directory: str | None = Field(None, description="A site's own apps, one YAML file an app.")


class InventoryFile(Section):
    """Devices by their addresses."""

    file: str = Field(
        description="CSV with a header that names columns of `address`, `mac`, `hostname`, `serial`, `owner`, `group` "
        "or their usual other names; or JSON objects with such keys."
    )
    only: list[str] = Field(
        default_factory=list,
        description="What the column `group` says of the devices that are meant. Default: all of the file.",
    )


class LeaseFile(Section):
    """Who has which address, by a DHCP server's own file."""

    file: str | None = Field(None, description="The file; it is read when it changes.")
    socket: str | None = Field(
        None, description="Kea's control socket, in place of a file: for leases that it keeps in a database."
    )
    every: Duration = Field(5.0, description="How often a socket is asked.", json_schema_extra={"default": "5s"})
    format: Literal["kea", "dnsmasq", "dhcpd"] = Field(
        description="Whose it is: kea (memfile), dnsmasq, or dhcpd of ISC."
    )

    @model_validator(mode="after")
    def _one_place(self) -> LeaseFile:
        if (self.file is None) == (self.socket is None):
            raise ValueError("expected one of file and socket")
        if self.socket is not None and self.format != "kea":
            raise ValueError(f"a socket is Kea's alone, and the format is {self.format}")
        if not 1 <= self.every <= 3_600:
            raise ValueError("every: expected 1s to 1h")
        return self


class Devices(Section):
    """Evidence of which device has which address, beside networks and inventories."""

    leases: list[LeaseFile] = Field(
        default_factory=list, description="Lease files: a lease's MAC puts its address where an inventory has the MAC."
    )
    neighbours: bool = Field(
        False, description="Also believe the kernel's neighbour table, where devices are on links of this machine."
    )
    stands: Duration = Field(
        3_600.0,
        description="How long what was said last of a device of an inventory stands: while its source cannot be read, "
        "and when its lease ends without a word.",
        json_schema_extra={"default": "1h"},
    )
    states: dict[str, str] = Field(
        default_factory=dict,
        description="State of an address -> its group, or `networks`: no evidence counts. Default: unknown and "
        "randomised by networks, conflict and stale as the device that is believed.",
    )


class Group(Section):
    """A set of devices."""

    networks: list[NetworkValue] = Field(default_factory=list, description="Prefixes; the longest wins.")
    inventory: list[InventoryFile] = Field(default_factory=list, description="Files that name single devices.")
    log: Literal["decisions", "counts"] | None = Field(
        None,
        description="`decisions`: the log says which device met which rule; `counts`: nothing by address, anywhere. "
        "Default: decisions where the policy blocks something, else counts.",
    )


class Sinkhole(Section):
    """Where blocked devices are sent."""

    ipv4: IPv4Address | None = Field(None, description="What A answers with `answer: sinkhole`.")
    ipv6: IPv6Address | None = Field(None, description="What AAAA answers with `answer: sinkhole`.")

    @field_validator("ipv4", "ipv6", mode="before")
    @classmethod
    def _address(cls, text: object) -> object:
        return text if not isinstance(text, str) else (IPv6Address(text) if ":" in text else IPv4Address(text))


class Policy(Section):
    """What a group gets for each app."""

    block: list[AppName] = Field(
        default_factory=list,
        description='Apps that are refused. Here and below, `"@NAME"` stands for every app of an owner or of `sets`; '
        "an app that another of these keys names itself is not part of it.",
    )
    monitor: list[AppName] = Field(default_factory=list, description="Apps that pass and are counted.")
    allow: list[AppName] = Field(default_factory=list, description="Apps that pass with all that they need.")
    answer: Answer = Field(
        "nxdomain",
        description="How a block is answered: nxdomain, nodata, refused, null (0.0.0.0 and ::), sinkhole or drop.",
    )
    answer_by_app: dict[AppName, Answer] = Field(
        default_factory=dict, description="Another answer for some apps or sets."
    )
    sinkhole: Sinkhole = Sinkhole()
    strip_ech: bool = Field(
        False,
        description="Take `ech` out of HTTPS and SVCB answers, so that a firewall still sees which name is meant; what "
        "was signed is not any more.",
    )

    @field_validator("answer", mode="before")
    @classmethod
    def _null_is_a_word(cls, answer: object) -> object:
        # YAML reads `answer: null` as nothing; here it can mean one thing alone.
        return "null" if answer is None else answer

    @field_validator("answer_by_app", mode="before")
    @classmethod
    def _nulls_are_words(cls, answers: object) -> object:
        if not isinstance(answers, dict):
            return answers
        return {app: "null" if answer is None else answer for app, answer in answers.items()}

    @model_validator(mode="after")
    def _sinkhole_has_an_address(self) -> Policy:
        answers = {self.answer, *self.answer_by_app.values()}
        if "sinkhole" in answers and self.sinkhole.ipv4 is None and self.sinkhole.ipv6 is None:
            raise ValueError("answer: sinkhole needs sinkhole: {ipv4: ADDRESS, ipv6: ADDRESS}, one of them at least")
        return self


class Answers(Section):
    """What blocked and live answers carry."""

    ttl: int = Field(30, ge=0, le=3_600, description="TTL of a block, seconds.")
    live_ttl: int = Field(60, ge=0, le=86_400, description="Largest TTL sent where a later block must bite, seconds.")
    ede: bool = Field(True, description="Say why in an Extended DNS Error (RFC 8914).")
    ede_generation: bool = Field(
        False, description="Name the generation in it: whoever reports a block says by which policy it was."
    )
    structured_errors: bool = Field(
        True, description="Say it as JSON to clients that ask for that (draft-ietf-dnsop-structured-dns-error)."
    )
    contact: Printable | None = Field(
        None, max_length=100, description="Whom to ask, such as mailto:security@dept.example."
    )
    organization: Printable | None = Field(None, max_length=60, description="Who decides, as users know them.")


class BlockPage(Section):
    """What a browser sees at the sinkhole's address."""

    listen: list[Endpoint] = Field(
        default_factory=list, description="Addresses of the page, plain HTTP, such as 10.0.0.80:80. Restart."
    )
    exemption: Printable | None = Field(
        None, max_length=500, description="How to ask for an exemption, in a sentence or two; else `answers.contact`."
    )


class TransferKey(Section):
    """A secret that two servers share (TSIG, RFC 8945)."""

    algorithm: Literal["hmac-sha256", "hmac-sha384", "hmac-sha512"] = Field("hmac-sha256", description="How it signs.")
    file: str = Field(description="A file with the secret in base64; nobody but blockd should be able to read it.")


class Secondary(Section):
    """A server that takes zones from here."""

    address: Upstreams = Field(
        min_length=1,
        description="Its address, or a list of all that it has: it is told of changes at the first, and transfers come "
        "from any of them, from any port.",
    )
    key: str | None = Field(None, description="The key of `transfer.keys` that both sides sign with.")
    notify: bool = Field(True, description="Whether it is told of changes; false for one that only looks by itself.")


class TransferZone(Section):
    """A group's policy for other resolvers."""

    zone: DomainName = Field(description="The zone's name; any that nobody uses, such as corporate.rpz.dept.example.")
    secondaries: list[Secondary] = Field(min_length=1, description="Who may transfer it, and is told of changes.")


class TransferCatalog(Section):
    """A catalog of the zones (RFC 9432), for secondaries that configure themselves by it."""

    zone: DomainName = Field(description="The catalog's name.")
    secondaries: list[Secondary] = Field(min_length=1, description="Who may transfer it, and is told of changes.")


class Transfer(Section):
    """Zones given to other servers, and told of by others."""

    listen: list[Endpoint] = Field(
        default_factory=list, description="Addresses for zone transfers and NOTIFY, and for no queries. Restart."
    )
    keys: dict[str, TransferKey] = Field(default_factory=dict, description="TSIG keys by name.")
    zones: dict[str, TransferZone] = Field(
        default_factory=dict, description="Group -> its policy as a response policy zone."
    )
    catalog: TransferCatalog | None = Field(None, description="A catalog of these zones.")


class Exemptions(Section):
    """Who may have which devices use an app that is refused, and on what terms. There are none without a team."""

    teams: dict[str, list[Printable]] = Field(
        default_factory=dict,
        description="Security team -> the users of this machine who approve for it; `@group` is a group of users.",
    )
    requesters: list[Printable] = Field(
        default_factory=list, description="Users, or `@group`s, who may request; nobody approves his own request."
    )
    mitigations: list[Printable] = Field(
        default_factory=list, description="What keeps an exempt device safe: every request names one at least."
    )
    longest: Duration = Field(
        90 * 86_400.0,
        description="How long an exemption is at most.",
        json_schema_extra={"default": "90d"},
    )
    apps: list[AppName] = Field(
        default_factory=list,
        description="Apps, or sets of apps, that may be exempt though no policy names them, each one of the live ones.",
    )
    sets: dict[str, list[Printable]] = Field(
        default_factory=dict, description="Named sets of devices, each a serial or hostname of an inventory."
    )
    database: str | None = Field(
        None,
        description="Where the ledger is, as SQLAlchemy writes it, such as postgresql+psycopg://blockd@db/blockd. "
        "Default: a file of SQLite in state.directory. Restart.",
    )
    stands: Duration = Field(
        3_600.0,
        ge=3,
        description="How long exemptions hold while the ledger cannot be read.",
        json_schema_extra={"default": "1h"},
    )

    def people(self) -> frozenset[str]:
        """Name every user, and `@group` of users, with a part in exemptions."""
        return frozenset(self.requesters).union(*self.teams.values())


class Report(Section):
    """How the use of apps is counted, for those who decide what becomes of them."""

    keep: Duration = Field(
        400 * 86_400.0, description="How long counts are kept.", json_schema_extra={"default": "400d"}
    )
    min_devices: int = Field(
        5, ge=2, le=1_000_000, description="Devices that must have asked a name before it is shown as a candidate."
    )


class Egress(Section):
    """The firewall's half: the same decision in the packet filter of a gateway, by the process `blockd egress`."""

    enabled: bool = Field(False, description="Whether firewalls are told what to refuse. Restart.")
    socket: str = Field(
        usual.EGRESS_SOCKET, description="Path of the socket that `blockd egress` connects to. Restart."
    )
    listen: Endpoint | None = Field(
        None,
        description="Address for firewalls of other machines, by TLS with certificates of both. Restart.",
    )
    certificate: str | None = Field(None, description="Of this daemon, a PEM file, where `listen` is used. Restart.")
    key: str | None = Field(None, description="Its key, a PEM file. Restart.")
    authority: str | None = Field(
        None, description="Whose certificates firewalls have, a PEM file; nobody else is told anything. Restart."
    )
    answer: Literal["reject", "drop"] = Field(
        "reject", description="What refused packets meet: a TCP reset or ICMP error, or silence."
    )
    shared: Literal["allow", "block", "log"] = Field(
        "allow",
        description="What becomes of an app's address that names of nobody's apps lead to, too: let through, refused "
        "all the same, or let through and logged.",
    )
    resolvers: list[NetworkValue] = Field(
        default_factory=list,
        description="Resolvers beside this one that devices may ask, where a group refuses or counts encrypted-dns.",
    )
    never: list[NetworkValue] = Field(
        default_factory=list,
        description="Networks of which no address is ever learned, whatever an answer says: our own on the Internet.",
    )
    wait_ms: int = Field(
        50,
        ge=0,
        le=500,
        description="Milliseconds that an answer which leads to an app waits for the firewall to know, at most.",
    )
    resolve: Duration = Field(
        600.0,
        ge=10,
        description="How often names of apps are looked up, so that it is known where they lead though nobody asks.",
        json_schema_extra={"default": "10min"},
    )


class Settings(Section):
    """The whole file."""

    server: Server
    admin: Admin
    state: State = State()
    upstream: UpstreamSettings
    cache: Cache = Cache()
    reload: Reload = Reload()
    log: Log = Log()
    apps: Apps = Apps()
    sets: dict[str, list[AppName]] = Field(
        default_factory=dict,
        description='Sets of apps: name -> apps and other sets, such as `[temu, "@bytedance"]`; a policy names one as '
        '`"@NAME"`. `blockd apps sets` lists those of owners, which need no definition.',
    )
    groups: dict[str, Group] = Field(default_factory=dict)
    devices: Devices = Devices()
    policies: dict[str, Policy]
    answers: Answers = Answers()
    block_page: BlockPage = BlockPage()
    transfer: Transfer = Transfer()
    exemptions: Exemptions = Exemptions()
    report: Report = Report()
    egress: Egress = Egress()
    records: dict[DomainName, list[str]] = Field(
        default_factory=dict,
        description="Local names: `[TTL] TYPE DATA` each, such as `A 10.0.0.5`; nothing else is asked.",
    )


#: The group of everybody whom no evidence places.
UNIDENTIFIED = "unidentified"

__all__ = ["RESTART_KEYS", "UNIDENTIFIED", "Answer", "DomainName", "Policy", "Settings"]
