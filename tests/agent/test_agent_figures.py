"""What the agent tells of itself, and what it keeps in the store."""

from __future__ import annotations

import json
import os
import socket
import stat
import urllib.error
import urllib.request

import pytest

from sealpoint.agent import StatusServer
from sealpoint.agent.figures import Figures
from tests.agent.agent_helpers import (  # noqa: F401
    archive,
    inside,
    keys,
    node,
    wait_for,
)
from tests.checkpoint.checkpoint_helpers import seal_objects
from tests.cli.conftest import OBJECTS

GOOD = archive("good")


def _get(port, path):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def _figures(port):
    lines = [x for x in _get(port, "/metrics")[1].splitlines() if not x.startswith("#")]
    return {n.removeprefix("sealpoint_agent_"): float(v) for n, v in (x.split() for x in lines)}


def _port(node):
    said = wait_for(lambda: "listening at" in node.said() and node.said(), "it listens")
    return int(said.partition("port ")[2].split()[0])


def test_figures_and_health_over_http(node):
    plain = archive("one", size=5000)
    node.write("a.tar", plain)
    node.write("bad.tar", b"no archive" * 100)
    with node.agent(listen="127.0.0.1:0"):
        port = _port(node)
        wait_for(lambda: _figures(port)["sealed_total"] == 1, "it is counted")
        wait_for(lambda: _figures(port)["refused"] == 1, "the bad one is counted")
        found = _figures(port)
        assert found["plain_bytes_total"] == len(plain)
        assert found["sealed_bytes_total"] == node.sealed()[0].stat().st_size
        assert found["seconds_total"] > 0
        assert (found["queue_length"], found["failed_total"], found["gone_total"]) == (0, 0, 0)
        assert found["store_up"] == 1
        wait_for(lambda: _figures(port)["oldest_plain_seconds"] > 0, "the bad one gets older")
        assert _get(port, "/healthz") == (200, "ok\n")
        wait_for(lambda: _get(port, "/readyz") == (200, "ok\n"), "it is ready")
        assert _get(port, "/etc/passwd")[0] == 404
        assert "shop" not in _get(port, "/metrics")[1]


def test_a_store_that_fails_makes_it_not_ready_with_the_reason_but_alive(node):
    node.write("a.tar", GOOD)
    node.store.rmdir()
    node.store.mkdir()
    with node.agent(listen="127.0.0.1:0"):
        port = _port(node)
        wait_for(node.sealed, "it works")
        node.store.rename(node.directory / "moved")
        node.write("b.tar", archive("b"))
        wait_for(lambda: _get(port, "/readyz")[0] == 503, "it is not ready")
        assert "No such file" in _get(port, "/readyz")[1]
        assert _get(port, "/healthz")[0] == 200
        assert _figures(port)["store_up"] == 0
        assert _figures(port)["queue_length"] == 1
        (node.directory / "moved").rename(node.store)
        wait_for(lambda: _get(port, "/readyz")[0] == 200, "it is ready again")
    assert node.markers() == ["b", "good"]


def test_short_space_where_the_engine_writes_is_told_before_it_is_used_up(node):
    if os.geteuid() != 0:
        pytest.skip("needs root to mount")
    with node.mounted(node.watched, "size=4m,mode=700"):
        with node.agent("--min-free", "2M", listen="127.0.0.1:0"):
            port = _port(node)
            wait_for(lambda: _get(port, "/readyz") == (200, "ok\n"), "it is ready")
            filler = node.watched / ".filler"  # not for the agent to take
            filler.write_bytes(b"x" * 3_000_000)
            wait_for(lambda: "space is short in" in _get(port, "/readyz")[1], "it is told")
            assert "space is short in" in node.said()
            filler.unlink()
            node.write("good.tar", GOOD)  # on a file system in memory, too, there are leases
            wait_for(lambda: _get(port, "/readyz") == (200, "ok\n"), "it is ready again")
            wait_for(lambda: node.sealed() and not node.plain(), "it is sealed")
    assert node.markers() == ["good"]


def test_an_agent_without_a_sign_of_life_is_not_healthy():
    figures = Figures(patience=-1e9)
    with StatusServer(("127.0.0.1", 0), figures) as server:
        assert _get(server.port, "/healthz") == (503, "no sign of life\n")


def test_clients_that_say_nothing_do_not_keep_others_from_the_figures(node):
    with node.agent(listen="127.0.0.1:0"):
        port = _port(node)
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
        for each in silent[:5]:
            each.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
        for each in silent:  # all are let go of in the end
            each.settimeout(60)
            assert each.recv(1) in (b"", b"H")
            each.close()
        assert _get(port, "/healthz")[0] == 200


@pytest.mark.parametrize("options", [[], ["--keep-last", "2"]])
def test_retention_by_number(node, options):
    for number in range(4):
        path = node.write(f"{number}.tar", archive(str(number)))
        os.utime(path, (1_700_000_000 + number, 1_700_000_000 + number))
    path = node.write("other.tar", archive("other", container="db"))
    os.utime(path, (1_600_000_000, 1_600_000_000))
    foreign = node.store / "mine.sealed"
    foreign.write_bytes(b"somebody else's")
    assert node.once(*options).returncode == 0
    foreign.unlink()
    expected = ["2", "3", "other"] if options else ["0", "1", "2", "3", "other"]
    assert node.markers() == expected


def test_retention_by_age_and_bytes_keeps_the_newest_of_each_container(node):
    for number in range(3):
        path = node.write(f"{number}.tar", archive(str(number)))
        os.utime(path, (1_700_000_000 + number, 1_700_000_000 + number))
    node.write("new.tar", archive("new", container="db"))
    old = node.write("old.tar", archive("old", container="db"))
    os.utime(old, (1_700_000_000, 1_700_000_000))
    assert node.once("--keep-age", "30d").returncode == 0
    assert node.markers() == ["2", "new"]
    path = node.write("4.tar", archive("4", container="db"))
    assert node.once("--keep-bytes", "1").returncode == 0
    assert len(node.sealed()) == 2


def test_retention_leaves_what_somebody_else_has_put_under_a_name(node, keys):
    node.write("a.tar", archive("a"))
    assert node.once("--keep-last", "1").returncode == 0
    (sealed,) = node.sealed()
    sealed.unlink()
    seal_objects(keys, sealed, OBJECTS)
    theirs = sealed.read_bytes()
    node.write("b.tar", archive("b"))
    assert node.once("--keep-last", "1").returncode == 0
    assert sealed.read_bytes() == theirs
    assert len(node.sealed()) == 2


def test_the_queue_on_disk_names_no_contents(node):
    node.write("a.tar", GOOD)
    node.store.rename(node.directory / "moved")
    node.store.mkdir(mode=0o700)
    assert node.once().returncode == 0
    node.write("b.tar", archive("b", size=0))
    with inside(node) as agent:
        agent._depot.free = lambda: 0
        agent.once()
    (entry,) = (node.queue / "queue").iterdir()
    assert stat.S_IMODE(entry.stat().st_mode) == 0o600
    assert json.loads(entry.read_text())["name"] == "b.tar"
    assert "<<" not in entry.read_text()
