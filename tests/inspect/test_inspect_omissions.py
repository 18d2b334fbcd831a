"""What a reader leaves out is said: old layouts are read, and limits, links and what cannot be read are named."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from sealpoint.checkpoint.tables import summary
from sealpoint.errors import OmissionWarning
from sealpoint.inspect import (
    coredump,
    descriptors,
    file_table,
    inspection,
    listing,
    messages,
    recode,
    report,
    secrets as secret_survey,
    tasks,
)
from tests.checkpoint.chain_helpers import seal_images
from tests.checkpoint.checkpoint_helpers import seal_path
from tests.inspect import small_dump
from tests.inspect.small_dump import PAGE, image
from tests.inspect.test_inspect_coredump import core_image

MEMBERS = {member: (name, magic) for name, (magic, member) in file_table.OLDER.items()}


def older(files: dict[str, bytes]) -> dict[str, bytes]:
    """The same dump as old versions of CRIU wrote it: an image for each kind of file, and one for mappings."""
    files = dict(files)
    areas = [("vma_entry", area) for area in small_dump._AREAS]
    for pid, _ in small_dump.TREE:
        name = f"mm-{pid}.img"
        mm = messages.message_class("mm_entry").FromString(files[name][12:])
        assert len(mm.vmas) == len(areas)
        mm.ClearField("vmas")
        data = mm.SerializePartialToString()
        files[name] = image("MM") + len(data).to_bytes(4, "little") + data
        files[f"vmas-{pid}.img"] = image("VMAS", *areas)
    del files["files.img"]
    kinds: dict[str, list] = {}
    for entry in small_dump._FILES:
        (member,) = entry.keys() & MEMBERS.keys()
        kinds.setdefault(member, []).append(entry[member])
    for member, entries in kinds.items():
        name, magic = MEMBERS[member]
        message = messages.table()["images"][magic][0]
        files[name] = image(magic, *((message, entry) for entry in entries))
    return files


@pytest.fixture
def newer():
    """Without the pages that this dump has and its mappings do not."""
    return small_dump.a_tree()


def write(directory, files):
    directory.mkdir(exist_ok=True)
    for name, data in files.items():
        (directory / name).write_bytes(data)
    return directory


ASKED = [
    ("inspect", "--files", "--sockets", "--json"),
    ("inspect", "--all", "--json"),
    ("crit", "x", "fds"),
    ("crit", "x", "mems"),
    ("crit", "x", "rss"),
    ("memparse", "--json"),
]


@pytest.mark.parametrize("asked", ASKED, ids=" ".join)
@pytest.mark.parametrize("form", ["directory", "sealed"])
def test_images_of_before_files_img_tell_the_same(
    run_cli, opening, tmp_path, keys, newer, asked, form
) -> None:
    told = []
    for name, files in (("new", newer), ("old", older(newer))):
        directory = tmp_path / name
        directory.mkdir()
        place, options = directory / "dump", []
        if form == "sealed":
            seal_images(keys, place, files)
            options = opening
        else:
            write(place, files)
        command, *more = asked
        words = ["crit", "x", place, more[1]] if command == "crit" else [command, place, *more]
        done = run_cli(*words, *options)
        assert done.code == 0, done.err
        assert "no image" not in done.err
        told.append(done.out)
    if asked[0] == "inspect":
        values = [json.loads(text)[0] for text in told]
        for value in values:
            value.pop("checkpoint_size")
            value.pop("sealed", None)
        assert values[0] == values[1]
        assert values[0]["sockets"][0]["open_sockets"]
    else:
        assert told[0] == told[1]


def test_a_report_of_older_images_names_the_files(tmp_path, access, newer) -> None:
    from sealpoint.inspect.finding import open_source
    from sealpoint.inspect.source import images

    seen = []
    for name, files in (("new", newer), ("old", older(newer))):
        with open_source(str(write(tmp_path / name, files)), access) as source:
            found = report.collect(images(source))
            seen.append([p.files for p in found.processes])
    assert seen[0] == seen[1]
    assert seen[0][0]


def test_where_no_image_names_files_every_reader_says_so(run_cli, tmp_path, newer) -> None:
    del newer["files.img"]
    place = write(tmp_path / "none", newer)
    for words in (
        ["inspect", place, "--files"],
        ["crit", "x", place, "fds"],
        ["diff", place, place, "--files"],
    ):
        done = run_cli(*words)
        assert "no image that names open files" in done.err, words
    assert run_cli("report", place, "-o", tmp_path / "page.html").code == 0
    assert "no image that names open files" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("gone", ["ids", "fdinfo"])
def test_a_task_without_its_table_is_said_but_not_a_zombie(run_cli, tmp_path, newer, gone) -> None:
    del newer["fdinfo-11.img"]
    if gone == "ids":
        del newer["ids-11.img"]
    dead = {"mtype": 1, "tc": {"task_state": 6, "comm": b"zombie"}}
    newer["core-12.img"] = image("CORE", ("core_entry", dead))
    for kind in ("ids", "fdinfo", "fs", "mm"):
        del newer[f"{kind}-12.img"]
    done = run_cli("inspect", write(tmp_path / "d", newer), "--files")
    assert done.code == 0
    assert "what process 11 had open" in done.err
    assert "process 12" not in done.err


def test_tables_named_by_the_process_are_read(run_cli, tmp_path, newer) -> None:
    before = run_cli("inspect", write(tmp_path / "a", newer), "--files", "--json").out
    for pid, _ in small_dump.TREE:
        del newer[f"ids-{pid}.img"]
    after = run_cli("inspect", write(tmp_path / "b", newer), "--files", "--json")
    assert after.err == ""
    assert json.loads(after.out)[0]["file_descriptors"] == json.loads(before)[0]["file_descriptors"]


def test_with_a_metadata_identity_older_images_are_said_to_be_withheld(
    run_cli, tmp_path, keys, analyst, newer
) -> None:
    for name, files in (("old", older(newer)), ("new", newer)):
        plain = write(tmp_path / f"{name}-plain", files)
        seal_path(keys, plain, tmp_path / name, metadata=[analyst])
    options = ["-i", analyst.identity_path, "--trust", keys.trust_path]
    assert (
        "cannot be named with this identity"
        in run_cli("inspect", tmp_path / "old", "--files", *options).err
    )
    assert "cannot be named" not in run_cli("inspect", tmp_path / "new", "--files", *options).err


def _environment(files, size):
    """Task 10 with an environment of `size` bytes."""
    start, variable = 0x10000, b"NAME%06d=" + b"v" * 1000 + b"\0"
    data = b"".join(variable % n for n in range(size // len(variable) + 1))[:size]
    pages = -(-size // PAGE)
    area = {"start": start, "end": start + pages * PAGE, "prot": 3, "flags": 34, "status": 513,
            "shmid": 0, "pgoff": 0, "fd": -1}  # fmt: skip
    memory = {"exe_file_id": 1, "vmas": [area], "mm_arg_start": 0, "mm_arg_end": 0,
              "mm_env_start": start, "mm_env_end": start + size}  # fmt: skip
    run = {"vaddr": start, "compat_nr_pages": pages, "flags": 4}
    files["mm-10.img"] = image("MM", ("mm_entry", memory))
    files["pagemap-10.img"] = image(
        "PAGEMAP", ("pagemap_head", {"pages_id": 10}), ("pagemap_entry", run)
    )
    files["pages-10.img"] = data.ljust(pages * PAGE, b"\0")
    return sum(b"=" in word for word in data.split(b"\0"))


@pytest.mark.parametrize("mebibytes", [3, 9])
def test_an_environment_is_shown_whole_or_it_is_said(run_cli, tmp_path, newer, mebibytes) -> None:
    whole = _environment(newer, mebibytes << 20)
    done = run_cli("inspect", write(tmp_path / "d", newer), "--ps-tree-env", "--json")
    assert done.code == 0
    shown = len(json.loads(done.out)[0]["process_tree"][0]["environment_variables"])
    if mebibytes == 3:
        assert (shown, done.err) == (whole, "")
    else:
        assert 0 < shown < whole
        assert "only the first 8 MiB" in done.err
        survey = run_cli("secrets", tmp_path / "d")
        assert "first 8 MiB" in survey.err


def test_an_environment_that_is_not_stored_is_said(run_cli, tmp_path, newer) -> None:
    _environment(newer, 1 << 20)
    run = {"vaddr": 0x10000, "compat_nr_pages": 1, "flags": 4}
    newer["pagemap-10.img"] = image(
        "PAGEMAP", ("pagemap_head", {"pages_id": 10}), ("pagemap_entry", run)
    )
    done = run_cli("inspect", write(tmp_path / "d", newer), "--ps-tree-env")
    assert "are stored" in done.err


@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_what_is_no_file_in_a_directory_is_said(run_cli, tmp_path, newer, kind) -> None:
    place = write(tmp_path / "d", newer)
    (place / "files.img").rename(tmp_path / "files.img")
    if kind == "link":
        (place / "files.img").symlink_to(tmp_path / "files.img")
    else:
        os.mkfifo(place / "files.img")
    for command in ("show", "inspect"):
        done = run_cli(command, place, *(["--files"] if command == "inspect" else []))
        assert "files.img is not a regular file" in done.err


def test_links_in_an_archive_are_said(run_cli, tmp_path, newer) -> None:
    place = write(tmp_path / "d", newer)
    (place / "files.img").unlink()
    (place / "files.img").symlink_to("elsewhere")
    archive = tmp_path / "a.tar"
    subprocess.run(["tar", "-C", place, "-cf", archive, *sorted(newer)], check=True)
    assert "symbolic link" in run_cli("inspect", archive, "--files").err


def test_what_is_no_json_is_said(run_cli, tmp_path) -> None:
    files = {n: d for n, d in small_dump.a_container().items() if "/" not in n}
    files["spec.dump"] = b"{"
    place = write(tmp_path / "d", files)
    write(place / "checkpoint", small_dump.a_tree())
    assert "spec.dump: is not JSON" in run_cli("show", place).err


LIMITS = [
    (file_table, "_MAX_FDS", ("inspect", "--files"), "only the first 2 descriptors"),
    (inspection, "_MAX_ARGUMENTS", ("inspect", "--ps-tree-cmd"), "of the strings"),
    (secret_survey, "_MOST_ENVIRONMENT", ("secrets",), "names are looked at"),
]


@pytest.mark.parametrize(("module", "name", "asked", "said"), LIMITS, ids=lambda x: str(x)[-40:])
def test_every_limit_that_cuts_is_said(
    run_cli, monkeypatch, tmp_path, newer, module, name, asked, said
) -> None:
    monkeypatch.setattr(module, name, 2)
    done = run_cli(asked[0], write(tmp_path / "d", newer), *asked[1:])
    assert done.code == 0, done.err
    assert said in done.err


def test_what_a_core_or_a_recoding_leaves_out_is_said(
    run_cli, monkeypatch, tmp_path, newer
) -> None:
    newer["core-10.img"] = core_image(10)
    place = write(tmp_path / "d", newer)
    whole = run_cli("coredump", place, "--pid", "10", "-o", tmp_path / "core")
    assert "lacks" not in whole.err
    monkeypatch.setattr(coredump, "_MAX_HOLE", -(2**40))
    done = run_cli("coredump", place, "--pid", "10", "-o", tmp_path / "core", "--force")
    assert done.code == 0, done.err
    assert "the core lacks the pages of 0x7000-0x9000" in done.err
    monkeypatch.setattr(recode, "_MAX_RECODED", 20)
    assert "files.img is larger than 20 bytes" in run_cli("crit", "recode", place).err


def test_threads_entries_and_links_of_a_chain_beyond_the_limit_are_said(
    run_cli, monkeypatch, tmp_path, newer
) -> None:
    (tmp_path / "list").mkdir()
    for name in ("a", "b", "c"):
        write(tmp_path / "list" / name, newer)
    monkeypatch.setattr(listing, "_MAX_ENTRIES", 2)
    done = run_cli("list", tmp_path / "list")
    assert "has 3 entries" in done.err
    entry = {"pid": 10, "ppid": 0, "pgid": 10, "sid": 10, "threads": [10, 20, 30]}
    newer["pstree.img"] = image("PSTREE", ("pstree_entry", entry))
    monkeypatch.setattr(tasks, "_MAX_TASKS", 2)
    done = run_cli("inspect", write(tmp_path / "threads", newer), "--ps-tree")
    assert "only the first 2 threads of process 10" in done.err


def test_a_summary_that_ends_early_is_said(
    run_cli, opening, monkeypatch, tmp_path, keys, newer
) -> None:
    monkeypatch.setattr(summary, "_MAX_TASKS", 2)
    seal_images(keys, tmp_path / "sealed", newer)
    done = run_cli("info", tmp_path / "sealed", *opening)
    assert done.code == 0
    assert "the summary of the processes ends after 2" in done.err


def test_an_omission_is_said_once_and_whatever_python_was_told_of_warnings(tmp_path, newer) -> None:
    del newer["files.img"]
    place = write(tmp_path / "d", newer)
    for words in (["-W", "ignore"], ["-W", "error"], []):
        done = subprocess.run(
            [sys.executable, *words, "-c", "from sealpoint.cli import main; main()", "inspect", place,
             "--files", "--sockets"],
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("no image that names open files") == 1


def test_a_library_gets_a_warning(tmp_path, access, newer) -> None:
    from sealpoint.inspect.finding import open_source
    from sealpoint.inspect.source import images

    del newer["files.img"]
    with open_source(str(write(tmp_path / "d", newer)), access) as source:
        with pytest.warns(OmissionWarning, match="names open files"):
            descriptors.Descriptors(images(source))


def test_other_dumps_beside_the_one_that_is_shown_are_named(run_cli, tmp_path, newer) -> None:
    place = write(tmp_path / "d", newer)
    write(place / "another", newer)
    done = run_cli("inspect", place, "--ps-tree")
    assert done.code == 0
    assert f"{place}:another/" in done.err
    assert run_cli("inspect", f"{place}:another", "--ps-tree").err == ""
