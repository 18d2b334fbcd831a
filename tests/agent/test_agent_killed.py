"""SIGKILL at every step: nothing is lost, and nothing is there twice."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from sealpoint.format.constants import SLOT_SIZES, Suite
from sealpoint.format.preamble import Preamble
from tests.agent.agent_helpers import archive, keys, marker_of, node, wait_for  # noqa: F401
from tests.checkpoint.checkpoint_helpers import Keys, seal_path

JOURNAL = "sealpoint.agent.journal:AgentQueue."
CLAIM = "sealpoint.agent.claim:WatchedDirectory."
# Each time of each step of two archives, the first and the second.
STEPS = [
    *[(f"{JOURNAL}put", n) for n in range(1, 7)],
    *[(f"{CLAIM}take", n) for n in (1, 2)],
    *[("sealpoint.agent.work:_Noted.commit", n) for n in (1, 2)],
    *[("sealpoint.store.output:OutputFile.sync", n) for n in (1,)],
    *[("sealpoint.store.output:OutputFile.commit", n) for n in (1, 2)],
    *[("sealpoint.store.output:OutputFile.close", n) for n in (1, 2)],
    *[(f"{CLAIM}remove", n) for n in (1, 2)],
    *[(f"{JOURNAL}keep", n) for n in (1, 2)],
    *[(f"{JOURNAL}drop", n) for n in (1, 2)],
    *[("sealpoint.store.naming:Place.commit", n) for n in range(1, 12)],
]


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("step", "number"), STEPS, ids=lambda v: str(v).rpartition(":")[2])
def test_killed_at_any_step_an_archive_is_sealed_once_and_never_lost(node, step, number, when):
    for marker in ("one", "two"):
        node.write(f"{marker}.tar", archive(marker))
    options = node.options("--once", "--keep-last", "5")
    killed = node.run(step, when, number, *options, module="tests.agent.killed")
    if killed.returncode == 0:  # there are not that many in a run that nobody kills
        assert step.endswith(("sync", "Place.commit", "drop", "keep")), killed.stderr
    else:
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(node.plain()) + len(node.sealed()) >= 2  # each is somewhere
    done = node.once("--keep-last", "5")
    assert done.returncode == 0, done.stderr
    assert node.markers() == ["one", "two"]
    assert node.is_clean()
    assert len(list((node.queue / "kept").iterdir())) == 2


@pytest.mark.slow
def test_an_agent_that_is_killed_again_and_again_loses_nothing_of_many(node):
    for number in range(120):
        node.write(f"{number}.tar", archive(str(number), size=10_000))
    for goal in (7, 23, 24, 60, 90):
        with node.agent() as process:
            wait_for(lambda goal=goal: len(node.sealed()) >= goal, f"{goal} are sealed", process)
            process.send_signal(signal.SIGKILL)
            process.wait()
    with node.agent():
        wait_for(node.is_clean, "all are sealed")
    assert node.markers() == sorted(map(str, range(120)))


def test_sigterm_amid_an_archive_leaves_it_for_the_next_start(node):
    node.write("large.tar", archive("large", size=60_000_000))
    with node.agent("--store", f"{node.store}"):
        wait_for(node.waiting, "it was taken over")
    done = node.once()
    assert done.returncode == 0, done.stderr
    assert node.markers() == ["large"]
    assert node.is_clean()


def _forged(node, stranger, entry):
    """With the id that the agent has noted, by somebody who can write the store but has not our signer."""
    identifier = bytes.fromhex(entry.attempts[-1])
    create = Preamble.create.__func__
    forged = classmethod(lambda cls, *a: create(cls, *a)._replace(checkpoint_id=identifier))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Preamble, "create", forged)
        (node.directory / "b.tar").write_bytes(archive("forged"))
        seal_path(stranger, node.directory / "b.tar", entry.url)


def _beginning(node, _, entry):
    """The first bytes of a sealed file with that id, and nothing more."""
    identifier = bytes.fromhex(entry.attempts[-1])
    preamble = Preamble(Suite.AES_256_GCM, SLOT_SIZES[0], identifier, bytes(32))
    Path(entry.url).write_bytes(preamble.encode() + bytes(100_000))


@pytest.mark.parametrize("forge", [_forged, _beginning])
def test_only_what_we_signed_ourselves_counts_as_stored(node, tmp_path_factory, forge):
    stranger = Keys(tmp_path_factory.mktemp("stranger"))
    node.write("a.tar", archive("a"))
    step = "sealpoint.store.output:OutputFile.commit"
    killed = node.run(step, "before", 1, *node.options("--once"), module="tests.agent.killed")
    assert killed.returncode == -signal.SIGKILL
    entry = node.entry()
    forge(node, stranger, entry)
    theirs = Path(entry.url).read_bytes()
    assert node.once().returncode == 0
    assert Path(entry.url).read_bytes() == theirs
    (ours,) = [path for path in node.sealed() if str(path) != entry.url]
    assert marker_of(node.opened(ours)) == "a"
    assert node.plain() == set()


def test_an_archive_that_was_changed_after_it_was_stored_is_sealed_again(node):
    node.write("a.tar", archive("first"))
    step = "sealpoint.agent.claim:WatchedDirectory.remove"
    killed = node.run(step, "before", 1, *node.options("--once"), module="tests.agent.killed")
    assert killed.returncode == -signal.SIGKILL
    assert node.markers() == ["first"]
    (claim,) = node.plain()
    (node.watched / claim).write_bytes(archive("second"))
    assert node.once().returncode == 0
    assert node.markers() == ["first", "second"]
    assert node.is_clean()


def test_an_entry_of_the_queue_that_cannot_be_read_loses_no_archive(node):
    node.write("a.tar", archive("a"))
    step = "sealpoint.agent.work:_Noted.commit"
    killed = node.run(step, "before", 1, *node.options("--once"), module="tests.agent.killed")
    assert killed.returncode == -signal.SIGKILL
    (entry,) = (node.queue / "queue").iterdir()
    entry.write_text("{")
    done = node.once()
    assert done.returncode == 0
    assert "cannot be read" in done.stderr
    assert node.markers() == ["a"]
    assert node.is_clean()


def test_archives_that_wait_in_a_directory_that_is_not_watched_any_more_are_told(node, tmp_path):
    node.write("a.tar", archive("a"))
    step = "sealpoint.agent.work:_Noted.commit"
    killed = node.run(step, "before", 1, *node.options("--once"), module="tests.agent.killed")
    assert killed.returncode == -signal.SIGKILL
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    options = [str(elsewhere) if o == str(node.watched) else o for o in node.options("--once")]
    done = node.run(*options)
    assert f"archives of {node.watched} wait in the queue" in done.stderr
    assert len(node.plain()) == 1
    assert node.once().returncode == 0
    assert node.markers() == ["a"]
    assert node.is_clean()


def test_two_agents_do_not_work_on_one_directory_or_one_queue(node, tmp_path):
    with node.agent():
        second = node.once()
        assert second.returncode == 6
        assert "another agent works in" in second.stderr
        own_queue = [*node.options("--once"), "--queue", str(tmp_path / "other")]
        third = node.run(*own_queue)
        assert third.returncode == 6
        assert f"another agent works in {node.watched}" in third.stderr
    assert node.once().returncode == 0


def test_the_queue_is_private(node):
    node.write("a.tar", archive("a"))
    assert node.once().returncode == 0
    for path in (node.queue, node.queue / "queue", node.queue / "kept"):
        assert os.stat(path).st_mode & 0o777 == 0o700
