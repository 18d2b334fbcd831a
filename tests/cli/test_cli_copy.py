"""`copy`: the same bytes elsewhere, nothing decrypted, nothing that is damaged or signed by a stranger."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from sealpoint.errors import SystemEnvironmentError
from sealpoint.format.preamble import Preamble
from sealpoint.store import properties, wire
from tests.checkpoint.checkpoint_helpers import attributes, seal_objects
from tests.store import memory_store
from tests.store.bucket_servers import use

URL = "mem://here/one"
PAGES = os.urandom(1_500_000)


@pytest.fixture
def world(monkeypatch):
    world = memory_store.install(monkeypatch)
    world.part_size = 64 * 1024
    return world


@pytest.fixture
def trust(keys):
    return ["--trust", keys.trust_path]


@pytest.fixture
def sealed(keys):
    objects = {"inventory.img": (b"inventory", attributes()), "pages-1.img": (PAGES, attributes())}
    seal_objects(keys, "s.sealed", objects)
    return "s.sealed"


def there(name):
    return Path(name).read_bytes()


def left(world):
    """Of uploads, in the store and here."""
    threads = [t for t in threading.enumerate() if t.name in ("upload", "commit", "abort")]
    return world.parts, threads


@pytest.mark.parametrize("name", ["-", "/dev/stdout"])
def test_a_copy_on_standard_output_has_the_same_bytes(program, sealed, trust, name):
    with open("out", "wb") as out:
        done = program("copy", sealed, name, *trust, stdout=out)
    assert done.code == 0
    assert "checkpoint" in done.err
    assert there("out") == there(sealed)


def test_a_copy_in_a_file_or_a_pipe_has_the_same_bytes(cli, sealed, trust):
    result = cli("copy", sealed, "copy.sealed", *trust)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"{sealed} copied to copy.sealed: ")
    assert there("copy.sealed") == there(sealed)
    os.mkfifo("pipe")
    found = []
    reader = threading.Thread(target=lambda: found.append(there("pipe")))
    reader.start()
    assert cli("copy", sealed, "pipe", *trust).code == 0
    reader.join(60)
    assert found == [there(sealed)]


def test_into_a_store_and_out_of_it(cli, world, sealed, trust, keys):
    found = json.loads(cli("copy", sealed, URL, "--json", *trust).out)
    assert found["file"] == f"{URL}#1"
    assert found["file_size"] == os.path.getsize(sealed)
    stored = world.files[URL]
    assert stored.data == there(sealed)
    assert len(stored.head) == Preamble.decode(stored.data[:64]).frames_offset
    assert stored.properties[properties.ID] == found["checkpoint"]
    assert stored.properties[properties.ORIGIN_DIGEST] == found["origin"]
    assert cli("copy", URL, "mem://there/two", *trust).code == 0
    assert world.files["mem://there/two"].data == stored.data
    assert world.files["mem://there/two"].properties == stored.properties
    assert cli("copy", "mem://there/two", "back.sealed", *trust).code == 0
    assert there("back.sealed") == there(sealed)
    assert left(world) == ({}, [])
    assert world.open == 0


@pytest.mark.parametrize("regular", [True, False], ids=["file", "pipe"])
def test_from_standard_input(cli, world, sealed, trust, regular):
    os.mkdir("spool")
    if regular:
        fd = os.open(sealed, os.O_RDONLY)
    else:
        fd, write = os.pipe()
        feeder = threading.Thread(target=feed, args=(write, there(sealed)))
        feeder.start()
    saved = os.dup(0)
    os.dup2(fd, 0)
    os.close(fd)
    try:
        result = cli("copy", "-", URL, "--spool", "spool", *trust)
    finally:
        os.dup2(saved, 0)
        os.close(saved)
    if not regular:
        feeder.join(60)
    assert result.code == 0
    assert world.files[URL].data == there(sealed)
    assert os.listdir("spool") == []


def feed(fd, data):
    with open(fd, "wb") as out:
        out.write(data)


def test_no_key_is_asked_for_and_somebody_must_be_trusted(cli, world, sealed, trust, others):
    assert cli("copy", sealed, URL).code == 5
    result = cli("copy", sealed, URL, "--trust", others.trust_path)
    assert (result.code, world.files) == (5, {})
    assert cli("copy", sealed, "x.sealed", "--trust", others.trust_path).code == 5
    assert not os.path.exists("x.sealed")
    assert cli("copy", sealed, URL, "--allow-unsigned").code == 0
    assert cli("copy", sealed, "x.sealed", "--expect", "00" * 16, *trust).code == 5
    assert not os.path.exists("x.sealed")
    assert "--identity" not in cli("copy", "--help").out


@pytest.mark.parametrize("target", [URL, "x.sealed"])
@pytest.mark.parametrize("where", ["head", "first frame", "last frame", "index", "end"])
def test_what_is_damaged_is_not_copied(cli, world, sealed, trust, target, where):
    data = bytearray(there(sealed))
    frames = Preamble.decode(bytes(data[:64])).frames_offset
    index = data.rindex(b"payloadType") - 200  # before the origin statement
    at = {
        "head": 100,
        "first frame": frames + 20,
        "last frame": frames + len(PAGES) - 1000,
        "index": index,
        "end": len(data) - 5,
    }[where]
    data[at] ^= 1
    Path(sealed).write_bytes(data)
    result = cli("copy", sealed, target, *trust)
    assert result.code == 3
    assert sealed in result.err
    assert world.files == {}
    assert not os.path.exists("x.sealed")
    assert left(world) == ({}, [])


def test_a_name_that_is_taken_is_replaced_only_by_force(cli, world, sealed, trust, keys):
    Path("taken").write_bytes(b"old")
    result = cli("copy", sealed, "taken", *trust)
    assert (result.code, there("taken")) == (2, b"old")
    assert cli("copy", sealed, "taken", "--force", *trust).code == 0
    assert there("taken") == there(sealed)
    seal_objects(keys, "other", {"inventory.img": (b"other", attributes())})
    assert cli("copy", "other", URL, *trust).code == 0
    result = cli("copy", sealed, URL, *trust)
    assert (result.code, world.files[URL].data) == (2, there("other"))
    assert "exists already" in result.err
    assert cli("copy", sealed, URL, "--force", *trust).code == 0
    assert world.files[URL].data == there(sealed)
    world.creates_only = False
    assert cli("copy", sealed, "mem://here/two", *trust).code == 2
    assert cli("copy", sealed, "mem://here/two", "--unconditional", *trust).code == 0


def test_a_store_that_fails_keeps_nothing(cli, world, sealed, trust):
    def fail(_, number):
        if number == 2:
            raise SystemEnvironmentError("no answer")

    world.before_send = fail
    result = cli("copy", sealed, URL, *trust)
    assert (result.code, "no answer" in result.err) == (6, True)
    assert world.files == {}
    assert left(world) == ({}, [])


def test_what_is_changed_while_it_is_copied_is_not_stored(cli, world, sealed, trust):
    changed = []

    def change(upload, _number):
        if upload.spooled.size == os.path.getsize(sealed):  # all of it was checked
            with open(sealed, "r+b") as file:
                file.seek(-200_000, os.SEEK_END)  # in a frame
                file.write(b"!")
            os.utime(sealed, (1, 1))
            changed.append(True)

    world.before_send = change
    result = cli("copy", sealed, URL, *trust)
    assert changed
    assert (result.code, "changed while it was copied" in result.err) == (3, True)
    assert world.files == {}
    assert left(world) == ({}, [])


def test_a_local_file_is_not_held_a_second_time(cli, world, sealed, trust, monkeypatch):
    monkeypatch.setattr("sealpoint.store.limits.memory_share", lambda: 1000)
    assert cli("copy", sealed, URL, *trust).code == 0
    result = cli("copy", URL, "mem://here/two", *trust)
    assert result.code == 6
    assert "--spool DIR" in result.err
    os.mkdir("spool")
    assert cli("copy", URL, "mem://here/two", "--spool", "spool", *trust).code == 0
    assert os.listdir("spool") == []


def test_options_that_have_no_meaning_are_refused(cli, world, sealed, trust):
    for option in (["--unconditional"], ["--spool", "."]):
        assert cli("copy", sealed, "x", *option, *trust).code == 2
    assert cli("copy", "mem://here/none", "x", *trust).code == 2
    assert cli("copy", "nobody://here/none", "x", *trust).code == 2
    assert cli("copy", sealed, "nobody://here/none", *trust).code == 2
    assert cli("copy", "none", "x", *trust).code == 2
    assert cli("copy", ".", "x", *trust).code == 2
    assert os.listdir() == [sealed]


def test_plain_http_is_for_one_command(cli, world, sealed, trust):
    assert cli("copy", sealed, URL, "--plain-http", *trust).code == 0
    assert world.plain_http
    assert cli("verify", URL, *trust).code == 0
    assert not world.plain_http
    assert cli("verify", URL, "--plain-http", *trust).code == 0
    assert world.plain_http


@pytest.mark.parametrize("url", ["s3://bucket/key", "oci://192.0.2.1:5000/name:tag"])
def test_without_tls_nothing_is_sent_to_another_machine(cli, sealed, trust, url, monkeypatch):
    use(monkeypatch, "http://192.0.2.1:5000")
    monkeypatch.setattr("sealpoint.store.retry.FIRST_PAUSE", 0.001)
    tried = []

    def connect(connection):
        tried.append(isinstance(connection, wire._Secure))
        raise ConnectionRefusedError

    for kind in (wire._Cuttable, wire._Secure):
        monkeypatch.setattr(kind, "connect", connect)
    assert cli("copy", sealed, url, *trust).code in (2, 6)
    assert False not in tried
    tried.clear()
    assert cli("copy", sealed, url, "--plain-http", *trust).code == 6
    assert set(tried) == {False}
