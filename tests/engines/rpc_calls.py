"""Requests to the drop-in from a client that comes and goes with each, and the directories that they name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.engines import dropin as dropin_tools, rpc
from tests.real import harness


@pytest.fixture
def places(images: Path, work: Path) -> Iterator[dict[str, int]]:
    """Options that name the two directories."""
    with rpc.directory_descriptor(images) as first, rpc.directory_descriptor(work) as second:
        yield {"images_dir_fd": first, "work_dir_fd": second}


@contextlib.contextmanager
def client(
    dropin: dropin_tools.DropIn, cwd: Path | None = None, inherited: Sequence[int] = ()
) -> Iterator[rpc.Client]:
    with rpc.Client(dropin.path, dropin.environment, cwd, inherited) as connection:
        yield connection


def call(dropin: dropin_tools.DropIn, kind: int, **options: object) -> rpc.Reply:
    with client(dropin) as connection:
        reply = connection.call(rpc.request(kind, **options))
        connection.wait()
    return reply


def dump(dropin: dropin_tools.DropIn, running: harness.Workload, **options: object) -> rpc.Reply:
    return call(dropin, rpc.DUMP, pid=running.pid, log_level=4, **options)


def restore(dropin: dropin_tools.DropIn, **options: object) -> rpc.Reply:
    return call(dropin, rpc.RESTORE, log_level=4, **options)
