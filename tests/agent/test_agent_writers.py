"""Engines, operators and users who write, remove or exchange archives while the agent works."""

from __future__ import annotations

import mmap
import os
import threading

import pytest

from tests.agent.agent_helpers import archive, keys, node, wait_for  # noqa: F401

GOOD = archive("good")


def test_an_archive_that_somebody_still_writes_is_waited_for(node):
    plain = archive("late", size=300_000)
    with open(node.watched / "a.tar", "wb") as file, node.agent():
        file.write(plain[:100_000])
        file.flush()
        wait_for(lambda: "still being written" in node.said(), "it is told")
        assert node.plain() == {"a.tar"}
        file.write(plain[100_000:])
        file.close()
        wait_for(lambda: node.sealed() and node.is_clean(), "it is sealed")
    assert node.markers() == ["late"]


def test_a_complete_archive_is_not_taken_while_it_can_be_written_by_a_mapping(node):
    path = node.write("a.tar", GOOD)
    fd = os.open(path, os.O_RDWR)
    mapping = mmap.mmap(fd, len(GOOD))
    os.close(fd)
    done = node.once()
    assert done.returncode == 6
    assert "still being written" in done.stderr
    assert node.plain() == {"a.tar"}
    mapping.close()
    assert node.once().returncode == 0
    assert node.markers() == ["good"]


@pytest.fixture
def large(node):
    """One archive whose sealing tells how far it is, so that something can be done meanwhile."""
    node.write("a.tar", archive("first", size=9_000_000))
    return node


def _taken(node):
    (claim,) = [n for n in node.plain() if n.startswith(".sealpoint-")]
    return node.watched / claim


def test_a_second_checkpoint_of_the_same_name_is_an_archive_beside_the_first(large):
    """An engine opens the name that it knows, which is free by then."""
    large.during(lambda: large.write("a.tar", archive("second")))
    assert large.markers() == ["first"]
    assert large.once().returncode == 0
    assert large.markers() == ["first", "second"]
    assert large.is_clean()


def test_a_writer_that_comes_while_it_is_sealed_is_noticed_and_nothing_of_that_is_stored(large):
    def write():
        with pytest.raises(BlockingIOError):  # the lease keeps it away, and tells
            os.open(_taken(large), os.O_WRONLY | os.O_NONBLOCK)

    agent = large.during(write)
    assert large.sealed() == []
    assert agent.figures.value("sealed_total") == 0
    assert "writes to a.tar again" in large.words or "changed while" in large.words
    assert large.once().returncode == 0
    assert large.markers() == ["first"]


def test_an_archive_that_is_written_over_while_it_is_sealed_is_stored_as_it_is_in_the_end(large):
    second, writer = archive("second", size=9_000_000), []

    def write():
        claim = _taken(large)

        def overwrite():
            with open(claim, "r+b") as file:  # waits for the end of the lease
                file.write(second)
                file.truncate()

        writer.append(threading.Thread(target=overwrite))
        writer[0].start()
        wait_for(lambda: not large.lease_is_quiet(claim), "somebody wants to write")

    large.during(write)
    writer[0].join(60)
    assert large.once().returncode == 0
    assert large.markers() == ["second"]
    assert large.is_clean()


@pytest.mark.parametrize(
    "change",
    [
        lambda path: os.utime(path, (1, 1)),
        lambda path: os.chmod(path, 0o640),
        lambda path: os.link(path, path.parent.parent / "second"),
    ],
    ids=["times", "mode", "link"],
)
def test_what_is_changed_while_it_is_sealed_is_not_stored(large, change):
    large.during(lambda: change(_taken(large)))
    assert large.sealed() == []
    assert "changed while it was sealed" in large.words
    assert len(large.plain()) == 1


def test_what_is_removed_while_it_is_sealed_is_gone_and_not_sealed(large):
    agent = large.during(lambda: _taken(large).unlink())
    assert large.is_clean()
    assert large.sealed() == []
    assert agent.figures.value("gone_total") == 1
    assert agent.figures.value("sealed_total") == 0
    assert "not sealed: " in large.words
    assert "removed by someone else" in large.words


def test_what_is_removed_before_it_was_taken_is_nobodys_fault(node):
    with node.agent():
        for number in range(30):
            path = node.write(f"{number}.tar", archive(str(number)))
            try:
                path.unlink()
            except FileNotFoundError:
                pass  # the agent was faster
        wait_for(node.is_clean, "nothing is left")


def test_another_file_under_the_name_of_the_archive_is_not_removed(large, monkeypatch):
    """Between the commit and the removal somebody has put something else there."""
    from sealpoint.agent.claim import WatchedDirectory

    original = WatchedDirectory.remove

    def remove(self, claim, fd, state):
        path = large.watched / claim
        path.unlink()
        path.write_bytes(archive("other"))
        return original(self, claim, fd, state)

    monkeypatch.setattr(WatchedDirectory, "remove", remove)
    large.during(lambda: None)
    monkeypatch.undo()
    assert large.plain() == {p for p in large.plain() if p.startswith(".sealpoint-")} != set()
    assert large.once().returncode == 0
    assert large.markers() == ["first", "other"]
    assert large.is_clean()
