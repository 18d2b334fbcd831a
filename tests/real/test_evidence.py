"""What a gate takes for a complete checkpoint: sets of images that the real CRIU made, whole and with something amiss.

And what CRIU opens to restore them, asked of the real one: a gate that wanted more would refuse good restores.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sealpoint.checkpoint.tables import evidence
from sealpoint.checkpoint.tables.evidence import Kind
from sealpoint.criu import pagemap
from sealpoint.criu.pagemap import LAZY, PARENT
from tests.real import harness, lying, sealed, stock_criu, typed

StartWorkload = Callable[..., harness.Workload]
Images = dict[str, bytes]
KINDS = ("secret", "ipc", "tree", "kinds", "states")
OPTIONS = ("--file-locks", "--ext-unix-sk")
NEEDED = re.compile(
    r"(?:inventory|pstree|files|tty-info|memfd|"
    r"(?:core|ids|fs|mm|fdinfo|pagemap|pagemap-shmem|pages)-\d+|"
    r"(?:mountpoints|userns|utsns|timens|ipcns-var)-\d+)\.img"
)


def load(directory: Path) -> Images:
    return {p.name: p.read_bytes() for p in directory.iterdir() if p.suffix == ".img"}


def judge(images: Images, **more: object) -> evidence.Verdict:
    sizes = {name: len(data) for name, data in images.items()}
    return evidence.judge(evidence.observe(sizes, lambda name: [images[name]]), **more)


def reap_family(running: harness.Workload, family: list[int]) -> None:
    """After the end of a tree: its zombies are ours, and their pids must be free."""
    running.wait_gone()
    for pid in family:
        sealed.wait_until(lambda pid=pid: _reaped(pid), "a child is gone")


def _reaped(pid: int) -> bool:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass
    return not Path(f"/proc/{pid}").exists()


@pytest.fixture(params=KINDS)
def images(
    request: pytest.FixtureRequest, workload: StartWorkload, criu: Path, ram_dir: Path
) -> Images:
    """A dump by stock CRIU."""
    running = workload(request.param)
    stock_criu.plain_dump(criu, running, ram_dir / "images", "--leave-running", *OPTIONS)
    return load(ram_dir / "images")


def amiss(images: Images) -> Iterator[tuple[str, Images]]:
    """One thing amiss in each: an image is missing, empty, cut, longer, another's, or one too many."""
    names = [name for name in images if NEEDED.fullmatch(name)]
    for name in names:
        rest = {other: data for other, data in images.items() if other != name}
        if images[name]:
            yield f"{name} is missing", rest
        if images[name]:
            yield f"{name} is cut", images | {name: images[name][:-1]}
        if not name.startswith("pages"):
            yield f"{name} has junk behind it", images | {name: images[name] + b"\0"}
            yield f"{name} is empty", images | {name: b""}
            yield f"{name} is something else", images | {name: b"something else " * 100}
    for name in [name for name in names if name.startswith("pages-") and images[name]]:
        yield f"{name} lacks a page", images | {name: images[name][:-4096]}
        yield f"{name} has a page too many", images | {name: images[name] + bytes(4096)}
    yield "pages of nobody", images | {"pages-77.img": bytes(4096)}
    for name in [name for name in names if pagemap.is_pagemap(name)]:
        table = pagemap.decode(images[name], name)
        if len(table.starts):
            for flags in (0, PARENT, LAZY):
                table.flags[0] = flags
                yield f"{name} has pages that are not here", images | {name: pagemap.encode(table)}
        table = pagemap.decode(images[name], name)
        table.pages_id = 99
        if table.pages:
            yield f"{name} names other pages", images | {name: pagemap.encode(table)}


def test_a_dump_by_the_real_criu_is_complete_and_with_anything_amiss_it_is_not(
    images: Images,
) -> None:
    """Zombies, stopped tasks, threads, tasks without descriptors, shared memory with and without pages among them."""
    assert judge(images) == (Kind.FULL, ())
    believed = [
        what
        for what, set_ in amiss(images)
        if judge(set_).problems == () and judge(set_).kind == Kind.FULL
    ]
    assert believed == []


def lazily(images: Images, name: str) -> tuple[Images, str]:
    """As if the first run of a pagemap were still to be fetched; and the name of its pages."""
    table = pagemap.decode(images[name], name)
    table.flags[0] = LAZY
    rest = images[table.pages_name][table.counts[0] * 4096 :]
    return images | {name: pagemap.encode(table), table.pages_name: rest}, table.pages_name


def test_a_gate_that_wants_a_whole_dump_refuses_every_other_kind(images: Images) -> None:
    believed = []
    root = next(name for name in images if re.fullmatch(r"pagemap-\d+\.img", name))
    memory = {n: d for n, d in images.items() if n.startswith("page")}
    others = [
        ("lazy", lazily(images, root)[0]),
        ("pages", memory),
        ("pre-dump", memory | {"inventory.img": images["inventory.img"]}),
    ]
    assert all(judge(set_).problems == () for _, set_ in others)
    for what, set_ in [*amiss(images), *others]:
        sizes = {name: len(data) for name, data in set_.items()}
        seen = evidence.observe(sizes, lambda name, set_=set_: [set_[name]])
        try:
            evidence.require(seen, evidence.WHOLE, parent=())
        except evidence.NoEvidenceError:
            continue
        believed.append(what)
    assert believed == []


def test_a_task_needs_a_core_for_each_thread_and_a_zombie_needs_no_more_than_its_core(
    workload: StartWorkload, criu: Path, ram_dir: Path
) -> None:
    running = workload("states")
    zombie = next(p for p in sealed.children(running.pid) if harness.process_state(p) == "Z")
    stock_criu.plain_dump(criu, running, ram_dir, "--leave-running", *OPTIONS)
    images = load(ram_dir)
    assert [name for name in images if re.fullmatch(rf"\w+-{zombie}\.img", name)] == [
        f"core-{zombie}.img"
    ]
    threads = [int(t) for t in os.listdir(f"/proc/{running.pid}/task")]
    assert len(threads) == 4
    for thread in threads:
        name = f"core-{thread}.img"
        rest = {n: d for n, d in images.items() if n != name}
        assert judge(rest).problems == (f"{name} is missing",)


def test_pages_of_parents_count_where_they_are_and_a_task_may_have_none_itself(
    workload: StartWorkload, criu: Path, ram_dir: Path
) -> None:
    """An increment of which all pages are in the parent: the real CRIU restores it from exactly that."""
    running = workload("secret")
    before = running.assert_intact()
    parent, child = ram_dir / "one", ram_dir / "two"
    stock_criu.plain_dump(criu, running, parent)
    shutil.copytree(parent, child)
    (child / "parent").symlink_to("../one")
    for path in child.glob("pagemap-*.img"):
        table = pagemap.decode(path.read_bytes(), path.name)
        for n in range(len(table.flags)):
            table.flags[n] = PARENT
        path.write_bytes(pagemap.encode(table))
        (child / table.pages_name).unlink()
    images = load(child)
    assert judge(images, parent=load(parent)) == (Kind.INCREMENT, ())
    assert judge(images) == (Kind.INCREMENT, ())
    assert "should be in a parent" in judge(images, parent=()).problems[0]
    stock_criu.plain_restore(criu, child)
    running.assert_continues(before)


def test_sets_that_are_no_dump_are_known_for_what_they_are(images: Images) -> None:
    memory = {n: d for n, d in images.items() if n.startswith("page")}
    root = next(t.pid for t in evidence.observe(
        {"pstree.img": 0}, lambda n: [images[n]]).tasks)  # fmt: skip
    assert judge(memory) == (Kind.PAGES, ())
    pre_dump = memory | {"inventory.img": images["inventory.img"]}
    assert judge(pre_dump, root=root) == (Kind.PRE_DUMP, ())
    for what, data in amiss(pre_dump):
        lost = pre_dump.keys() - data.keys()  # shared memory without pages is known from mm alone
        if any("shmem" in n and not pagemap.decode(images[n], n).pages for n in lost):
            continue
        if not what.startswith("inventory") and "not here" not in what:
            assert judge(data, root=root).problems, what
    without_root = {n: d for n, d in pre_dump.items() if n != f"pagemap-{root}.img"}
    assert f"pagemap-{root}.img is missing" in judge(without_root, root=root).problems
    assert judge({"inventory.img": images["inventory.img"]}).problems
    lazy, freed = lazily(images, f"pagemap-{root}.img")
    assert judge(lazy) == (Kind.LAZY, ())
    old = {("reg-files.img" if n == "files.img" else n): d for n, d in images.items()}
    assert judge(old) == (Kind.OLD, ())
    sizes = {name: len(data) for name, data in images.items()}
    holes = evidence.observe(sizes, lambda name: [images[name]], {freed})
    assert evidence.judge(holes) == (Kind.DEDUPLICATED, ())
    assert judge({}).kind is None
    assert judge({"notes.txt": b"x"}).problems


@pytest.mark.parametrize("door", ["stream", "mount"])
@pytest.mark.parametrize("kind", ["states", "kinds"])
def test_tasks_of_every_state_pass_both_gates(
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    dropin: typed.DropIn,
    keys: sealed.Keys,
    out: Path,
    kind: str,
    door: str,
) -> None:
    """What a gate wants to have been opened is what the real CRIU opens."""
    running = workload(kind)
    before = running.assert_intact()
    family = sealed.children(running.pid)
    if door == "stream":
        dump = ["dump", "-t", running.pid, "-o", out, *keys.seal, "--", *OPTIONS]
        sealpoint.run(*dump).ok()
        reap_family(running, family)
        sealpoint.run("restore", out, "--detach", *keys.open, "--", *OPTIONS).ok()
    else:
        status, said = dropin.run("dump", "-t", running.pid, "-D", out.parent, *OPTIONS)
        assert status == 0, said
        reap_family(running, family)
        status, said = dropin.run("restore", "-d", "-D", out.parent, *OPTIONS)
        assert status == 0, said
    running.assert_continues(before)


@pytest.mark.parametrize("silent", [False, True], ids=["asks", "asks nobody"])
@pytest.mark.parametrize("leave_running", [False, True], ids=["end", "leave running"])
def test_a_dump_that_goes_elsewhere_makes_no_file(
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    out: Path,
    ram_dir: Path,
    tmp_path: Path,
    criu: Path,
    silent: bool,
    leave_running: bool,
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    led = lying.typed(tmp_path, criu, ram_dir, silent=silent)
    dump = ["dump", "-t", running.pid, "-o", out, "--criu", led, *keys.seal]
    words = ["no images of a checkpoint"]
    if silent:
        words = ["without asking", "runs on" if leave_running else "has ended"]
    sealpoint.run(*dump, *(["--leave-running"] if leave_running else [])).fails(7, *words)
    assert os.listdir(out.parent) == []
    assert (ram_dir / "inventory.img").exists()
    if silent and not leave_running:
        running.wait_gone()
    else:
        running.assert_continues(before)


@pytest.mark.parametrize("silent", [False, True], ids=["asks", "asks nobody"])
def test_a_restore_of_other_images_leaves_nothing_that_runs(
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    out: Path,
    ram_dir: Path,
    tmp_path: Path,
    criu: Path,
    silent: bool,
) -> None:
    """The sealed file is good, but CRIU was led to somebody's unsigned images."""
    ours, theirs = workload("secret"), workload("tree")
    sealpoint.run("dump", "-t", ours.pid, "-o", out, *keys.seal).ok()
    stock_criu.plain_dump(criu, theirs, ram_dir)
    led = lying.typed(tmp_path, criu, ram_dir, silent=silent)
    restore = ["restore", out, "--detach", "--criu", led, *keys.open]
    words = "without asking" if silent else "it never read core-"
    sealpoint.run(*restore).fails(7, words)
    sealpoint.settle()
    assert theirs.remains() == []
    assert ours.remains() == []


@pytest.mark.parametrize("door", ["stream", "mount"])
def test_a_process_that_has_the_pid_since_is_not_dumped_for_it(
    sealpoint: sealed.Sealpoint,
    dropin: typed.DropIn,
    keys: sealed.Keys,
    out: Path,
    tmp_path: Path,
    criu: Path,
    door: str,
) -> None:
    """The process that was asked for ends before CRIU looks: workload and names would be those of another."""
    with lying.too_late(tmp_path, criu) as late:
        if door == "stream":
            dump = ["dump", "-t", late.pid, "-o", out, "--criu", late.path, *keys.seal]
            done = sealpoint.run(*dump)
            late.skip_unless_taken()
            said = done.fails(6).err
        else:
            dropin.configure(criu=f'"{late.path}"')
            status, said = dropin.run("dump", "-t", late.pid, "-D", out.parent)
            late.skip_unless_taken()
            assert status != 0, said
        assert "has ended meanwhile" in said
        assert late.stranger_runs()
    assert os.listdir(out.parent) == []


@pytest.mark.parametrize("door", ["stream", "mount"])
def test_a_dump_of_another_tree_is_no_success(
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    dropin: typed.DropIn,
    keys: sealed.Keys,
    out: Path,
    tmp_path: Path,
    criu: Path,
    door: str,
) -> None:
    """Complete, and through our own door, but not of the process that was asked for."""
    asked, other = workload("secret"), workload("tree")
    before = asked.assert_intact(), other.assert_intact()
    led = lying.of_another(tmp_path, criu, other.pid)
    if door == "stream":
        dump = ["dump", "-t", asked.pid, "-o", out, "--criu", led, *keys.seal]
        said = sealpoint.run(*dump).fails(7).err
    else:
        dropin.configure(criu=f'"{led}"')
        (led.parent / "criu").symlink_to(led)
        dropin.environment["PATH"] = f"{dropin.path.parent}:{led.parent}:{os.environ['PATH']}"
        status, said = dropin.run("dump", "-t", asked.pid, "-D", out.parent)
        assert status != 0, said
    assert f"it is of task {other.pid}, not of {asked.pid}" in said
    assert os.listdir(out.parent) == []
    asked.assert_continues(before[0])
    other.assert_continues(before[1])
