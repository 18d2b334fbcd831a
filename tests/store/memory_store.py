"""A store in memory for tests of what is in front of every adapter, with the faults that the tests ask for.

`URL` names files in it, once `install` has made the scheme known.
"""

from __future__ import annotations

import threading
from types import SimpleNamespace

from sealpoint.errors import FileError, SystemEnvironmentError, UsageError
from sealpoint.store import location
from sealpoint.store.remote import Incomplete, StoredFile

SCHEME = "mem"
MIB = 1 << 20


class Stored:
    def __init__(self, head, body, properties):
        self.head, self.body, self.properties = head, body, dict(properties)

    @property
    def data(self):
        return self.head + self.body


class World:
    """All stores.  files: by URL; parts: of uploads that are under way, by URL.

    before_send, before_commit: called with the upload; reads: of every request (offset, size).
    """

    def __init__(self):
        self.files = {}
        self.parts = {}
        self.reads = []
        self.before_send = lambda upload, number: None
        self.before_commit = lambda upload: None
        self.before_read = lambda file, offset, size: None
        self.part_size = MIB
        self.parallel = 3
        self.creates_only = True
        self.lock = threading.Lock()
        self.open = 0
        self.plain_http = False  # of the last place


def install(monkeypatch):
    """The scheme mem:// for one test."""
    world = World()
    import sys

    def open_store(url, *, plain_http):
        world.plain_http = plain_http
        return MemoryStore(world, url)

    module = SimpleNamespace(open_store=open_store)
    monkeypatch.setitem(sys.modules, "sealpoint.store.mem", module)
    adapters = {**location._ADAPTERS, SCHEME: "sealpoint.store.mem"}
    monkeypatch.setattr(location, "_ADAPTERS", adapters)
    return world


class MemoryUpload:
    def __init__(self, world, name, spooled, *, force):
        self.world, self.name, self.spooled, self.force = world, name, spooled, force
        self.parallel = world.parallel
        self.sent = {}
        self.most = self.now = 0
        self.given_up = threading.Event()
        world.parts[name] = self

    def part_size(self, number):
        return self.world.part_size * (number // 2 + 1)

    def send(self, number, offset, size):
        with self.world.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            self.world.before_send(self, number)
            if self.given_up.is_set():
                raise SystemEnvironmentError("given up")
            self.sent[number] = (offset, bytes(self.spooled.read(offset, size)))
        finally:
            with self.world.lock:
                self.now -= 1

    def commit(self, head, properties):
        self.world.before_commit(self)
        with self.world.lock:
            if self.given_up.is_set():
                raise SystemEnvironmentError("given up")
            end = 0
            for number in range(len(self.sent)):
                offset, data = self.sent[number]
                assert offset == end
                end += len(data)
            if self.name in self.world.files and not self.force:
                raise UsageError(f"{self.name} exists already")
            body = b"".join(self.sent[n][1] for n in range(len(self.sent)))
            self.world.files[self.name] = Stored(head, body, properties)
            self.world.parts.pop(self.name)
        return self.name + "#1"

    def abort(self):
        with self.world.lock:
            self.given_up.set()
            self.world.parts.pop(self.name, None)


class MemoryFile:
    def __init__(self, world, name, stored):
        self.world, self.name, self.stored = world, name, stored
        self.size, self.head_size = len(stored.head) + len(stored.body), len(stored.head)
        self.properties = stored.properties
        self.first_head = stored.head
        self.first_body = stored.body
        world.open += 1

    def read_into(self, out, offset):
        with self.world.lock:
            self.world.reads.append((offset, len(out)))
        self.world.before_read(self, offset, len(out))
        if self.stored.body is not self.first_body:
            raise FileError(f"{self.name} has changed meanwhile")
        head, body = self.stored.head, self.stored.body
        start = max(offset - len(head), 0)
        data = head[offset : offset + len(out)]
        data += body[start : start + len(out) - len(data)]
        if len(data) != len(out):
            raise FileError(f"{self.name} is shorter than it said")
        out[:] = data

    def close(self):
        self.world.open -= 1


class MemoryStore:
    def __init__(self, world, name):
        self.world, self.name = world, name

    def close(self):
        pass

    def check_free(self, *, force, unconditional):
        if self.name in self.world.files and not force:
            raise UsageError(f"{self.name} exists already")
        if not self.world.creates_only and not unconditional:
            raise UsageError(f"{self.name}: this store cannot create-only")

    def begin(self, spooled, *, force, unconditional):
        assert unconditional or self.world.creates_only
        return MemoryUpload(self.world, self.name, spooled, force=force)

    def open(self):
        if self.name not in self.world.files:
            raise UsageError(f"{self.name} does not exist")
        return MemoryFile(self.world, self.name, self.world.files[self.name])

    def replace_head(self, file, head, properties):
        if file.stored.head != file.first_head:
            raise SystemEnvironmentError("somebody else was faster")
        assert len(head) == file.head_size
        file.stored.head, file.stored.properties = head, dict(properties)
        return self.name

    def list(self):
        prefix = self.name[: self.name.rfind("/") + 1]
        for name, stored in sorted(self.world.files.items()):
            if name.startswith(prefix):
                yield StoredFile(name, len(stored.head) + len(stored.body), stored.properties)

    def incomplete(self):
        for name in sorted(self.world.parts):
            yield Incomplete(name, None)

    def remove_incomplete(self, leftover):
        del self.world.parts[leftover.name]

    def remove(self):
        del self.world.files[self.name]
