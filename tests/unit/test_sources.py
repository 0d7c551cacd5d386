"""Lists over HTTPS: a real server, real certificates, and everything that goes wrong on the way."""

from __future__ import annotations

import gzip
import json
import os
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from blockd.lists.gate import Limits
from blockd.lists.remote import Remote, State, Task, read_state, take_in
from tests.conftest import Serve
from tests.support.daemon import Blockd
from tests.support.list_server import ListServer, Proxy
from tests.support.questions import CORPORATE, ask, rcode
from tests.support.upstream import Asked, Reply, Upstream, answer

NAMES = "".join(f"n{at}.example\n" for at in range(100)).encode()
MORE = NAMES + b"one.more.example\n"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ListServer]:
    """Give a server that knows no list yet."""
    with ListServer(tmp_path) as lists:
        yield lists


def task(directory: Path, url: str, ca: Path | None, **own: Any) -> Task:
    """Make one, as a daemon would."""
    kept = directory / "lists"
    kept.mkdir(exist_ok=True)
    values = {"largest_octets": 1 << 20, "patience": 20.0, **own}
    remote = Remote("a", url, kept / "list", ca, values["largest_octets"], values["patience"])
    native = {"format": "auto", "is_hole": False, "public_suffix": False}
    return Task(remote, native, ["dept.example"], Limits(0.5, 2.0, 0.2), 3600.0)


def fetch(task: Task, *prefix: str, **environment: str) -> State:
    """Run the process that a daemon runs."""
    done = subprocess.run(
        [*prefix, sys.executable, "-P", "-m", "blockd.fetching", str(os.getpid())],
        input=task.as_json(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    state = State(**json.loads(done.stdout.splitlines()[-1]))
    if state.result != "failed":
        assert asdict(state) == asdict(read_state(task.remote.path))
    return state


def test_a_list_is_fetched_when_it_changed(tmp_path: Path, server: ListServer) -> None:
    """Compressed, asked for by its ETag, and left alone when the server has no other."""
    server.pages["/list"] = NAMES
    one = task(tmp_path, server.url("/list"), server.ca)
    assert fetch(one).result == "new"
    assert not one.remote.path.exists(), "no reload took it in yet"
    assert fetch(one).result == "unchanged"
    server.asked.clear()
    assert take_in(one.remote).kept == 100
    assert one.remote.path.read_bytes() == NAMES
    state = fetch(one)
    assert (state.result, state.kept, state.failures) == ("unchanged", 100, 0)
    assert server.asked[0][1]["Accept-Encoding"] == "gzip"
    assert server.asked[0][1]["If-None-Match"] == state.etag
    server.pages["/list"] = MORE
    assert fetch(one).result == "new"
    # The one before stays until a reload has taken the new one in.
    assert one.remote.path.read_bytes() == NAMES
    assert one.remote.arrived.read_bytes() == MORE
    confirmed = read_state(one.remote.path).confirmed
    assert fetch(one).confirmed == confirmed, "what is in use is not what the server has"
    server.pages["/list"] = NAMES
    assert fetch(one).result == "unchanged"
    assert {file.name for file in one.remote.path.parent.iterdir()} == {"list", "list.json"}, "nothing waits any more"


def send(*parts: bytes, pause: float = 0.0) -> Callable[[BaseHTTPRequestHandler], None]:
    """Make a page that is sent part by part, then cut."""

    def page(handler: BaseHTTPRequestHandler) -> None:
        for part in parts:
            handler.wfile.write(part)
            handler.wfile.flush()
            time.sleep(pause)

    return page


def redirect(to: str) -> Callable[[BaseHTTPRequestHandler], None]:
    """Make a page that leads elsewhere."""
    return send(f"HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode())


def bomb() -> bytes:
    """Compress fifty megabytes of one line into fifty thousand octets."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return packer.compress(b"n.example\n" * 5_000_000) + packer.flush()


BOMB, ZIPPED = bomb(), gzip.compress(NAMES)
PACKED = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"

CUT, LARGE, SLOW = "it was cut off", "it is larger than 1 MiB; largest_mb allows more", "it took longer than 3 s"
HEAD = b"HTTP/1.1 200 OK\r\n"
WITH_LENGTH = HEAD + b"Content-Length: 1390\r\n\r\n"
ERROR_PAGE = b"<!DOCTYPE html>\n<html><body>\n<p>Service unavailable</p>\n</body></html>\n"
TEN_TIMES = b"".join(b"m%d.example\n" % at for at in range(2000))

#: What is wrong -> what the server does, what becomes of it, and what is said.
BAD: dict[str, tuple[Any, str, str]] = {
    "a page that says so": (None, "failed", "the server says 404 'Not Found'"),
    "an error page": (ERROR_PAGE, "refused", "give no name"),
    "empty": (b"", "failed", "the list is empty"),
    "cut in the middle": (send(WITH_LENGTH + NAMES[:700]), "failed", f"{CUT}: 700 octets came, 690 more were to come"),
    "cut in a chunk": (send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n2bc\r\n" + NAMES[:300]), "failed", CUT),
    "half of a compressed one": (send(PACKED % len(ZIPPED) + ZIPPED[:100]), "failed", CUT),
    "one that ends nowhere": (send(HEAD + b"\r\n" + NAMES), "failed", "the server does not say where it ends"),
    "a cut one that is framed well": (send(PACKED % 100 + ZIPPED[:100]), "failed", "its compression has no end"),
    "another encoding": (send(HEAD + b"Content-Encoding: br\r\nContent-Length: 1\r\n\r\nx"), "failed", "not asked for"),
    "less by far": (b"n1.example\n", "refused", "would lose 99 of its 100 rules"),
    "ten times as much": (TEN_TIMES, "refused", "would grow from 100 names to 2000"),
    "larger than allowed": (b"x.example\n" * 200_000, "failed", LARGE),
    "said to be larger": (send(HEAD + b"Content-Length: 9000000\r\n\r\nx"), "failed", LARGE),
    "a bomb": (send(PACKED % len(BOMB) + BOMB), "failed", LARGE),
    "not what it is said to be": (send(PACKED % 4 + b"nope"), "failed", "it is said to be compressed"),
    "a whole top-level domain": (NAMES + b"com\n", "refused", "line 101: com: a public suffix"),
    "a name of ours": (NAMES + b"www.dept.example\n", "refused", "line 101: www.dept.example"),
    "a way that ends in itself": (redirect("/list"), "failed", "it leads on and on, more than 5 times"),
    "a way out of HTTPS": (redirect("http://localhost/x"), "failed", "it leads to 'http://localhost/x', which is not"),
    "no HTTP": (send(b"SSH-2.0-OpenSSH_9.2p1\r\n"), "failed", CUT),
    "a slow head": (send(HEAD, *[b"X: y\r\n"] * 100, pause=0.3), "failed", SLOW),
    "a slow body": (send(WITH_LENGTH, *[b"n.example\n"] * 100, pause=0.3), "failed", SLOW),
}


def test_whatever_a_server_does_the_last_good_list_stays(tmp_path: Path, server: ListServer) -> None:
    """Each with its reason; what could be read and is refused lies beside, and nothing else is left."""
    server.pages["/list"] = NAMES
    one = task(tmp_path, server.url("/list"), server.ca, patience=3.0)
    assert fetch(one).result == "new"
    take_in(one.remote)
    for what, (page, result, reason) in BAD.items():
        server.pages["/list"] = page
        if page is None:
            del server.pages["/list"]
        one.remote.refused.unlink(missing_ok=True)
        state = fetch(one)
        assert (state.result, reason in (state.reason or "")) == (result, True), (what, state)
        assert one.remote.path.read_bytes() == NAMES, what
        left = {"list", "list.json"} | ({"list.refused"} if result == "refused" else set())
        assert {file.name for file in one.remote.path.parent.iterdir()} == left, what
        assert state.kept == 100
    server.pages["/list"] = NAMES
    state = fetch(one)
    assert (state.result, state.reason, state.failures) == ("unchanged", None, 0)


def test_what_was_refused_is_judged_again(tmp_path: Path, server: ListServer) -> None:
    """A limit that was changed counts though the server has nothing new; a list that is back is taken."""
    server.pages["/list"] = NAMES
    one = task(tmp_path, server.url("/list"), server.ca)
    fetch(one)
    take_in(one.remote)
    server.pages["/list"] = b"n1.example\n"
    assert fetch(one).result == "refused"
    assert fetch(one).result == "refused"
    assert [len(headers.get("If-None-Match", "")) for _, headers in server.asked] == [0, 18, 18]
    server.pages["/list"] = NAMES
    assert fetch(one).result == "unchanged"
    assert not one.remote.refused.exists()
    server.pages["/list"] = b"n1.example\n"
    assert fetch(one).result == "refused"
    wide = Task(one.remote, one.as_read, one.guarded, Limits(1.0, 2.0, 0.2), one.every)
    assert fetch(wide).result == "new"
    assert one.remote.arrived.read_bytes() == b"n1.example\n"


def test_a_disk_that_takes_no_more_keeps_the_last_good_list(tmp_path: Path, server: ListServer) -> None:
    """What cannot be written is a failure that says so."""
    server.pages["/list"] = NAMES
    one = task(tmp_path, server.url("/list"), server.ca)
    fetch(one)
    take_in(one.remote)
    server.pages["/list"] = MORE
    state = fetch(one, "prlimit", "--fsize=1000")
    assert (state.result, state.reason) == ("failed", "File too large")
    assert one.remote.path.read_bytes() == NAMES
    assert fetch(one).result == "new"


def test_who_the_server_is_must_be_proved(tmp_path: Path, server: ListServer) -> None:
    """Another's certificate, one for another name, one that nobody vouches for, and certificates that are not there."""
    server.pages["/list"] = NAMES
    with ListServer(tmp_path, "elsewhere.example") as other:
        other.pages["/list"] = NAMES
        for url, ca, reason in (
            (server.url("/list"), None, "TLS: "),
            (server.url("/list"), other.ca, "TLS: "),
            (other.url("/list"), other.ca, "TLS: "),
            (server.url("/list"), tmp_path / "none.pem", "none.pem: No such file"),
        ):
            state = fetch(task(tmp_path, url, ca))
            assert state.result == "failed"
            assert reason in (state.reason or ""), state
    assert not server.asked
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        state = fetch(task(tmp_path, f"https://localhost:{closed.getsockname()[1]}/", server.ca))
    assert state.reason == "no connection: [Errno 111] Connection refused"


def test_the_environments_proxy_is_used(tmp_path: Path, server: ListServer) -> None:
    """By CONNECT, so that it sees no list; but not for those that `no_proxy` names."""
    server.pages["/list"] = NAMES
    one = task(tmp_path, server.url("/list"), server.ca)
    with Proxy() as proxy:
        assert fetch(one, https_proxy=proxy.url, no_proxy="").result == "new"
        take_in(one.remote)
        assert [connect.partition(":")[0] for connect in proxy.connects] == ["localhost"]
        assert fetch(one, https_proxy=proxy.url, no_proxy="localhost").result == "unchanged"
        assert len(proxy.connects) == 1


def test_a_failure_is_tried_again_sooner_and_then_ever_later() -> None:
    """Half a minute, a minute, two; never later than usual."""
    assert State().due(3600) == 0
    assert State(tried=100.0).due(3600) == 3700
    waits = [State(tried=100.0, failures=count).due(3600) - 100 for count in range(1, 12)]
    assert waits == [30, 60, 120, 240, 480, 960, 1920, 3600, 3600, 3600, 3600]


def any_address(query: Any, asked: Asked) -> Reply:
    """Answer every question: what is blocked is told apart."""
    return answer(query, f"{asked.name}. 300 IN A 192.0.2.1")


def with_list(blockd: Blockd, server: ListServer, app: str, **own: Any) -> None:
    """Give an app a list that is fetched."""
    blockd.write_app(app, lists=[{"url": server.url(f"/{app}"), "ca": str(server.ca), **own}])
    if app not in blockd.values["policies"]["corporate"]["block"]:
        blockd.values["policies"]["corporate"]["block"].append(app)
    blockd.write()


def wait_for(name: str, wanted: str, blockd: Blockd) -> None:
    """Ask until the answer is this."""
    deadline = time.monotonic() + 30
    while rcode(ask(blockd, name, client=CORPORATE)) != wanted:
        assert time.monotonic() < deadline, blockd.log.read_text()
        time.sleep(0.1)


def test_a_daemon_fetches_its_lists(tmp_path: Path, server: ListServer, upstream: Upstream) -> None:
    """Before it first answers; again when told to; and it starts with what it has when the server is gone."""
    upstream.script = any_address
    server.pages["/remote"] = NAMES
    blockd = Blockd(tmp_path, [upstream.address], reload={"must_block": ["n7.example"], "largest_shrink": "50%"})
    with_list(blockd, server, "remote")
    with blockd:
        assert rcode(ask(blockd, "www.n7.example", client=CORPORATE)) == "NXDOMAIN"
        shown = json.loads(blockd.run("lists", "--json").stdout)["lists"][0]
        assert (shown["kept"], shown["source"]["result"], shown["source"]["url"]) == (100, "new", server.url("/remote"))
        assert 6 * 3600 - 60 < shown["source"]["next_in"] < 7 * 3600
        server.pages["/remote"] = MORE
        told = blockd.run("lists", "fetch", "remote")
        assert (told.returncode, told.stdout) == (0, f"{server.url('/remote')}: new\n")
        assert rcode(ask(blockd, "one.more.example", client=CORPORATE)) == "NXDOMAIN"
        assert "unchanged" in blockd.run("lists", "fetch").stdout
        server.pages["/remote"] = b"<html>\n"
        told = blockd.run("lists", "fetch")
        assert told.returncode == 1
        assert "refused: line 1: 1 of 1 lines (100%) give no name" in told.stderr
        shown = blockd.run("lists").stdout
        assert "refused" in shown
        assert "give no name" in shown
        assert rcode(ask(blockd, "one.more.example", client=CORPORATE)) == "NXDOMAIN"
        metrics = blockd.metrics()
        assert metrics['blockd_list_fetches_total{app="remote",result="refused"}'] == 1
        assert metrics['blockd_list_confirmed_timestamp_seconds{app="remote"}'] > 1e9
        text = blockd.log.read_text()
        assert "refused" in text
        assert "the last good one stays in use" in text
    del server.pages["/remote"]
    with blockd:
        assert rcode(ask(blockd, "one.more.example", client=CORPORATE)) == "NXDOMAIN"
        unknown = blockd.run("lists", "fetch", "nobody")
        assert (unknown.returncode, "no list of nobody comes from elsewhere" in unknown.stderr) == (1, True)


def test_a_list_that_moves_is_not_empty_meanwhile(serve: Serve, server: ListServer, upstream: Upstream) -> None:
    """Fetched from its new place within the reload; from a place where it is not, it does not move."""
    upstream.script = any_address
    blockd = serve([upstream.address], reload={"largest_shrink": "50%"})
    server.pages["/remote"] = server.pages["/mirror"] = NAMES
    with_list(blockd, server, "remote")
    assert blockd.reload().returncode == 0
    for path, code in (("/mirror", 0), ("/nowhere", 1)):
        blockd.write_app("remote", lists=[{"url": server.url(path), "ca": str(server.ca)}])
        moved = blockd.reload()
        assert moved.returncode == code, moved.stderr
        assert rcode(ask(blockd, "www.n7.example", client=CORPORATE)) == "NXDOMAIN"
    assert "would lose" in moved.stderr
    assert "404" in blockd.log.read_text()


def test_one_of_several_that_moves_is_not_empty_either(tmp_path: Path, server: ListServer, upstream: Upstream) -> None:
    """Not where the app has enough others, nor over a restart; what is there again is fetched by the start itself."""
    upstream.script = any_address
    server.pages |= {"/one": NAMES, "/two": b"".join(b"t%d.example\n" % at for at in range(60))}
    blockd = Blockd(tmp_path, [upstream.address], reload={"largest_shrink": "50%"})
    ca = str(server.ca)
    blockd.write_app("both", lists=[{"url": server.url(f"/{name}"), "ca": ca} for name in ("one", "two")])
    blockd.values["policies"]["corporate"]["block"].append("both")
    blockd.write()
    with blockd:
        blockd.write_app("both", lists=[{"url": server.url(f"/{name}"), "ca": ca} for name in ("one", "gone")])
        moved = blockd.run("reload")
        assert moved.returncode == 1
        assert "is not there yet, and would take the place of one of 60 names" in moved.stderr
        assert "404" in moved.stderr, "and why"
        assert blockd.run("reload", "--accept").returncode == 1, "nobody can accept that a list is empty meanwhile"
        assert rcode(ask(blockd, "t7.example", client=CORPORATE)) == "NXDOMAIN"
        blockd.stop()
        blockd.start()
        assert rcode(ask(blockd, "t7.example", client=CORPORATE)) == "NXDOMAIN"
        assert not blockd.ready()["config_in_force"]
        blockd.stop()
        server.pages["/gone"] = server.pages["/two"]
        blockd.start()
        assert blockd.ready()["config_in_force"]
        assert rcode(ask(blockd, "t7.example", client=CORPORATE)) == "NXDOMAIN"


def test_each_list_is_accepted_for_itself_and_for_what_was_told(
    serve: Serve, server: ListServer, upstream: Upstream
) -> None:
    """Of two that were refused one is named; what else speaks against it is told first; another that came is not it."""
    upstream.script = any_address
    blockd = serve([upstream.address], reload={"largest_shrink": "50%", "must_allow": ["www.open.example"]})
    server.pages |= {"/one": NAMES, "/two": NAMES}
    urls = [server.url(f"/{name}") for name in ("one", "two")]
    blockd.write_app("both", lists=[{"url": url, "ca": str(server.ca)} for url in urls])
    blockd.values["policies"]["corporate"]["block"].append("both")
    assert blockd.reload().returncode == 0
    wait_for("n7.example", "NXDOMAIN", blockd)
    assert blockd.run("lists", "fetch").returncode == 0
    server.pages |= {"/one": b"n1.example\nopen.example\n", "/two": b"<html>\n"}
    assert blockd.run("lists", "fetch").returncode == 1
    both = blockd.run("lists", "accept", "both")
    assert both.returncode == 1
    assert f"2 lists were refused, each for its own reason: name one by its URL: {', '.join(urls)}" in both.stderr
    first = blockd.run("lists", "accept", urls[0])
    assert first.returncode == 1
    assert "www.open.example would be blocked for corporate" in first.stderr
    assert "nobody was told of this before" in first.stderr
    assert rcode(ask(blockd, "open.example", client=CORPORATE)) == "NOERROR"
    assert "is held" not in blockd.run("lists").stdout
    server.pages["/one"] = b"n2.example\n"
    wanted = json.loads(blockd.run("lists", "--json").stdout)["lists"][0]["source"]["refused"]
    Path(wanted).write_text("junk\n")
    other = blockd.run("lists", "accept", urls[0])
    assert "was not shown yet, or changed since" in other.stderr


def test_a_first_start_that_a_list_prevents_can_be_mended(
    tmp_path: Path, server: ListServer, upstream: Upstream
) -> None:
    """What it fetched is fetched anew by the next; a list that must have a name is fetched before it is judged."""
    upstream.script = any_address
    server.pages["/remote"] = NAMES + b"open.example\n"
    blockd = Blockd(tmp_path, [upstream.address], reload={"must_allow": ["www.open.example"]})
    with_list(blockd, server, "remote")
    with pytest.raises(AssertionError, match="would be blocked for corporate") as failed:
        blockd.start()
    assert "blockd reload --accept" not in str(failed.value), "nobody is there to be told"
    server.pages["/remote"] = NAMES
    with blockd:
        assert rcode(ask(blockd, "n7.example", client=CORPORATE)) == "NXDOMAIN"
        server.pages["/second"] = b"must.example\n"
        with_list(blockd, server, "second")
        blockd.values["reload"]["must_block"] = ["must.example"]
        assert blockd.reload().returncode == 0
        assert rcode(ask(blockd, "must.example", client=CORPORATE)) == "NXDOMAIN"


@pytest.mark.parametrize("is_in_force", [False, True])
def test_a_list_that_a_crash_left_gets_in(
    is_in_force: bool, tmp_path: Path, server: ListServer, upstream: Upstream
) -> None:
    """Before its generation was in force, or after, and its file was not in its place: the next start sees to it."""
    upstream.script = any_address
    server.pages["/remote"] = NAMES
    blockd = Blockd(tmp_path, [upstream.address])
    with_list(blockd, server, "remote")
    with blockd:
        server.pages["/remote"] = MORE
        assert blockd.run("lists", "fetch").returncode == 0
        if not is_in_force:
            assert blockd.run("lists", "rollback").returncode == 0
    (kept,) = (tmp_path / "state" / "lists").glob("*remote")
    if is_in_force:
        kept.replace(kept.with_name(f"{kept.name}.arrived"))
        kept.write_bytes(NAMES)
    else:
        (tmp_path / "state" / "held").unlink()
        kept.with_name(f"{kept.name}.arrived").write_bytes(MORE)
    with blockd:
        wait_for("one.more.example", "NXDOMAIN", blockd)
        deadline = time.monotonic() + 20
        while kept.with_name(f"{kept.name}.arrived").exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert kept.read_bytes() == MORE
        assert blockd.ready()["config_in_force"]
        assert blockd.run("lists", "fetch").returncode == 0


def test_what_was_accepted_keeps_no_other_list_out(serve: Serve, server: ListServer, upstream: Upstream) -> None:
    """A list with a public suffix that is in force as accepted: others get in, as does a reload of files."""
    upstream.script = any_address
    blockd = serve([upstream.address], reload={"largest_shrink": "50%"})
    for app in ("one", "two"):
        server.pages[f"/{app}"] = NAMES
        with_list(blockd, server, app)
    assert blockd.reload().returncode == 0
    wait_for("n7.example", "NXDOMAIN", blockd)
    server.pages["/one"] = NAMES + b"com\nfirst.example\n"
    assert blockd.run("lists", "fetch", "one").returncode == 1
    assert blockd.run("lists", "accept", "one").returncode == 0
    assert rcode(ask(blockd, "first.example", client=CORPORATE)) == "NXDOMAIN"
    server.pages["/two"] = NAMES + b"second.example\n"
    assert blockd.run("lists", "fetch", "two").returncode == 0
    assert rcode(ask(blockd, "second.example", client=CORPORATE)) == "NXDOMAIN"
    blockd.write_app("third", suffixes=["third.example"])
    blockd.values["policies"]["corporate"]["block"].append("third")
    assert blockd.reload().returncode == 0
    blockd.stop()
    blockd.start()
    assert blockd.ready()["config_in_force"]
    server.pages["/one"] = NAMES + b"com\norg\nfirst.example\n"
    assert blockd.run("lists", "fetch", "one").returncode == 1, "what is new in it is judged"


def test_a_list_that_moves_is_compared_with_what_it_was(serve: Serve, server: ListServer, upstream: Upstream) -> None:
    """A mirror that has a fraction of it is refused, and a rollback of a move can be gone on from."""
    upstream.script = any_address
    blockd = serve([upstream.address], reload={"largest_shrink": "50%"})
    server.pages |= {"/one": NAMES, "/two": NAMES, "/mirror": MORE, "/poor": b"t.example\n"}

    def write(second: str) -> None:
        urls = [server.url("/one"), server.url(second)]
        blockd.write_app("both", lists=[{"url": url, "ca": str(server.ca)} for url in urls])

    write("/two")
    blockd.values["policies"]["corporate"]["block"].append("both")
    assert blockd.reload().returncode == 0
    wait_for("n7.example", "NXDOMAIN", blockd)
    write("/poor")
    poor = blockd.run("reload")
    assert poor.returncode == 1
    assert "would lose 99 of its 100 rules" in poor.stderr
    write("/mirror")
    rehearsed = blockd.run("reload", "--dry-run")
    assert (rehearsed.returncode, "+ one.more.example" in rehearsed.stdout) == (0, True), rehearsed
    assert rcode(ask(blockd, "one.more.example", client=CORPORATE)) == "NOERROR"
    assert blockd.run("reload").returncode == 0
    assert rcode(ask(blockd, "one.more.example", client=CORPORATE)) == "NXDOMAIN"
    del server.pages["/two"]
    assert blockd.run("lists", "rollback").returncode == 0
    write("/two")
    back = blockd.run("reload")
    assert back.returncode == 0, back.stderr
    assert rcode(ask(blockd, "n7.example", client=CORPORATE)) == "NXDOMAIN"
    assert rcode(ask(blockd, "one.more.example", client=CORPORATE)) == "NOERROR"


def test_what_is_judged_again_survives_a_kill(tmp_path: Path, server: ListServer) -> None:
    """What was refused lies where it lay; and nothing is known of a file that somebody removed."""
    server.pages["/list"] = NAMES
    one = task(tmp_path, server.url("/list"), server.ca)
    fetch(one)
    take_in(one.remote)
    server.pages["/list"] = b"n1.example\n"
    assert fetch(one).result == "refused"
    slow = (
        "import blockd.fetching as f, os; f.read_list = lambda *_: os.kill(os.getpid(), 9); f.main([str(os.getppid())])"
    )
    done = subprocess.run([sys.executable, "-c", slow], input=one.as_json(), text=True, check=False, timeout=60)
    assert done.returncode == -9
    assert one.remote.refused.read_bytes() == b"n1.example\n"
    assert fetch(one).result == "refused"
    one.remote.refused.unlink()
    assert fetch(one).result == "refused", "it was asked for whole"


def test_a_disk_that_refuses_costs_no_list(serve: Serve, server: ListServer, upstream: Upstream) -> None:
    """What cannot be put in its place, or aside, is said, and tried again later; a fetch does not wait for ever."""
    upstream.script = any_address
    blockd = serve([upstream.address], reload={"must_allow": ["www.open.example"]})
    server.pages["/remote"] = NAMES
    with_list(blockd, server, "remote")
    assert blockd.reload().returncode == 0
    wait_for("n7.example", "NXDOMAIN", blockd)
    (kept,) = (blockd.directory / "state" / "lists").glob("*remote")
    refused = kept.with_name(f"{kept.name}.refused")
    refused.mkdir()
    (refused / "x").touch()
    server.pages["/remote"] = MORE + b"open.example\n"
    told = blockd.run("lists", "fetch")
    assert told.returncode == 1
    assert rcode(ask(blockd, "n7.example", client=CORPORATE)) == "NXDOMAIN"
    time.sleep(3)
    assert blockd.log.read_text().count("cannot be put aside") == 1, "and not again each second"
    assert "cannot be put aside" in blockd.run("lists").stdout


def test_a_rollback_puts_lists_back(serve: Serve, server: ListServer, upstream: Upstream) -> None:
    """What is compared, and what a reload takes, is what is in force; what was left lies beside it."""
    upstream.script = any_address
    blockd = serve([upstream.address], reload={"largest_shrink": "50%"})
    server.pages["/remote"] = NAMES
    with_list(blockd, server, "remote")
    assert blockd.reload().returncode == 0
    wait_for("n7.example", "NXDOMAIN", blockd)
    bad = NAMES + b"".join(b"bad%d.example\n" % at for at in range(150))
    server.pages["/remote"] = bad
    assert blockd.run("lists", "fetch").returncode == 0
    assert rcode(ask(blockd, "bad7.example", client=CORPORATE)) == "NXDOMAIN"
    assert blockd.run("lists", "rollback").returncode == 0
    again = blockd.run("lists", "fetch")
    assert "somebody went back from it; if that is meant: blockd lists accept remote" in again.stderr
    server.pages["/remote"] = MORE
    assert "what was fetched waits" in blockd.run("lists", "fetch").stderr
    # As one that was killed before it came to put its lists back.
    (kept,) = (blockd.directory / "state" / "lists").glob("*remote")
    blockd.stop()
    kept.write_bytes(bad)
    blockd.start()
    assert kept.read_bytes() == NAMES
    assert blockd.run("reload").returncode == 0
    assert rcode(ask(blockd, "bad7.example", client=CORPORATE)) == "NOERROR", "not for a moment"
    wait_for("one.more.example", "NXDOMAIN", blockd)
    assert rcode(ask(blockd, "bad7.example", client=CORPORATE)) == "NOERROR"


def test_a_list_that_was_refused_is_accepted_by_an_operator(
    serve: Serve, server: ListServer, upstream: Upstream
) -> None:
    """`blockd lists accept` takes it, and nothing else; the next fetch does not bring it back."""
    upstream.script = any_address
    blockd = serve([upstream.address], reload={"largest_shrink": "50%"})
    server.pages["/remote"] = NAMES
    with_list(blockd, server, "remote")
    assert blockd.reload().returncode == 0
    wait_for("n7.example", "NXDOMAIN", blockd)
    server.pages["/remote"] = b"n1.example\n"
    assert blockd.run("lists", "fetch").returncode == 1
    assert blockd.reload().returncode == 0
    assert rcode(ask(blockd, "n7.example", client=CORPORATE)) == "NXDOMAIN"
    blockd.write_app("other", suffixes=["other.example"])
    assert blockd.run("reload", "--accept").returncode == 0
    assert rcode(ask(blockd, "n7.example", client=CORPORATE)) == "NXDOMAIN", "that is about the files alone"
    unseen = blockd.run("lists", "accept", "remote")
    assert unseen.returncode == 0, "a fetch that was asked for showed it"
    server.pages["/remote"] = NAMES
    assert blockd.run("lists", "fetch").returncode == 1
    assert blockd.run("lists", "accept", "remote").returncode == 0
    server.pages["/remote"] = b"n1.example\n"
    assert blockd.run("lists", "fetch").returncode == 1
    shown = blockd.run("lists", "accept", "remote", "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert "remote: 0 gained, 99 lost" in shown.stdout
    assert "it would be taken in all the same" in shown.stdout
    assert "would lose 99 of its 100 rules" in shown.stderr
    assert rcode(ask(blockd, "n7.example", client=CORPORATE)) == "NXDOMAIN"
    wrong = blockd.run("lists", "accept", "nobody")
    assert (wrong.returncode, "no refused list is stored for nobody" in wrong.stderr) == (1, True)
    done = blockd.run("lists", "accept", "remote")
    assert done.returncode == 0, done.stderr
    assert "taken in, though" in done.stdout
    assert rcode(ask(blockd, "n7.example", client=CORPORATE)) != "NXDOMAIN"
    assert rcode(ask(blockd, "n1.example", client=CORPORATE)) == "NXDOMAIN"
    assert "accepted by an operator: what was fetched from" in blockd.log.read_text()
    assert "unchanged" in blockd.run("lists", "fetch").stdout
    assert blockd.run("lists", "accept", "remote").returncode == 1
    # An app that is gone leaves nothing behind.
    blockd.values["policies"]["corporate"]["block"].remove("remote")
    assert blockd.reload().returncode == 0
    assert list((blockd.directory / "state" / "lists").iterdir()) == []


def test_a_list_that_no_reload_takes_is_put_aside(serve: Serve, server: ListServer, upstream: Upstream) -> None:
    """Good by itself, and against `must_allow` with all others: later reloads are not held up by it."""
    upstream.script = any_address
    blockd = serve([upstream.address], reload={"must_allow": ["www.open.example"]})
    server.pages["/remote"] = NAMES
    with_list(blockd, server, "remote")
    assert blockd.reload().returncode == 0
    wait_for("n7.example", "NXDOMAIN", blockd)
    server.pages["/remote"] = MORE + b"open.example\n"
    told = blockd.run("lists", "fetch")
    assert told.returncode == 1
    assert "www.open.example would be blocked for corporate" in told.stderr, told.stderr
    assert "refused: " in blockd.log.read_text()
    assert blockd.ready()["config_in_force"], "the files as they stand are in force"
    assert blockd.ready()["staged"] == 0
    assert rcode(ask(blockd, "one.more.example", client=CORPORATE)) == "NOERROR"
    assert blockd.reload().returncode == 0
    assert rcode(ask(blockd, "n7.example", client=CORPORATE)) == "NXDOMAIN"
    kept = {file.name.rpartition("-")[2] for file in (blockd.directory / "state" / "lists").iterdir()}
    assert kept == {"remote", "remote.json", "remote.refused"}
    server.pages["/remote"] = MORE
    assert blockd.run("lists", "fetch").returncode == 0
    assert rcode(ask(blockd, "one.more.example", client=CORPORATE)) == "NXDOMAIN"


def test_a_broken_file_keeps_no_fetched_list_out(serve: Serve, server: ListServer, upstream: Upstream) -> None:
    """Nor does it go in with one: what is fetched goes into what is in force, and two that came are told apart."""
    upstream.script = any_address
    blockd = serve([upstream.address], reload={"must_allow": ["www.open.example"]})
    for app in ("good", "bad"):
        server.pages[f"/{app}"] = NAMES
        with_list(blockd, server, app)
    extra = blockd.directory / "apps" / "extra.txt"
    extra.write_text("one.extra.example\n")
    blockd.write_app("extra", lists=[{"file": "extra.txt"}])
    blockd.values["policies"]["corporate"]["block"].append("extra")
    assert blockd.reload().returncode == 0
    wait_for("n7.example", "NXDOMAIN", blockd)
    extra.write_text("two.extra.example\n")
    server.pages["/good"] = NAMES + b"good.example\n"
    server.pages["/bad"] = NAMES + b"open.example\n"
    told = blockd.run("lists", "fetch")
    assert told.returncode == 1
    assert told.stdout == f"{server.url('/good')}: new\n"
    assert f"{server.url('/bad')}: refused: " in told.stderr
    assert rcode(ask(blockd, "good.example", client=CORPORATE)) == "NXDOMAIN"
    assert rcode(ask(blockd, "two.extra.example", client=CORPORATE)) == "NOERROR", "nobody said reload"
    extra.write_text("co.uk\n")
    assert blockd.run("reload").returncode == 1
    server.pages["/good"] = NAMES + b"better.example\n"
    assert blockd.run("lists", "fetch", "good").returncode == 0
    assert rcode(ask(blockd, "better.example", client=CORPORATE)) == "NXDOMAIN"
    assert not blockd.ready()["config_in_force"], "the broken file is still not"
    assert blockd.metric("blockd_reload_last_success") == 0


def test_what_was_fetched_waits_for_the_end_of_a_rollback(serve: Serve, server: ListServer, upstream: Upstream) -> None:
    """And is taken in after a restart, too; nothing of what was before comes back later."""
    upstream.script = any_address
    blockd = serve([upstream.address], reload={"must_allow": ["www.open.example"]})
    server.pages["/remote"] = NAMES
    with_list(blockd, server, "remote")
    assert blockd.reload().returncode == 0
    wait_for("n7.example", "NXDOMAIN", blockd)
    assert blockd.run("lists", "rollback").returncode == 0
    server.pages["/remote"] = MORE
    told = blockd.run("lists", "fetch")
    assert told.returncode == 1
    assert "what was fetched waits: a generation is held" in told.stderr
    assert "what came waits" in blockd.run("lists").stdout
    assert "held since a rollback" in blockd.run("lists", "accept", "remote").stderr
    blockd.stop()
    blockd.start()
    assert rcode(ask(blockd, "one.more.example", client=CORPORATE)) == "NOERROR"
    assert blockd.run("reload").returncode == 0
    wait_for("one.more.example", "NXDOMAIN", blockd)
    server.pages["/remote"] = MORE + b"open.example\n"
    assert blockd.run("lists", "fetch").returncode == 1
    assert blockd.run("reload").returncode == 0
    assert rcode(ask(blockd, "one.more.example", client=CORPORATE)) == "NXDOMAIN"


def test_what_a_killed_fetch_left_is_not_taken_for_a_list(tmp_path: Path, server: ListServer) -> None:
    """Half of something lies there, and the server has nothing new: it is not judged, and not used."""
    server.pages["/list"] = NAMES
    one = task(tmp_path, server.url("/list"), server.ca)
    assert fetch(one).result == "new"
    take_in(one.remote)
    one.remote.candidate.write_bytes(NAMES[:800])
    assert fetch(one).result == "unchanged"
    assert one.remote.path.read_bytes() == NAMES
    assert not one.remote.candidate.exists()


def test_a_server_that_hangs_delays_no_other_list(serve: Serve, server: ListServer, upstream: Upstream) -> None:
    """Nor a reload, nor the daemon's end."""
    upstream.script = any_address
    stop = threading.Event()

    def hang(_: BaseHTTPRequestHandler) -> None:
        stop.wait(60)

    server.pages["/slow"] = hang
    server.pages["/quick"] = NAMES
    blockd = serve([upstream.address])
    with_list(blockd, server, "slow")
    with_list(blockd, server, "quick")
    assert blockd.reload().returncode == 0
    wait_for("n7.example", "NXDOMAIN", blockd)
    rows = {row["app"]: row["source"]["result"] for row in json.loads(blockd.run("lists", "--json").stdout)["lists"]}
    assert rows == {"quick": "new", "slow": "fetching"}
    began = time.monotonic()
    blockd.stop()
    assert time.monotonic() - began < 8
    stop.set()


def test_a_directory_of_lists_is_as_many_as_it_has(serve: Serve, upstream: Upstream) -> None:
    """A new file in it is a new list; a directory that is not there is an error with its place."""
    upstream.script = any_address
    blockd = serve([upstream.address], reload={"watch": True})
    lists = blockd.directory / "apps" / "many"
    lists.mkdir()
    (lists / "one.txt").write_text("one.example\n")
    (lists / ".hidden").write_text("hidden.example\n")
    (lists / "old.txt~").write_text("old.example\n")
    blockd.write_app("many", lists=[{"directory": "many"}])
    blockd.values["policies"]["corporate"]["block"].append("many")
    assert blockd.reload().returncode == 0
    assert rcode(ask(blockd, "one.example", client=CORPORATE)) == "NXDOMAIN"
    for name in ("two.example", "hidden.example", "old.example"):
        assert rcode(ask(blockd, name, client=CORPORATE)) != "NXDOMAIN"
    (lists / "two.txt").write_text("two.example\n")
    wait_for("two.example", "NXDOMAIN", blockd)
    blockd.write_app("many", lists=[{"directory": "none"}])
    failed = blockd.reload()
    assert failed.returncode == 1
    assert "many.yaml:3: lists.0.directory: " in failed.stderr
    assert "none: cannot be read: No such file or directory" in failed.stderr


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"url": "http://lists.example/x"}, "lists.0.url: expected a URL that begins with https://"),
        ({"url": "https://me:secret@lists.example/x"}, "expected a URL without a user and password"),
        ({"url": "https://lists.example/x", "every": "1s"}, "lists.0.every: "),
        ({"url": "https://lists.example/x", "every": "soon"}, "expected a time with its unit, such as 30min, 6h or 1d"),
        ({"file": "x", "every": "6h"}, "every is for lists with url or zone: a file has none"),
        (
            {"file": "x", "url": "https://lists.example/x"},
            "expected one of file, directory, url and zone, and found file and url",
        ),
        ({"zone": "rpz.example"}, "zone needs the server that it is transferred from"),
        ({"url": "https://lists.example/x", "server": "192.0.2.1"}, "server is for lists with zone: a url has none"),
        ({}, "expected one of file, directory, url and zone, and found none"),
    ],
)
def test_a_bad_source_says_what_and_where(tmp_path: Path, written: dict[str, str], said: str) -> None:
    """File, line and key."""
    blockd = Blockd(tmp_path, ["127.0.0.1:53"])
    blockd.write_app("remote", lists=[written])
    failed = blockd.run("check")
    assert failed.returncode == 1
    assert "remote.yaml:" in failed.stderr
    assert said in failed.stderr, failed.stderr
