"""The agent with real stores: a bucket of moto's server, a repository of docker-registry; with faults before them."""

from __future__ import annotations

import hashlib
import os
import signal
from urllib.parse import urlsplit

import pytest

from sealpoint.store import retry
from sealpoint.store.location import open_store
from tests.agent.agent_helpers import (  # noqa: F401
    archive,
    inside,
    keys,
    marker_of,
    node,
    wait_for,
)
from tests.checkpoint.checkpoint_helpers import seal_path
from tests.store.bucket_helpers import moto  # noqa: F401
from tests.store.bucket_servers import BUCKET, Proxy, use
from tests.store.registry_helpers import registry  # noqa: F401

pytestmark = pytest.mark.services

JOURNAL = "sealpoint.agent.journal:AgentQueue."
REMOTE = "sealpoint.store.uploading:RemoteOutput."
STEPS = [
    *[(f"{JOURNAL}put", n) for n in (2, 3, 4)],
    *[(f"{REMOTE}__init__", n) for n in (1, 2)],
    *[(f"{REMOTE}sync", n) for n in (1,)],
    *[(f"{REMOTE}commit", n) for n in (1, 2)],
    *[("sealpoint.agent.claim:WatchedDirectory.remove", n) for n in (1, 2)],
    *[(f"{JOURNAL}drop", n) for n in (1, 2)],
]


class Shelf:
    """A place in a store: where the agent puts its files, and what is there."""

    def __init__(self, node, where, listed):
        self.node, self.listed = node, listed
        node.where = where

    def urls(self):
        return sorted(each.name for each in open_store(self.listed).list())

    def markers(self):
        return sorted(marker_of(self.node.opened(url)) for url in self.urls())


@pytest.fixture(params=["bucket", "registry"])
def shelf(request, node, monkeypatch):
    """With `proxy`, in front of the server, where faults can be put in."""
    mine = hashlib.md5(request.node.name.encode()).hexdigest()
    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.01)
    server = request.getfixturevalue("moto" if request.param == "bucket" else "registry")
    proxy = Proxy(server.port)
    if request.param == "bucket":
        use(monkeypatch, proxy.url)
        made = Shelf(node, f"s3://{BUCKET}/{mine}/", f"s3://{BUCKET}/{mine}/")
    else:
        repository = f"oci://{urlsplit(proxy.url).netloc}/{mine}"
        made = Shelf(node, repository, f"{repository}:any")
    made.proxy = proxy
    yield made
    proxy.close()


def test_archives_go_into_the_store_and_retention_removes_old_ones_there(shelf):
    node = shelf.node
    for marker in ("one", "two", "three"):
        node.write("a.tar", archive(marker, size=300_000))
        done = node.once("--keep-last", "2")
        assert done.returncode == 0, done.stderr
    assert shelf.markers() == ["three", "two"]
    assert node.plain() == set()
    assert node.waiting() == []
    assert all("shop_web-0_web_" in url for url in shelf.urls())


def test_no_connection_is_left_open_for_each_archive(shelf):
    node, counts = shelf.node, []
    with node.agent() as process:
        for number in range(8):
            node.write("a.tar", archive(str(number)))
            wait_for(
                lambda n=number: node.said().count(" sealed into ") == n + 1,
                "it is sealed",
                process,
            )
            counts.append(len(os.listdir(f"/proc/{process.pid}/fd")))
    assert max(counts[4:]) <= max(counts[:4]) + 4, counts


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("step", "number"), STEPS, ids=lambda v: str(v).rpartition(":")[2])
def test_killed_at_any_step_an_archive_is_in_the_store_once(shelf, step, number, when):
    node = shelf.node
    for marker in ("one", "two"):
        node.write(f"{marker}.tar", archive(marker))
    killed = node.run(step, when, number, *node.options("--once"), module="tests.agent.killed")
    if killed.returncode == 0:
        assert step.endswith("sync"), killed.stderr
    else:
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = node.once()
    assert done.returncode == 0, done.stderr
    assert shelf.markers() == ["one", "two"]
    assert node.plain() == set()
    assert node.waiting() == []


FAULTS = {
    "answers 500": lambda exchange: exchange.refuse(500, "InternalError"),
    "answers 503": lambda exchange: exchange.refuse(503, "SlowDown"),
    "cuts connections": lambda exchange: exchange.cut(),
    "refuses": lambda exchange: exchange.refuse(403, "AccessDenied"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    "methods", [("PUT", "POST", "PATCH"), ("GET", "HEAD", "PUT", "POST", "PATCH")]
)
def test_a_store_that_fails_is_told_and_the_archive_waits_for_it(shelf, fault, methods):
    node = shelf.node
    node.write("a.tar", archive("a", size=100_000))
    node.write("b.tar", archive("b"))
    shelf.proxy.before = lambda x: FAULTS[fault](x) if x.method in methods else None
    with inside(node) as agent:
        agent.once()
        assert node.words.count("waits for the store") == 1
        assert agent.figures.value("store_up") == 0
        assert agent.figures.value("sealed_total") == 0
        assert agent.figures.problems()
        assert len(node.plain()) == 2
        shelf.proxy.before = lambda _: None
        agent._queue.extend(entry for _, entry in agent._later)
        agent._later.clear()
        agent.once()
        assert agent.figures.value("store_up") == 1
    assert shelf.markers() == ["a", "b"]
    assert node.plain() == set()


def test_an_agent_whose_store_does_not_answer_ends_at_sigterm_and_leaves_the_archive(shelf):
    node = shelf.node
    node.write("a.tar", archive("a", size=100_000))
    methods = ("PUT", "POST", "PATCH")
    shelf.proxy.before = lambda x: x.stall(shelf.proxy) if x.method in methods else None
    with node.agent() as process:
        wait_for(lambda: any(m in methods for m, _ in shelf.proxy.seen), "it uploads", process)
    assert "stopped" in node.said()
    assert len(node.plain()) == 1
    shelf.proxy.before = lambda _: None
    assert node.once().returncode == 0
    assert shelf.markers() == ["a"]
    assert node.plain() == set()


def test_an_acknowledgement_that_was_lost_is_found_and_nothing_is_there_twice(shelf):
    """The store has it, and the answers to the last request and all later ones are cut off."""
    node = shelf.node
    node.write("a.tar", archive("a"))
    lost = []

    def after(exchange):
        is_last = exchange.method == "PUT" and (
            "/manifests/" in exchange.path or exchange.path.endswith(".sealed")
        )
        if lost or is_last:
            lost.append(exchange.path)
            return exchange.cut()
        return None

    shelf.proxy.after = after
    with inside(node) as agent:
        agent.once()
        assert lost
        assert agent.figures.value("sealed_total") == 0
        assert len(node.plain()) == 1
    shelf.proxy.after = lambda _: None
    assert node.once().returncode == 0
    assert shelf.markers() == ["a"]
    assert node.plain() == set()


def test_a_file_of_somebody_else_under_that_name_is_neither_replaced_nor_believed(shelf, keys):
    """Who can write the store has put another sealed file there, between a crash and the next start."""
    node = shelf.node
    node.write("a.tar", archive("a"))
    killed = node.run(
        f"{REMOTE}commit", "before", 1, *node.options("--once"), module="tests.agent.killed"
    )
    assert killed.returncode == -signal.SIGKILL
    entry = node.entry()
    others = node.directory / "others.sealed"
    (node.directory / "b.tar").write_bytes(archive("theirs"))
    seal_path(keys, node.directory / "b.tar", others)
    copied = node.run("copy", others, entry.url, "--trust", keys.trust_path)
    assert copied.returncode == 0, copied.stderr
    assert node.once().returncode == 0
    assert shelf.markers() == ["a", "theirs"]
    assert node.plain() == set()
