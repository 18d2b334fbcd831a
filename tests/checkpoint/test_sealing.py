"""The one way to seal: it commits or leaves nothing behind, and the value that says how is checked at once."""

import ast
import os
import select
import threading
import time
from pathlib import Path

import pytest

from sealpoint.checkpoint.opening.access import CheckedFile
from sealpoint.checkpoint.sealing.sealer import Sealing
from sealpoint.errors import IdentityError, SealpointError, UsageError
from sealpoint.format.constants import Suite
from sealpoint.store.output import OutputFile, OutputPipe
from tests.checkpoint.checkpoint_helpers import Keys, opened

SOURCE = Path(__file__).parents[2] / "src/sealpoint"
MEMORY = os.urandom(3 << 20)


class Given(BaseException):
    """Nothing that code expects: as Ctrl-C, or a defect."""


def nothing(_sealer):
    pass


def some(sealer):
    sealer.builder.add("inventory.img", b"inventory")


def half_of_a_large_one(sealer):
    some(sealer)
    sealer.builder.large("pages-1.img").write(MEMORY)


def everything(sealer):
    some(sealer)
    large = sealer.builder.large("pages-1.img")
    large.write(MEMORY)
    large.finish()
    sealer.finish()


STAGES = [nothing, some, half_of_a_large_one, everything]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("error", [Given, KeyboardInterrupt, MemoryError, SealpointError])
@pytest.mark.parametrize("before", [None, b"what was there"])
def test_an_error_at_any_stage_leaves_what_was_there_and_no_thread(
    keys, tmp_path, stage, error, before
):
    target, threads = tmp_path / "out.sealed", threading.active_count()
    if before is not None:
        target.write_bytes(before)
    there = sorted(tmp_path.iterdir())
    with (
        pytest.raises(error),
        OutputFile(str(target), force=True) as out,
        keys.sealing().into(out) as sealer,
    ):
        stage(sealer)
        raise error("given")
    assert sorted(tmp_path.iterdir()) == there
    assert before is None or target.read_bytes() == before
    assert threading.active_count() == threads


@pytest.mark.parametrize("stage", STAGES)
def test_leaving_without_a_commit_leaves_nothing(keys, tmp_path, stage):
    target, threads = tmp_path / "out.sealed", threading.active_count()
    there = sorted(tmp_path.iterdir())
    with OutputFile(str(target)) as out, keys.sealing().into(out) as sealer:
        stage(sealer)
    assert sorted(tmp_path.iterdir()) == there
    assert threading.active_count() == threads


@pytest.mark.parametrize("stage", STAGES[:-1])
def test_a_file_that_is_not_complete_is_never_committed(keys, tmp_path, stage):
    target = tmp_path / "out.sealed"
    with (
        OutputFile(str(target)) as out,
        pytest.raises(SealpointError, match="not complete"),
        keys.sealing().into(out) as sealer,
    ):
        stage(sealer)
        sealer.commit()
    assert not target.exists()


def test_a_reader_who_does_not_read_keeps_nobody(keys):
    read, write = os.pipe()
    before = set(threading.enumerate())
    try:
        with OutputPipe(write, "a pipe") as out:
            with pytest.raises(Given), keys.sealing(compression="none").into(out) as sealer:
                some(sealer)
                large = sealer.builder.large("pages-1.img")
                for _ in range(3):  # whole chunks, and far more than the pipe holds
                    large.write(MEMORY)
                while select.select([], [write], [], 0)[1]:  # until it is full
                    time.sleep(0.01)
                raise Given
            mine = set(threading.enumerate()) - before
            for thread in mine:  # before the pipe is closed, which would end them as well
                thread.join(20)
            assert not any(thread.is_alive() for thread in mine)
    finally:
        os.close(read)
        os.close(write)


def test_what_is_committed_opens(keys, tmp_path):
    target = tmp_path / "out.sealed"
    with OutputFile(str(target)) as out, keys.sealing().into(out) as sealer:
        everything(sealer)
        assert not target.exists()
        sealer.commit()
        assert sealer.committed
    with opened(keys, target) as checkpoint:
        assert checkpoint.read_bytes(checkpoint.entry("pages-1.img")) == MEMORY


REFUSED = {
    "nobody": ({"recipients": []}, UsageError, "no recipient"),
    "only metadata": ({"recipients": [], "metadata_recipients": "mine"}, UsageError, "no recipient"),
    "twice": ({"metadata_recipients": "mine"}, UsageError, "twice"),
    "text for a list": ({"recipients": "recipient.pub"}, UsageError, "must be a list"),
    "no signer": ({"signer": None}, UsageError, "no signing key"),
    "signer and unsigned": ({"unsigned": True}, UsageError, "both"),
    "suite": ({"suite": "rot13"}, UsageError, "unknown suite"),
    "compression": ({"compression": "gzip"}, UsageError, "unknown compression"),
    "absent recipient": ({"recipients": ["/absent.pub"]}, SealpointError, "absent.pub"),
    "absent signer": ({"signer": "/absent.key"}, SealpointError, "absent.key"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_value_that_cannot_be_sealed_with_is_refused_when_it_is_made(keys, case):
    changes, error, message = REFUSED[case]
    given = {"recipients": [keys.recipient], "signer": keys.signer}
    changes = {k: [keys.recipient] if v == "mine" else v for k, v in changes.items()}
    with pytest.raises(error, match=message):
        Sealing(**(given | changes))


@pytest.mark.parametrize("suite", [*Suite, *(s.label for s in Suite)])
def test_keys_may_be_paths_and_a_suite_its_label(keys, tmp_path, suite):
    sealing = Sealing([keys.recipient_path], keys.signer_path, suite=suite)
    target = tmp_path / "out.sealed"
    with OutputFile(str(target)) as out, sealing.into(out) as sealer:
        everything(sealer)
        sealer.commit()
    with opened(keys, target) as checkpoint:
        assert checkpoint.authentic.origin.suite.label == getattr(suite, "label", suite)


def test_a_key_file_that_is_replaced_later_changes_nothing(keys, tmp_path):
    sealing = Sealing([keys.recipient_path], keys.signer_path)
    target = tmp_path / "out.sealed"
    mine = Path(keys.recipient_path).read_bytes(), Path(keys.signer_path).read_bytes()
    (tmp_path / "others").mkdir()
    others = Keys(tmp_path / "others")
    try:
        Path(keys.recipient_path).write_bytes(Path(others.recipient_path).read_bytes())
        Path(keys.signer_path).write_bytes(Path(others.signer_path).read_bytes())
        with OutputFile(str(target)) as out, sealing.compressed("lz4").into(out) as sealer:
            everything(sealer)
            sealer.commit()
    finally:
        Path(keys.recipient_path).write_bytes(mine[0])
        Path(keys.signer_path).write_bytes(mine[1])
    with opened(keys, target) as checkpoint:
        assert checkpoint.has_memory
    with (
        CheckedFile.open(str(target), keys.policy) as checkpoint,
        pytest.raises(IdentityError),
    ):
        checkpoint.unlock([others.identity])


def test_nothing_else_makes_a_sealed_file():
    builders = {"SealedWriter", "CheckpointBuilder"}
    found = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                if name in builders:
                    found.add(str(path.relative_to(SOURCE)))
    assert found == {"checkpoint/sealing/sealer.py"}
