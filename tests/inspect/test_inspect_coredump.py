"""What a core file holds, and what is refused; tests/real/test_coredump.py has gdb read one."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings, strategies as st

from sealpoint.criu.schema import X86_REGISTERS
from sealpoint.errors import FileError, SealpointError, UsageError
from sealpoint.inspect import coredump, memory
from sealpoint.inspect.coredump import write_core
from sealpoint.inspect.finding import open_source
from sealpoint.inspect.memory import PAGE
from sealpoint.inspect.source import Access, images
from sealpoint.store.output import OutputFile
from tests.inspect.made import PRESENT, Made, image, message, page, vma

A = 0x10000


def core_image(tid: int, *, state: int = 1, march: int = 1, st_space: int = 32, **xsave) -> bytes:
    registers = {name: tid * 1000 + n for n, name in enumerate(X86_REGISTERS)}
    fp = {
        "cwd": 0x37F, "swd": 0, "twd": 0, "fop": 0, "rip": 0, "rdp": 0, "mxcsr": 0x1F80, "mxcsr_mask": 0xFFFF,
        "st_space": range(st_space), "xmm_space": range(64), "xsave": {"xstate_bv": 7, **xsave},
    }  # fmt: skip
    return image(
        message(
            "core_entry",
            mtype=march,
            thread_info={"gpregs": registers, "fpregs": fp},
            tc={"task_state": state, "comm": b"app", "flags": 4},
            thread_core={"sched_nice": -5, "creds": {"uid": 7, "gid": 8}},
        ),
        kind="CORE",
    )


def a_task(vmas, runs, *, threads=(1, 2), **core) -> Made:
    made = Made().task(
        1, vmas, runs, mm_saved_auxv=[6, PAGE, 0, 0], mm_arg_start=A, mm_arg_end=A + 9
    )
    tree = message("pstree_entry", pid=1, ppid=0, pgid=1, sid=1, threads=threads)
    made.files["pstree.img"] = image(tree)
    for tid in threads:
        made.files[f"core-{tid}.img"] = core_image(tid, **core)
    return made


def write(made: Made, tmp_path) -> tuple[bytes, coredump.Core]:
    directory = made.write(tmp_path / "images")
    with open_source(str(directory), Access.of([], None)) as source:
        with OutputFile(str(tmp_path / "core")) as out:
            done = write_core(images(source), 1, out)
            out.commit()
    return (tmp_path / "core").read_bytes(), done


def segments(core: bytes) -> list[tuple[int, ...]]:
    """(kind, flags, offset, address, bytes in the file, bytes in memory)."""
    (offset,) = struct.unpack_from("<Q", core, 32)
    (count,) = struct.unpack_from("<H", core, 56)
    if count == 0xFFFF:
        (sections,) = struct.unpack_from("<Q", core, 40)
        (count,) = struct.unpack_from("<I", core, sections + 44)
    rows = (struct.unpack_from("<IIQQQQQQ", core, offset + 56 * n) for n in range(count))
    return [(r[0], r[1], r[2], r[3], r[5], r[6]) for r in rows]


def notes(core: bytes) -> list[tuple[int, bytes]]:
    _, _, at, _, size, _ = segments(core)[0]
    end, found = at + size, []
    while at < end:
        owner, length, kind = struct.unpack_from("<III", core, at)
        at += 12 + owner + -owner % 4
        found.append((kind, core[at : at + length]))
        at += length + -length % 4
    return found


def test_anonymous_memory_is_whole_and_file_pages_are_left_to_the_file(tmp_path):
    vmas = [
        vma(A, 3),
        vma(A + 8 * PAGE, 3, memory.FILE_PRIVATE, shmid=4, prot=5),
        vma(A + 20 * PAGE, 1 << 20, prot=0),
    ]
    arguments = page(b"app\0--fast\0")
    runs = [
        (A, PRESENT, arguments),
        (A + 2 * PAGE, PRESENT, page(b"last")),
        (A + 9 * PAGE, PRESENT, page(b"patched")),
    ]
    made = a_task(vmas, runs)
    made.files["files.img"] = image(
        message("file_entry", type=1, id=4, reg={"id": 4, "name": b"/usr/bin/app"})
    )
    core, done = write(made, tmp_path)
    loads = [s[1:2] + s[3:] for s in segments(core)[1:]]
    assert loads == [
        (6, A, 3 * PAGE, 3 * PAGE),
        (5, A + 8 * PAGE, 0, PAGE),
        (5, A + 9 * PAGE, PAGE, PAGE),
        (5, A + 10 * PAGE, 0, PAGE),
        (0, A + 20 * PAGE, 0, PAGE << 20),
    ]
    _, _, at, _, size, _ = segments(core)[1]
    assert core[at : at + size] == arguments + bytes(PAGE) + page(b"last")
    assert (done.threads, done.segments, done.stored, done.size) == (2, 5, 3 * PAGE, len(core))
    found = notes(core)
    kinds = [1, 3, 0x53494749, 6, 0x46494C45, 2, 0x202, 1, 2, 0x202]
    assert [kind for kind, _ in found] == kinds
    named = struct.pack("<5Q", 1, PAGE, A + 8 * PAGE, A + 11 * PAGE, 0) + b"/usr/bin/app\0"
    assert found[4][1] == named
    assert found[3][1] == struct.pack("<4Q", 6, PAGE, 0, 0)


def test_registers_stand_where_the_kernel_puts_them(tmp_path):
    core, _ = write(a_task([vma(A, 1)], [(A, PRESENT, page(b"app\0x"))]), tmp_path)
    status = [data for kind, data in notes(core) if kind == 1]
    for tid, data in zip((1, 2), status, strict=True):
        assert len(data) == 336
        assert struct.unpack_from("<i", data, 32) == (tid,)
        assert struct.unpack_from("<27Q", data, 112) == tuple(tid * 1000 + n for n in range(27))
    info = dict(notes(core))[3]
    assert len(info) == 136
    assert struct.unpack_from("<II", info, 16) == (7, 8)
    assert info[40:44] == b"app\0"
    assert info[56:61] == b"app x"


def test_wide_registers_stand_in_the_standard_places(tmp_path):
    made = a_task(
        [vma(A, 1)], [], threads=(1,),
        ymmh_space=[9] * 64, opmask_reg=[5] * 8, zmm_upper=[6] * 64, hi16_zmm=[7] * 128,
    )  # fmt: skip
    core, _ = write(made, tmp_path)
    area = dict(notes(core))[0x202]
    assert len(area) == 2688
    assert struct.unpack_from("<Q", area, 464) == (0xE7,)
    for offset, value in ((1088, 5), (1152, 6), (1664, 7)):
        assert struct.unpack_from("<Q", area, offset) == (value,)
    assert struct.unpack_from("<I", area, 576) == (9,)


def test_more_segments_than_the_header_can_count(tmp_path, monkeypatch):
    count = 20
    monkeypatch.setattr(coredump, "_MOST", 40)  # as if it could count no further
    runs = [(A + 2 * n * PAGE, PRESENT, page()) for n in range(count)]
    made = a_task([vma(A, 2 * count, memory.FILE_PRIVATE, prot=1)], runs)
    core, done = write(made, tmp_path)
    found = segments(core)
    assert len(found) == done.segments + 1 == 2 * count + 1
    assert found[-1][3] == A + (2 * count - 1) * PAGE


@pytest.mark.parametrize("state", [2, 6])
def test_a_task_that_had_ended_has_no_core(tmp_path, state):
    with pytest.raises(UsageError, match="had ended"):
        write(a_task([vma(A, 1)], [], state=state), tmp_path)
    assert not (tmp_path / "core").exists()


def test_another_machine_is_refused(tmp_path):
    with pytest.raises(UsageError, match="x86-64"):
        write(a_task([vma(A, 1)], [], march=3), tmp_path)


def test_impossible_registers_are_refused(tmp_path):
    with pytest.raises(FileError, match=r"core-1\.img: impossible floating point registers"):
        write(a_task([vma(A, 1)], [], st_space=31), tmp_path)


def test_a_missing_thread_is_named(tmp_path):
    made = a_task([vma(A, 1)], [])
    del made.files["core-2.img"]
    with pytest.raises(FileError, match=r"core-2\.img"):
        write(made, tmp_path)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_damaged_images_give_our_errors_only(tmp_path_factory, data):
    made = a_task([vma(A, 2)], [(A, PRESENT, page())])
    name = data.draw(st.sampled_from(["core-1.img", "mm-1.img", "pstree.img"]))
    raw = bytearray(made.files[name])
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    made.files[name] = bytes(raw)
    try:
        write(made, tmp_path_factory.mktemp("damaged"))
    except SealpointError:
        pass
