"""What the service does on a systemd that is process 1: a row of the table each, in this order.

A row says what was seen, or raises what was wrong. `Machine` is booted and has /src (what an owner
unpacks, with its wheels), /bundle, /second (another name) and /damaged.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import prepare
from machine import Machine, until

ASK = 'edge ask "What do you see?" --max-tokens 3 --json'
FROM_WHEELS = "cd /src && make install PYTHON=/usr/bin/python3 WHEELS=/src/wheels EXTRAS=runtime"
INSTALL = FROM_WHEELS.replace("/usr/bin/python3", "/src/fast-python")
"""In seconds: the packages are those of the first install, see fast_python.py."""
FAILED = "systemctl --failed --plain --no-legend"
UNINSTALL = "sh /src/jetson/uninstall.sh"
IN_USE = "readlink -f /var/lib/edge/bundle; readlink /opt/edge/current; ls /opt/edge/versions"
"""What an upgrade changes, and one that is refused does not."""
SOCKET = "/run/edge/edge.sock"
USERS = {"olga": "edge", "oskar": "video", "anna": "", "stan": ""}
"""Their groups: an operator, an observer, an admin by name, a stranger."""
PASSWORD = "open-sesame-7341"
SETTINGS = "/etc/edge/edge.toml"
CAMERA = '[[camera]]\nname = "door"\nsource = "unix:/run/edge-ingest/door.sock"\n'
RECORDED = """
from pathlib import Path
from mcap.stream_reader import StreamReader
for path in Path("/var/lib/edge/recorded").glob("*.mcap"):
    for record in StreamReader(path.open("rb")).records:
        print(record)
"""
"""Prints all that is in recordings, whose chunks are packed."""
RECORD = '[record]\nfolder = "/var/lib/edge/recorded"\n'
JOURNAL_S = float(os.environ.get("JOURNAL_S", "130"))
"""How much of a day is looked at; JOURNAL_S=1800 for half an hour."""
MAX_MB_A_DAY = 2.0
MAX_STOP_S = 10.0
"""The unit's TimeoutStopSec."""

Row = Callable[["World"], str]
ROWS: dict[str, Row] = {}


@dataclass
class World:
    """The machine, and where things are on this one."""

    machine: Machine
    rtsp: Callable[[bool], None]
    """Switch the network camera on or off."""
    rtsp_url: str
    deb: Callable[[], Path]
    """Makes the package."""


def row(name: str) -> Callable[[Row], Row]:
    """Put a row into the table."""

    def put(check: Row) -> Row:
        ROWS[name] = check
        return check

    return put


def answer(world: World, ask: str = ASK, **how: Any) -> Any:
    """What it says to a question, with its report."""
    return json.loads(world.machine.says(ask, **how).splitlines()[-1])


def asked(world: World, *, user: str = "root", timeout_s: float = 60) -> float:
    """Ask; how long until the answer is there, s."""
    began_s = time.monotonic()
    said = answer(world, user=user, timeout_s=timeout_s)
    assert said["usage"]["completion_tokens"] > 0, said
    return time.monotonic() - began_s


def set_up(world: World, text: str = "") -> None:
    """The settings that the rows share, and more."""
    world.machine.write(
        SETTINGS,
        '[access]\noperators = ["@edge"]\nobservers = ["@video"]\nadmins = ["anna"]\n'
        f"[answer]\nmax_tokens = 64\n{text}",
    )


def is_active(world: World) -> None:
    """Its units are, and it answers."""
    for unit in ("edge.service", "edge.socket"):
        state = world.machine.property(unit, "ActiveState")
        assert state == "active", f"{unit} is {state}"
    asked(world)


def nothing(found: str) -> None:
    """Nothing was found."""
    assert not found, found


def log(world: World, n: int) -> str:
    """The last lines of the service."""
    return world.machine.says(f"journalctl -u edge -o cat -n {n}")


def refused(world: World, arguments: str = "", timeout_s: float = 300) -> str:
    """The installer's last word: it goes as far as a refusal."""
    tried = world.machine.run(f"{INSTALL} {arguments}", check=False, timeout_s=timeout_s)
    assert tried.returncode, tried.stdout
    return [line for line in tried.stderr.splitlines() if line.startswith("install:")][-1]


def starts(world: World) -> int:
    """How often the service was started since this boot."""
    said = world.machine.says("journalctl -b -u edge.service -o cat")
    return len(re.findall("^Starting edge.service|^Starting Omni Edge", said, re.MULTILINE))


@row("boots")
def boots(world: World) -> str:
    version = world.machine.says("systemctl --version | head -1")
    nothing(world.machine.says(FAILED))
    assert world.machine.says("cat /proc/1/comm") == "systemd"
    return f"{version.split('(')[0].strip()} as process 1, no failed units"


@row("make install")
def install(world: World) -> str:
    began_s = time.monotonic()
    said = world.machine.says(f"{FROM_WHEELS} BUNDLE=/bundle", timeout_s=600)
    assert "install: ready: edge ask" in said, said
    world.machine.run(
        "rm -rf /src/venv && cp -al $(readlink /opt/edge/current) /src/venv; rm -f /src/venv/bundle"
    )
    for name, group in USERS.items():
        world.machine.run(f"useradd -m {name} {f'-G {group}' * bool(group)}")
    is_active(world)
    groups = world.machine.says("id -nG edge")
    assert {"video", "render", "audio"} <= set(groups.split()), groups
    return f"ready in {time.monotonic() - began_s:.0f} s; user edge in {groups}"


@row("READY")
def ready(world: World) -> str:
    machine = world.machine
    assert machine.property("edge.service", "Type") == "notify"
    machine.run("systemctl restart edge")  # returns at READY
    wait_s = asked(world)
    status = machine.property("edge.service", "StatusText")
    assert re.search("ready after|context", status), status
    said = machine.says("journalctl -u edge -o cat | grep event=ready | tail -1")
    startup = re.search(r"startup_s=\S+", said)
    assert startup, said
    return f"{startup[0]}, answered in {wait_s:.1f} s; status {status!r}"


@row("socket activation")
def socket_activation(world: World) -> str:
    world.machine.run("systemctl stop edge.service")
    assert world.machine.property("edge.socket", "ActiveState") == "active"
    one_s = asked(world)
    world.machine.run("systemctl stop edge.service")
    began_s = time.monotonic()
    clients = [world.machine.start(ASK) for _ in range(3)]
    said = [client.communicate(timeout=60)[0] for client in clients]
    assert all(client.returncode == 0 for client in clients), said
    return f"one {one_s:.1f} s, three at once {time.monotonic() - began_s:.1f} s after they asked"


@row("kill -9")
def kill_9(world: World) -> str:
    before = world.machine.property("edge.service", "MainPID")
    world.machine.run("systemctl kill -s KILL edge.service")
    wait_s = asked(world)
    after = world.machine.property("edge.service", "MainPID")
    assert after not in (before, "0")
    return f"the next answer after {wait_s:.1f} s"


@row("an engine that hangs")
def watchdog(world: World) -> str:
    world.machine.run("systemctl kill -s STOP edge.service")
    wait_s = asked(world, timeout_s=90)
    said = log(world, 60)
    assert "Watchdog timeout" in said, said
    return f"watchdog; who waited has its answer after {wait_s:.1f} s"


@row("reload")
def reload(world: World) -> str:
    machine = world.machine
    set_up(world)
    machine.run("systemctl restart edge")
    set_up(world, "[perception]\nfps = 1.0\n")
    machine.run(f"sed -i 's/^max_tokens = .*/max_tokens = 2/' {SETTINGS}")
    machine.run("systemctl reload edge")
    status = until(
        "the status says so",
        lambda: re.search(
            "restart for: perception", machine.property("edge.service", "StatusText")
        ),
        6,
    )
    said = answer(world, 'edge ask "What do you see?" --json')
    n_tokens = said["usage"]["completion_tokens"]
    assert n_tokens <= 2, n_tokens
    machine.write(SETTINGS, "[answer\n")
    machine.run("systemctl reload edge", check=False)
    until(
        "bad settings are refused",
        lambda: "event=not_reloaded" in log(world, 20),
    )
    set_up(world)
    machine.run("systemctl reload edge")
    asked(world)
    return f"answers are {n_tokens} tokens; {status[0]!r}; bad settings leave it as it is"


@row("drain")
def drain(world: World) -> str:
    machine = world.machine
    # Hot enough that the small model hardly ever finds an end.
    talking = 'edge ask "Describe all that you see." --temperature 2 --max-tokens {}'
    clients = [machine.start(talking.format(150 + 50 * n)) for n in range(5)]
    for client in clients:
        assert client.stdout is not None
        assert client.stdout.read(1), "it has not begun"
    began_s = time.monotonic()
    machine.run("systemctl stop edge.service")
    took_s = time.monotonic() - began_s
    said = [client.stdout.read() for client in clients if client.stdout is not None]
    for client in clients:
        client.wait(60)
    ended = [client.returncode for client in clients]
    cut = [text for text in said if "is stopping" in text]
    assert len(cut) + ended.count(0) == 5, said  # each ends whole, or its client hears why not
    assert took_s < MAX_STOP_S
    asked(world)
    return (
        f"five answers under way: {ended.count(0)} ended whole, {len(cut)} were told; "
        f"the stop took {took_s:.1f} s"
    )


@row("roles by group")
def roles(world: World) -> str:
    machine = world.machine
    socket_unit = prepare.REPOSITORY / "jetson/edge.socket"
    (mode,) = re.findall(r"^SocketMode=(\d+)", socket_unit.read_text(), re.MULTILINE)
    is_open = int(mode, 8) & 0o002
    asked(world, user="olga")
    said = {}
    for user in ("oskar", "stan"):
        tried = machine.run(ASK, user=user, check=False)
        assert tried.returncode in (73, 77), (user, tried)
        said[user] = tried.stderr.strip()
    seen = machine.run("edge status --json", user="oskar", check=False)
    nosy = machine.run("edge status --json", user="stan", check=False)
    assert nosy.returncode in (73, 77), nosy
    if is_open:
        assert seen.returncode == 0, seen
        assert "operator" in said["oskar"], said
        asked(world, user="anna")
    else:  # who is not in the socket's group cannot reach it
        assert "closed to this user" in said["stan"], said
    for path in ("/var/lib/edge/bundle/manifest.json", "/run/edge-ingest", "/etc/edge/ingest"):
        tried = machine.run(f"ls {path}/. || cat {path}", user="stan", check=False)
        assert tried.returncode, f"{path} is open to everybody"
    observed = "reads health" if seen.returncode == 0 else "has no access"
    return f"socket {mode}: operator answered, observer {observed}, stranger: {said['stan']!r}"


@row("what the service may change")
def may_change(world: World) -> str:
    machine = world.machine
    pid = machine.property("edge.service", "MainPID")
    inside = (
        f"nsenter -t {pid} -m setpriv --reuid edge --regid edge --init-groups --no-new-privs "
        "--bounding-set=-all --inh-caps=-all sh -c "
    )
    refused = []
    for path in (
        "/var/lib/edge/bundle/manifest.json",
        "/var/lib/edge/bundle/new",
        "/var/lib/edge/bundles/new",
        "/var/lib/edge/new",
        "/etc/edge/edge.toml",
        "/opt/edge/new",
        "/usr/new",
    ):
        tried = machine.run(inside + shlex.quote(f"echo x >> {path}"), check=False)
        assert tried.returncode, f"{path} was written"
        refused.append(path)
    moved = machine.run(
        inside + shlex.quote("mv /var/lib/edge/bundle /var/lib/edge/other"), check=False
    )
    assert moved.returncode, "the bundle was moved"
    bus = "import socket; socket.socket(socket.AF_UNIX).connect('/run/dbus/system_bus_socket')"
    tried = machine.run(inside + shlex.quote(f'/usr/bin/python3 -c "{bus}"'), check=False)
    assert tried.returncode, "the system's bus was reached"
    environment = machine.says(f"tr '\\0' '\\n' < /proc/{pid}/environ")
    for wanted in ("PYTHONNOUSERSITE=1", "ORT_DISABLE_TELEMETRY=1"):
        assert wanted in environment.split(), environment
    return f"not its bundle, its settings nor its program ({len(refused)} writes refused), no D-Bus"


@row("upgrade")
def upgrade(world: World) -> str:
    machine = world.machine
    before = machine.says("readlink /opt/edge/current")
    began_s = time.monotonic()
    said = machine.says(INSTALL, timeout_s=300)
    after = machine.says("readlink /opt/edge/current")
    assert "install: ready" in said, said
    assert before != after
    assert machine.path(before).is_dir(), "the one before has gone"
    pid = machine.property("edge.service", "MainPID")
    runs = machine.says(f"readlink /proc/{pid}/cwd; tr '\\0' ' ' < /proc/{pid}/cmdline")
    assert after in runs or "/opt/edge/current" in runs, runs
    asked(world)
    return f"{time.monotonic() - began_s:.0f} s; the one before is kept"


@row("upgrade to a version that is broken")
def broken_version(world: World) -> str:
    machine = world.machine
    before = machine.says(IN_USE)
    folder = machine.path("/src/wheels")
    prepare.own_wheel(folder, prepare.UNPROVEN)
    try:
        said = refused(world)
    finally:
        prepare.own_wheel(folder)
    assert "did not become ready" in said, said
    after = machine.says(IN_USE)
    assert after == before, f"what is broken is kept: {after}"
    is_active(world)
    return repr(said)


@row("another bundle, and back")
def other_bundle(world: World) -> str:
    machine = world.machine
    machine.run(f"{INSTALL} BUNDLE=/second", timeout_s=300)
    name = json.loads(machine.says("cat /var/lib/edge/bundle/manifest.json"))["name"]
    assert name == "second", name
    models = machine.says(f"edge status --json --socket {SOCKET}")
    assert "second" in models, models
    kept = machine.says("ls /var/lib/edge/bundles").split()
    assert len(kept) == 2, kept
    owner = machine.says("stat -L -c %U:%G:%a /var/lib/edge/bundle /var/lib/edge/bundle/*")
    assert {line.split(":")[0] for line in owner.splitlines()} == {"root"}, owner
    assert {line.split(":")[1] for line in owner.splitlines()} == {"edge"}, owner
    first = next(
        n for n in kept if n != Path(machine.says("readlink -f /var/lib/edge/bundle")).name
    )
    machine.run(f"{INSTALL} BUNDLE=/var/lib/edge/bundles/{first}", timeout_s=300)
    assert machine.says("readlink -f /var/lib/edge/bundle").endswith(first)
    asked(world)
    return f"{' and '.join(kept)} lie side by side, root:edge"


@row("upgrade with a damaged bundle")
def bad_bundle(world: World) -> str:
    machine = world.machine
    before = machine.says(IN_USE)
    pid = machine.property("edge.service", "MainPID")
    said = refused(world, "BUNDLE=/damaged")
    after = machine.says(IN_USE)
    assert after == before, after
    assert machine.property("edge.service", "MainPID") == pid, "the service was restarted for it"
    nothing(machine.says("find /var/lib/edge -name '*.new*' -o -name '*damaged*'"))
    asked(world)
    assert "goes on" in said or "stays" in said, said
    return f"refused before the switch: {said!r}; the service was not touched"


@row("a disk without room")
def full_disk(world: World) -> str:
    machine = world.machine
    bundles = "/var/lib/edge/bundles"
    machine.run(f"mount -t tmpfs -o size=16m none {bundles}")
    try:
        said = refused(world, "BUNDLE=/damaged", 60)
        nothing(machine.says(f"ls {bundles}"))
    finally:
        machine.run(f"umount {bundles}")
    assert "needed" in said, said
    return repr(said)


def refused_with_78(world: World, clients: int) -> str:
    machine = world.machine
    machine.run("systemctl stop edge.service edge.socket")
    machine.run("systemctl start edge.socket")
    n_before = starts(world)
    waiting = [machine.start(ASK) for _ in range(clients)]
    said = [client.communicate(timeout=60)[0].strip() for client in waiting]
    assert all(client.returncode for client in waiting), said
    until(
        "the service has failed",
        lambda: machine.property("edge.service", "ActiveState") == "failed",
    )
    assert machine.property("edge.service", "ExecMainStatus") == "78"
    until(
        "the socket is closed",
        lambda: machine.property("edge.socket", "ActiveState") == "inactive",
    )
    assert machine.property("edge.socket", "Result") == "success"
    n_starts = starts(world) - n_before
    assert n_starts == 1, f"{n_starts} starts"
    late = machine.run(ASK, check=False)
    assert late.returncode == 73, late
    assert starts(world) - n_before == 1, "a later client started it again"
    return said[0]


@row("bad settings, with three who wait")
def bad_settings(world: World) -> str:
    world.machine.write(SETTINGS, "[perception]\nfps = -1\n")
    said = refused_with_78(world, 3)
    assert "fps" in said, said
    set_up(world)
    world.machine.run("systemctl start edge")
    is_active(world)
    return f"one start, exit 78, socket closed; each hears {said!r}; then start is enough"


@row("a bundle that rots, with one who waits")
def rotten(world: World) -> str:
    machine = world.machine
    kept = machine.says("readlink -f /var/lib/edge/bundle")
    machine.run(f"cp -a {kept} /good && mv {kept}/manifest.json {kept}/gone")
    said = refused_with_78(world, 1)
    assert "bundle" in said, said
    machine.run(f"mv {kept}/gone {kept}/manifest.json && rm -r /good && systemctl start edge")
    asked(world)
    return f"{said!r}"


@row("a network camera")
def network_camera(world: World) -> str:
    took_s = begin_camera(world)
    report = answer(world)
    assert report["edge"]["evidence"], report
    return f"seen {took_s:.1f} s after the start; it is the answer's evidence"


def age_s(world: World) -> float:
    """Of the newest picture that an answer stood on."""
    said = world.machine.run(ASK, check=False)
    if said.returncode:
        return 1e9
    age_ms = json.loads(said.stdout.splitlines()[-1])["edge"]["newest_capture_age_ms"]
    return 1e9 if age_ms is None else float(age_ms) / 1000


def sees(world: World) -> None:
    """It does, within a minute."""
    until("it sees", lambda: age_s(world) < 3, 60)


def begin_camera(world: World) -> float:
    """Give its address, enable its unit, name it in the settings; how long until it sees, s.

    All is recorded from then on.
    """
    world.rtsp(True)
    world.machine.run("install -d -m700 /etc/edge/ingest")
    world.machine.write("/etc/edge/ingest/door", f"{world.rtsp_url}\n")
    world.machine.run("chmod 600 /etc/edge/ingest/door && systemctl enable --now edge-ingest@door")
    set_up(world, CAMERA + RECORD)
    began_s = time.monotonic()
    world.machine.run("systemctl restart edge")
    sees(world)
    return time.monotonic() - began_s


def with_camera(check: Row) -> Row:
    """A row that begins with a network camera that is seen."""

    @functools.wraps(check)
    def begun(world: World) -> str:
        if not world.machine.path("/etc/edge/ingest/door").exists():
            begin_camera(world)
        sees(world)
        return check(world)

    return begun


def unplugged(world: World, gone: Callable[[], object], back: Callable[[], object]) -> float:
    """How long until the camera sees again, s."""
    gone()
    until("it is missed", lambda: age_s(world) > 4, 60)
    back()
    began_s = time.monotonic()
    sees(world)
    return time.monotonic() - began_s


@row("its unit is killed")
@with_camera
def ingest_killed(world: World) -> str:
    machine = world.machine
    before = machine.property("edge-ingest@door", "MainPID")
    machine.run("systemctl kill -s KILL edge-ingest@door")
    began_s = time.monotonic()
    until(
        "it runs again",
        lambda: machine.property("edge-ingest@door", "MainPID") not in (before, "0"),
    )
    until("it is back", lambda: "event=back" in log(world, 5))
    sees(world)
    return f"sees again after {time.monotonic() - began_s:.1f} s"


@row("its unit is restarted")
@with_camera
def ingest_restarted(world: World) -> str:
    def stop() -> None:
        world.machine.run("systemctl stop edge-ingest@door")

    def start() -> None:
        world.machine.run("systemctl start edge-ingest@door")

    return f"sees again {unplugged(world, stop, start):.1f} s after its start"


@row("it is unplugged")
@with_camera
def camera_unplugged(world: World) -> str:
    took_s = unplugged(world, lambda: world.rtsp(False), lambda: world.rtsp(True))
    state = world.machine.property("edge-ingest@door", "ActiveState")
    return f"sees again {took_s:.1f} s after it is back; its unit is {state}"


@row("its password")
@with_camera
def password(world: World) -> str:
    machine = world.machine
    shown = machine.says("cat /proc/[0-9]*/cmdline | tr '\\0' ' '", user="stan")
    assert "edge" in shown
    assert PASSWORD not in shown, "everybody reads it in /proc"
    everything = (
        "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'; "
        "journalctl -o json --no-pager; systemctl show edge-ingest@door edge.service; "
        "systemctl status edge-ingest@door edge.service --no-pager -l; cat /run/log/* 2>/dev/null"
    )
    pattern = f"[{PASSWORD[0]}]{PASSWORD[1:]}"  # which does not find the command that looks for it
    nothing(machine.says(f"({everything}) | grep -a '{pattern}' || true"))
    machine.run("systemctl stop edge.service")  # a recording is whole when it ends
    recorded = machine.says(f"/opt/edge/current/bin/python -c {shlex.quote(RECORDED)}")
    machine.run("systemctl start edge.service")
    assert "/run/edge-ingest/door.sock" in recorded, "it is not recorded"
    assert PASSWORD not in recorded, "it is recorded"
    files = machine.says(
        f"grep -rla '{pattern}' /etc /run /var /tmp /opt/edge/current/ 2>/dev/null | "
        "grep -v -e '^/run/credentials' || true"
    )
    assert files.split() == ["/etc/edge/ingest/door"], files
    tried = machine.run("cat /etc/edge/ingest/door", user="stan", check=False)
    assert tried.returncode
    return (
        "in /etc/edge/ingest/door alone: not in /proc, journal, units' properties, recordings "
        f"({len(recorded)} characters unpacked), /var, /run"
    )


@row("a day's journal")
@with_camera
def journal(world: World) -> str:
    machine = world.machine
    since = machine.says("date +%s")
    time.sleep(JOURNAL_S)  # this is what is measured
    lines = machine.says(f"journalctl -u edge -u 'edge-ingest@*' -o short --since @{since}")
    n_bytes = len(machine.says(f"journalctl -u edge -u 'edge-ingest@*' -o export --since @{since}"))
    n_segments = sum(int(n) for n in re.findall(r"minute .*video_segments=(\d+)", lines))
    assert n_segments >= JOURNAL_S // 60 * 50, f"{n_segments} segments of pictures"
    assert "segment=" not in lines
    mb_a_day = n_bytes * 86400 / JOURNAL_S / 1e6
    assert mb_a_day <= MAX_MB_A_DAY, f"{mb_a_day:.2f} MB a day"
    stamped = re.findall(r"]: (?:<\d>|\d{4}-\d\d-\d\d)", lines)
    assert not stamped, stamped
    warnings = machine.says(f"journalctl -u edge -p warning -o cat --since @{since}")
    assert "minute" not in warnings
    n = len(lines.splitlines())
    return f"{n} lines in {JOURNAL_S:.0f} s for {n_segments} segments: {mb_a_day:.2f} MB a day"


@row("boot")
@with_camera
def boot(world: World) -> str:
    machine = world.machine
    machine.off()
    took_s = machine.boot()
    began_s = time.monotonic()
    until(
        "all units are up",
        lambda: (
            {
                machine.property(unit, "ActiveState")
                for unit in ("edge.socket", "edge.service", "edge-ingest@door")
            }
            == {"active"}
        ),
    )
    sees(world)
    nothing(machine.says(FAILED))
    return (
        f"up in {took_s:.1f} s, answered from the camera {time.monotonic() - began_s:.1f} s later"
    )


@row("the plug is pulled")
@with_camera
def plug(world: World) -> str:
    world.machine.pull_the_plug()
    world.machine.boot()
    is_active(world)
    sees(world)
    return "boots, sees and answers"


@row("edge doctor")
@with_camera
def doctor(world: World) -> str:
    machine = world.machine
    said = machine.run("edge doctor /var/lib/edge/bundle", check=False).stdout
    for wanted in (r"^ok +service ", r"^ok +settings ", r"^ok +camera door "):
        assert re.search(wanted, said, re.MULTILINE), said
    theirs = machine.run("edge doctor", user="stan", check=False).stdout
    assert re.search(r"^warning +access ", theirs, re.MULTILINE), theirs
    machine.run("systemctl stop edge.socket edge.service")
    machine.write(SETTINGS, "[perception]\nfps = -1\n")
    machine.run("systemctl start edge", check=False)
    wrong = machine.run("edge doctor", check=False).stdout
    set_up(world, CAMERA)
    machine.run("systemctl start edge")
    assert re.search(r"^failure +service .*78", wrong, re.MULTILINE), wrong
    assert re.search(r"^failure +settings .*fps", wrong, re.MULTILINE), wrong
    return "service, settings, camera, access; after a bad setting: unit failed (78), and which"


@row("uninstall")
def uninstall(world: World) -> str:
    machine = world.machine
    said = machine.says("cd /src && make uninstall")
    nothing(machine.says("systemctl list-units --all --plain --no-legend 'edge*'"))
    left = (
        "find / -xdev '(' -name '*edge*' -o -user edge -o -user edge-ingest ')' "
        "! -path '/src/*' ! -path '/bundle/*' ! -path '/proc/*' ! -path '/sys/*' "
        "! -path '*/site-packages/*' ! -path '/usr/share/*' "
        "! -path '/var/log/*' ! -path '/usr/lib/*' "
        "2>/dev/null; ls -d /run/edge* /usr/lib/systemd/system/edge* 2>/dev/null || true"
    )
    nothing(machine.says(left))
    nothing(machine.says("ps -e -o user=,args= | grep -E 'edge|ffmpeg' | grep -v grep || true"))
    for name in ("edge", "edge-ingest"):
        assert machine.run(f"id {name}", check=False).returncode, f"user {name} is left"
    return said.splitlines()[-1] if said else ""


KILLED = (
    "EDGE_MADE=/src/toy PYTHON=/src/fast-python WHEELS=/src/wheels EXTRAS=runtime "
    "BASH_ENV=/src/kill-hook {how} BUNDLE={bundle} setsid -w bash /src/jetson/install.sh"
)
"""The installer under a hook; what it installs is a stand-in that is ready at once."""
LIKE_A_BOOT = (
    "systemctl stop edge.service edge.socket; rm -rf /run/systemd/system/edge.*; "
    "systemctl daemon-reload; systemctl reset-failed 2>/dev/null; systemctl start edge.socket"
)


def steps_of(machine: Machine, bundle: str) -> list[tuple[int, int]]:
    """An installer's steps before which something has changed, with their lines."""
    new_bundle(machine, bundle, "traced")
    machine.run("rm -f /src/steps")
    machine.run(KILLED.format(how="STEPS_TO=/src/steps", bundle=bundle), timeout_s=600)
    steps = [line.split() for line in machine.says("cat /src/steps").splitlines()]
    return [(int(step), int(line)) for step, line in steps]


def new_bundle(machine: Machine, path: str, name: str) -> None:
    """One that nobody has yet."""
    machine.run(
        f"rm -rf {path} && cp -al /second {path} && "
        f'sed -i \'s/"name": *"second"/"name": "{name}"/\' {path}/manifest.json'
    )


def runs(machine: Machine) -> str:
    """Version and bundle of who is at the socket."""
    return machine.says("/src/toy-edge said")


def kill(machine: Machine, step: int) -> None:
    """Begin to install /next, as far as a step."""
    command = KILLED.format(how=f"KILL_AT={step}", bundle="/next")
    killed = machine.run(f"{command}; exit $?", check=False)
    assert killed.returncode == 128 + signal.SIGKILL, (step, killed)


def ranges(seen: list[tuple[int, str]]) -> str:
    """Which lines led to what."""
    lines: dict[str, list[int]] = {}
    for line, what in seen:
        lines.setdefault(what, []).append(line)
    return f"{len(seen)} steps that change something; " + "; ".join(
        f"{what}: {len(ns)} (lines {min(ns)} to {max(ns)})" for what, ns in lines.items()
    )


@row("what an upgrade removes, a signature, and back")
def removed(world: World) -> str:
    machine = world.machine
    bundles = "/var/lib/edge/bundles"
    machine.run(UNINSTALL)
    machine.run(KILLED.format(how="", bundle="/bundle"))
    first = runs(machine)
    new_bundle(machine, "/next", "signed")
    machine.run(KILLED.format(how="", bundle="/next"))
    before = runs(machine)
    machine.write("/next/manifest.json.minisig", "a signature\n")
    said = machine.says(KILLED.format(how="", bundle="/next"))
    after = runs(machine)
    version, bundle = before.split()
    assert bundle != after.split()[1], "the signature was left out"
    assert machine.path(f"{bundles}/{after.split()[1]}/manifest.json.minisig").exists()
    old_version, old_bundle = first.split()
    assert f"install: removing /opt/edge/versions/{old_version}: " in said, said
    assert f"install: removing {bundles}/{old_bundle}: " in said, said
    kept = machine.says(f"ls {bundles}").split()
    assert {*kept} == {bundle, after.split()[1]}, kept
    assert f"kept to go back to: /opt/edge/versions/{version}" in said, said
    back = f"ln -sfn /opt/edge/versions/{version} /opt/edge/current && systemctl restart edge"
    machine.run(back)
    assert runs(machine) == before
    return f"{old_bundle} went, and it was said; {bundle} is gone back to"


@row("an upgrade that is killed at each step")
def upgrade_killed(world: World) -> str:
    machine = world.machine
    machine.run(UNINSTALL)
    machine.run(KILLED.format(how="", bundle="/bundle"))
    seen = []
    for step, line in steps_of(machine, "/next"):
        before = runs(machine)
        new_bundle(machine, "/next", f"step{step}")
        kill(machine, step)
        told = runs(machine)
        machine.run(LIKE_A_BOOT)
        after = runs(machine)
        version, bundle = after.split()
        assert machine.says("basename $(readlink /opt/edge/current)") == version, (line, after)
        assert machine.path(f"/var/lib/edge/bundles/{bundle}/manifest.json").exists()
        now, then = ("before" if who == before else "new" for who in (told, after))
        seen.append((line, f"the {now} one runs, the {then} one after a boot"))
    machine.run(KILLED.format(how="", bundle="/bundle"))
    assert machine.says("ls /opt/edge/versions | wc -l") == "2", "halves of versions are left"
    nothing(machine.says("find /var/lib/edge/bundles /opt/edge -maxdepth 1 -name '*.new*'"))
    return ranges(seen)


@row("a first install that is killed at each step")
def install_killed(world: World) -> str:
    machine = world.machine
    machine.run(UNINSTALL)
    seen = []
    for step, line in steps_of(machine, "/next"):
        machine.run(UNINSTALL)
        kill(machine, step)
        is_there = machine.path("/opt/edge/current").is_symlink()
        machine.run(LIKE_A_BOOT, check=False)
        if is_there:
            assert runs(machine)
        seen.append((line, "it runs" if is_there else "none, as before"))
    machine.run(KILLED.format(how="", bundle="/bundle"))
    assert runs(machine)
    machine.run(UNINSTALL)
    return ranges(seen)


@row("the package: installed, again, upgraded, removed, purged")
def package(world: World) -> str:
    machine = world.machine
    began_s = time.monotonic()
    deb = world.deb()
    made_s = time.monotonic() - began_s
    machine.path("/src/one.deb").write_bytes(deb.read_bytes())
    depends = machine.says("dpkg-deb -f /src/one.deb Depends")
    began_s = time.monotonic()
    satisfy = f"apt-get -qq satisfy -y --no-install-recommends {shlex.quote(depends)}"
    machine.run(f"apt-get -qq update && {satisfy}", timeout_s=300)
    machine.run("dpkg -i /src/one.deb", timeout_s=300)
    installed_s = time.monotonic() - began_s
    is_active(world)
    machine.run("dpkg -i /src/one.deb", timeout_s=300)
    is_active(world)
    begin_camera(world)
    machine.run("dpkg -r omni-edge")
    # What is enabled until it is purged is known, and not there.
    nothing(machine.says("systemctl list-units --plain --no-legend 'edge*'"))
    assert machine.path(SETTINGS).exists()
    machine.run("dpkg -P omni-edge")
    left = "/run/edge* /etc/edge /var/lib/edge /opt/edge /etc/systemd/system/*/edge*"
    nothing(machine.says(f"ls -d {left} 2>/dev/null || true"))
    return f"made in {made_s:.0f} s, installed in {installed_s:.0f} s; purged without a trace"
