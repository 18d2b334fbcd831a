"""Restore a container of podman's from one sealed file.

Podman gets an archive of links that lead into a view of the verified file, so it writes nothing of it anywhere: it
reads what it needs through them, and CRIU reads its images there.  Before any restored code runs, the relay asks here
whether everything was authentic.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from sealpoint.checkpoint import Admission, Flat, OpenedCheckpoint, Seen, View, evidence, tar, whole
from sealpoint.criu.fuse import FuseServer
from sealpoint.criu.roles import SUMMARY_NAME
from sealpoint.errors import FileError, IdentityError, SealpointError, UsageError
from sealpoint.format.opened import OpenFile, Scratch
from sealpoint.podman.broker import Broker
from sealpoint.podman.checkpoint import IMAGES
from sealpoint.podman.engine import Podman, PodmanError, check_options, parse
from sealpoint.podman.guard import ArchiveGuard
from sealpoint.podman.place import ArchivePlace

_CONFIG: Final = "config.dump"
_MAX_CONFIG: Final = 16 * 1024 * 1024
_MAX_COPY: Final = 256 * 1024 * 1024
# What podman only reads, or removes.  Anything else of an archive becomes a file of the container's: its log.
_LINKED: Final = frozenset(
    (
        *("checkpoint", "config.dump", "spec.dump", "network.status", "devshm-checkpoint.tar"),
        *("rootfs-diff.tar", "deleted.files", "volumes", "stats-dump", "dump.log"),
    )
)


@dataclass(frozen=True, slots=True)
class ContainerRestore:
    """options: of podman's own; name: of the new container, "" for the one that it had."""

    podman: Podman
    criu: str
    name: str = ""
    options: tuple[str, ...] = ()


@dataclass
class _Approval:
    """What the relay asks."""

    view: View
    seen: Seen
    admission: Admission
    readers: set[int] = field(default_factory=set)  # pids that opened an image: CRIU and each task
    began: bool = False
    approved: bool = field(default=False)

    def begin(self, request: str) -> int:
        if request != "restore":
            raise UsageError("podman asked CRIU for something other than a restore")
        self.began = True
        return -1  # what podman has is a link into the view

    def notified(self, script: str) -> None:
        if script == "post-restore":
            if self.view.error is not None:
                raise self.view.error
            opened = {
                name.removeprefix(IMAGES) for name in self.view.opened if name.startswith(IMAGES)
            }
            evidence.require_opened(self.seen, opened)
            self.view.verify_rest()
            self.admission.permit()
            self.admission.passed(sorted(self.readers))
            self.approved = True

    def ended(self, *, success: bool) -> None:
        """Podman says it, too."""

    @property
    def error(self) -> BaseException | None:
        return self.view.error


def restore(request: ContainerRestore, checkpoint: OpenedCheckpoint, admission: Admission) -> str:
    """Returns the name of the container.  Raises SealpointError; nothing of it then runs or is left."""
    check_options(request.options)
    if inside := checkpoint.parts():
        raise UsageError(
            f"its memory lies in a sealed file inside, {inside[0].name}, which podman's restore does not open",
            hint="open it (sealpoint open FILE -o ARCHIVE.tar) and give it to podman, with the drop-in installed",
        )
    name = request.name or _name(checkpoint.file())
    if request.podman.exists(name):
        raise UsageError(f"there is a container {name} already", hint="give another --name")
    flat = checkpoint.flat
    seen = flat.observe(IMAGES)
    whole.require_pages(seen)
    with ArchivePlace() as place:
        place.install_relay(request.criu)
        argv = [*request.podman.command, "container", "restore", "--import", place.archive]
        argv += [f"--name={request.name}"] if request.name else []
        guard = ArchiveGuard(
            [*argv, *request.options],
            place.environment(place.bin),
            place,
            undo=lambda: _remove(request.podman, name),
            waits_for_all=False,
        )
        try:
            _run(flat, seen, admission, place, guard)
            guard.done()
        finally:
            guard.close()
            if guard.killed:
                _remove(request.podman, name)
    return name


def _run(
    flat: Flat, seen: Seen, admission: Admission, place: ArchivePlace, guard: ArchiveGuard
) -> None:
    view = View(flat)
    server = FuseServer(view, read_only=True)
    try:
        server.attach(place.view)
        _write_archive(flat.top, place)
        approval = _Approval(view, seen, admission)
        server.opened_by = approval.readers.add
        with Broker(place.socket, approval):
            guard.go()
            try:
                guard.wait()
            except SealpointError:
                if view.error is not None:
                    raise view.error from None
                raise
        if not approval.approved:
            raise PodmanError(
                "podman's runtime did not run the criu that it was given: what it restored is removed",
                hint="only runtimes that look for criu in PATH work: runc, crun",
            )
    finally:
        place.close_view()
        server.close()


def _name(checkpoint: OpenFile) -> str:
    if not checkpoint.has_memory:
        raise IdentityError(
            "this identity opens only the metadata of the checkpoint: it cannot restore it",
            hint="use an identity that the checkpoint was sealed to with -r",
        )
    for wanted in (IMAGES + "inventory.img", _CONFIG, "spec.dump"):
        if wanted not in checkpoint.entries:
            hint = "sealpoint restore restores a process tree, sealpoint open gives an archive back"
            raise FileError("this sealed file does not hold a podman container", hint=hint)
    entry = checkpoint.entry(_CONFIG)
    if entry.size > _MAX_CONFIG:
        raise FileError(f"{_CONFIG} is absurdly large")
    name = parse(checkpoint.read_bytes(entry), _CONFIG).get("name")
    if not isinstance(name, str) or not name or name.startswith("-"):
        raise FileError(f"{_CONFIG} names no container")
    return name


def _write_archive(checkpoint: OpenFile, place: ArchivePlace) -> None:
    """Into memory."""
    scratch = Scratch()
    seen: set[str] = set()
    size = 0
    with open(f"{place.bin}/archive", "xb") as file:
        for entry in sorted(checkpoint.entries.values(), key=lambda e: e.number):
            top = entry.name.partition("/")[0]
            if entry.name == SUMMARY_NAME or (top in _LINKED and top in seen):
                continue
            seen.add(top)
            if top in _LINKED:
                link = f"{place.view}/{top}"
                file.write(tar.encode(tar.Member(top, "symlink", mode=0o777, link=link)))
                continue
            attributes = entry.attributes or {}
            kind = attributes.get("type", "file")
            if kind not in ("file", "directory") or top in (".", ".."):
                raise FileError(f"{entry.name!r} does not belong in a podman archive")
            size += entry.size
            if size > _MAX_COPY:
                raise FileError(f"{entry.name!r} is absurdly large")
            mode = int(attributes.get("mode", "384")) & 0o777
            member = tar.Member(entry.name, kind, entry.size if kind == "file" else 0, mode=mode)
            file.write(tar.encode(member))
            if kind == "file":
                file.writelines(checkpoint.read(entry, scratch))
                file.write(bytes(-entry.size % tar.BLOCK))
        file.write(tar.END)


def _remove(podman: Podman, name: str) -> None:
    """A container that was not there before."""
    try:
        if podman.exists(name):
            podman.run("rm", "--force", "--time=0", name)
    except SealpointError:
        pass  # podman says so itself when it is asked next
