"""The `criu` that `sealpoint podman` puts before podman's runtime, with the real CRIU behind it and no podman.

Here the engine is the tests' own RPC client, and what answers the relay is the broker with a handler of the test.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sealpoint.errors import UsageError
from sealpoint.podman.broker import Broker
from sealpoint.podman.place import PREFIX, ArchivePlace
from sealpoint.podman.tasks import Tasks
from sealpoint.process import Held
from tests.engines import rpc
from tests.real import harness, sealed

StartWorkload = Callable[..., harness.Workload]


class Handler:
    """images: what CRIU gets for podman's directory, -1 for that itself; refuses: at which point it says no."""

    def __init__(self, images: int = -1, refuses: str = "") -> None:
        self._images = images
        self._refuses = refuses
        self.asked: list[str] = []
        self.error: BaseException | None = None

    def begin(self, request: str) -> int:
        self._note(request)
        return self._images

    def notified(self, script: str) -> None:
        self._note(script)

    def ended(self, *, success: bool) -> None:
        self.asked.append("success" if success else "failure")

    def _note(self, what: str) -> None:
        self.asked.append(what)
        if what == self._refuses:
            raise UsageError("the test says no", hint="let it")


@pytest.fixture
def place(criu: Path) -> Iterator[ArchivePlace]:
    with ArchivePlace() as made:
        made.install_relay(str(criu))
        yield made
    assert not [name for name in os.listdir("/run") if name.startswith(PREFIX)]


@pytest.fixture
def places(images: Path, work: Path) -> Iterator[dict[str, int]]:
    with rpc.directory_descriptor(images) as first, rpc.directory_descriptor(work) as second:
        yield {"images_dir_fd": first, "work_dir_fd": second}


def call(place: ArchivePlace, kind: int, **options: object) -> rpc.Reply:
    with rpc.Client(Path(place.bin) / "criu", os.environ) as connection:
        reply = connection.call(rpc.request(kind, log_level=4, **options))
        connection.wait()
    return reply


def stopped(running: harness.Workload) -> bool:
    return harness.process_state(running.pid) == "T"


def test_a_dump_leaves_the_tree_stopped_with_its_images_where_the_command_wants_them(
    workload: StartWorkload,
    place: ArchivePlace,
    places: dict[str, int],
    images: Path,
    tmp_path: Path,
) -> None:
    """Whatever the engine asked for: it may neither end the tree nor let it run before the seal is durable."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    running = workload("secret")
    before = running.assert_intact()
    tasks = Tasks(Held(running.pid))
    with rpc.directory_descriptor(elsewhere) as fd, Broker(place.socket, handler := Handler(fd)):
        reply = call(place, rpc.DUMP, pid=running.pid, leave_running=True, **places)
    assert reply.success, reply
    assert handler.asked == ["dump", "post-dump", "success"]
    sealed.wait_until(lambda: stopped(running), "the kernel has stopped it")
    assert list(images.iterdir()) == []
    assert (elsewhere / "inventory.img").exists()
    tasks.resume()
    sealed.wait_until(lambda: not stopped(running), "it goes on")
    running.assert_continues(before)


@pytest.mark.parametrize("said", ["leave-running", "leave-stopped\nleave-run"])
@pytest.mark.parametrize("where", ["request", "home"])
def test_no_file_of_criu_lets_the_tree_run_on(
    workload: StartWorkload,
    place: ArchivePlace,
    places: dict[str, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: str,
    where: str,
) -> None:
    """CRIU applies the file of a request last, after what we say."""
    (tmp_path / ".criu").mkdir()
    file = tmp_path / ".criu" / "default.conf"
    file.write_text(said + "\n")
    options: dict[str, object] = {"config_file": str(file)} if where == "request" else {}
    monkeypatch.setenv("HOME", str(tmp_path if where == "home" else tmp_path / "nowhere"))
    running = workload("secret")
    tasks = Tasks(Held(running.pid))
    with Broker(place.socket, Handler()):
        reply = call(place, rpc.DUMP, pid=running.pid, **options, **places)
    assert reply.success, reply
    sealed.wait_until(lambda: stopped(running), "the kernel has stopped it")
    tasks.resume()


def test_what_was_stopped_before_stays_so(workload: StartWorkload) -> None:
    running = workload("secret")
    os.kill(running.pid, signal.SIGSTOP)
    sealed.wait_until(lambda: stopped(running), "it is stopped")
    tasks = Tasks(Held(running.pid))
    tasks.resume()
    assert stopped(running)
    os.kill(running.pid, signal.SIGCONT)


@pytest.mark.parametrize("point", ["dump", "post-dump"])
def test_a_dump_that_the_command_does_not_want_fails_with_its_reason(
    workload: StartWorkload, place: ArchivePlace, places: dict[str, int], point: str
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    with Broker(place.socket, handler := Handler(refuses=point)):
        reply = call(place, rpc.DUMP, pid=running.pid, leave_running=True, **places)
    assert not reply.success
    assert "the test says no (let it)" in reply.message
    assert "success" not in handler.asked
    assert not stopped(running)
    running.assert_continues(before)


def test_without_the_command_nothing_is_dumped(
    workload: StartWorkload, place: ArchivePlace, places: dict[str, int], images: Path
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    reply = call(place, rpc.DUMP, pid=running.pid, **places)
    assert not reply.success
    assert "has ended" in reply.message
    assert list(images.iterdir()) == []
    running.assert_continues(before)


@pytest.mark.parametrize(
    "options", [{"parent_img": "../x"}, {"lazy_pages": True}, {"track_mem": True}]
)
def test_what_is_no_whole_dump_is_refused(
    workload: StartWorkload, place: ArchivePlace, places: dict[str, int], options: dict[str, object]
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    with Broker(place.socket, handler := Handler()):
        reply = call(place, rpc.DUMP, pid=running.pid, **places, **options)
        pre_dump = call(place, rpc.PRE_DUMP, pid=running.pid, **places)
    assert not reply.success
    assert "not sealed with a whole archive" in reply.message
    assert not pre_dump.success
    assert handler.asked == []
    running.assert_continues(before)


@pytest.mark.parametrize("refuses", ["", "post-restore"])
def test_nothing_restored_runs_before_the_command_has_approved(
    workload: StartWorkload, place: ArchivePlace, places: dict[str, int], refuses: str
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    with Broker(place.socket, Handler()):
        assert call(place, rpc.DUMP, pid=running.pid, **places).success
    Tasks(Held(running.pid)).kill()
    running.wait_gone()
    with Broker(place.socket, handler := Handler(refuses=refuses)):
        reply = call(place, rpc.RESTORE, **places)
    assert handler.asked[:2] == ["restore", "post-restore"]
    assert reply.success == (not refuses)
    if refuses:
        assert "the test says no" in reply.message
        running.wait_gone()
    else:
        running.assert_continues(before)


def test_it_runs_nothing_else(place: ArchivePlace, criu: Path) -> None:
    import subprocess

    relay = f"{place.bin}/criu"
    real = subprocess.run([criu, "--version"], capture_output=True, text=True)
    said = subprocess.run([relay, "--version"], capture_output=True, text=True)
    assert said.stdout == real.stdout
    for arguments in (["dump", "-t", "1"], ["swrk"], ["swrk", "x"], []):
        done = subprocess.run([relay, *arguments], capture_output=True, text=True)
        assert done.returncode == 1
        assert "criu (sealpoint)" in done.stderr
