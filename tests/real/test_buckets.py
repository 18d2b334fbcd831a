"""Real processes dumped by CRIU into a real S3 server and restored from it; and what becomes of them when it fails."""

from __future__ import annotations

import os
import signal
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.real import harness, leaks, sealed
from tests.store.bucket_servers import BUCKET, Proxy, Server, start_moto, use

pytestmark = pytest.mark.services
StartWorkload = Callable[..., harness.Workload]

ENOUGH = ("memory", "--mib", "48")  # several parts
URL = f"s3://{BUCKET}/apps/one"


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = start_moto(tmp_path_factory.mktemp("moto"))
    yield server
    server.close()


@pytest.fixture
def proxy(
    moto: Server, monkeypatch: pytest.MonkeyPatch, sealpoint: sealed.Sealpoint
) -> Iterator[Proxy]:
    """In front of the server; the commands get its address from the environment."""
    proxy = Proxy(moto.port)
    use(monkeypatch, proxy.url)
    sealpoint.environment |= {n: v for n, v in os.environ.items() if n.startswith("AWS_")}
    yield proxy
    proxy.close()


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    return f"{URL}-{request.node.name.replace('[', '-').replace(']', '')}"


def listed(sealpoint: sealed.Sealpoint, url: str) -> tuple[bool, bool]:
    """Whether the file is there, and whether anything of an upload is."""
    there = url.encode() in sealpoint.run("list", "--json", f"s3://{BUCKET}/apps/").ok().out
    left = url.encode() in sealpoint.run("list", "--incomplete", f"s3://{BUCKET}/apps/").ok().out
    return there, left


def hold(proxy: Proxy, part: str) -> tuple[threading.Event, threading.Event]:
    """The store does not answer to parts whose URL has `part` in it: (one was asked for, they may go on)."""
    asked, go = threading.Event(), threading.Event()

    def wait(exchange) -> None:
        if exchange.method == "PUT" and part in exchange.path:
            asked.set()
            go.wait(60)

    proxy.before = wait
    return asked, go


@pytest.mark.alone
@pytest.mark.parametrize("spool", [False, True], ids=["memory", "directory"])
def test_dumped_into_a_bucket_killed_verified_and_restored(
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    proxy: Proxy,
    url: str,
    tmp_path: Path,
    spool: bool,
) -> None:
    running = workload(*ENOUGH)
    before = running.assert_intact()
    (tmp_path / "spool").mkdir()
    options = ["--spool", str(tmp_path / "spool")] if spool else []
    with leaks.FileWatcher(running.needles, [tmp_path], ignore=[running.dir]) as watcher:
        sealpoint.run(
            "dump", "-t", running.pid, "-o", url, "--compress", "none", *options, *keys.seal
        ).ok()
        running.wait_gone()
        sealpoint.run("verify", url, "--trust", keys.path("signer.pub")).ok()
        sealpoint.run("inspect", url, *keys.open).ok()
        sealpoint.run("restore", url, "--detach", *keys.open).ok()
    assert watcher.leaks() == []
    running.assert_continues(before)
    running.assert_intact()
    assert listed(sealpoint, url) == (True, False)
    # The name is taken now, and the tree runs on undisturbed.
    sealpoint.run("dump", "-t", running.pid, "-o", url, *keys.seal).fails(2, "exists already")
    running.assert_intact()


def test_a_tree_that_runs_on_does_not_wait_for_the_store_but_the_command_does(
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    proxy: Proxy,
    url: str,
) -> None:
    running = workload(*ENOUGH)
    before = running.assert_intact()
    asked, go = hold(proxy, "partNumber")
    dump = sealpoint.start("dump", "-R", "-t", str(running.pid), "-o", url, *keys.seal)
    assert asked.wait(60)
    running.assert_continues(before)  # while the store holds every part
    assert dump.process.poll() is None
    go.set()
    dump.wait().ok()
    sealpoint.run("verify", url, "--trust", keys.path("signer.pub")).ok()


@pytest.mark.parametrize("leave", [False, True], ids=["ends", "runs on"])
def test_a_store_that_fails_amid_a_dump_leaves_the_tree_and_nothing_else(
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    proxy: Proxy,
    url: str,
    leave: bool,
) -> None:
    running = workload(*ENOUGH)
    before = running.assert_intact()

    def refuse(exchange):
        if exchange.method == "PUT" and "partNumber=2" in exchange.path:
            exchange.status, exchange.content = 403, b"<Error><Code>AccessDenied</Code></Error>"
            exchange.answer = {"content-type": "application/xml"}
            exchange.send()
            return True
        return None

    proxy.before = refuse
    options = ["-R"] if leave else []
    sealpoint.run(
        "dump", "-t", running.pid, "-o", url, "--compress", "none", *options, *keys.seal
    ).fails(6)
    running.assert_continues(before)
    running.assert_intact()
    assert listed(sealpoint, url) == (False, False)


def test_a_store_that_does_not_acknowledge_in_time_leaves_the_tree(
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    proxy: Proxy,
    url: str,
) -> None:
    running = workload("memory", "--mib", "2")
    before = running.assert_intact()
    _, go = hold(proxy, "partNumber")
    dump = sealpoint.start(
        "dump", "-t", str(running.pid), "-o", url, "--commit-timeout", "1", *keys.seal
    )
    dump.wait().fails(6, "did not acknowledge")
    running.assert_continues(before)
    go.set()
    proxy.before = lambda _: None
    assert not listed(sealpoint, url)[0]


def test_kill_9_amid_an_upload_leaves_the_tree_and_parts_that_list_removes(
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    proxy: Proxy,
    url: str,
) -> None:
    running = workload(*ENOUGH)
    before = running.assert_intact()
    asked, go = hold(proxy, "partNumber=2")
    dump = sealpoint.start(
        "dump", "-t", str(running.pid), "-o", url, "--compress", "none", *keys.seal
    )
    assert asked.wait(60)
    dump.signal(signal.SIGKILL)
    assert dump.wait().code == -signal.SIGKILL
    sealpoint.settle()
    running.assert_continues(before)
    go.set()
    proxy.before = lambda _: None
    assert listed(sealpoint, url) == (False, True)
    sealpoint.run("list", "--incomplete", "--remove", f"s3://{BUCKET}/apps/").ok()
    assert listed(sealpoint, url) == (False, False)


def test_the_header_is_changed_in_the_bucket_and_an_increment_finds_its_parent_there(
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    proxy: Proxy,
    url: str,
    tmp_path: Path,
) -> None:
    running = workload(*ENOUGH)
    sealpoint.run("dump", "-R", "--track", "-t", running.pid, "-o", f"{url}/1", *keys.seal).ok()
    before = running.assert_intact()
    sealpoint.run(
        "dump", "--parent", f"{url}/1", "-t", running.pid, "-o", f"{url}/2", *keys.seal
    ).ok()
    running.wait_gone()
    sealpoint.run("keygen", tmp_path / "other").ok()
    proxy.seen.clear()
    signer, add = keys.path("signer.key"), tmp_path / "other" / "recipient.pub"
    sealpoint.run("rekey", f"{url}/2", *keys.open, "--sign", signer, "--add", add).ok()
    assert not [path for method, path in proxy.seen if method == "PUT" and "/body" in path]
    sealpoint.run("restore", f"{url}/2", "--detach", *keys.open).ok()
    running.assert_continues(before)
    running.assert_intact()


def test_kill_9_after_the_tree_has_ended_leaves_a_file_that_copy_brings_to_the_store(
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    proxy: Proxy,
    url: str,
    tmp_path: Path,
) -> None:
    running = workload(*ENOUGH)
    before = running.assert_intact()
    (tmp_path / "spool").mkdir()
    asked, go = hold(proxy, "partNumber")
    spool = ["--commit", "spool", "--spool", str(tmp_path / "spool")]
    dump = sealpoint.start("dump", "-t", str(running.pid), "-o", url, *spool, *keys.seal)
    assert asked.wait(120)
    running.wait_gone()  # while the store has nothing
    dump.signal(signal.SIGKILL)
    assert dump.wait().code == -signal.SIGKILL
    sealpoint.settle()
    go.set()
    proxy.before = lambda _: None
    assert not listed(sealpoint, url)[0]
    (left,) = (tmp_path / "spool").iterdir()
    # A second dump for that place would have to replace it.
    sealpoint.run("dump", "-t", os.getpid(), "-o", url, *spool, *keys.seal).fails(2, "copy")
    sealpoint.run("copy", left, url, "--trust", keys.path("signer.pub")).ok()
    left.unlink()
    sealpoint.run("list", "--incomplete", "--remove", f"s3://{BUCKET}/apps/").ok()
    assert listed(sealpoint, url) == (True, False)
    sealpoint.run("restore", url, "--detach", *keys.open).ok()
    running.assert_continues(before)
    running.assert_intact()


def test_a_tree_ends_when_the_spool_is_durable_and_the_store_gets_it_afterwards(
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    proxy: Proxy,
    url: str,
    tmp_path: Path,
) -> None:
    running = workload("memory", "--mib", "4")
    before = running.assert_intact()
    (tmp_path / "spool").mkdir()
    spool = ["--commit", "spool", "--spool", str(tmp_path / "spool")]
    for wrong in (["--commit", "spool"], [*spool, "-R"]):
        sealpoint.run("dump", "-t", running.pid, "-o", url, *wrong, *keys.seal).fails(2, "--commit")
    here = tmp_path / "here"
    sealpoint.run("dump", "-t", running.pid, "-o", here, *spool, *keys.seal).fails(2, "a store")
    running.assert_continues(before)
    sealpoint.run("dump", "-t", running.pid, "-o", url, *spool, *keys.seal).ok()
    running.wait_gone()
    assert list((tmp_path / "spool").iterdir()) == []
    assert listed(sealpoint, url) == (True, False)
    sealpoint.run("restore", url, "--detach", *keys.open).ok()
    running.assert_continues(before)
    running.assert_intact()


def test_an_object_in_one_piece_gets_the_layout_that_a_rekey_needs(
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    proxy: Proxy,
    url: str,
    moto: Server,
    workload: StartWorkload,
    tmp_path: Path,
) -> None:
    running = workload("memory", "--mib", "4")
    file = tmp_path / "app.sealed"
    sealpoint.run("dump", "-R", "-t", running.pid, "-o", file, *keys.seal).ok()
    key = url.removeprefix("s3://")
    kind = {"Content-Type": "application/octet-stream"}
    put = urllib.request.Request(f"{moto.url}/{key}", file.read_bytes(), kind, method="PUT")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    # As anybody's, so that whoever has credentials may replace it.
    put.add_header("x-amz-acl", "public-read-write")
    opener.open(put, timeout=60).close()
    trust = ["--trust", keys.path("signer.pub")]
    sealpoint.run("keygen", tmp_path / "other").ok()
    rekey = ["rekey", url, *keys.open, "--sign", keys.path("signer.key")]
    rekey += ["--add", tmp_path / "other" / "recipient.pub"]
    sealpoint.run(*rekey).fails(2, "copy URL URL --force")
    sealpoint.run("copy", url, url, *trust).fails(2, "exists already")
    sealpoint.run("copy", url, url, "--force", *trust).ok()
    sealpoint.run("copy", url, tmp_path / "back.sealed", *trust).ok()
    assert (tmp_path / "back.sealed").read_bytes() == file.read_bytes()
    sealpoint.run(*rekey).ok()
    sealpoint.run("verify", url, *trust).ok()
