"""What the Rust crate offers Python: the whole seam."""

from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Literal, TypeAlias, TypedDict

from blockd.endpoint import Endpoint, Native

_Address: TypeAlias = IPv4Address | IPv6Address | str
_Sections: TypeAlias = tuple[int, int, bytes]

class List(TypedDict):
    file: str
    format: str
    is_hole: bool
    public_suffix: bool

class ZoneAnswers(TypedDict):
    nxdomain: int
    nodata: int
    silence: int

class App(TypedDict):
    suffixes: Sequence[str]
    hosts: Sequence[str]
    holes: Sequence[str]
    lists: Sequence[List]
    networks: Sequence[tuple[_Address, int]]
    needs: int
    zone_answers: ZoneAnswers
    embedded: bool
    patterns: Sequence[str]

class Template(TypedDict):
    rcode: int
    is_silent: bool
    by_type: Mapping[int, _Sections]
    otherwise: _Sections
    error: tuple[int, bytes] | None
    structured_error: bytes | None

class Rules(TypedDict):
    digest: bytes
    apps: Sequence[App]
    templates: Sequence[Template]
    local_zones: Sequence[tuple[str, int, int]]
    routed_zones: Sequence[tuple[str, int]]
    routes: Sequence[Sequence[Endpoint]]
    nat64: Sequence[tuple[_Address, int]]
    any_template: int
    cdn_zones: Sequence[str]
    guarded: Sequence[str]
    local_names: Sequence[tuple[str, int]]

class View(TypedDict):
    block: int
    monitor: int
    allow: int
    exempt: int
    answers: Sequence[int]
    is_logged: bool
    strip_ech: bool

class Tuning(TypedDict):
    live_ttl: int
    ttl_floor: int
    ttl_ceiling: int
    negative_ttl_ceiling: int
    stale: int
    trust_ad: bool
    client_rate: int
    client_burst: int
    pending_in_all: int
    pending_a_client: int

class Views(TypedDict):
    views: Sequence[View]
    devices: Sequence[tuple[_Address, int, int]]
    unidentified: int
    clients: Sequence[tuple[_Address, int]]
    tuning: Tuning

class ListReport(TypedDict):
    format: str
    kept: int
    skipped: dict[str, int]
    samples: list[tuple[int, str, bytes]]
    refused: int
    refused_samples: list[tuple[int, str, bytes]]

class ServerCounts(TypedDict):
    endpoint: Native
    sent: int
    answered: int
    timed_out: int
    failed: int
    silent_in_a_row: int
    waited_us: int
    not_sent: int
    send_error: int
    has_edns: bool

class Decision(TypedDict):
    view: int
    asked: int
    found: int
    action: str
    app: int | None
    touched: int
    is_cached: bool
    rule: tuple[str, str] | None
    target_rule: tuple[str, tuple[str, str]] | None
    target_addresses: list[str]
    is_client: bool
    zone: tuple[str, str] | None
    reply: bytes | None

class LogRow(TypedDict):
    client: str
    generation: int
    view: int
    app: int
    action: str
    name: str
    qtype: int
    rule: str
    more: int | None

ZoneAct: TypeAlias = (
    tuple[Literal["nxdomain", "nodata", "drop", "tcp-only"]]
    | tuple[Literal["alias"], str, bool, int]
    | tuple[Literal["records"], list[tuple[int, int, bytes]]]
)
Policy: TypeAlias = int | ZoneAct | None

Work: TypeAlias = (
    tuple[Literal["reply"], int, bytes | None]
    | tuple[Literal["stream"], int, list[tuple[Native, bytes]], float]
    | tuple[Literal["log"], LogRow]
    | tuple[Literal["learned"], int, int, str, int, list[IPv4Address | IPv6Address], int]
)

LATENCY_BOUNDS: list[float]

def fold_rule_name(text: str) -> str: ...
def read_presentation(text: str) -> str: ...
def is_public_suffix(name: str) -> bool: ...
def line_of(list: str, format: str, name: str, to_ascii: Callable[[str], str]) -> int | None: ...
def proxy_header(data: bytes) -> tuple[int, str | None] | None: ...
def list_changes(
    before: Sequence[tuple[str, str, bool]],
    after: Sequence[tuple[str, str, bool]],
    to_ascii: Callable[[str], str],
) -> tuple[int, list[str], int, list[str]]: ...
def interface_index(scope: str) -> int | None: ...
def own_addresses() -> list[IPv4Address | IPv6Address]: ...
def end_with_parent(parent: int) -> bool: ...
def check_patterns(patterns: Sequence[str]) -> tuple[int, str] | None: ...
def compile_rules(
    rules: Rules,
    views: Views,
    meta: bytes,
    to_ascii: Callable[[str], str],
    to_data: Callable[[str, str], tuple[int, bytes]],
    output: str,
) -> list[list[ListReport]]: ...
def list_names(list: List, to_ascii: Callable[[str], str]) -> tuple[list[str], dict[str, int]]: ...
def read_list(
    list: List,
    guarded: Sequence[str],
    to_ascii: Callable[[str], str],
    to_data: Callable[[str, str], tuple[int, bytes]],
) -> ListReport: ...
def load(path: str) -> Snapshot: ...

class Snapshot:
    @property
    def meta(self) -> bytes: ...

class Fastpath:
    def __new__(
        cls,
        snapshot: Snapshot,
        listen: Sequence[tuple[_Address, int]],
        threads: int,
        cache_octets: int,
        inherited: Sequence[Sequence[int]] = ...,
        source_sockets: int = ...,
    ) -> Fastpath: ...
    def start(self) -> None: ...
    def drain(self) -> None: ...
    def stop(self) -> None: ...
    @property
    def work_fd(self) -> int: ...
    def publish(
        self,
        snapshot: Snapshot,
        views: Sequence[tuple[int, int]] = ...,
        slots: Sequence[Sequence[tuple[float, int]]] = ...,
        devices: Sequence[tuple[_Address, int]] = ...,
        floor: float = ...,
        forwarders: Sequence[tuple[_Address, int]] = ...,
        forwarder_rate: int = ...,
        macs: Sequence[tuple[int, int]] = ...,
    ) -> tuple[int, int]: ...
    def wall(self) -> float: ...
    def give_back_memory(self) -> None: ...
    def set_devices(self, generation: int, changes: Sequence[tuple[_Address, int | None]]) -> None: ...
    def set_order(self, ranks: Mapping[Endpoint, int]) -> None: ...
    def answer(
        self,
        packet: bytes,
        peer: tuple[_Address, int],
        token: int,
        proxied: tuple[_Address | None] | None = None,
    ) -> bytes | None: ...
    def is_client(self, client: _Address) -> bool: ...
    def take_work(self) -> list[Work]: ...
    def complete(self, exchange: int, server: int, wire: bytes | None) -> bool | bytes: ...
    def learn(self, wait_ms: int) -> None: ...
    def let_go(self, serials: Sequence[int]) -> None: ...
    def asked_within(self, address: _Address, seconds: int) -> bool: ...
    def look_up(self, name: str, qtype: int) -> None: ...
    def set_nat64(self, prefixes: Sequence[tuple[_Address, int]]) -> None: ...
    def probe(self, server: Endpoint) -> None: ...
    def decide(
        self, client: _Address, name: str, qtype: int, answer: bytes | None = None, view: int | None = None
    ) -> Decision: ...
    def policy_of(self, names: Sequence[str], view: int) -> list[Policy]: ...
    def counters(self) -> dict[str, int]: ...
    def sizes(self) -> dict[str, int]: ...
    def latencies(self) -> dict[str, tuple[list[int], float]]: ...
    def decisions(self) -> list[tuple[int, bool, list[tuple[int, int | None, str, int]]]]: ...
    def servers(self) -> list[ServerCounts]: ...
    def busy(self) -> list[tuple[IPv4Address | IPv6Address, int, float]]: ...
    def beats(self) -> list[int]: ...
