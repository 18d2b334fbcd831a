"""Every kind of source gives the same objects, and none of them leads out of what was named."""

from __future__ import annotations

import gzip
import os
import shutil
import tarfile
import warnings
from pathlib import Path

import pytest
import zstandard

from sealpoint.checkpoint.opening.access import wrap_for
from sealpoint.checkpoint.sealing.builder import CheckpointBuilder
from sealpoint.errors import (
    FileError,
    IdentityError,
    OmissionWarning,
    PolicyError,
    SealpointError,
    UsageError,
)
from sealpoint.format.constants import Role, Suite
from sealpoint.format.writer import SealedWriter
from sealpoint.inspect.finding import open_source
from sealpoint.inspect.source import Access, image_sets, images, split_place
from sealpoint.keys import load_trust
from sealpoint.store.output import OutputFile
from tests.checkpoint.checkpoint_helpers import (
    attributes,
    make_tar,
    member,
    seal_objects,
    seal_path,
)

BIG = os.urandom(3 * 1024 * 1024 + 4097)
FILES = {
    "config.dump": b"{}",
    "checkpoint/pstree.img": b"tree",
    "checkpoint/core-1.img": b"core of one",
    "checkpoint/pages-1.img": BIG,
    "checkpoint/empty.img": b"",
}


def write_directory(path, files=FILES):
    for name, data in files.items():
        target = Path(path, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return path


def tar_of(files=FILES, links=()):
    members = [member(name, data) for name, data in files.items()]
    members += [member(n, kind=tarfile.SYMTYPE, linkname=to) for n, to in links]
    return make_tar(*members)


@pytest.fixture(params=["directory", "tar", "gzip", "zstd", "sealed directory", "sealed archive"])
def anything(request, tmp_path, keys):
    path = tmp_path / "x"
    match request.param.split()[-1 if " " in request.param else 0]:
        case "tar":
            path.write_bytes(tar_of())
        case "gzip":
            path.write_bytes(gzip.compress(tar_of()))
        case "zstd":
            path.write_bytes(zstandard.compress(tar_of()))
        case "archive":
            path.write_bytes(tar_of())
        case "directory":
            write_directory(path)
    if request.param.startswith("sealed"):
        seal_path(keys, path, tmp_path / "x.sealed")
        return str(tmp_path / "x.sealed")
    return str(path)


def test_every_source_gives_names_sizes_roles_and_contents(anything, access):
    with open_source(anything, access) as source:
        assert sorted(source.names()) == sorted(FILES)
        for name, data in FILES.items():
            assert source.exists(name)
            assert not source.withheld(name)
            assert source.size(name) == len(data)
            assert source.read(name) == data
            assert source.pread(name, 2, 5) == data[2:7]
            assert b"".join(bytes(c) for c in source.chunks(name)) == data
        assert source.role("checkpoint/pstree.img") is Role.METADATA
        assert source.role("checkpoint/core-1.img") is Role.MEMORY


@pytest.mark.parametrize(
    ("offset", "size"),
    [
        (0, 0),
        (1, 1),
        (1024 * 1024 - 1, 2),
        (4096, 2 * 1024 * 1024),
        (len(BIG) - 3, 99),
        (1 << 40, 5),
    ],
)
def test_any_range_of_a_large_object_can_be_read_in_any_order(anything, access, offset, size):
    with open_source(anything, access) as source:
        for at, length in ((offset, size), (0, 7), (offset, size)):
            assert source.pread("checkpoint/pages-1.img", at, length) == BIG[at : at + length]
            pieces = source.chunks("checkpoint/pages-1.img", at, length)
            assert b"".join(bytes(c) for c in pieces) == BIG[at : at + length]


def test_two_readers_of_one_source_do_not_disturb_each_other(anything, access):
    with open_source(anything, access) as source:
        one, two = bytearray(), bytearray()
        first, second = (source.chunks("checkpoint/pages-1.img", at) for at in (0, 5000))
        for a, b in zip(first, second, strict=False):
            one += a
            two += b
        assert bytes(one) == BIG[: len(one)]
        assert bytes(two) == BIG[5000 : 5000 + len(two)]


def test_what_is_not_there_or_too_large_is_named(anything, access):
    with open_source(anything, access) as source:
        assert not source.exists("checkpoint/mm-1.img")
        with pytest.raises(FileError, match=r"mm-1\.img"):
            source.read("checkpoint/mm-1.img")
        with pytest.raises(FileError, match=r"pages-1.img is larger than 1000 bytes"):
            source.read("checkpoint/pages-1.img", 1000)


def test_the_images_of_an_archive_are_found(anything, access):
    with open_source(anything, access) as source:
        found = images(source)
        assert sorted(found.names()) == ["core-1.img", "empty.img", "pages-1.img", "pstree.img"]
        assert found.read("core-1.img") == b"core of one"
        assert found.where("core-1.img") == f"{anything}:checkpoint/core-1.img"
        assert found.parent() is None


def test_a_metadata_identity_is_told_whose_it_takes(tmp_path, keys, analyst):
    write_directory(tmp_path / "d")
    seal_path(keys, tmp_path / "d", tmp_path / "s.sealed", metadata=[analyst])
    with open_source(
        str(tmp_path / "s.sealed"), Access.of([analyst.identity], keys.policy)
    ) as source:
        assert source.names() == ["checkpoint/pstree.img"]
        assert source.read("checkpoint/pstree.img") == b"tree"
        assert source.withheld("checkpoint/core-1.img")
        assert not source.exists("checkpoint/core-1.img")
        assert source.withheld_objects()[1] >= len(BIG)
        with pytest.raises(IdentityError, match="metadata only") as caught:
            source.read("checkpoint/core-1.img")
        assert keys.fingerprint[:16] in caught.value.hint
        assert analyst.fingerprint[:16] not in caught.value.hint


def test_a_sealed_file_is_not_read_on_anybody_s_word(tmp_path, keys, analyst):
    write_directory(tmp_path / "d")
    seal_path(keys, tmp_path / "d", tmp_path / "s.sealed")
    with pytest.raises(PolicyError, match="no trusted signer"):
        open_source(str(tmp_path / "s.sealed"), Access.of([keys.identity], load_trust([])))
    with pytest.raises(PolicyError):
        open_source(str(tmp_path / "s.sealed"), Access.of([keys.identity], analyst.policy))
    with pytest.raises(IdentityError):
        open_source(str(tmp_path / "s.sealed"), Access.of([analyst.identity], keys.policy))


def test_damage_in_a_sealed_file_ends_the_reading(tmp_path, keys, access):
    write_directory(tmp_path / "d")
    seal_path(keys, tmp_path / "d", tmp_path / "s.sealed", compression="none")
    data = bytearray((tmp_path / "s.sealed").read_bytes())
    with open_source(str(tmp_path / "s.sealed"), access) as source:
        frame = source.opened.authentic.index.entry(len(source.opened.authentic.index) // 2)
        data[frame[1] + 100] ^= 1
        (tmp_path / "s.sealed").write_bytes(data)  # under the reader
        with pytest.raises(FileError):
            for name in source.names():
                for _ in source.chunks(name):
                    pass


def test_links_out_of_a_directory_are_not_followed(tmp_path, access):
    secret = tmp_path / "secret"
    secret.write_bytes(b"of the host")
    write_directory(tmp_path / "d", {"inventory.img": b"x"})
    (tmp_path / "d" / "core-1.img").symlink_to(secret)
    (tmp_path / "d" / "sub").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "d" / "core-2.img")
    with open_source(str(tmp_path / "d"), access) as source:
        with pytest.warns(OmissionWarning, match="core-"):
            assert source.names() == ["inventory.img"]
        for name in ("core-1.img", "core-2.img", "sub/secret", "../secret", str(secret)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", OmissionWarning)
                assert not source.exists(name)
            with pytest.raises(SealpointError):
                source.read(name)


def test_links_out_of_an_archive_are_not_followed(tmp_path, access):
    for target in ("/etc", "../../etc", "../nowhere", "../../x/checkpoint"):
        path = tmp_path / "x.tar"
        path.write_bytes(tar_of(links=[("checkpoint/parent", target)]))
        with open_source(str(path), access) as source:
            with pytest.raises(FileError, match="parent"):
                images(source).parent()


def chain_of_directories(path):
    for number in (1, 2, 3):
        write_directory(path / str(number), {"pagemap-7.img": b"%d" % number})
        if number > 1:
            (path / str(number) / "parent").symlink_to(f"../{number - 1}")
    (path / "3" / "pstree.img").write_bytes(b"tree")


def contents_of_chain(found):
    contents = []
    while found is not None:
        contents.append(found.read("pagemap-7.img"))
        found = found.parent()
    return contents


def test_parents_of_plain_directories_and_of_archives_are_followed(tmp_path, keys, access):
    chain_of_directories(tmp_path / "c")
    with open_source(str(tmp_path / "c" / "3"), access) as source:
        assert contents_of_chain(images(source)) == [b"3", b"2", b"1"]
    with tarfile.open(tmp_path / "c.tar", "w") as tar:
        tar.add(tmp_path / "c", ".")
    seal_path(keys, tmp_path / "c.tar", tmp_path / "c.sealed")
    seal_path(keys, tmp_path / "c", tmp_path / "d.sealed")
    for name in ("c.tar", "c.sealed", "d.sealed"):
        with open_source(str(tmp_path / name), access) as source:
            assert images(source).prefix == "3/"
            assert contents_of_chain(images(source)) == [b"3", b"2", b"1"]
            assert contents_of_chain(images(source, "2")) == [b"2", b"1"]


@pytest.mark.parametrize("target", [".", "../b", "../c"])
def test_parents_that_lead_in_a_circle_are_an_error(tmp_path, access, target):
    for name, to in (("a", target), ("b", "../a"), ("c", "../c")):
        write_directory(tmp_path / name, {"pstree.img": b""})
        (tmp_path / name / "parent").symlink_to(to)
    with open_source(str(tmp_path / "a"), access) as source:
        with pytest.raises(FileError, match="no end"):
            found = images(source)
            while found is not None:
                found = found.parent()


def seal_increment(keys, target, objects, parent=None, chain=None):
    """Returns the reference by which the next increment names it.  chain: id of the first, and number in the chain."""
    with OutputFile(str(target), force=True) as out:
        writer = SealedWriter(
            out, suite=Suite.AES_256_GCM, wrap=wrap_for([keys.recipient]), signing=keys.signing
        )
        builder = CheckpointBuilder(writer, compression="none")
        for name, data in objects.items():
            builder.add(name, data, attributes())
        builder.finish(parent=parent, chain=chain)
        out.commit()
    with open_source(str(target), Access.of([keys.identity], keys.policy)) as source:
        return source.checkpoint.authentic.reference


@pytest.fixture
def sealed_chain(tmp_path, keys):
    directory = tmp_path / "chain"
    directory.mkdir()
    parent = chain = None
    for number in (1, 2, 3):
        objects = {"pagemap-7.img": b"%d" % number, "pstree.img": b"tree"}
        target = directory / f"z{4 - number}.sealed"
        parent = seal_increment(keys, target, objects, parent, chain)
        chain = (chain[0] if chain else parent.checkpoint_id, number)
    return directory


def test_a_directory_of_sealed_increments_is_its_newest(sealed_chain, access):
    with open_source(str(sealed_chain), access) as source:
        assert source.label.endswith("z1.sealed")
        assert contents_of_chain(images(source)) == [b"3", b"2", b"1"]
    with open_source(str(sealed_chain / "z2.sealed"), access) as source:
        assert contents_of_chain(images(source)) == [b"2", b"1"]


def test_a_sealed_parent_is_also_found_behind_the_link_of_its_directory(
    sealed_chain, tmp_path, access
):
    for number in (1, 2, 3):
        directory = tmp_path / "dirs" / str(number)
        directory.mkdir(parents=True)
        shutil.copy(sealed_chain / f"z{4 - number}.sealed", directory / "inventory.img")
        if number > 1:
            (directory / "parent").symlink_to(f"../{number - 1}")
    with open_source(str(tmp_path / "dirs" / "3"), access) as source:
        assert contents_of_chain(images(source)) == [b"3", b"2", b"1"]


def test_a_missing_or_exchanged_parent_is_an_error(sealed_chain, keys, access):
    data = (sealed_chain / "z2.sealed").read_bytes()
    (sealed_chain / "z2.sealed").unlink()
    with open_source(str(sealed_chain / "z1.sealed"), access) as source:
        with pytest.raises(FileError, match="not beside it"):
            images(source).parent()
    other = seal_increment(keys, sealed_chain / "other.sealed", {"pstree.img": b"x"})
    assert other.checkpoint_id not in data[:64]
    forged = bytearray((sealed_chain / "other.sealed").read_bytes())
    forged[16:32] = data[16:32]
    (sealed_chain / "other.sealed").write_bytes(forged)
    with open_source(str(sealed_chain / "z1.sealed"), access) as source:
        with pytest.raises(SealpointError):
            images(source).parent()


def test_unrelated_sealed_files_in_a_directory_are_told_apart(tmp_path, keys, access):
    for name in ("a", "b"):
        seal_objects(keys, tmp_path / name, {"pstree.img": (b"x", attributes())})
    with pytest.raises(UsageError, match="several sealed files"):
        open_source(str(tmp_path), access)


def test_a_pod_has_a_dump_for_each_container(tmp_path, access):
    write_directory(tmp_path / "pod", {f"{c}/checkpoint/pstree.img": c.encode() for c in "ab"})
    with open_source(str(tmp_path / "pod"), access) as source:
        assert [s.prefix for s in image_sets(source)] == ["a/checkpoint/", "b/checkpoint/"]
        assert images(source, "b").read("pstree.img") == b"b"
        with pytest.raises(UsageError, match="several dumps: a/checkpoint, b/checkpoint"):
            images(source)
        with pytest.raises(UsageError):
            images(source, "c")


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress, bytes])
def test_damaged_archives_are_refused_by_name(tmp_path, access, compress):
    data = compress(tar_of())
    for broken in (data[: len(data) // 2], data[:2000] + bytes(64) + data[2064:-700]):
        path = tmp_path / "x.tar"
        path.write_bytes(broken)
        with pytest.raises(FileError, match=r"x\.tar"):
            open_source(str(path), access)


def test_what_is_no_checkpoint_is_refused(tmp_path, access):
    (tmp_path / "x").write_bytes(b"hello")
    with pytest.raises(UsageError, match="neither"):
        open_source(str(tmp_path / "x"), access)
    with pytest.raises(UsageError, match="does not exist"):
        open_source(str(tmp_path / "y"), access)
    (tmp_path / "d").mkdir()
    with open_source(str(tmp_path / "d"), access) as source:
        with pytest.raises(FileError, match="no CRIU images"):
            images(source)


def test_a_place_is_split_at_the_file_that_exists(tmp_path):
    for name in ("a.sealed", "b:c"):
        (tmp_path / name).write_bytes(b"")
    cases = {
        "a.sealed": ("a.sealed", ""),
        "a.sealed:core-1.img": ("a.sealed", "core-1.img"),
        "a.sealed:x:y": ("a.sealed", "x:y"),
        "b:c": ("b:c", ""),
        "b:c:core-1.img": ("b:c", "core-1.img"),
        "none:core-1.img": ("none:core-1.img", ""),
    }
    for text, (file, name) in cases.items():
        assert split_place(f"{tmp_path}/{text}") == (f"{tmp_path}/{file}", name)
    assert split_place("-:core-1.img") == ("-", "core-1.img")


def test_no_descriptor_is_left(anything, access, sealed_chain):
    before = len(os.listdir("/proc/self/fd"))
    for path in (anything, str(sealed_chain)):
        with open_source(path, access) as source:
            for name in source.names():
                for _ in source.chunks(name):
                    break
            images(source).parent()
    assert len(os.listdir("/proc/self/fd")) == before
