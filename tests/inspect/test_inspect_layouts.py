"""Every command that opens a checkpoint sees the same in every layout that a dump can lie in: one table.

A reader, or what makes a new file of an old one, must neither lack what lies beside a file nor call it damaged.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sealpoint.checkpoint.opening import separate_pages
from sealpoint.checkpoint.opening.opener import OpenedCheckpoint
from tests.inspect.layouts import IMAGES, NAMES, WHOLE, Layouts, seal_beside

PAGES = [name for name in IMAGES if name.startswith("pages-")]


@pytest.fixture(scope="module")
def layouts(tmp_path_factory, keys):
    return Layouts(tmp_path_factory.mktemp("layouts"), keys)


@pytest.fixture
def sealing(keys):
    return ["-r", keys.recipient_path, "--sign", keys.signer_path]


class Run:
    """Commands on one layout, from an empty directory."""

    def __init__(self, run_cli, file, options, opening, sealing) -> None:
        self.run_cli, self.file, self.options = run_cli, file, [*options, *opening]
        self.opening, self.sealing = opening, sealing

    def __call__(self, *arguments, plain=False) -> str:
        done = self.run_cli(*arguments, *([] if plain else self.options))
        assert done.code == 0, (arguments, done.err)
        return done.out

    def json(self, *arguments) -> object:
        return json.loads(self(*arguments, "--json"))


def contents(path, keys) -> dict[str, bytes]:
    """Of a sealed file that needs no other."""
    with OpenedCheckpoint.open(
        str(path), trust=keys.policy, identities=[keys.identity]
    ) as checkpoint:
        assert len(checkpoint.links) == 1
        assert separate_pages.reference(checkpoint.own()) is None
        assert checkpoint.own().authentic.index.references == 0
        return {n: i.read() for n, i in checkpoint.images.items() if n in IMAGES}


def secrets(run, keys):
    found = run.json("secrets", run.file)["findings"]
    assert found
    return sorted((f["kind"], f.get("pid", 0), f.get("address", "")) for f in found)


def memory_sizes(run, keys):
    return run.json("memparse", run.file)


def memory_dump(run, keys):
    return [run("memparse", run.file, "--pid", pid) for pid in (10, 11, 12)]


def memory_search(run, keys):
    found = run.json("memparse", run.file, "--search", "t0psecret")
    assert len(found) == 3
    return found


def coredump(run, keys):
    run("coredump", run.file, "--pid", "10", "-o", "core", "--force")
    return Path("core").read_bytes()


def report(run, keys):
    """The page differs in what it says of the file; it must know all memory and complain of nothing."""
    run("report", run.file, "-o", "report.html", "--force")
    text = Path("report.html").read_text()
    assert "cannot be shown" not in text
    assert "not complete" not in text
    return text.count("task11")


def tree(run, keys):
    return json.loads(run("inspect", "--format", "json", "--ps-tree", run.file))[0]["process_tree"]


def environment(run, keys):
    """It lies in memory pages."""
    out = run("inspect", run.file, "--ps-tree-env")
    assert "TOKEN=t0psecret" in out
    assert "--secret=hunter2" in run("inspect", run.file, "--ps-tree-cmd")
    return out.count("t0psecret")


def diff(run, keys):
    """Against the whole one."""
    whole = run.file.parent.parent / "whole" / WHOLE
    options = [o for o in run.options if o not in run.opening]
    done = run.run_cli("diff", whole, run.file, "--json", *run.opening, *options)
    assert done.code == 0, done.err
    return json.loads(done.out)["tasks"]


def crit_image(run, keys):
    return [run("crit", "decode", f"{run.file}:{name}") for name in ("core-10.img", "mm-11.img")]


def crit_explored(run, keys):
    return [run("crit", "x", run.file, what) for what in ("ps", "mems")]


def verified(run, keys):
    parents = "--parents" in run.options  # it looks at one file
    options = run.opening if parents else run.options
    done = json.loads(run("verify", run.file, "--json", *options, plain=True))
    assert done["chunks_authenticated"] is True
    assert (
        done["pages_checked"] is done["pages_elsewhere"] is (run.file.parent.name == "pages beside")
    )
    return True


def flattened(run, keys):
    run("flatten", run.file, "-o", "flat.sealed", "--force", *run.sealing)
    return contents("flat.sealed", keys)


def added_to_a_store(run, keys):
    run.run_cli("store", "init", "other", "--tenant-key", "other.key")
    run(
        "store", "add", "other", run.file, "--force", "--tenant-key", "other.key", *run.sealing
    )  # fmt: skip
    name = Path("other") / WHOLE
    with OpenedCheckpoint.open(
        str(name), trust=keys.policy, identities=[keys.identity]
    ) as checkpoint:
        return {n: checkpoint.images[n].read() for n in PAGES}


def api(run, keys):
    place = run.file.parent / "elsewhere"
    more = [str(place)] if place.exists() else []
    with OpenedCheckpoint.open(
        str(run.file), trust=[keys.trust_path], identities=[keys.identity],
        parents=more if "--parents" in run.options else (), stores=more if "--store" in run.options else (),
    ) as checkpoint:  # fmt: skip
        checkpoint.require_chunks()
        checkpoint.verify()
        assert [(t.pid, t.parent) for t in checkpoint.tree()] == [(10, 0), (11, 10), (12, 11)]
        return {n: checkpoint.images[n].read() for n in IMAGES if not n.startswith("pagemap-")}


READERS = [
    secrets, memory_sizes, memory_dump, memory_search, coredump, report, tree, environment, diff, crit_image,
    crit_explored, verified, flattened, added_to_a_store, api,
]  # fmt: skip


@pytest.mark.parametrize("layout", [n for n in NAMES if n != "whole"])
@pytest.mark.parametrize("reader", READERS, ids=lambda r: r.__name__)
def test_a_command_sees_the_same_in_every_layout(
    layouts, layout, reader, run_cli, opening, sealing, keys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    seen = []
    for name in ("whole", layout):
        file, options = layouts.make(name)
        seen.append(reader(Run(run_cli, file, options, opening, sealing), keys))
    if seen[0] and isinstance(seen[0], dict) and "pages-10.img" in seen[0]:
        seen = [{n: d for n, d in s.items() if not n.startswith("pagemap-")} for s in seen]
        assert seen[1] == {n: IMAGES[n] for n in seen[0]}
    assert seen[0] == seen[1]
    assert seen[0] not in ("", None)


@pytest.mark.criu
@pytest.mark.parametrize("layout", NAMES)
def test_a_mount_shows_every_layout_whole(layouts, layout, opening, tmp_path):
    file, options = layouts.make(layout)
    point = tmp_path / "point"
    point.mkdir()
    environment = os.environ | {"XDG_CONFIG_HOME": str(tmp_path)}
    command = [sys.executable, "-c", "from sealpoint.cli import main; main()"]
    done = subprocess.run(
        [*command, "mount", str(file), str(point), *options, *opening],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    try:
        seen = {n: (point / n).read_bytes() for n in IMAGES if not n.startswith("pagemap-")}
    finally:
        subprocess.run([*command, "umount", str(point)], env=environment, check=True)
    assert seen == {n: d for n, d in IMAGES.items() if n in seen}


# What is missing


def test_what_lies_beside_is_missed_when_it_is_needed_and_not_before(
    run_cli, opening, keys, tmp_path
):
    file = tmp_path / WHOLE
    beside = seal_beside(keys, file, IMAGES)
    beside.unlink()
    assert run_cli("inspect", "--ps-tree", file, *opening).code == 0
    assert run_cli("crit", "show", f"{file}:core-10.img", *opening).code == 0
    verified = run_cli("verify", file, "--json", *opening)
    assert (verified.code, json.loads(verified.out)["pages_checked"]) == (0, False)
    assert beside.name in verified.err
    for command in (
        ["secrets", file],
        ["memparse", file, "--pid", "10"],
        ["coredump", file, "--pid", "10", "-o", tmp_path / "core"],
        ["open", file, "-o", tmp_path / "plain"],
        ["flatten", file, "-o", tmp_path / "f", "-r", keys.recipient_path, "--sign", keys.signer_path],
    ):  # fmt: skip
        done = run_cli(*command, *opening)
        assert done.code == 3, command
        assert beside.name in done.err, command
    assert sorted(p.name for p in tmp_path.iterdir() if "no-conf" not in p.name) == [WHOLE]


def test_a_pages_file_of_another_checkpoint_is_never_taken(run_cli, opening, keys, tmp_path):
    """Whole, of the same signer, under the right name."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    beside = seal_beside(keys, tmp_path / "a" / WHOLE, IMAGES)
    other = seal_beside(keys, tmp_path / "b" / WHOLE, IMAGES | {"pages-10.img": bytes(5 * 4096)})
    other.rename(beside)
    for command in (["secrets"], ["inspect", "--ps-tree"], ["verify"], ["memparse"]):
        done = run_cli(*command, tmp_path / "a" / WHOLE, *opening)
        assert done.code == 3, command
        assert "is not the pages file of this checkpoint" in done.err


def test_what_is_rewritten_holds_the_pages_that_lay_beside(
    run_cli, opening, sealing, keys, tmp_path
):
    file = tmp_path / WHOLE
    seal_beside(keys, file, IMAGES)
    decoded = run_cli(
        "crit", "decode", f"{file}:pstree.img", "-o", tmp_path / "tree.json", *opening
    )
    assert decoded.code == 0, decoded.err
    done = run_cli(
        *("crit", "encode", tmp_path / "tree.json", "--into", f"{file}:pstree.img"),
        *("-o", tmp_path / "whole", *opening, *sealing),
    )
    assert done.code == 0, done.err
    assert contents(tmp_path / "whole", keys).keys() >= set(PAGES)
