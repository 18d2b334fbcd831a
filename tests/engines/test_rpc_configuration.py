"""Configuration files of CRIU in a request, and those that CRIU reads by itself: none leads past the seal.

And those that may be used have the effect that they have with stock CRIU, in its order.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sealpoint.criu import binary
from tests.engines import dropin as dropin_tools, rpc
from tests.engines.rpc_calls import call, client, dump, places, restore
from tests.real import harness, leaks

__all__ = ["places"]

StartWorkload = Callable[..., harness.Workload]


class Trap:
    """Where memory would go: a directory behind a link, a port, a script, a library."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "elsewhere"
        self.directory.mkdir()
        self.link = directory / "link"
        self.link.symlink_to(self.directory)
        self.ran = directory / "ran"
        self.script = directory / "script.sh"
        self.script.write_text(f"#!/bin/sh\ntouch {self.ran}\n")
        self.script.chmod(0o755)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(0)
        self.port = self.listener.getsockname()[1]

    def text(self, template: str) -> str:
        return template.format(
            many="verbosity\n" * 10_000,
            link=self.link,
            script=self.script,
            port=self.port,
            comments="# nothing\n" * 110_000,
        )

    def assert_untouched(self) -> None:
        assert os.listdir(self.directory) == []
        assert not self.ran.exists()
        with pytest.raises(BlockingIOError):
            self.listener.accept()


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[Trap]:
    made = Trap(tmp_path)
    yield made
    made.listener.close()


ATTACKS = {
    "a tab": "images-dir\t{link}\n",
    "an abbreviation": "images-di {link}\n",
    "a short abbreviation": "im {link}\n",
    "an equals sign": "images-dir={link}\n",
    "an abbreviation with an equals sign": "imag={link}\n",
    "spaces in front": " \t images-dir {link}\n",
    "quotes": 'images-dir "{link}"\n',
    "behind a mebibyte of comments": "{comments}images-dir {link}\n",
    "behind a switch": "tcp-established --images-dir={link}\n",
    "short behind a switch": "tcp-established -D{link}\n",
    "a value that is no value": "log-file\nimages-dir {link}\nimages-dir {link}\n",
    "without an end of the line": "tcp-established\nimages-dir {link}",
    "a form feed": "\fimages-dir {link}\n",
    "the work directory": "work-dir {link}\n",
    "the parent": "prev-images-dir {link}\n",
    "a page server": "page-server\naddress 127.0.0.1\nport {port}\n",
    "an abbreviated page server": "page-se\naddr 127.0.0.1\npor {port}\n",
    "a page server that is there twice": "page-server\nno-page-server\npage-server\nport {port}\n",
    "a socket": "page-server\nps-socket 3\n",
    "a library": "libdir {link}\n",
    "a short library": "tcp-established -L{link}\n",
    "a script": "action-script {script}\n",
    "an abbreviated script": 'act "{script}"\n',
    "a command": "exec-cmd\n",
    "a descriptor": "inherit-fd fd[3]:{link}\n",
    "a log elsewhere": "log-file {link}/log\n",
    "a log in the place of a checkpoint": "log-file inventory.img\n",
    "very many options": "{many}",
    "a file with more": "config {link}\n",
    "a stream": "stream\n",
    "a status": "status-fd 1\n",
    "a closed descriptor": "close 3\n",
    "an end": "version\n",
    "help": "help\n",
    "keys": "tls\ntls-key {link}\n",
    "a hidden file": "external=--config={link}\n",
    "an option that nobody knows": "send-memory-to {link}\n",
    "a zero byte": "tcp-established\0images-dir {link}\n",
    "lines of another system": "tcp-established\r\nimages-dir {link}\r\n",
    "the end of options": "tcp-established --\nimages-dir {link}\n",
}


def in_request(dropin: dropin_tools.DropIn, file: Path) -> dict[str, str]:
    return {"config_file": str(file)}


def in_home(dropin: dropin_tools.DropIn, file: Path) -> dict[str, str]:
    home = Path(dropin.environment["HOME"]) / ".criu"
    home.mkdir(exist_ok=True)
    file.rename(home / "default.conf")
    return {}


def in_environment(dropin: dropin_tools.DropIn, file: Path) -> dict[str, str]:
    dropin.environment["CRIU_CONFIG_FILE"] = str(file)
    return {}


Place = Callable[[dropin_tools.DropIn, Path], dict[str, str]]
PLACES = [in_request, in_home, in_environment]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_file_leads_nothing_past_the_seal(
    dropin: dropin_tools.DropIn,
    workload: StartWorkload,
    places: dict[str, int],
    images: Path,
    work: Path,
    tmp_path: Path,
    trap: Trap,
    attack: str,
    place: Place,
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    file = tmp_path / "criu.conf"
    file.write_text(trap.text(ATTACKS[attack]))
    reply = dump(dropin, running, **place(dropin, file), **places)
    assert not reply.success
    assert ".conf, line " in reply.message
    running.assert_continues(before)
    trap.assert_untouched()
    assert leaks.scan_directory(tmp_path, running.needles) == {}
    assert "line " in (work / "criu.log").read_text()  # where people look


@pytest.mark.parametrize("attack", ["a tab", "an abbreviation", "a script", "an end"])
def test_a_file_leads_no_restore_to_other_images(
    dropin: dropin_tools.DropIn,
    workload: StartWorkload,
    places: dict[str, int],
    tmp_path: Path,
    trap: Trap,
    attack: str,
) -> None:
    running = workload("secret")
    assert dump(dropin, running, **places).success
    running.wait_gone()
    file = tmp_path / "criu.conf"
    file.write_text(trap.text(ATTACKS[attack]))
    reply = restore(dropin, config_file=str(file), **places)
    assert not reply.success
    assert "line 1" in reply.message
    trap.assert_untouched()
    running.wait_gone()


def test_a_file_that_is_exchanged_while_criu_starts_changes_nothing(
    dropin: dropin_tools.DropIn,
    workload: StartWorkload,
    places: dict[str, int],
    images: Path,
    tmp_path: Path,
    trap: Trap,
) -> None:
    running = workload("secret")
    file, done = tmp_path / "criu.conf", threading.Event()
    file.write_text("tcp-established\n")

    def exchange() -> None:
        for text in itertools.cycle(("tcp-established\n", f"images-dir {trap.link}\n")):
            if done.is_set():
                return
            (tmp_path / "next.conf").write_text(text)
            (tmp_path / "next.conf").rename(file)

    thread = threading.Thread(target=exchange)
    thread.start()
    try:
        replies = [
            dump(dropin, running, leave_running=True, config_file=str(file), **places)
            for _ in range(8)
        ]
    finally:
        done.set()
        thread.join()
    for reply in replies:
        assert reply.success or "line 1" in reply.message, reply.message
    trap.assert_untouched()
    assert leaks.scan_directory(images, running.needles) == {}
    running.assert_intact()


def test_a_default_file_that_appears_later_is_not_read(
    dropin: dropin_tools.DropIn,
    workload: StartWorkload,
    places: dict[str, int],
    tmp_path: Path,
    trap: Trap,
) -> None:
    """After our look and before CRIU's own: a CRIU that waits for the file to be there."""
    running = workload("secret")
    home = Path(dropin.environment["HOME"]) / ".criu"
    home.mkdir()
    slow = tmp_path / "slow-criu"
    slow.write_text(
        f"#!/bin/sh\necho 'images-dir {trap.link}' >{home}/default.conf\n"
        f'echo tcp-close >>{home}/default.conf\nexec {dropin.real} "$@"\n'
    )
    slow.chmod(0o755)
    dropin.configure(criu=str(slow))
    reply = dump(dropin, running, leave_running=True, log_file="own.log", **places)
    assert reply.success, reply.message
    trap.assert_untouched()
    said = "".join(log.read_text(errors="replace") for log in tmp_path.rglob("own.log"))
    assert SWITCHES["tcp-close"][1] not in said
    running.assert_intact()


@pytest.mark.parametrize("kind", ["a pipe", "a device", "a directory", "a relative name"])
def test_what_is_no_regular_file_is_refused_and_holds_nobody_up(
    dropin: dropin_tools.DropIn,
    workload: StartWorkload,
    places: dict[str, int],
    tmp_path: Path,
    kind: str,
) -> None:
    os.mkfifo(tmp_path / "pipe")
    name = {"a pipe": tmp_path / "pipe", "a device": "/dev/zero", "a directory": tmp_path}
    running = workload("secret")
    reply = dump(dropin, running, config_file=str(name.get(kind, "criu.conf")), **places)
    assert not reply.success
    assert "regular file" in reply.message or "absolute" in reply.message
    running.assert_intact()


def test_what_is_in_a_file_without_settings_is_not_told(
    dropin: dropin_tools.DropIn, places: dict[str, int], work: Path, tmp_path: Path
) -> None:
    """Who may name a file for a container may not read every file of root's."""
    secret = "$6$" + os.urandom(8).hex()
    file = tmp_path / "shadow"
    file.write_text(f"root:{secret}:19000:0:99999:7:::\n")
    reply = call(dropin, rpc.CHECK, config_file=str(file), **places)
    assert not reply.success
    assert f"{file}, line 1" in reply.message
    assert secret not in reply.message
    assert all(secret not in log.read_text() for log in work.iterdir())


def test_a_log_never_takes_the_place_of_a_checkpoint(
    dropin: dropin_tools.DropIn, workload: StartWorkload, places: dict[str, int], images: Path
) -> None:
    """CRIU empties its log when it starts, and by default writes it where the images are."""
    running = workload("secret")
    places.pop("work_dir_fd")
    assert dump(dropin, running, leave_running=True, **places).success
    sealed = (images / "inventory.img").read_bytes()
    for kind in (rpc.RESTORE, rpc.CHECK, rpc.DUMP):
        reply = call(dropin, kind, log_file="inventory.img", pid=running.pid, **places)
        assert not reply.success
    assert (images / "inventory.img").read_bytes() == sealed


@pytest.mark.parametrize("name", ["/dev/null", "/nowhere/criu.conf"])
def test_a_file_without_settings_is_none(
    dropin: dropin_tools.DropIn, workload: StartWorkload, places: dict[str, int], name: str
) -> None:
    running = workload("secret")
    assert dump(dropin, running, leave_running=True, config_file=name, **places).success


# --- what is allowed works as with stock CRIU ------------------------------------------------------

SWITCHES = {
    "tcp-established": ("tcp_established", "Will dump/restore TCP connections"),
    "link-remap": ("link_remap", "Will allow link remaps on FS"),
    "skip-in-flight": ("tcp_skip_in_flight", "Will skip in-flight TCP connections"),
    "tcp-close": ("tcp_close", "Will drop all TCP connections on restore"),
    "weak-sysctls": ("weak_sysctls", "Will skip non-existent sysctls on restore"),
}


def said(directory: Path) -> tuple[list[str], set[str]]:
    """Names of logs, and what CRIU says of its options there; the directory is emptied."""
    names, lines = [], set()
    for path in sorted(directory.iterdir()):
        names.append(path.name)
        text = path.read_text(errors="replace")
        lines |= {line for _, line in SWITCHES.values() if line in text}
        path.unlink()
    return names, lines


def configuration(source: random.Random, name: str) -> str:
    lines = ["# a comment", ""]
    for switch in SWITCHES:
        for _ in range(source.choice((0, 0, 1, 2))):
            spelling = source.choice(("{}", "no-{}", "  {}", "{} # why", "{}\t", "no-{} yes"))
            lines.append(spelling.format(switch if source.random() < 0.8 else switch[:-1]))
    if source.random() < 0.5:
        lines.append(source.choice(("log-file {}", "log-file={}", 'log-f\t"{}"')).format(name))
    lines.append(source.choice(("", "verbosity=4", "verbosity", "ghost-limit 2M", "timeout=5")))
    source.shuffle(lines)
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("seed", range(12))
def test_settings_count_in_the_order_of_stock_criu(
    dropin: dropin_tools.DropIn, places: dict[str, int], work: Path, tmp_path: Path, seed: int
) -> None:
    """A check says which options CRIU has in the end, and needs no process."""
    source = random.Random(seed)
    newer = binary.find(str(dropin.real)).version >= (4, 2)
    home = Path(dropin.environment["HOME"]) / ".criu"
    home.mkdir()
    for _ in range(3):
        options: dict[str, object] = {
            field: source.random() < 0.5 for field, _ in SWITCHES.values() if source.random() < 0.4
        }
        # CRIU 4.2 has no log by default, and passes over the name in a file where the request has none.
        if source.random() < 0.4 or newer:
            options["log_file"] = "request.log"
        (home / "default.conf").write_text(configuration(source, "home.log"))
        for environment in (dropin.environment, dropin.stock_environment):
            environment.pop("CRIU_CONFIG_FILE", None)
        if source.random() < 0.5:
            file = tmp_path / "environment.conf"
            file.write_text(configuration(source, "environment.log"))
            for environment in (dropin.environment, dropin.stock_environment):
                environment["CRIU_CONFIG_FILE"] = str(file)
        if source.random() < 0.7:
            file = tmp_path / "request.conf"
            file.write_text(configuration(source, "file.log"))
            options["config_file"] = str(file)
        request = rpc.request(rpc.CHECK, log_level=4, **options, **places)
        with rpc.Client(dropin.real, dropin.stock_environment) as connection:
            direct = connection.call(request)
        wanted = said(work)
        with client(dropin) as connection:
            through = connection.call(request)
        assert said(work) == wanted
        assert through.raw == direct.raw


def test_a_file_can_say_that_the_tree_lives_on(
    dropin: dropin_tools.DropIn, workload: StartWorkload, places: dict[str, int], tmp_path: Path
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    file = tmp_path / "criu.conf"
    file.write_text("leave-running\nlog-file own.log\n")
    assert dump(dropin, running, config_file=str(file), log_file="other.log", **places).success
    running.assert_continues(before)
    logs = {path.name for path in tmp_path.rglob("*.log")}
    assert "own.log" in logs
    assert "other.log" not in logs


@pytest.mark.parametrize("options", [("-v4",), ("--tcp-est", "--verbosity=4")], ids=str)
def test_options_before_swrk_are_settings_too(
    dropin: dropin_tools.DropIn,
    workload: StartWorkload,
    places: dict[str, int],
    images: Path,
    options: tuple[str, ...],
) -> None:
    running = workload("secret")
    with rpc.Client(dropin.path, dropin.environment, words=options) as connection:
        reply = connection.call(rpc.request(rpc.DUMP, pid=running.pid, **places))
    assert reply.success, reply.message
    assert leaks.scan_directory(images, running.needles) == {}


def test_a_restored_tree_gets_no_descriptor_of_the_settings(
    dropin: dropin_tools.DropIn, workload: StartWorkload, places: dict[str, int], tmp_path: Path
) -> None:
    running = workload("tree")
    file = tmp_path / "criu.conf"
    file.write_text("tcp-established\n")
    assert dump(dropin, running, config_file=str(file), **places).success
    running.wait_gone()
    reply = restore(dropin, config_file=str(file), **places)
    assert reply.success, reply.message
    dropin.settle()  # the helper ends a moment after CRIU
    held = []
    for pid in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            links = [os.readlink(fd) for fd in (pid / "fd").iterdir()]
            if any("criu-configuration" in link for link in links):
                held.append((pid / "status").read_text())
    assert held == []


def test_the_settings_of_a_connection_cannot_change(
    dropin: dropin_tools.DropIn, places: dict[str, int], tmp_path: Path
) -> None:
    """CRIU has one descriptor for them, and it is sealed."""
    file = tmp_path / "criu.conf"
    with client(dropin) as connection:
        replies = []
        for text in ("tcp-established\n", "tcp-established\n", "tcp-close\n"):
            file.write_text(text)
            data = rpc.request(rpc.CPUINFO_DUMP, config_file=str(file), **places)
            replies.append(connection.call(data + rpc.encode({4: True})))
    assert [reply.success for reply in replies] == [True, True, False]
    assert "changed between two requests" in replies[-1].message


@pytest.mark.parametrize("kind", [rpc.PAGE_SERVER, rpc.CHECK, rpc.CPUINFO_DUMP, rpc.PRE_DUMP])
def test_no_kind_of_request_takes_such_a_file(
    dropin: dropin_tools.DropIn, places: dict[str, int], tmp_path: Path, trap: Trap, kind: int
) -> None:
    file = tmp_path / "criu.conf"
    file.write_text(f"images-dir {trap.link}\n")
    reply = call(dropin, kind, config_file=str(file), **places)
    assert not reply.success
    assert "line 1" in reply.message
    trap.assert_untouched()


# --- what no version of CRIU had --------------------------------------------------------------------


@pytest.mark.parametrize("kind", [rpc.DUMP, rpc.CHECK])
def test_a_field_that_is_not_known_is_refused_with_its_number_and_a_way_out(
    dropin: dropin_tools.DropIn,
    workload: StartWorkload,
    places: dict[str, int],
    images: Path,
    work: Path,
    kind: int,
) -> None:
    running = workload("secret")
    options = {rpc.OPTIONS[name]: value for name, value in places.items()}
    options |= {2: running.pid, 3: True, 9: 4, 72: True}
    data = rpc.encode({1: kind, 2: options})
    with client(dropin) as connection:
        reply = connection.call(data)
    assert not reply.success
    assert "field 72 of criu_opts" in reply.message
    assert "CRIU 4." in reply.message
    assert f"allow it in {dropin.config}" in reply.message or "allow it in /" in reply.message
    assert "field 72" in (work / "criu.log").read_text(errors="replace")
    running.assert_intact()
    dropin.configure(allow_criu_fields=["72"])
    with client(dropin) as connection:
        reply = connection.call(data)
    assert reply.success or kind == rpc.CHECK
    assert "field 72 of criu_opts" not in reply.message
    if kind == rpc.DUMP:
        assert "allow_criu_fields lets it through" in (work / "criu.log").read_text(
            errors="replace"
        )
        assert leaks.scan_directory(images, running.needles) == {}


@pytest.mark.parametrize("kind", [14, 99])
def test_a_kind_of_request_that_is_not_known_never_reaches_criu(
    dropin: dropin_tools.DropIn, places: dict[str, int], kind: int
) -> None:
    reply = call(dropin, kind, **places)
    assert not reply.success
    assert f"request type {kind} is not known to sealpoint (CRIU 4." in reply.message
