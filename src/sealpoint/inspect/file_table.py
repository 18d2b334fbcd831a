"""The table of a dump's open files: files.img, or the images that CRIU wrote in its place before version 3.0.

Those had one image for each kind of file.  What the fields of their records mean has not changed since.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from sealpoint.errors import FileError, left_out
from sealpoint.inspect import messages
from sealpoint.inspect.image import first_record, open_image, read_records
from sealpoint.inspect.source import Images

FILES: Final = "files.img"
_MAX_FDS: Final = 1 << 20  # of one task: what the kernel allows
# image of before: (its type, the member of a record of files.img that holds the same)
OLDER: Final = {
    "reg-files.img": ("REG_FILES", "reg"),
    "ext-files.img": ("EXT_FILES", "ext"),
    "ns-files.img": ("NS_FILES", "nsf"),
    "pipes.img": ("PIPES", "pipe"),
    "fifo.img": ("FIFO", "fifo"),
    "tty.img": ("TTY_FILES", "tty"),
    "unixsk.img": ("UNIXSK", "usk"),
    "inetsk.img": ("INETSK", "isk"),
    "packetsk.img": ("PACKETSK", "psk"),
    "netlinksk.img": ("NETLINK_SK", "nlsk"),
    "eventfd.img": ("EVENTFD_FILE", "efd"),
    "eventpoll.img": ("EVENTPOLL_FILE", "epfd"),
    "signalfd.img": ("SIGNALFD", "sgfd"),
    "timerfd.img": ("TIMERFD", "tfd"),
    "inotify.img": ("INOTIFY_FILE", "ify"),
    "fanotify.img": ("FANOTIFY_FILE", "ffy"),
    "tunfile.img": ("TUNFILE", "tunf"),
}

_BEFORE: Final = "CRIU before 3.0 kept that in images that sealed files hold as memory"


def read(images: Images) -> dict[int, Any]:
    """{number: record of files.img}.  Empty where no image tells of files.  Raises FileError, IdentityError."""
    found: dict[int, Any] = {}
    if images.exists(FILES):
        for entry in read_records(images, FILES):
            found.setdefault(entry.id, entry)
        return found
    for entry in _older(images):
        found.setdefault(entry.id, entry)
    if not found and images.withheld(next(iter(OLDER))):
        left_out(f"{images.label}: what is open cannot be named with this identity: {_BEFORE}")
    elif not found:
        left_out(f"{images.label} has no image that names open files")
    return found


def _older(images: Images) -> Iterator[Any]:
    kind = messages.message_class("file_entry")
    for name, (magic, member) in OLDER.items():
        if not images.exists(name):
            continue
        image = open_image(images, name)
        if image.name != magic:
            raise FileError(f"{image.where}: is an image of type {image.name}, not {magic}")
        for record in image.records():
            entry = kind(id=record.message.id)
            getattr(entry, member).CopyFrom(record.message)
            yield entry


def descriptors(images: Images, pid: int, state: str = "") -> Iterator[Any]:
    """The records of a task's table of descriptors; none, which is said, where there should be one and is not.

    state: of the task as tasks.Task has it; one that has ended has no table.  Raises FileError, IdentityError.
    """
    number, known = (
        pid,
        images.exists(f"ids-{pid}.img"),
    )  # CRIU before 0.4 named the table by the process
    if known:
        number = first_record(images, f"ids-{pid}.img").files_id
    name = f"fdinfo-{number}.img"
    if not images.exists(name):
        if known or state not in ("", "zombie", "dead"):
            left_out(f"{images.label} has no image of what process {pid} had open")
        return
    for n, record in enumerate(read_records(images, name)):
        if n >= _MAX_FDS:
            left_out(f"{images.where(name)}: only the first {_MAX_FDS} descriptors are shown")
            return
        yield record
