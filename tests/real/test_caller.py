"""Options behind `--` mean the caller's directory and descriptors, although CRIU works in another directory."""

from __future__ import annotations

import fcntl
import os
import select
import shlex
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.real import sealed
from tests.real.typed import DropIn

TELLS = "import itertools,time\nfor n in itertools.count():print(n, flush=True);time.sleep(.02)"


class Teller:
    """A process that writes numbers, a line each, into a pipe whose reading end is the test's."""

    def __init__(self) -> None:
        self.reader, writer = os.pipe()
        self.name = f"pipe:[{os.fstat(writer).st_ino}]"
        self.process = subprocess.Popen(
            [sys.executable, "-c", TELLS],
            stdin=subprocess.DEVNULL,
            stdout=writer,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(writer)
        self.pid = self.process.pid
        line(self.reader)


def line(reader: int) -> int:
    """The next number, whole, among what sealpoint may have said: the pipe is read byte by byte."""
    data = b""
    while not data.endswith(b"\n") or not data.strip().isdigit():
        data = b"" if data.endswith(b"\n") else data
        assert select.select([reader], [], [], sealed.TIMEOUT)[0], data
        piece = os.read(reader, 1)
        assert piece, data
        data += piece
    return int(data)


@pytest.fixture
def teller() -> Iterator[Teller]:
    made = Teller()
    yield made
    with suppress(ProcessLookupError):
        os.kill(made.pid, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(made.pid, 0)  # ours again after a restore, too: orphans come to us
    made.process.returncode = 0
    os.close(made.reader)


@pytest.fixture
def dumped(teller: Teller, sealpoint: sealed.Sealpoint, keys: sealed.Keys, out: Path) -> Path:
    sealpoint.run("dump", "-t", teller.pid, "-o", out, *keys.seal).ok()
    assert teller.process.wait(sealed.TIMEOUT)
    return out


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The caller's directory, whose name a shell would take apart."""
    (tmp_path / "the caller's $place").mkdir()
    return tmp_path / "the caller's $place"


def run(
    sealpoint: sealed.Sealpoint, place: Path, *words: object, fds=(), **streams
) -> sealed.Result:
    """As `sealpoint.run`, from another directory and with descriptors."""
    said = sealpoint.directory / "said"
    with said.open("wb") as err:
        done = subprocess.run(
            [*sealed.SEALPOINT, *map(str, words)],
            cwd=place,
            env=sealpoint.environment,
            stdin=subprocess.DEVNULL,
            stderr=err,
            pass_fds=fds,
            timeout=sealed.TIMEOUT,
            **streams,
        )
    return sealed.Result(done.returncode, b"", said.read_text())


@pytest.mark.parametrize("which", ["standard output", "a high one"])
def test_a_restored_tree_gets_the_callers_descriptor(
    teller: Teller, dumped: Path, sealpoint, keys, place: Path, which: str
) -> None:
    reader, writer = os.pipe()
    moved = fcntl.fcntl(writer, fcntl.F_DUPFD_CLOEXEC, 57)  # the first from there that is free
    if which == "standard output":
        number, streams, fds = 1, {"stdout": writer}, ()
    else:
        number, streams, fds = moved, {"stdout": subprocess.DEVNULL}, (moved,)
    try:
        words = ("restore", "--detach", dumped, *keys.open, "--", "--inherit-fd")
        run(sealpoint, place, *words, f"fd[{number}]:{teller.name}", fds=fds, **streams).ok()
    finally:
        os.close(writer)
        os.close(moved)
    assert line(reader) + 1 == line(reader)
    os.close(reader)


def test_a_descriptor_that_the_caller_has_not_is_refused_and_none_of_sealpoints_taken(
    teller: Teller, dumped: Path, sealpoint, keys, place: Path
) -> None:
    words = ("restore", "--detach", dumped, *keys.open, "--", "--inherit-fd")
    for number in (*range(3, 12), 2**31, 10**18):
        result = run(sealpoint, place, *words, f"fd[{number}]:{teller.name}")
        result.fails(2, f"descriptor {number} is not open")


def test_paths_are_the_callers(teller: Teller, dumped: Path, sealpoint, keys, place: Path) -> None:
    hook = sealed.script(place / "hook", 'echo "$CRTOOLS_SCRIPT_ACTION" >>relative')
    words = ("--pidfile", "pid", "--action-script", f"./{hook.name}", "-L", "plugins")
    (place / "plugins").mkdir()
    reader, writer = os.pipe()
    inherit = ("--inherit-fd", f"fd[{writer}]:{teller.name}")
    run(
        sealpoint, place, "restore", "-d", dumped, *keys.open, "--", *words, *inherit, fds=(writer,)
    ).ok()
    os.close(writer)
    assert int((place / "pid").read_text()) == teller.pid
    assert "post-restore" in (place / "relative").read_text().split()
    assert sorted(os.listdir(place)) == ["hook", "pid", "plugins", "relative"]
    os.close(reader)


def test_a_script_of_a_dump_works_in_the_callers_directory(
    teller: Teller, sealpoint, keys, place: Path, out: Path
) -> None:
    sealed.script(place / "hook", "pwd -P >relative")
    words = ("dump", "-R", "-t", teller.pid, "-o", out, *keys.seal, "--", "--action-s", "./hook")
    run(sealpoint, place, *words).ok()
    assert (place / "relative").read_text() == f"{os.path.realpath(place)}\n"


def test_a_command_that_follows_a_restore_is_the_callers(
    teller: Teller, dumped: Path, sealpoint, keys, place: Path
) -> None:
    command = sealed.script(place / "then", 'pwd -P; for word; do echo "[$word]"; done; exit 7')
    reader, writer = os.pipe()
    inherit = ("--inherit-fd", f"fd[{writer}]:{teller.name}")
    with (place.parent / "told").open("wb") as told:
        result = run(
            sealpoint, place, "restore", dumped, *keys.open, "--", *inherit, "--exec-cmd", "--",
            f"./{command.name}", "a b", "--tree", "$x", fds=(writer,), stdout=told,
        )  # fmt: skip
    os.close(writer)
    assert result.code == 7, result
    said = (place.parent / "told").read_text()
    assert said == f"{os.path.realpath(place)}\n[a b]\n[--tree]\n[$x]\n"
    os.close(reader)


def test_what_no_option_is_stops_a_dump_before_anything_happens(
    teller: Teller, sealpoint, keys, place: Path, out: Path
) -> None:
    words = ("dump", "-t", teller.pid, "-o", out, *keys.seal)
    run(sealpoint, place, *words, "--", "4711").fails(2, "takes no argument '4711'")
    assert line(teller.reader) >= 0
    assert not out.exists()


def test_as_typed_paths_and_descriptors_are_those_of_stock_criu(
    teller: Teller, dropin: DropIn, criu: Path, place: Path, ram_dir: Path
) -> None:
    """The same command line for both: descriptor, pid file, plugins, log, and what joins a namespace."""
    words = (
        "restore", "-d", "-D", "images", "-W", "work", "-o", "log", "--pidfile", "pid",
        "-L", "plugins", "--join-ns", "net:./net",
    )  # fmt: skip
    seen = {}
    for name in ("stock", "dropin"):
        root = (ram_dir if name == "stock" else place) / name
        for made in ("images", "work", "work/plugins", "plugins"):
            (root / made).mkdir(parents=True)
        for where in (root, root / "work"):
            (where / "net").symlink_to("/proc/self/ns/net")
        dump = ("dump", "-R", "-t", str(teller.pid), "-D", str(root / "images"))
        if name == "stock":
            subprocess.run([criu, *dump], check=True, capture_output=True, env=stock_environment())
            os.kill(teller.pid, signal.SIGKILL)
        else:
            status, said = dropin.run(*dump)
            assert status == 0, said
            os.kill(teller.pid, signal.SIGKILL)
        os.waitpid(teller.pid, 0)
        reader, writer = os.pipe()
        inherit = ("--inherit-fd", f"fd[{writer}]:{teller.name}")
        if name == "stock":
            status = subprocess.run(
                [criu, *words, *inherit], cwd=root, pass_fds=(writer,), env=stock_environment(),
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            ).returncode  # fmt: skip
        else:
            status, _ = dropin.run(*words, *inherit, cwd=root, fds=(writer,))
        os.close(writer)
        log = root / "work" / "log"
        assert status == 0, log.read_text(errors="replace")[-2000:] if log.exists() else "no log"
        assert line(reader) + 1 == line(reader)
        pid = int((root / "work" / "pid").read_text())
        assert pid == teller.pid
        seen[name] = sorted(os.listdir(root / "work"))
        if name == "dropin":
            os.close(reader)
            continue
        # The pipe that it now writes to has another name.
        os.close(teller.reader)
        teller.reader = reader
        teller.name = os.readlink(f"/proc/{pid}/fd/1")
    assert seen["stock"] == seen["dropin"]


def stock_environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"]}


def in_terminal(
    script: str, environment: dict[str, str]
) -> tuple[subprocess.Popen[bytes], int, str]:
    """A shell at the head of a session with a terminal; the other side of that, and the terminal's name."""
    ours, theirs = os.openpty()
    name = os.ttyname(theirs)
    shell = subprocess.Popen(
        ["/bin/sh", "-c", script],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - no threads here
    )
    os.close(theirs)
    return shell, ours, name


def test_a_job_of_a_shell_is_restored_into_the_callers_terminal_although_nobody_waits_for_it(
    sealpoint: sealed.Sealpoint, keys: sealed.Keys, out: Path, place: Path
) -> None:
    there = place / "pid"
    job = f"import os,time\nopen({str(there)!r},'w').write(f'{{os.getpid()}}.')\nwhile True: time.sleep(.1)"
    plain = {"PATH": os.environ["PATH"]}
    first, near, _ = in_terminal(f'{sys.executable} -c "$JOB" & wait', plain | {"JOB": job})
    sealed.wait_until(lambda: there.exists() and there.read_text().endswith("."), "the job runs")
    pid = int(there.read_text()[:-1])
    sealpoint.run("dump", "-t", pid, "-o", out, *keys.seal, "--", "--shell-job").ok()
    first.wait(sealed.TIMEOUT)
    words = [*sealed.SEALPOINT, "restore", "--detach", str(out), *keys.open, "--", "--shell-job"]
    # It does not read: the job has the terminal now, so that would fail, and with the shell its session would end.
    script = (
        f"{shlex.join(words)}; echo $? >code; mv code done; until [ -e end ]; do sleep 0.1; done"
    )
    second, far, name = in_terminal(
        f"cd {shlex.quote(str(place))}; {script}", sealpoint.environment
    )
    try:
        sealed.wait_until((place / "done").exists, "it is restored")
        assert (place / "done").read_text() == "0\n", os.read(far, 65536)
        assert os.readlink(f"/proc/{pid}/fd/1") == name
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        (place / "end").touch()
        second.wait(sealed.TIMEOUT)
        os.close(near)
        os.close(far)
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)
