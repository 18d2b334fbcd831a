"""What `seal` takes for whole: images that the real CRIU made, of every kind; and with stubs among them, or less."""

from __future__ import annotations

import ctypes
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from sealpoint.checkpoint.opening.access import CheckedFile
from sealpoint.criu import pagemap
from sealpoint.criu.pagemap import LAZY, PARENT
from sealpoint.format.constants import Role
from sealpoint.keys import load_identity, load_trust
from tests.real import harness, sealed, stock_criu

StartWorkload = Callable[..., harness.Workload]
PAGE = 4096


@pytest.fixture
def dumped(workload: StartWorkload, criu: Path, ram_dir: Path) -> Path:
    """Images of a tree that runs on."""
    directory = ram_dir / "images"
    stock_criu.plain_dump(criu, workload("tree"), directory, "--leave-running")
    return directory


def first_pagemap(directory: Path) -> tuple[Path, Path]:
    """One that counts pages, and those."""
    for path in sorted(directory.glob("pagemap-[0-9]*.img")):
        pages = directory / pagemap.decode(path.read_bytes(), path.name).pages_name
        if pages.exists() and pages.stat().st_size:
            return path, pages
    raise AssertionError("no task has memory")


def full(directory: Path) -> Path:
    return directory


def old(directory: Path) -> Path:
    (directory / "files.img").rename(directory / "reg-files.img")
    return directory


def memory(directory: Path) -> Path:
    for path in directory.iterdir():
        if not path.name.startswith("page"):
            path.unlink()
    return directory


def pre_dump(directory: Path) -> Path:
    for path in directory.iterdir():
        if not path.name.startswith("page") and path.name not in (
            "inventory.img",
            "stats-dump",
            "dump.log",
        ):
            path.unlink()
    return directory


def lazy(directory: Path) -> Path:
    path, pages = first_pagemap(directory)
    table = pagemap.decode(path.read_bytes(), path.name)
    table.flags[0] = LAZY
    path.write_bytes(pagemap.encode(table))
    pages.write_bytes(pages.read_bytes()[table.counts[0] * PAGE :])
    return directory


def deduplicated(directory: Path) -> Path:
    """As CRIU frees what a later dump has: holes in a file that stays as long."""
    _, pages = first_pagemap(directory)
    with pages.open("r+b") as file:
        keep_size, punch_hole = 1, 2
        size = ctypes.c_long(PAGE)
        done = ctypes.CDLL(None, use_errno=True).fallocate(
            file.fileno(), keep_size | punch_hole, ctypes.c_long(0), size
        )
        assert done == 0
    return directory


def increment(directory: Path) -> Path:
    """All memory is in the parent, beside it."""
    child = directory.parent / "child"
    shutil.copytree(directory, child)
    (child / "parent").symlink_to(f"../{directory.name}")
    for path in child.glob("pagemap-*.img"):
        table = pagemap.decode(path.read_bytes(), path.name)
        for n in range(len(table.flags)):
            table.flags[n] = PARENT
        path.write_bytes(pagemap.encode(table))
        (child / table.pages_name).unlink(missing_ok=True)
    return child


def chain(directory: Path) -> Path:
    """A directory that holds both."""
    child = increment(directory)
    both = directory.parent / "both"
    both.mkdir()
    shutil.move(directory, both)
    shutil.move(child, both)
    return both


def within(directory: Path) -> Path:
    """The parent lies in the directory itself, in place of a link."""
    child = increment(directory)
    (child / "parent").unlink()
    shutil.move(directory, child / "parent")
    return child


def archive(directory: Path) -> Path:
    path = directory.parent / "container.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(directory, "checkpoint")
        tar.addfile(tarfile.TarInfo("config.dump"))
    return path


def pod(directory: Path) -> Path:
    path = directory.parent / "pod.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(pre_dump_beside(directory), "web/checkpoint")
        tar.add(directory, "db/checkpoint")
        tar.addfile(tarfile.TarInfo("pod.dump"))
    return path


def pre_dump_beside(directory: Path) -> Path:
    other = directory.parent / "other"
    shutil.copytree(directory, other)
    return pre_dump(other)


def archived_chain(directory: Path) -> Path:
    path = directory.parent / "chain.tar"
    both = chain(directory)
    with tarfile.open(path, "w") as tar:
        for name in ("child", "images"):  # the child first: its parent is not known yet
            tar.add(both / name, name)
    return path


KINDS: dict[str, tuple[Callable[[Path], Path], dict[str, str]]] = {
    "full": (full, {"": "full"}),
    "old layout": (old, {"": "old layout"}),
    "increment": (increment, {"": "increment"}),
    "pre-dump": (pre_dump, {"": "pre-dump"}),
    "pages": (memory, {"": "pages"}),
    "lazy": (lazy, {"": "lazy"}),
    "deduplicated": (deduplicated, {"": "deduplicated"}),
    "chain": (chain, {"child/": "increment", "images/": "full"}),
    "parent within": (within, {"": "increment", "parent/": "full"}),
    "archive": (archive, {"checkpoint/": "full"}),
    "archive of a pod": (pod, {"db/checkpoint/": "full", "web/checkpoint/": "pre-dump"}),
    "archive of a chain": (archived_chain, {"child/": "increment", "images/": "full"}),
}


def recorded(keys: sealed.Keys, file: Path) -> dict[str, str]:
    policy = load_trust([keys.path("signer.pub")])
    with CheckedFile.open(str(file), policy) as checked:
        opened = checked.unlock([load_identity(keys.path("identity.key"))])
        return dict(opened.manifests[Role.METADATA].properties)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_images_is_whole_and_its_kind_is_said_and_recorded(
    dumped: Path, sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path: Path, kind: str
) -> None:
    make, kinds = KINDS[kind]
    file = tmp_path / "x.sealed"
    done = sealpoint.run("seal", make(dumped), "-o", file, *keys.seal, "--json").ok()
    assert json.loads(done.out)["kinds"] == kinds
    assert "not checked" not in done.err
    found = recorded(keys, file)
    assert {k.partition(":")[2]: v for k, v in found.items() if k.startswith("kind")} == kinds
    said = sealpoint.run("seal", make_again(dumped, kind), "-o", file, "--force", *keys.seal).ok()
    for prefix in kinds:
        assert prefix in said.out.decode()


def make_again(dumped: Path, kind: str) -> Path:
    """What was made of it already."""
    places = {
        "increment": "child", "parent within": "child", "chain": "both", "archive": "container.tar",
        "archive of a pod": "pod.tar.gz", "archive of a chain": "chain.tar",
    }  # fmt: skip
    return dumped.parent / places[kind] if kind in places else dumped


def refused(
    sealpoint: sealed.Sealpoint, keys: sealed.Keys, path: Path, code: int, *words: str
) -> None:
    file = sealpoint.directory / "refused.sealed"
    sealpoint.run("seal", path, "-o", file, *keys.seal).fails(code, *words)
    assert not file.exists()


@pytest.mark.parametrize("which", ["one", "all", "small ones"])
@pytest.mark.parametrize(
    "leads", ["out", "out, absolute", "nowhere", "to itself", "to a directory", "to a device"]
)
def test_links_that_do_not_lead_to_files_inside_are_refused(
    dumped: Path, sealpoint: sealed.Sealpoint, keys: sealed.Keys, which: str, leads: str
) -> None:
    elsewhere = dumped.parent / "elsewhere"
    elsewhere.mkdir()
    (dumped / "directory").mkdir()
    names = [p.name for p in dumped.glob("*.img")]
    names = {"one": [first_pagemap(dumped)[1].name], "all": names}.get(which) or [
        n for n in names if not n.startswith("page")
    ]
    for name in names:
        (dumped / name).rename(elsewhere / name)
        target = {
            "out": f"../elsewhere/{name}", "out, absolute": str(elsewhere / name), "nowhere": "gone.img",
            "to itself": name, "to a directory": "directory", "to a device": "/dev/null",
        }[leads]  # fmt: skip
        (dumped / name).symlink_to(target)
    refused(sealpoint, keys, dumped, 2, "is a link")


@pytest.mark.parametrize("form", ["beside", "below", "above", "absolute", "by a link"])
def test_links_to_files_inside_are_followed_and_what_is_sealed_restores(
    workload: StartWorkload,
    criu: Path,
    ram_dir: Path,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    tmp_path: Path,
    form: str,
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    images, file = ram_dir / "images", tmp_path / "x.sealed"
    stock_criu.plain_dump(criu, running, images)
    (images / "below").mkdir()
    for path in [*images.glob("pages-*.img"), images / "pstree.img"]:
        stored = images / ("below" if form != "beside" else "") / f"{path.stem}.stored"
        path.rename(stored)
        target = {"beside": stored.name, "absolute": str(stored)}.get(form, f"below/{stored.name}")
        if form == "above":
            target = f"below/../below/./{stored.name}"
        if form == "by a link":
            (images / "below" / f"{path.stem}.link").symlink_to(stored.name)
            target = f"below/{path.stem}.link"
        path.symlink_to(target)
    sealpoint.run("seal", images, "-o", file, *keys.seal).ok()
    sealpoint.run("restore", file, "--detach", *keys.open).ok()
    running.assert_continues(before)


def test_a_directory_on_the_way_that_is_a_link_is_not_followed(
    dumped: Path, sealpoint: sealed.Sealpoint, keys: sealed.Keys
) -> None:
    _, pages = first_pagemap(dumped)
    outside = dumped.parent / "outside"
    outside.mkdir()
    pages.rename(outside / pages.name)
    (dumped / "way").symlink_to("../outside")
    pages.symlink_to(f"way/{pages.name}")
    refused(sealpoint, keys, dumped, 2, f"{pages.name} is a link", "behind another link")


def test_an_image_that_is_missing_cut_or_one_too_many_is_refused(
    dumped: Path, sealpoint: sealed.Sealpoint, keys: sealed.Keys
) -> None:
    _, pages = first_pagemap(dumped)
    for damage, words in (
        (Path.unlink, "is missing"),
        (lambda path: os.truncate(path, path.stat().st_size - PAGE), "bytes, of which"),
        (lambda path: (path.parent / "pages-77.img").write_bytes(bytes(PAGE)), "no pagemap counts"),
    ):
        broken = dumped.parent / "broken"
        shutil.copytree(dumped, broken)
        damage(broken / pages.name)
        refused(sealpoint, keys, broken, 3, "not a complete checkpoint", words, "--as-files")
        file = sealpoint.directory / "as-files.sealed"
        sealpoint.run("seal", broken, "-o", file, "--force", *keys.seal, "--as-files").ok()
        assert recorded(keys, file)["kind"] == "files"
        shutil.rmtree(broken)


def test_an_increment_is_not_whole_without_the_parent_that_has_its_pages(
    dumped: Path,
    workload: StartWorkload,
    criu: Path,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
) -> None:
    child = increment(dumped)
    link = child / "parent"
    link.unlink()
    refused(sealpoint, keys, child, 3, "should be in a parent")
    link.symlink_to("../gone")
    refused(sealpoint, keys, child, 2, "parent leads to no directory")
    link.unlink()
    empty = dumped.parent / "empty"
    empty.mkdir()
    link.symlink_to("../empty")
    refused(sealpoint, keys, child, 3, "should be in a parent")
    link.unlink()
    link.symlink_to(".")
    refused(sealpoint, keys, child, 3, "chain of parents has no end")
    # The parent has a pagemap of that name, but not those pages.
    link.unlink()
    link.symlink_to("../images")
    path, pages = first_pagemap(dumped)
    table = pagemap.decode(path.read_bytes(), path.name)
    without = pagemap.Pagemap(table.pages_id, table.wide)
    for start, count, flags, _ in list(table.runs())[1:]:
        without.add(start, count, flags)
    kept, whole = path.read_bytes(), pages.read_bytes()
    path.write_bytes(pagemap.encode(without))
    pages.write_bytes(whole[table.counts[0] * PAGE :])
    refused(sealpoint, keys, child, 3, "is in no image of the chain")
    # The parent has the pagemap, but its pages are cut.
    path.write_bytes(kept)
    pages.write_bytes(whole[:-PAGE])
    refused(sealpoint, keys, child, 3, "parent", "bytes, of which")
    pages.write_bytes(whole)
    sealpoint.run("seal", child, "-o", sealpoint.directory / "x", *keys.seal).ok()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
@pytest.mark.parametrize("which", ["one", "all"])
def test_members_of_an_archive_that_stand_in_place_of_images_are_refused(
    dumped: Path, sealpoint: sealed.Sealpoint, keys: sealed.Keys, kind: bytes, which: str
) -> None:
    _, pages = first_pagemap(dumped)
    path = dumped.parent / "stubs.tar"
    with tarfile.open(path, "w") as tar:
        for file in sorted(dumped.glob("*.img")):
            info = tarfile.TarInfo(f"checkpoint/{file.name}")
            if which == "all" or file == pages:
                tar.addfile(tarfile.TarInfo(f"real/{file.name}.data"))
                info.type, info.linkname = kind, f"real/{file.name}.data"
                tar.addfile(info)
            else:
                info.size = file.stat().st_size
                tar.addfile(info, io.BytesIO(file.read_bytes()))
    refused(sealpoint, keys, path, 3, "is a link or a special file")


def test_each_dump_of_an_archive_counts(
    dumped: Path, sealpoint: sealed.Sealpoint, keys: sealed.Keys
) -> None:
    (pre_dump_beside(dumped) / "inventory.img").write_bytes(b"junk")
    path = dumped.parent / "pod.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(dumped, "db/checkpoint")
        tar.add(dumped.parent / "other", "web/checkpoint")
    refused(sealpoint, keys, path, 3, "web/checkpoint/inventory.img is not an inventory")


def test_files_that_are_no_images_need_a_word(
    ram_dir: Path, sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path: Path
) -> None:
    letters = ram_dir / "letters"
    letters.mkdir()
    (letters / "disk.img").write_bytes(b"of a virtual machine")
    with tarfile.open(ram_dir / "letters.tar", "w") as tar:
        tar.add(letters, "letters")
    for path in (letters, ram_dir / "letters.tar"):
        refused(sealpoint, keys, path, 2, "holds no images of CRIU", "--as-files")
        file = tmp_path / f"{path.name}.sealed"
        done = sealpoint.run("seal", path, "-o", file, *keys.seal, "--as-files").ok()
        assert b"files as they are" in done.out
        assert recorded(keys, file)["kind"] == "files"


def test_as_files_keeps_links_that_stay_inside_and_refuses_others(
    ram_dir: Path, sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path: Path
) -> None:
    letters, file = ram_dir / "letters", tmp_path / "x.sealed"
    letters.mkdir()
    (letters / "a").write_bytes(b"dear")
    (letters / "b").symlink_to("a")
    sealpoint.run("seal", letters, "-o", file, *keys.seal, "--as-files").ok()
    sealpoint.run("open", file, "-o", ram_dir / "out", *keys.open).ok()
    assert os.readlink(ram_dir / "out" / "b") == "a"
    (letters / "c").symlink_to("/etc/hostname")
    sealpoint.run("seal", letters, "-o", file, "--force", *keys.seal, "--as-files").fails(
        2, "leads out"
    )


def test_a_replaced_image_that_fits_no_longer_is_refused(
    dumped: Path, sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path: Path
) -> None:
    """crit encode: what was whole stays whole; what was wrong before may stay."""
    file, new = tmp_path / "x.sealed", tmp_path / "new.sealed"
    sealpoint.run("seal", dumped, "-o", file, *keys.seal).ok()
    name = first_pagemap(dumped)[0].name
    place = f"{file}:{name}"
    value = json.loads(sealpoint.run("crit", "decode", place, *keys.open).ok().out)
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(value))
    value["entries"].pop()
    bad.write_text(json.dumps(value))
    encode = ("--into", place, "-o", new, "--force", *keys.seal, *keys.open)
    sealpoint.run("crit", "encode", bad, *encode).fails(3, "no longer a complete checkpoint", name)
    assert not new.exists()
    sealpoint.run("crit", "encode", good, *encode).ok()
    assert recorded(keys, new)["kind"] == "full"
    (dumped / "inventory.img").write_bytes(b"junk")
    sealpoint.run("seal", dumped, "-o", file, "--force", *keys.seal, "--as-files").ok()
    sealpoint.run("crit", "encode", bad, *encode).ok()
    assert recorded(keys, new)["kind"] == "files"


@pytest.mark.parametrize("kind", ["increment", "lazy", "deduplicated"])
def test_what_has_pages_elsewhere_neither_restores_nor_flattens(
    dumped: Path, sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path: Path, kind: str
) -> None:
    file, new = tmp_path / "x.sealed", tmp_path / "new.sealed"
    sealpoint.run("seal", KINDS[kind][0](dumped), "-o", file, *keys.seal).ok()
    sealpoint.run("restore", file, *keys.open).fails(3, "this sealed file holds the images of")
    flatten = ("flatten", file, "-o", new, *keys.seal, *keys.open)
    sealpoint.run(*flatten).fails(3, "this sealed file holds the images of")
    assert not new.exists()
    shown = sealpoint.run("info", file, *keys.open).ok().out.decode()
    assert f"images      {kind}\n" in shown


def without_pages(directory: Path) -> Path:
    """As where a page server of stock CRIU's has them."""
    first_pagemap(directory)[1].unlink()
    return directory


def without_parent(directory: Path) -> Path:
    child = increment(directory)
    (child / "parent").unlink()
    return child


@pytest.mark.parametrize("make", [without_pages, without_parent, lazy])
def test_pages_that_are_elsewhere_are_missed_whatever_the_file_says_it_is(
    dumped: Path,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    tmp_path: Path,
    make: Callable[[Path], Path],
) -> None:
    file, new = tmp_path / "x.sealed", tmp_path / "new.sealed"
    sealpoint.run("seal", make(dumped), "-o", file, *keys.seal, "--as-files").ok()
    for command in (
        ("restore", file, *keys.open),
        ("flatten", file, "-o", new, *keys.seal, *keys.open),
    ):
        sealpoint.run(*command).fails(3, "the memory in this sealed file is not complete", "pages")
    assert not new.exists()


def test_a_dump_and_what_is_made_of_it_say_their_kind(
    workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path: Path
) -> None:
    file, second, flat = (tmp_path / name for name in ("x.sealed", "y.sealed", "flat.sealed"))
    pid = workload("secret").pid
    sealpoint.run("dump", "-t", pid, "-o", file, "-R", "--track", *keys.seal).ok()
    sealpoint.run("dump", "-t", pid, "-o", second, "-R", "--parent", file, *keys.seal).ok()
    sealpoint.run("flatten", second, "-o", flat, *keys.seal, *keys.open).ok()
    for path in (file, second, flat):
        assert recorded(keys, path)["kind"] == "full"
        assert "images      full\n" in sealpoint.run("info", path, *keys.open).ok().out.decode()
