"""The gate and the hook that CRIU runs: each believes only who is root and knows the nonce of this run."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from sealpoint.criu import gate as gates, hook, run_dir
from sealpoint.criu.gate import Gate
from sealpoint.criu.run_dir import RunDirectory

ACTION = "post-dump"
NOBODY = 65534

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="root's gate")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "gate").mkdir(mode=0o700)
    return tmp_path / "gate"


def run_script(place: Path, **environment: str) -> int:
    """As CRIU runs it: every descriptor but the standard ones closed."""
    variables = {"PATH": os.environ["PATH"], "CRTOOLS_SCRIPT_ACTION": ACTION} | environment
    return subprocess.run([f"./{gates.SCRIPT}"], cwd=place, env=variables, timeout=60).returncode


def ask(place: Path, data: bytes, uid: int = 0) -> bytes:
    """What somebody hears who connects as `uid` and says `data`."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setresuid(uid, uid, uid)
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(30)
                connection.connect(str(place / hook.SOCKET))
                connection.sendall(data)
                os.write(writer, connection.recv(100))
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        heard = answer.read()
    os.waitpid(pid, 0)
    return heard


def test_the_hook_of_this_run_gets_the_answer_of_the_gate(place: Path) -> None:
    with Gate(str(place), ACTION, lambda: True) as gate:
        assert run_script(place, CRTOOLS_SCRIPT_ACTION="pre-dump") == 0
        assert not gate.passed
        assert run_script(place) == 0
        assert gate.passed
    assert run_script(place) != 0  # nobody listens any more


@pytest.mark.parametrize("answer", [False, None], ids=["a no", "an error"])
def test_a_no_is_a_no(place: Path, answer: bool | None) -> None:
    def decide() -> bool:
        if answer is None:
            raise OSError
        return answer

    with Gate(str(place), ACTION, decide) as gate:
        assert run_script(place) != 0
        assert not gate.passed


@pytest.mark.parametrize(
    "nonce", [b"", bytes(hook.HALF), os.urandom(hook.HALF)], ids=["none", "zeros", "random"]
)
def test_who_does_not_know_the_nonce_gets_no_answer(place: Path, nonce: bytes) -> None:
    with Gate(str(place), ACTION, lambda: True) as gate:
        data = nonce + ACTION.encode() + b"\n"
        assert ask(place, data.ljust(hook.HALF + len(ACTION) + 1, b"\0")) == b""
        assert not gate.passed


def test_who_is_not_root_gets_no_answer_even_with_the_nonce(tmp_path: Path, place: Path) -> None:
    with Gate(str(place), ACTION, lambda: True) as gate:
        data = (place / hook.NONCE).read_bytes()[: hook.HALF] + ACTION.encode() + b"\n"
        for directory in (place, *place.parents):  # as if the directory protected nothing
            if directory.stat().st_uid == 0 and directory != Path("/"):
                directory.chmod(directory.stat().st_mode | 0o755)
        (place / hook.SOCKET).chmod(0o777)
        assert ask(place, data, uid=NOBODY) == b""
        assert not gate.passed
        assert ask(place, data) != b""


def impostor(place: Path, uid: int, answer: Callable[[bytes], bytes]) -> int:
    """Exit status of the hook where somebody else listens: as `uid`, with that answer to what is asked."""
    os.chmod(place, 0o777)
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setresuid(uid, uid, uid)
            server = socket.socket(socket.AF_UNIX)
            server.bind(f"/proc/self/fd/{os.open(place, os.O_PATH)}/{hook.SOCKET}")
            server.listen(1)
            os.write(tell, b"1")
            server.settimeout(30)
            connection, _ = server.accept()
            with connection:
                connection.sendall(answer(connection.recv(200)))
                connection.shutdown(socket.SHUT_WR)
                connection.recv(1)
        finally:
            os._exit(0)
    os.read(ready, 1)
    try:
        return subprocess.run(
            [gates.sys.executable, "-I", "-S", hook.__file__, "."],
            cwd=place,
            env={"CRTOOLS_SCRIPT_ACTION": ACTION},
            timeout=60,
        ).returncode
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def write_nonce(place: Path) -> bytes:
    nonce = os.urandom(2 * hook.HALF)
    (place / hook.NONCE).touch(mode=0o600)
    (place / hook.NONCE).write_bytes(nonce)
    return nonce


def test_the_hook_believes_no_yes_without_the_nonce(place: Path) -> None:
    nonce = write_nonce(place)
    assert impostor(place, 0, lambda _: hook.YES + nonce[hook.HALF :]) == 0
    for lie in (hook.YES, hook.YES + bytes(hook.HALF), hook.YES + nonce[: hook.HALF], b""):
        (place / hook.SOCKET).unlink()
        assert impostor(place, 0, lambda _, lie=lie: lie) != 0


def test_the_hook_believes_nobody_but_root(place: Path) -> None:
    for directory in place.parents:
        if directory.stat().st_uid == 0 and directory != Path("/"):
            directory.chmod(directory.stat().st_mode | 0o755)
    nonce = write_nonce(place)
    assert impostor(place, NOBODY, lambda _: hook.YES + nonce[hook.HALF :]) != 0


@pytest.mark.parametrize("fault", ["readable by others", "somebody else's", "short", "a link"])
def test_a_nonce_that_others_could_know_is_a_no(place: Path, fault: str) -> None:
    path = place / hook.NONCE
    nonce = write_nonce(place)
    if fault == "readable by others":
        path.chmod(0o644)
    elif fault == "somebody else's":
        os.chown(path, NOBODY, NOBODY)
    elif fault == "short":
        path.write_bytes(nonce[:-1])
    else:
        path.rename(place / "other")
        path.symlink_to("other")
    with pytest.raises(OSError):
        hook.read_nonce(str(path))
    assert impostor(place, 0, lambda _: hook.YES + nonce[hook.HALF :]) != 0


def test_all_scripts_before_must_agree(place: Path) -> None:
    with Gate(str(place), ACTION, lambda: True, before=("true", "false")) as gate:
        assert run_script(place) != 0
        assert not gate.passed


def test_a_directory_is_roots_alone_and_gone_with_its_holder(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run_dir, "PLACES", (str(tmp_path),))
    with RunDirectory("sealpoint-test-", gates.remove, executable=True) as directory:
        assert os.stat(directory.path).st_mode & 0o777 == 0o700
        with Gate(directory.path, ACTION, lambda: True):
            pass
    assert os.listdir(tmp_path) == []


def test_what_a_killed_holder_left_is_removed_by_the_next_but_not_what_is_in_use(
    monkeypatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(run_dir, "PLACES", (str(tmp_path),))
    told = threading.Event()
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        with RunDirectory("sealpoint-test-", gates.remove, executable=True):
            os.write(tell, b"1")
            told.wait()
    os.read(ready, 1)
    (left,) = os.listdir(tmp_path)
    with RunDirectory("sealpoint-test-", gates.remove, executable=True):
        assert left in os.listdir(tmp_path)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    assert os.listdir(tmp_path) == [left]
    with RunDirectory("sealpoint-test-", gates.remove, executable=True):
        assert left not in os.listdir(tmp_path)


def test_a_place_where_others_can_rename_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(OSError):
        run_dir.check_place(str(tmp_path))
    tmp_path.chmod(0o1777)
    run_dir.check_place(str(tmp_path))
    tmp_path.chmod(0o755)
    os.chown(tmp_path, NOBODY, NOBODY)
    with pytest.raises(OSError):
        run_dir.check_place(str(tmp_path))
