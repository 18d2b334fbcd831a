"""Checkpoint a container of podman's into one sealed file; it goes on, or ends, only when that is durable.

Podman is told to leave the container running, and CRIU to leave it stopped (`sealpoint.dropin.relay`).  So memory, the
changed files and all else that podman adds are of the same moment, nothing runs while they are sealed, and whatever
fails, the container can go on.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from sealpoint.checkpoint import (
    CaptureFilesystem,
    CheckpointBuilder,
    LargeObject,
    NoEvidenceError,
    Sealing,
    Taken,
    seal_archive,
    whole,
)
from sealpoint.criu import mounts
from sealpoint.criu.fuse import FuseServer
from sealpoint.errors import CriuError, SealpointError, UsageError
from sealpoint.podman.broker import Broker
from sealpoint.podman.engine import Podman, PodmanContainer, PodmanError, check_options
from sealpoint.podman.guard import ArchiveGuard
from sealpoint.podman.place import ArchivePlace
from sealpoint.podman.tasks import Tasks
from sealpoint.progress import Report, silent
from sealpoint.store.output import Target

IMAGES: Final = "checkpoint/"  # where images are in podman's archives
_ATTRIBUTES: Final = {"type": "file", "mode": str(0o600), "uid": "0", "gid": "0"}


@dataclass(frozen=True, slots=True)
class CheckpointRequest:
    """options: of podman's own; memory: the most that podman may write to memory, as of a tmpfs, "" for its default.

    workload: of the checkpoint, from the id of the container.
    """

    name: str
    podman: Podman
    criu: str
    sealing: Sealing
    leave_running: bool = False
    memory: str = ""
    options: tuple[str, ...] = ()
    workload: Callable[[str], str] = lambda _: ""


@dataclass(frozen=True, slots=True)
class CheckpointResult:
    """Sizes in bytes; stopped: seconds for which the container stood still, until it ended or went on.

    captured: seconds since 1970; workload: as it was sealed.
    """

    captured: int
    workload: str
    checkpoint_id: bytes
    origin_digest: bytes
    container: PodmanContainer
    objects: int
    plain_size: int
    file_size: int
    stopped: float


class _Below:
    """A builder for CRIU's images, which have no directory in their names."""

    def __init__(self, builder: CheckpointBuilder) -> None:
        self._builder = builder
        self._attributes = _ATTRIBUTES | {"mtime": str(time.time_ns())}
        self.summary = _SummaryBelow(builder)

    def add(self, name: str, data: bytes) -> None:
        self._builder.add(IMAGES + name, data, self._attributes)

    def large(self, name: str) -> LargeObject:
        return self._builder.large(IMAGES + name, self._attributes)


class _SummaryBelow:
    def __init__(self, builder: CheckpointBuilder) -> None:
        self._summary = builder.summary

    def observe(self, name: str, data: bytes) -> None:
        self._summary.observe(IMAGES + name, data)


@dataclass
class _Images:
    """What the relay asks: CRIU's images go into the sealed file.

    passed: whether CRIU asked if they are complete, and the answer was yes; dumped: and then succeeded.
    """

    filesystem: CaptureFilesystem
    server: FuseServer
    began: float = 0.0
    passed: bool = field(default=False)
    dumped: bool = field(default=False)

    def begin(self, request: str) -> int:
        if request != "dump" or self.began:
            raise UsageError("podman asked CRIU for something other than a checkpoint")
        self.began = time.monotonic()
        return self.server.fd

    def notified(self, script: str) -> None:
        if script == "post-dump":
            self.filesystem.wait_complete()
            self.passed = True

    def ended(self, *, success: bool) -> None:
        self.dumped = success and self.passed
        if not success:
            self.filesystem.fail(CriuError("CRIU failed"))
        elif not self.passed:
            self.filesystem.fail(_unasked())

    @property
    def error(self) -> BaseException | None:
        return self.filesystem.error


def checkpoint(
    request: CheckpointRequest, out: Target, report: Report = silent
) -> CheckpointResult:
    """Raises SealpointError; the container runs on then, and nothing is left under the output's name."""
    check_options(request.options)
    container, root = request.podman.hold(request.name)
    with contextlib.closing(Tasks(root)) as tasks:
        return _checkpoint(request, out, container, tasks, report)


def _checkpoint(
    request: CheckpointRequest,
    out: Target,
    container: PodmanContainer,
    tasks: Tasks,
    report: Report,
) -> CheckpointResult:
    network = any(o.startswith("--tcp-established") for o in request.options)
    if network and not request.leave_running and not container.own_network:
        raise UsageError(
            "--tcp-established: the container shares its network, so its peers would notice its end",
            hint="add --leave-running",
        )
    with ArchivePlace() as place:
        place.install_relay(request.criu)
        os.mkfifo(place.archive, 0o600)
        argv = [*request.podman.command, "container", "checkpoint", "--leave-running"]
        argv += ["--compress=none", "--export", place.archive, *request.options, container.id]
        guard = ArchiveGuard(
            argv,
            place.environment(f"{place.memory}/temporary"),
            place,
            prepare=lambda: _cover(place.memory, container.userdata, request.memory),
            undo=tasks.resume,
            waits_for_all=True,
        )
        try:
            result = _run(request, out, container, place, guard, report)
            if not request.leave_running:
                _end(request.podman, container, tasks, quietly=network)
                guard.done()
        finally:
            guard.close()
            if guard.killed:
                tasks.resume()
    return result


def _run(
    request: CheckpointRequest,
    out: Target,
    container: PodmanContainer,
    place: ArchivePlace,
    guard: ArchiveGuard,
    report: Report,
) -> CheckpointResult:
    server: FuseServer | None = None
    try:
        with request.sealing.into(out) as sealer:
            filesystem = CaptureFilesystem(_Below(sealer.builder))  # type: ignore[arg-type]
            server = FuseServer(filesystem, read_only=False, threads=1)
            images = _Images(filesystem, server)
            with Broker(place.socket, images):
                properties = _archive(place, guard, images, sealer.builder, report)
            properties |= whole.properties({IMAGES: str(filesystem.kind)})
            count, plain_size = sealer.builder.count, sealer.builder.size
            captured, workload = int(time.time()), request.workload(container.id)
            digest = sealer.finish(properties=properties, workload=workload, captured=captured)
            sealer.commit()
    finally:
        if server is not None:  # after an abort has woken its threads
            server.close()
    return CheckpointResult(
        captured,
        workload,
        sealer.checkpoint_id,
        digest,
        container,
        count,
        plain_size,
        sealer.size,
        time.monotonic() - images.began,
    )


def _archive(
    place: ArchivePlace,
    guard: ArchiveGuard,
    images: _Images,
    builder: CheckpointBuilder,
    report: Report,
) -> dict[str, str]:
    """Run podman and seal what it writes.  Raises what went wrong, the first cause of it."""
    reader = os.open(place.archive, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    writer = os.open(place.archive, os.O_WRONLY | os.O_CLOEXEC)
    os.set_blocking(reader, True)
    outcome: list[BaseException] = []

    def wait() -> None:
        try:
            guard.wait()
        except BaseException as error:  # noqa: BLE001 - raised below
            outcome.append(error)
        finally:
            os.close(writer)  # podman has closed it: now the reader sees the end

    guard.go()
    waiter = threading.Thread(target=wait, name="podman", daemon=True)
    waiter.start()
    failure: BaseException | None = None
    properties: dict[str, str] = {}
    with open(reader, "rb") as file:
        try:
            taken = Taken()
            properties = seal_archive(file, "podman's archive", builder, report, taken).properties
            if strange := taken.verdicts():
                where = ", ".join(prefix or "." for prefix in strange)
                raise NoEvidenceError(
                    f"podman's archive holds images that CRIU did not write here, in {where}"
                )
        except SealpointError as error:
            failure = error
    waiter.join()
    if images.error is not None and (
        not isinstance(images.error, CriuError) or isinstance(images.error, NoEvidenceError)
    ):
        raise images.error
    if outcome:
        raise outcome[0]
    if failure is not None:
        raise failure
    if not images.dumped:
        raise PodmanError(
            "podman's runtime did not run the criu that it was given",
            hint="only runtimes that look for criu in PATH work: runc, crun",
        )
    if images.error is not None:
        raise images.error
    return properties


def _unasked() -> NoEvidenceError:
    return NoEvidenceError(
        "CRIU reported success without asking whether the checkpoint is complete: no file is made",
        hint="the criu that ran is not CRIU, or something redirected it; the container is as it was",
    )


def _cover(memory: str, userdata: str, size: str) -> None:
    """In podman's own mount namespace: what it writes beside the container goes to memory.  Raises OSError."""
    mounts.private_namespace()
    options = {"mode": "0700"} | ({"size": size} if size else {})
    fd = mounts.detached("tmpfs", options, optional_flags=("noswap",))
    mounts.attach(fd, memory)
    os.close(fd)
    for name in ("upper", "work", "temporary"):
        os.mkdir(f"{memory}/{name}", 0o700)
    below = [
        os.fsdecode(p) for p, _ in mounts.points() if p.startswith(os.fsencode(userdata) + b"/")
    ]
    kept = list(dict.fromkeys(below))
    for number, path in enumerate(kept):  # the container's /dev/shm, which would be hidden
        os.mkdir(f"{memory}/{number}")
        mounts.bind(path, f"{memory}/{number}")
    mounts.overlay(userdata, f"{memory}/upper", f"{memory}/work", userdata)
    for number, path in enumerate(kept):
        mounts.bind(f"{memory}/{number}", path)


def _end(podman: Podman, container: PodmanContainer, tasks: Tasks, *, quietly: bool) -> None:
    """The sealed file is durable: the container, which is stopped, ends without another step."""
    if quietly:
        tasks.silence()
    try:
        podman.run("stop", "--time=0", container.id)
    except PodmanError:
        tasks.kill()  # podman sees that, too
    with contextlib.suppress(PodmanError):  # one that was run with --rm is gone already
        podman.run("wait", container.id)
