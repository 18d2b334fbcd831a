"""Sealed files in a bucket of moto's S3 server: parts, commit, heads, leftovers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sealpoint.errors import FileError, SystemEnvironmentError, UsageError
from sealpoint.store import bucket_upload
from sealpoint.store.bucket import open_store
from sealpoint.store.bucket_record import CommitRecord, body_key
from sealpoint.store.remote import Incomplete
from tests.store.bucket_helpers import keys, moto, nothing_but, place, proxy, put, send_all  # noqa: F401 - fixtures
from tests.store.bucket_servers import BUCKET, ROOT
from tests.store.uploads import MIB, Spool, content, new_head

pytestmark = pytest.mark.services
# --- Writing. ---


def test_what_was_put_comes_back_byte_for_byte_with_its_properties(place):
    store, body = place(), os.urandom(16 * MIB) + b"end"
    head = put(store, body, properties={"workload": "räuber", "signer": "x"})
    file = store.open()
    assert (file.size, file.head_size) == (len(head) + len(body), len(head))
    assert dict(file.properties) == {"workload": "räuber", "signer": "x"}
    assert content(store) == head + body
    around = memoryview(bytearray(100))
    file.read_into(around, len(head) - 50)
    assert bytes(around) == head[-50:] + body[:50]
    file.close()
    (listed,) = place("").list()
    assert (listed.name, listed.size) == (store.name, file.size)


@pytest.mark.parametrize(
    "name", ["a b", "ü+ä", "100%", "q?x=1", "a#b", "a&b=c", "deep/er/x", "~'()*!", "a.sealed"]
)
def test_any_printable_key_is_a_name(place, name):
    store = place(name)
    head = put(store, b"body")
    assert content(store) == head + b"body"
    assert list(place("").incomplete()) == []
    store.remove()
    nothing_but(store, store._key)


@pytest.mark.parametrize("key", ["", "x/", "a\nb", "\x1b[2J", "x.parts/y", "x" * 1000])
def test_a_key_that_cannot_be_one_is_refused(place, key):
    with pytest.raises(UsageError):
        place(key).check_free(force=False, unconditional=False)


def test_nothing_is_visible_before_the_commit(place):
    store = place()
    upload = store.begin(Spool(b"x" * 100), force=False, unconditional=False)
    upload.send(0, 0, 100)
    with pytest.raises(UsageError, match="does not exist"):
        store.open()
    assert list(place("").list()) == []
    upload.abort()
    nothing_but(store, store._key)


def test_a_name_that_is_taken_is_refused_before_anything_is_sent(place):
    store = place()
    head = put(store, b"first")
    with pytest.raises(UsageError, match="exists already"):
        store.begin(Spool(b"second"), force=False, unconditional=False)
    assert content(store) == head + b"first"


def test_of_two_uploads_to_one_name_the_second_to_commit_fails_and_leaves_nothing(place):
    store, other = place(), place()
    head = new_head()
    uploads = [s.begin(Spool(b"body"), force=False, unconditional=False) for s in (store, other)]
    for upload in uploads:
        upload.send(0, 0, 4)
    uploads[0].commit(head, {})
    with pytest.raises(UsageError, match="exists already"):
        uploads[1].commit(new_head(), {})
    uploads[1].abort()
    assert content(store) == head + b"body"
    assert len(keys(store, store._key)) == 3  # record, body, head
    assert list(store.incomplete()) == []


def test_of_two_records_that_arrive_at_the_same_time_one_is_refused(place, proxy):
    first, store = place(), place(url=proxy.url)
    head = new_head()
    uploads = [s.begin(Spool(b"body"), force=False, unconditional=False) for s in (first, store)]
    for upload in uploads:
        upload.send(0, 0, 4)
    once = []

    def before(exchange):
        if exchange.method == "PUT" and ".parts" not in exchange.path and not once:
            once.append(uploads[0].commit(head, {}))
        return False

    proxy.before = before
    with pytest.raises(UsageError, match="exists already"):
        uploads[1].commit(new_head(), {})
    assert once
    uploads[1].abort()
    assert content(first) == head + b"body"
    assert len(keys(first, first._key)) == 3


def test_force_replaces_the_file_and_removes_the_parts_of_the_old_one(place):
    store = place()
    put(store, b"first")
    head = put(store, b"second", force=True)
    assert content(store) == head + b"second"
    assert len(keys(store, store._key)) == 3


def test_an_upload_that_is_given_up_amid_a_part_leaves_nothing(place, proxy):
    store = place(url=proxy.url)
    stalled = threading.Event()

    def before(exchange):
        if "partNumber=2" in exchange.path:
            stalled.set()
            return exchange.stall(proxy)
        return False

    proxy.before = before
    body = os.urandom(17 * MIB)
    upload = store.begin(Spool(body), force=False, unconditional=False)
    upload.send(0, 0, 16 * MIB)
    failed = []

    def send():
        try:
            upload.send(1, 16 * MIB, MIB)
        except SystemEnvironmentError as error:
            failed.append(error.message)

    thread = threading.Thread(target=send)
    thread.start()
    assert stalled.wait(60)
    upload.abort()
    thread.join()
    assert "given up" in failed[0]
    proxy.before = lambda _: None
    nothing_but(store, store._key)
    with pytest.raises(SystemEnvironmentError, match="given up"):
        upload.commit(new_head(), {})


def test_a_part_that_was_not_sent_is_missed_at_the_commit(place):
    store = place()
    upload = store.begin(Spool(bytes(17 * MIB)), force=False, unconditional=False)
    upload.send(1, 16 * MIB, MIB)
    with pytest.raises(SystemEnvironmentError, match="not sent"):
        upload.commit(new_head(), {})
    upload.abort()
    nothing_but(store, store._key)


# --- Reading what others put there. ---


def test_a_plain_object_is_read_as_it_is(place):
    store = place()
    whole = new_head() + b"the rest of a sealed file" * 5000
    store._client.put(store._key, whole)
    file = store.open()
    assert (file.size, file.head_size) == (len(whole), 64 + 2 * 8192)
    assert content(store) == whole
    assert [each.name for each in place("").list()] == [store.name]
    with pytest.raises(UsageError, match="in one piece"):
        store.replace_head(file, new_head(whole), {})
    store.remove()
    nothing_but(store, store._key)


@pytest.mark.parametrize(
    "data", [b"", b"x", b"{}", b'{"a":1}', b"{" * 60000, b"{" + b" " * 70000, b"\x89SEALPT\nx"]
)
def test_another_object_is_refused_and_not_listed_as_a_checkpoint(place, data):
    store = place()
    store._client.put(store._key, data)
    with pytest.raises(FileError):
        store.open()
    if not data.startswith(b"\x89"):
        assert list(place("").list()) == []


def test_a_body_that_changes_after_it_was_found_is_noticed(place):
    store = place()
    put(store, b"a" * 1000)
    file = store.open()
    store._client.put(body_key(store._key, file.record.parts), b"b" * 1000)
    with pytest.raises(FileError, match="changed"):
        file.read_into(memoryview(bytearray(10)), file.head_size)


@pytest.mark.parametrize("change", ["gone", "shorter", "longer"])
def test_a_body_that_is_not_the_one_of_the_record_is_noticed(place, change):
    store = place()
    put(store, b"a" * 1000)
    record = store.open().record
    key = body_key(store._key, record.parts)
    if change == "gone":
        store._client.remove(key)
    else:
        store._client.put(key, b"a" * (999 if change == "shorter" else 1001))
    file = store.open()
    with pytest.raises(FileError, match="changed or removed"):
        file.read_into(memoryview(bytearray(10)), file.head_size)


def test_no_read_goes_beyond_the_end(place):
    store = place()
    put(store, b"a" * 10)
    file = store.open()
    with pytest.raises(FileError, match="ends before"):
        file.read_into(memoryview(bytearray(2)), file.size - 1)


def test_many_threads_read_one_file(place):
    store, body = place(), os.urandom(2 * MIB)
    head = put(store, body)
    file, whole = store.open(), head + body

    def read(start):
        out = memoryview(bytearray(4096))
        file.read_into(out, start)
        return bytes(out) == whole[start : start + 4096]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(0, len(whole) - 4096, 50_000)))
    file.close()


# --- Leftovers. ---

KILLED = """
import sys, time
from sealpoint.store.bucket import open_store
class Spool:
    def read(self, offset, size):
        return memoryview(bytes(size))
upload = open_store(sys.argv[1]).begin(Spool(), force=False, unconditional=False)
upload.send(0, 0, 16 << 20)
if sys.argv[2] == "completed":
    upload._finish = lambda record: (print("ready", flush=True), time.sleep(600))
    from sealpoint.format.preamble import Preamble, Suite
    upload.commit(Preamble.create(Suite(1), 8192).encode() + bytes(16384), {})
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("when", ["sending", "completed"])
def test_a_killed_upload_is_invisible_found_and_removed(place, when):
    store = place()
    command = [sys.executable, "-c", KILLED, f"s3://{BUCKET}/{store._key}", when]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as child:
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(signal.SIGKILL)
        child.wait()
    with pytest.raises(UsageError, match="does not exist"):
        store.open()
    assert list(place("").list()) == []
    (left,) = place("").incomplete()
    assert left.name.startswith(f"{store.name}.parts/")
    assert left.since
    head = put(store, b"another")  # which does not disturb the next one
    (left,) = store.incomplete()
    store.remove_incomplete(left)
    assert list(store.incomplete()) == []
    assert list(store._client.uploads(store._key)) == []
    assert content(store) == head + b"another"
    assert len(keys(store, store._key)) == 3


def test_a_probe_that_was_left_is_found_and_removed(place):
    store = place()
    store._client.put(f"{store._key}.parts/probe-{'0' * 32}", b"1")
    (left,) = place("").incomplete()
    store.remove_incomplete(left)
    nothing_but(store, store._key)


@pytest.mark.parametrize(
    "what", ["", "x", ".parts/", f".parts/{'0' * 32}", ".parts/probe-1", "/../x"]
)
def test_only_what_an_upload_leaves_is_removed_as_a_leftover(place, what):
    store = place()
    head = put(store, b"body")
    with pytest.raises(UsageError):
        store.remove_incomplete(Incomplete(f"{store.name}{what}", None))
    assert content(store) == head + b"body"


def test_the_parts_of_a_complete_file_are_no_leftover(place):
    store = place()
    head = put(store, b"body")
    used = f"{store.name}.parts/{store.open().record.parts}/"
    with pytest.raises(UsageError, match="complete file"):
        store.remove_incomplete(Incomplete(used, None))
    assert content(store) == head + b"body"


def test_removing_takes_the_record_and_all_parts(place):
    store = place()
    put(store, b"body")
    store.remove()
    nothing_but(store, store._key)
    with pytest.raises(UsageError, match="does not exist"):
        store.remove()


def test_a_bucket_that_is_not_there_is_said(place):
    place()
    with pytest.raises(UsageError, match="no bucket"):
        open_store("s3://no-such-bucket/x").check_free(force=False, unconditional=False)


# --- Memory. ---

UPLOAD = """
import mmap, os, resource, sys, time
from concurrent.futures import ThreadPoolExecutor
from sealpoint.format.preamble import Preamble, Suite
from sealpoint.store.bucket import open_store
fd, size = os.open(sys.argv[2], os.O_RDONLY), os.path.getsize(sys.argv[2])
class Spool:
    def read(self, offset, size):
        return memoryview(os.pread(fd, size, offset))
begun = time.monotonic()
upload = open_store(sys.argv[1]).begin(Spool(), force=False, unconditional=False)
jobs, at = [], 0
while at < size:
    jobs.append((len(jobs), at, min(upload.part_size(len(jobs)), size - at)))
    at += jobs[-1][2]
with ThreadPoolExecutor(upload.parallel) as pool:
    list(pool.map(lambda job: upload.send(*job), jobs))
sent = time.monotonic() - begun
upload.commit(Preamble.create(Suite(1), 8192).encode() + bytes(16384), {})
used = resource.getrusage(resource.RUSAGE_SELF)
# Not ru_maxrss: an exec hands on that of whoever started this.
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(peak // 1024, f"{size / 1e6 / sent:.0f} MB/s, CPU {used.ru_utime + used.ru_stime:.1f} s")
"""


@pytest.mark.slow
def test_a_gibibyte_is_uploaded_in_bounded_memory(place, tmp_path, record_property):
    store, data = place(), tmp_path / "data"
    with data.open("wb") as file:
        file.truncate(1024 * MIB)
    command = [sys.executable, "-c", UPLOAD, f"s3://{BUCKET}/{store._key}", str(data)]
    done = subprocess.run(command, stdout=subprocess.PIPE, cwd=ROOT, text=True, check=True)
    peak, _, figures = done.stdout.partition(" ")
    record_property("figures", f"{peak} MiB, {figures}")
    print(peak, "MiB,", figures)
    assert int(peak) <= 200
    store.remove()


def test_ten_thousand_parts_hold_five_tebibytes_and_each_is_one_that_s3_takes():
    sizes = [bucket_upload.part_size(number) for number in range(10_000)]
    assert sum(sizes) >= 5 << 40
    assert min(sizes) >= 5 * MIB
    assert max(sizes) <= 5 << 30
    assert sizes == sorted(sizes)


def test_the_record_is_the_last_thing_that_is_made(place, proxy):
    store = place(url=proxy.url)
    put(store, b"body")
    made = [
        Path(path.partition("?")[0]).name
        for method, path in proxy.seen
        if method in {"PUT", "POST"}
    ]
    assert made[-1] == "file"
    assert made.index("head-000000000") < len(made) - 1
    assert isinstance(store.open().record, CommitRecord)
