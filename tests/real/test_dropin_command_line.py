"""`criu dump` and `criu restore` typed at the drop-in: CRIU's own command line, status and files, but sealed."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sealpoint.state import soft_dirty
from tests.real import harness, leaks, sealed, stock_criu
from tests.real.typed import DropIn

StartWorkload = Callable[..., harness.Workload]


@pytest.mark.alone
@pytest.mark.parametrize("kind", ["secret", "ipc", "tree"])
def test_a_tree_dumped_as_typed_is_sealed_and_restored_as_typed(
    workload: StartWorkload, dropin: DropIn, tmp_path: Path, kind: str
) -> None:
    running = workload(kind)
    before = running.assert_intact()
    images = tmp_path / "images"
    images.mkdir()
    with leaks.FileWatcher(running.needles, [tmp_path], ignore=[running.dir]) as watcher:
        status, said = dropin.run("dump", "-t", running.pid, "-D", images, "-o", "dump.log", "-vv")
        assert status == 0, said
        running.wait_gone()
        assert sorted(os.listdir(images)) == ["dump.log", "inventory.img", "stats-dump"]
        status, said = dropin.run("restore", "-dvv", "-o", "restore.log", cwd=images)
        assert status == 0, said
    running.assert_continues(before)
    assert watcher.leaks() == []


def test_a_tree_left_running_can_be_dumped_again_over_the_old_file(
    workload: StartWorkload, dropin: DropIn, tmp_path: Path
) -> None:
    running = workload("secret")
    images = tmp_path / "images"
    images.mkdir()
    for _ in range(2):
        status, said = dropin.run("dump", "-Rt", running.pid, f"--images-dir={images}")
        assert status == 0, said
    running.assert_intact()
    assert not list(images.glob("*.failed"))


def test_a_failed_dump_keeps_the_older_file_and_the_tree(
    workload: StartWorkload, dropin: DropIn, tmp_path: Path
) -> None:
    running = workload("secret")
    images = tmp_path / "images"
    images.mkdir()
    assert dropin.run("dump", "-R", "-t", running.pid, "-D", images)[0] == 0
    older = (images / "inventory.img").read_bytes()
    script = tmp_path / "refuse.sh"
    script.write_text('#!/bin/sh\n[ "$CRTOOLS_SCRIPT_ACTION" != pre-dump ]\n')
    script.chmod(0o755)
    status, _ = dropin.run("dump", "-t", running.pid, "-D", images, "--action-script", script)
    assert status != 0
    assert (images / "inventory.img").read_bytes() == older
    running.assert_intact()


def test_a_script_that_refuses_after_the_seal_leaves_nothing_to_be_taken_for_a_checkpoint(
    workload: StartWorkload, dropin: DropIn, tmp_path: Path
) -> None:
    running = workload("secret")
    images = tmp_path / "images"
    images.mkdir()
    script = tmp_path / "refuse.sh"
    script.write_text('#!/bin/sh\n[ "$CRTOOLS_SCRIPT_ACTION" != post-dump ]\n')
    script.chmod(0o755)
    status, _ = dropin.run("dump", "-t", running.pid, "-D", images, "--action-script", script)
    assert status != 0
    running.assert_intact()
    dropin.settle()
    assert not (images / "inventory.img").exists()


def test_whoever_ignores_the_ends_of_children_hears_how_criu_ended_all_the_same(
    workload: StartWorkload, dropin: DropIn, tmp_path: Path
) -> None:
    """Where SIGCHLD is ignored the kernel keeps no exit status, and the programs that are started inherit that."""
    running = workload("secret")
    before = running.assert_intact()
    images, script = tmp_path / "images", tmp_path / "refuse"
    images.mkdir()
    script.write_text('#!/bin/sh\n[ "$CRTOOLS_SCRIPT_ACTION" != post-dump ]\n')
    script.chmod(0o755)

    def call(*arguments: object) -> int:
        usual = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        try:
            process = dropin.start(*arguments, log=tmp_path / "log")
        finally:
            signal.signal(signal.SIGCHLD, usual)
        return process.wait(60)

    refused = ("dump", "-t", running.pid, "-D", images, "--action-script", script)
    assert call(*refused) not in (0, None)
    dropin.settle()
    running.assert_continues(before)
    assert call("dump", "-t", running.pid, "-D", images) == 0, (tmp_path / "log").read_text()
    running.wait_gone()
    assert call("restore", "-d", "-D", images) == 0, (tmp_path / "log").read_text()
    running.assert_continues(before)


def test_a_plain_directory_is_not_restored(
    workload: StartWorkload, dropin: DropIn, criu: Path, ram_dir: Path
) -> None:
    running = workload("secret")
    stock_criu.plain_dump(criu, running, ram_dir)
    status, said = dropin.run("restore", "-d", "-D", ram_dir)
    assert status == 1
    assert "not sealed" in said
    assert running.remains() == []


def test_a_plain_directory_is_restored_with_a_warning_where_the_policy_allows_it(
    workload: StartWorkload, dropin: DropIn, criu: Path, ram_dir: Path
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    stock_criu.plain_dump(criu, running, ram_dir)
    running.wait_gone()
    dropin.configure(allow_plain_images="true")
    status, said = dropin.run("restore", "-d", "-D", ram_dir)
    assert status == 0, said
    assert "warning: the images are not sealed" in said
    running.assert_continues(before)


@pytest.mark.parametrize("place", [0.3, 0.5, 0.9])
def test_a_damaged_file_is_not_restored(
    workload: StartWorkload, dropin: DropIn, tmp_path: Path, place: float
) -> None:
    running = workload("secret")
    images = tmp_path / "images"
    images.mkdir()
    assert dropin.run("dump", "-t", running.pid, "-D", images)[0] == 0
    running.wait_gone()
    file = images / "inventory.img"
    data = bytearray(file.read_bytes())
    data[int(len(data) * place)] ^= 1
    file.write_bytes(data)
    status, said = dropin.run("restore", "-d", "-D", images)
    assert status == 1, said
    sealed.wait_until(lambda: running.remains() == [], "nothing of the tree is left", 30)


@pytest.mark.parametrize(
    "arguments",
    [
        ("page-server", "--port", "1", "--lazy-pages"),
        ("lazy-pages", "--page-server"),
        ("dump", "-t", "1", "--page-serv"),
        ("dump", "-t", "1", "--stream"),
        ("dump", "-t", "1", "--lazy-pages"),
        ("dump", "-t", "1", "--images", "elsewhere"),
        ("restore", "--config=x"),
    ],
    ids=" ".join,
)
def test_what_would_lead_memory_past_the_seal_is_refused(
    dropin: DropIn, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    status, said = dropin.run(*arguments, cwd=tmp_path)
    assert status == 1
    assert said.startswith("criu (sealpoint): ")
    assert len(said.splitlines()) == 1


def test_everything_else_is_the_real_one(dropin: DropIn, criu: Path) -> None:
    for arguments in (["--version"], ["check"], ["--help"]):
        plain = subprocess.run([criu, *arguments], capture_output=True, text=True)
        status, said = dropin.run(*arguments)
        assert status == plain.returncode
        assert said == plain.stdout + plain.stderr


def test_configuration_errors_name_file_key_and_line(
    workload: StartWorkload, dropin: DropIn, tmp_path: Path
) -> None:
    running = workload("secret")
    config = dropin.config
    config.write_text(config.read_text() + 'recipiens = ["x"]\n')
    status, said = dropin.run("dump", "-t", running.pid, "-D", tmp_path)
    assert status == 1
    assert f"{config}, line 6: recipiens" in said
    running.assert_intact()


def test_killing_the_helper_in_a_dump_leaves_the_tree_as_it_was(
    workload: StartWorkload, dropin: DropIn, tmp_path: Path
) -> None:
    running = workload("memory", "--mib", "64")
    images = tmp_path / "images"
    images.mkdir()
    script = tmp_path / "kill.sh"
    script.write_text(
        '#!/bin/sh\n[ "$CRTOOLS_SCRIPT_ACTION" = pre-dump ] || exit 0\n'
        f"for p in $(pgrep -f {dropin.path}); do\n"
        '  [ "$(ps -o sid= -p $p | tr -d " ")" != "$p" ] || kill -9 $p\ndone\nexit 0\n'
    )
    script.chmod(0o755)
    status, said = dropin.run("dump", "-t", running.pid, "-D", images, "--action-script", script)
    assert status != 0, said
    assert not (images / "inventory.img").exists()
    running.assert_intact()


def test_interrupting_a_dump_leaves_the_tree_as_it_was(
    workload: StartWorkload, dropin: DropIn, tmp_path: Path
) -> None:
    running = workload("memory", "--mib", "256")
    images = tmp_path / "images"
    images.mkdir()
    process = subprocess.Popen(
        [str(dropin.path), "dump", "-t", str(running.pid), "-D", str(images), "-o", "dump.log"],
        env=dropin.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    sealed.wait_until((images / "dump.log").exists, "CRIU has started")
    process.send_signal(signal.SIGTERM)
    code = process.wait(60)
    dropin.settle()
    if code == 0:  # it was done already
        return
    assert not (images / "inventory.img").exists()
    running.assert_intact()


# --- increments ----------------------------------------------------------------------------------------


@pytest.mark.skipif(soft_dirty.supported(), reason="this kernel tracks changes of memory")
def test_a_pre_dump_on_a_kernel_that_cannot_says_so_and_leaves_the_process_running(
    workload: StartWorkload, dropin: DropIn, tmp_path: Path
) -> None:
    running = workload("secret")
    images = tmp_path / "images"
    images.mkdir()
    status, said = dropin.run("pre-dump", "-t", running.pid, "-D", images)
    assert status == 1
    assert "CONFIG_MEM_SOFT_DIRTY" in said
    assert len(said.splitlines()) == 1
    running.assert_intact()
    assert os.listdir(images) == []


def test_a_parent_that_cannot_be_continued_costs_a_full_dump_and_it_says_so(
    workload: StartWorkload, dropin: DropIn, tmp_path: Path
) -> None:
    running = workload("secret")
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    assert dropin.run("dump", "-R", "-t", running.pid, "-D", first)[0] == 0
    before = running.assert_intact()
    status, said = dropin.run(
        "dump", "-t", running.pid, "-D", second, "--prev-images-dir", "../first"
    )
    assert status == 0, said
    assert "Warn  (sealpoint): a full dump is made" in said
    running.wait_gone()
    status, said = dropin.run("restore", "-d", "-D", second)
    assert status == 0, said
    running.assert_continues(before)


def test_a_parent_directory_that_is_not_there_fails_the_dump_as_with_criu(
    workload: StartWorkload, dropin: DropIn, tmp_path: Path
) -> None:
    running = workload("secret")
    status, said = dropin.run(
        "dump", "-t", running.pid, "-D", tmp_path, "--prev-images-dir", "no/such"
    )
    assert status == 1
    assert "the parent images directory no/such cannot be opened" in said
    running.assert_intact()


def test_auto_dedup_without_parents_changes_nothing(
    workload: StartWorkload, dropin: DropIn, tmp_path: Path
) -> None:
    """It runs CRIU as a child rather than in its own place; statuses stay those of CRIU."""
    running = workload("secret")
    images = tmp_path / "images"
    images.mkdir()
    before = running.assert_intact()
    status, said = dropin.run("dump", "--auto-dedup", "-t", running.pid, "-D", images)
    assert status == 0, said
    running.wait_gone()
    status, said = dropin.run("dump", "--auto-dedup", "-t", running.pid, "-D", images)
    assert status != 0
    status, said = dropin.run("restore", "-d", "--auto-dedup", "-D", images)
    assert status == 0, said
    running.assert_continues(before)
    status, said = dropin.run("dedup", "-D", images)
    assert status == 1
    assert "nothing can be freed" in said
