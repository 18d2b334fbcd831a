"""What `crit x DIR ps|fds|mems|rss` prints of a dump, from any source.

Lines are yielded as they are known.  Where an image is withheld from the identity, what takes its place is used (the
summary for command names) or the line is left out; the caller asks `withheld`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, Final

from sealpoint import names
from sealpoint.inspect import display, file_table, tasks
from sealpoint.inspect.image import first_record, read_records
from sealpoint.inspect.source import Images

_PAGE_SHIFT: Final = 12
_GROWSDOWN: Final = 0x100
_FILE_PRIVATE, _FILE_SHARED = 1 << 6, 1 << 7
_REGULAR, _STACK, _VSYSCALL, _VDSO = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_ANON_SHARED, _SYSV, _SOCKET = 1 << 8, 1 << 10, 1 << 11


class Explorer:
    """One dump.  withheld: names of images that this identity cannot open and that would have told more."""

    def __init__(self, images: Images) -> None:
        self._images = images
        self.withheld: list[str] = []

    def lines(self, what: str) -> Iterator[str]:
        """Raises FileError, IdentityError."""
        return {"ps": self._ps, "fds": self._fds, "mems": self._mems, "rss": self._rss}[what]()

    def _ps(self) -> Iterator[str]:
        yield f"{'PID':>7}{'PGID':>7}{'SID':>7}   COMM"
        for task, depth in tasks.walk(tasks.read_tree(self._images)):
            indent = " " * (4 * depth)
            yield f"{task.pid:7d}{task.pgid:7d}{task.sid:7d}   {indent}{task.command}"

    def _pids(self) -> Iterator[int]:
        return (task.pid for task in tasks.read_tree(self._images, commands=False))

    def _fds(self) -> Iterator[str]:
        for pid in self._pids():
            yield f"{pid}"
            for record in file_table.descriptors(self._images, pid):
                kind = str(display.shown(record, "fdinfo_entry", "type"))
                yield f"\t{record.fd:7d}: {self._file(kind, record.id)}"
            if self._images.withheld(f"fs-{pid}.img"):
                self.withheld.append(f"fs-{pid}.img")
                continue
            place = first_record(self._images, f"fs-{pid}.img")
            yield f"\t{'cwd':>7}: {self._file('REG', place.cwd_id)}"
            yield f"\t{'root':>7}: {self._file('REG', place.root_id)}"

    @functools.cached_property
    def _files(self) -> dict[int, Any]:
        return file_table.read(self._images)

    def _file(self, kind: str, number: int) -> str:
        entry = self._files.get(number)
        if kind == "REG":
            name = names.text(entry.reg.name) if entry else ""
            return name or "unknown path"
        if kind == "PIPE":
            return f"pipe[{entry.pipe.pipe_id}]" if entry and entry.HasField("pipe") else "pipe[?]"
        if kind == "UNIXSK":
            if not entry or not entry.HasField("usk"):
                return "unix[?]"
            shown = display.shown(entry.usk, "unix_sk_entry", "name")
            name = f" {shown}" if shown else ""
            return f"unix[{entry.usk.ino} ({entry.usk.peer}){name}]"
        return f"{kind}.{number}"

    def _mems(self) -> Iterator[str]:
        numbers: dict[int, int] = {}  # of segments, in the order in which they are met
        for pid in self._pids():
            mm = first_record(self._images, f"mm-{pid}.img")
            yield f"{pid}"
            yield f"\t{'exe':<36}    {self._file('REG', mm.exe_file_id)}"
            for area in self._areas(pid, mm):
                name = self._area_name(area, numbers)
                prot = "".join(
                    letter if area.prot & bit else "-"
                    for letter, bit in (("r", 1), ("w", 2), ("x", 4))
                )
                bounds = f"{area.start:08x}-{area.end:08x}"
                yield f"\t{bounds:<36}{prot}{name}"

    def _areas(self, pid: int, mm: Any) -> Iterator[Any]:
        """The mappings, which early versions of CRIU kept in an image by themselves."""
        name = f"vmas-{pid}.img"
        if not mm.vmas and self._images.exists(name):
            return read_records(self._images, name)
        return iter(mm.vmas)

    def _area_name(self, area: Any, numbers: dict[int, int]) -> str:
        status, segment = area.status, area.shmid

        def numbered(kind: str) -> str:
            return f" {kind}[{numbers.setdefault(segment, len(numbers) + 1):x}]"

        if status & _SYSV:
            name = numbered("ips")
        elif status & _ANON_SHARED:
            name = numbered("shmem")
        elif status & _SOCKET:
            name = numbered("packet")
        elif status & (_FILE_PRIVATE | _FILE_SHARED):
            name = " " + self._file("REG", segment)
            if area.pgoff:
                name += f" + {area.pgoff:#x}"
            if status & _FILE_SHARED:
                name += " (s)"
        elif status & _STACK:
            name = " [stack]"
        elif status & _VSYSCALL:
            name = " [vsyscall]"
        elif status & _VDSO:
            name = " [vdso]"
        elif area.flags & _GROWSDOWN:
            name = " [stack?]"
        else:
            name = ""
        return name if status & _REGULAR else name + " *"

    def _rss(self) -> Iterator[str]:
        for pid in self._pids():
            areas = list(self._areas(pid, first_record(self._images, f"mm-{pid}.img")))
            yield f"{pid}"
            at, previous = 0, -1
            records = read_records(self._images, f"pagemap-{pid}.img")
            next(records, None)  # the head
            for entry in records:
                pages = entry.nr_pages if entry.HasField("nr_pages") else entry.compat_nr_pages
                while at < len(areas) and areas[at].end <= entry.vaddr:
                    at += 1
                end = entry.vaddr + (pages << _PAGE_SHIFT)
                text = ""
                while at < len(areas) and areas[at].start < end:
                    text += " ~" if at == previous else self._area(areas[at])
                    text += f"\n\t{'':>23}"
                    previous = at
                    at += 1
                at = max(0, at - 1)
                shown = f"\t{entry.vaddr:x} / {pages:<8d}"
                yield from f"{shown:<24}{text}".split("\n")

    def _area(self, area: Any) -> str:
        text = f" {area.start:08x} / {(area.end - area.start) >> _PAGE_SHIFT:<8d}"
        if area.status & (_FILE_PRIVATE | _FILE_SHARED):
            text += " " + self._file("REG", area.shmid)
        return text
