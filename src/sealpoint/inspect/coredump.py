"""An ELF core file from a checkpoint's task, for gdb: registers of every thread, and the memory that is stored.

Sources: elf(5), fs/binfmt_elf.c and include/uapi/linux/elfcore.h of Linux for layouts and the order of notes; Intel SDM
volume 1, 13.4 for the XSAVE area.  Written like the kernel's, except that file mappings are left to the files that
NT_FILE names as far as the checkpoint does not hold their pages.

The core is plaintext: the caller decides where it may go.  Only x86-64.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sealpoint import names
from sealpoint.criu import schema
from sealpoint.errors import FileError, UsageError, left_out
from sealpoint.inspect.memory import PAGE, AddressSpace

if TYPE_CHECKING:
    from sealpoint.inspect.memory import Extent, Mapping
    from sealpoint.inspect.source import Images
    from sealpoint.store.output import OutputFile, OutputPipe

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_SHDR = struct.Struct("<IIQQQQIIQQ")
_PRSTATUS = struct.Struct("<iiihxxQQiiii64s27Qi4x")
_PRPSINFO = struct.Struct("<BcBb4xQIIiiii16s80s")
_FPREGS = struct.Struct("<HHHHQQII32I64I96x")
_ET_CORE, _EM_X86_64, _PT_LOAD, _PT_NOTE, _PN_XNUM = 4, 62, 1, 4, 0xFFFF
_NT_PRSTATUS, _NT_FPREGSET, _NT_PRPSINFO, _NT_AUXV = 1, 2, 3, 6
_NT_FILE, _NT_SIGINFO, _NT_X86_XSTATE = 0x46494C45, 0x53494749, 0x202
_MOST: Final = _PN_XNUM - 1  # program headers that the ELF header itself can count
_SIGINFO_SIZE: Final = 128
_X86_64: Final = 1  # core_entry.march
# COMPEL_TASK_* of compel's task-state.h (crit has the last two the wrong way round): pr_state, letter.
_STATES: Final = {1: (0, b"R"), 3: (3, b"T")}
_ENDED: Final = (2, 6)
_MAX_HOLE: Final = 64 << 30  # bytes of a mapping that the file has as a hole; beyond, it lacks them

# Offsets in the standard XSAVE format: xcr0 where the kernel puts it for debuggers, then header and components.
_XCR0, _XSTATE_BV, _YMM, _OPMASK, _ZMM_UPPER, _HI16_ZMM = 464, 512, 576, 1088, 1152, 1664
_AVX_SIZE, _AVX512_SIZE, _AVX_BITS, _AVX512_BITS = 832, 2688, 0x7, 0xE7


@dataclass(frozen=True, slots=True)
class Segment:
    """A PT_LOAD: addresses [start, start + size), of which the file holds the first `stored` bytes (all or none)."""

    start: int
    size: int
    stored: int
    prot: int
    extents: tuple[Extent, ...]
    mapping: Mapping


@dataclass(frozen=True, slots=True)
class Core:
    """What was written.  size: bytes of the file; stored: those of memory that are no holes."""

    threads: int
    segments: int
    size: int
    stored: int


def write_core(
    images: Images,
    pid: int,
    out: OutputFile | OutputPipe,
    progress: Callable[[int], None] = lambda _: None,
) -> Core:
    """Write the core of one task; the caller commits.  Raises FileError, UsageError, IdentityError."""
    task = _task(images, pid)
    leader = _thread(images, pid)
    if leader.tc.task_state in _ENDED:
        raise UsageError(f"process {pid} had ended when it was dumped: it has no memory")
    space = AddressSpace.load(images, pid)
    threads = [(pid, leader)]
    threads += [(tid, _thread(images, tid)) for tid in task.threads if tid != pid]
    notes = _notes(task, threads, space)
    segments = [s for m in space.mappings for s in _segments(space, m)]
    count = len(segments) + 1
    extended = count > _MOST  # then the count stands in the first section header
    head_size = _EHDR.size + count * _PHDR.size + extended * _SHDR.size
    at = _page_up(head_size + len(notes))
    headers = [_PHDR.pack(_PT_NOTE, 4, head_size, 0, 0, len(notes), 0, 4)]
    for segment in segments:
        flags = sum(
            1 << (2 - n) for n in range(3) if segment.prot & 1 << n
        )  # r, w, x the other way
        headers.append(
            _PHDR.pack(_PT_LOAD, flags, at, segment.start, 0, segment.stored, segment.size, PAGE)
        )
        at += segment.stored
    sections = head_size - _SHDR.size if extended else 0
    out.write(_header(count, sections), *headers)
    if extended:
        out.write(_SHDR.pack(0, 0, 0, 0, 0, 1, 0, count, 0, 0))
    out.write(notes)
    position, stored = _page_up(head_size + len(notes)), 0
    for segment in segments:
        stored += _write_segment(space, segment, position, out, progress)
        position += segment.stored
    if stat.S_ISREG(os.fstat(out.fd).st_mode):
        os.ftruncate(out.fd, position)
    return Core(len(threads), len(segments), position, stored)


def _write_segment(
    space: AddressSpace,
    segment: Segment,
    position: int,
    out: OutputFile | OutputPipe,
    progress: Callable[[int], None],
) -> int:
    """Returns how many bytes were written; what is not stronger than a hole is left one."""
    pages = space.pages_of(segment.mapping)
    written, at = 0, -1
    for block in pages.blocks(segment.extents) if pages is not None else ():
        for start, size, address in block.spans:
            target = position + address - segment.start
            if target != at:
                os.lseek(out.fd, target, os.SEEK_SET)
            out.write(block.data[start : start + size])
            at = target + size
            written += size
        progress(len(block.data))
    return written


def _segments(space: AddressSpace, mapping: Mapping) -> Iterator[Segment]:
    extents = tuple(space.stored(mapping))
    stored = sum(e.size for e in extents)
    if mapping.kind != "file" and stored and mapping.size - stored > _MAX_HOLE:
        left_out(
            f"the core lacks the pages of {mapping.start:#x}-{mapping.end:#x} that are not stored: they are zero,"
            f" but more than {_MAX_HOLE >> 30} GiB"
        )
    if mapping.kind != "file" and (stored or mapping.prot) and mapping.size - stored <= _MAX_HOLE:
        # Pages of it that are not stored are zero.  Where CRIU leaves others out (vvar), they cannot be had.
        whole = mapping.kind not in ("vvar", "vsyscall", "aio", "socket") or stored == mapping.size
        if whole:
            yield Segment(mapping.start, mapping.size, mapping.size, mapping.prot, extents, mapping)
            return
    at = mapping.start
    for extent in extents:
        if at < extent.start:
            yield Segment(at, extent.start - at, 0, mapping.prot, (), mapping)
        yield Segment(extent.start, extent.size, extent.size, mapping.prot, (extent,), mapping)
        at = extent.end
    if at < mapping.end:
        yield Segment(at, mapping.end - at, 0, mapping.prot, (), mapping)


def _header(count: int, sections: int) -> bytes:
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    return _EHDR.pack(
        ident, _ET_CORE, _EM_X86_64, 1, 0, _EHDR.size, sections, 0, _EHDR.size, _PHDR.size,
        _PN_XNUM if sections else count, _SHDR.size if sections else 0, 1 if sections else 0, 0,
    )  # fmt: skip


def _notes(task: Any, threads: list[tuple[int, Any]], space: AddressSpace) -> bytes:
    """As the kernel orders them: what belongs to the process stands among the notes of its first thread."""
    out = []
    for tid, core in threads:
        out.append(_note(b"CORE", _NT_PRSTATUS, _prstatus(task, tid, core)))
        if tid == threads[0][0]:
            auxv = struct.pack(f"<{len(space.mm.mm_saved_auxv)}Q", *space.mm.mm_saved_auxv)
            out.append(_note(b"CORE", _NT_PRPSINFO, _prpsinfo(task, core, space)))
            out.append(_note(b"CORE", _NT_SIGINFO, bytes(_SIGINFO_SIZE)))  # no signal ended it
            out.append(_note(b"CORE", _NT_AUXV, auxv))
            out.append(_note(b"CORE", _NT_FILE, _file_note(space)))
        if core.thread_info.HasField("fpregs"):
            legacy = _fpregs(core.thread_info.fpregs, space.images, tid)
            out.append(_note(b"CORE", _NT_FPREGSET, legacy))
            out.append(
                _note(b"LINUX", _NT_X86_XSTATE, _xstate(core.thread_info.fpregs.xsave, legacy))
            )
    return b"".join(out)


def _note(owner: bytes, kind: int, data: bytes) -> bytes:
    name = owner + b"\0"
    head = struct.pack("<III", len(name), len(data), kind)
    return head + name + bytes(-len(name) % 4) + data + bytes(-len(data) % 4)


def _prstatus(task: Any, tid: int, core: Any) -> bytes:
    registers = [getattr(core.thread_info.gpregs, name) for name in schema.X86_REGISTERS]
    held = core.thread_core.blk_sigset or core.tc.blk_sigset
    ids = [_int32(n) for n in (tid, task.ppid, task.pgid, task.sid)]
    floating = int(core.thread_info.HasField("fpregs"))
    return _PRSTATUS.pack(0, 0, 0, 0, 0, held, *ids, bytes(64), *registers, floating)


def _prpsinfo(task: Any, core: Any, space: AddressSpace) -> bytes:
    state, letter = _STATES.get(core.tc.task_state, (0, b"R"))
    start, end = space.mm.mm_arg_start, space.mm.mm_arg_end
    arguments = space.peek(start, min(max(0, end - start), 79)).replace(b"\0", b" ").rstrip()
    creds = core.thread_core.creds
    nice = max(-128, min(127, core.thread_core.sched_nice))
    ids = [_int32(n) for n in (task.pid, task.ppid, task.pgid, task.sid)]
    return _PRPSINFO.pack(
        state,
        letter,
        0,
        nice,
        core.tc.flags,
        creds.uid,
        creds.gid,
        *ids,
        core.tc.comm[:15],
        arguments,
    )


def _fpregs(fp: Any, images: Images, tid: int) -> bytes:
    words = [fp.cwd, fp.swd, fp.twd, fp.fop]
    if len(fp.st_space) != 32 or len(fp.xmm_space) != 64 or any(w > 0xFFFF for w in words):
        raise FileError(f"{images.where(f'core-{tid}.img')}: impossible floating point registers")
    return _FPREGS.pack(
        *words, fp.rip, fp.rdp, fp.mxcsr, fp.mxcsr_mask, *fp.st_space, *fp.xmm_space
    )


def _xstate(xsave: Any, legacy: bytes) -> bytes:
    wide = len(xsave.zmm_upper) > 0 or len(xsave.hi16_zmm) > 0
    area = bytearray(_AVX512_SIZE if wide else _AVX_SIZE)
    area[: len(legacy)] = legacy
    features = _AVX512_BITS if wide else _AVX_BITS
    struct.pack_into("<Q", area, _XCR0, features)
    struct.pack_into("<Q", area, _XSTATE_BV, xsave.xstate_bv & features | 0x3)
    _fill(area, _YMM, 256, "I", xsave.ymmh_space)
    if wide:
        _fill(area, _OPMASK, 64, "Q", xsave.opmask_reg)
        _fill(area, _ZMM_UPPER, 512, "Q", xsave.zmm_upper)
        _fill(area, _HI16_ZMM, 1024, "Q", xsave.hi16_zmm)
    return bytes(area)


def _fill(area: bytearray, offset: int, size: int, code: str, values: Any) -> None:
    data = struct.pack(f"<{len(values)}{code}", *values)[:size]
    area[offset : offset + len(data)] = data


def _file_note(space: AddressSpace) -> bytes:
    """{count, page size}, {start, end, offset in pages} of each file mapping, then their paths."""
    found = [m for m in space.mappings if m.kind == "file" and m.file not in ("", "?")]
    numbers = [n for m in found for n in (m.start, m.end, m.offset // PAGE)]
    paths = b"".join(names.encode(m.file) + b"\0" for m in found)
    return struct.pack(f"<{2 + len(numbers)}Q", len(found), PAGE, *numbers) + paths


def _task(images: Images, pid: int) -> Any:
    where = images.where("pstree.img")
    found = []
    for entry in schema.records(images.read("pstree.img"), "pstree_entry", where):
        if entry.pid == pid:
            return entry
        found.append(str(entry.pid))
    raise UsageError(
        f"{images.label} has no process {pid}", hint="it has: " + ", ".join(found[:20])
    )


def _thread(images: Images, tid: int) -> Any:
    name = f"core-{tid}.img"
    core = next(iter(schema.records(images.read(name), "core_entry", images.where(name))), None)
    if core is None:
        raise FileError(f"{images.where(name)}: is empty")
    if core.mtype != _X86_64:
        raise UsageError(f"{images.label} is not of an x86-64 machine: no core can be made of it")
    return core


def _page_up(size: int) -> int:
    return -(-size // PAGE) * PAGE


def _int32(value: int) -> int:
    return value - (1 << 32) if value >= 1 << 31 else value
