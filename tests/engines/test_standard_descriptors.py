"""The drop-in whose caller closed standard descriptors, or uses their numbers for the socket of RPC."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.engines import dropin as dropin_tools, rpc
from tests.engines.rpc_calls import places
from tests.real import harness

__all__ = ["places"]  # a fixture

StartWorkload = Callable[..., harness.Workload]

SUBSETS = [
    subset for size in range(4) for subset in itertools.combinations((0, 1, 2), size)
]  # of 0, 1 and 2: all eight

# Last before the drop-in, so that nothing takes the numbers again.
_CALLER = """#!{python} -I
import os, sys
words = sys.argv[1:]
number = {number!r}
if number is not None:
    os.dup2(int(words[-1]), number)
    os.close(int(words[-1]))
    words[-1] = str(number)
for fd in {closed!r}:
    if fd != number:
        os.close(fd)
os.execv({path!r}, [{path!r}, *words])
"""


def caller(
    dropin: dropin_tools.DropIn, directory: Path, closed: Sequence[int], number: int | None = None
) -> Path:
    """An executable that becomes the drop-in without the descriptors `closed`; `number`: of the socket of `swrk`."""
    path = directory / "caller"
    path.write_text(
        _CALLER.format(python=sys.executable, number=number, closed=closed, path=str(dropin.path))
    )
    path.chmod(0o755)
    return path


def typed(criu: Path, dropin: dropin_tools.DropIn, *words: object) -> int:
    return subprocess.run(
        [str(criu), *map(str, words)],
        env=dropin.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=rpc.TIMEOUT,
        check=False,
    ).returncode


@pytest.mark.parametrize("closed", SUBSETS, ids=str)
def test_as_typed_any_standard_descriptors_may_be_closed(
    workload: StartWorkload, dropin: dropin_tools.DropIn, tmp_path: Path, closed: tuple[int, ...]
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    images = tmp_path / "images"
    images.mkdir()
    criu = caller(dropin, tmp_path, closed)
    assert typed(criu, dropin, "dump", "-t", running.pid, "-D", images, "-o", "dump.log") == 0
    running.wait_gone()
    assert typed(criu, dropin, "restore", "-d", "-D", images, "-o", "restore.log") == 0
    running.assert_continues(before)


@pytest.mark.parametrize(
    ("closed", "number"),
    [(closed, None) for closed in SUBSETS]
    + [(closed, number) for number in (0, 1, 2) for closed in ((), (0, 1, 2))],
    ids=str,
)
def test_by_rpc_any_standard_descriptors_may_be_closed_or_be_the_socket(
    workload: StartWorkload,
    dropin: dropin_tools.DropIn,
    places: dict[str, int],
    tmp_path: Path,
    closed: tuple[int, ...],
    number: int | None,
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    criu = caller(dropin, tmp_path, closed, number)
    for kind, options in ((rpc.DUMP, {"pid": running.pid}), (rpc.RESTORE, {})):
        with rpc.Client(criu, dropin.environment) as connection:
            reply = connection.call(rpc.request(kind, log_level=4, **options, **places))
        assert reply.success, reply
        if kind == rpc.DUMP:
            running.wait_gone()
    running.assert_continues(before)
