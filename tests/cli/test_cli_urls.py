"""Every command that reads a checkpoint, given the URL of a sealed file, of none, and of something else."""

from __future__ import annotations

import hashlib
import os
import shutil
import urllib.request
from pathlib import Path

import pytest

from tests.checkpoint.checkpoint_helpers import a_pre_dump, attributes, seal_objects
from tests.store.bucket_servers import BUCKET, start_moto, use

pytestmark = pytest.mark.services

KEYLESS = ["verify URL", "info URL", "chain URL", "policy check URL", "copy URL new"]
READING = [
    "open URL -o new",
    "inspect URL",
    "show URL",
    "crit show URL:inventory.img",
    "crit decode URL:inventory.img -o new",
    "crit info URL:inventory.img",
]
TREES = [  # they want processes, which the sealed file of this test has not
    "memparse URL",
    "diff URL URL",
    "report URL -o new",
    "secrets URL",
    "coredump URL --pid 1 -o new",
    "crit x URL ps",
    "restore URL",
]
SEALING = ["flatten URL -o new"]


@pytest.fixture(scope="module")
def moto(tmp_path_factory):
    server = start_moto(tmp_path_factory.mktemp("moto"))
    yield server
    server.close()


@pytest.fixture
def run(cli, keys, opening, sealing):
    """A command with the options that it needs."""

    def call(line, url):
        more = ["--trust", keys.trust_path] if line in KEYLESS else opening
        more = [*more, *sealing] if line in SEALING or line.startswith("prune") else more
        if os.path.isdir("new"):
            shutil.rmtree("new")
        Path("new").unlink(missing_ok=True)
        return cli(*line.replace("URL", url).split(), *more)

    return call


@pytest.fixture
def put(request, moto, monkeypatch):
    """An object as any other tool puts it there."""
    use(monkeypatch, moto.url)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def call(name, data):
        name = f"{hashlib.sha256(request.node.name.encode()).hexdigest()[:12]}/{name}"
        kind = {"Content-Type": "application/octet-stream"}
        where = f"{moto.url}/{BUCKET}/{name}"
        asked = urllib.request.Request(where, data, kind, method="PUT")
        opener.open(asked, timeout=60).close()
        return f"s3://{BUCKET}/{name}"

    return call


@pytest.fixture
def whole(keys):
    objects = {name: (data, attributes()) for name, data in a_pre_dump(b"hello").items()}
    seal_objects(keys, "s.sealed", objects)
    return Path("s.sealed").read_bytes()


@pytest.mark.parametrize("name", ["one", "2026-11-29T06:25:00", "a:b"])
def test_a_file_that_another_tool_put_there_is_read_by_every_command(run, put, whole, name):
    url = put(name, whole)
    for line in (*KEYLESS, *READING, *SEALING):
        result = run(line, url)
        assert (line, result.code, result.err) == (line, 0, "")
    for line in TREES:
        result = run(line, url)
        assert (line, result.code) == (line, 3)
        assert "pstree" in result.err or "pre-dump" in result.err


@pytest.mark.parametrize("data", [b"", b"garbage" * 50_000, b"[]", bytes(512)])
def test_something_else_is_refused_by_every_command_with_its_name(run, put, data):
    url = put("another", data)
    for line in (*KEYLESS, *READING, *TREES, *SEALING):
        result = run(line, url)
        assert (line, result.code) == (line, 3)
        assert f"sealpoint: {url} is not a sealed checkpoint" in result.err
        assert not os.path.exists("new")


def test_what_is_not_there_is_said_by_every_command(run, put, whole):
    url = f"{put('another', whole)}-but-not-this"
    for line in (*KEYLESS, *READING, *TREES, *SEALING):
        result = run(line, url)
        assert (line, result.code) == (line, 2)
        assert f"{url} does not exist" in result.err or f"{url}:inventory.img " in result.err
        assert not os.path.exists("new")


def test_an_image_of_a_url_needs_its_name(run, put, whole):
    url = put("one", whole)
    result = run("crit show URL", url)
    assert (result.code, "name one of its images" in result.err) == (2, True)


def test_prune_says_what_to_do_instead(run, put, whole):
    url = put("one", whole)
    for more in ("", " --dry-run"):
        result = run(f"prune URL --keep-last 1{more}", url)
        assert (result.code, "lies in a store" in result.err) == (2, True)
        assert "sealpoint flatten" in result.err
