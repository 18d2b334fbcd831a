"""A dump that is broken off, by whatever, in its middle: the process runs on, and nothing of the dump is left."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import harness
import pytest
import sealed
from sealed import stalled_dump

StartWorkload = Callable[..., harness.Workload]

ENOUGH = ("memory", "--mib", "32")  # more than all pipes and buffers hold


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_the_middle_of_a_dump_to_a_pipe_that_nobody_reads(
    workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, number: int
) -> None:
    running = workload(*ENOUGH)
    before = running.assert_intact()
    with stalled_dump(sealpoint, keys, running) as (command, _):
        command.signal(number, group=True)
        result = command.wait()
    result.fails(128 + number, "interrupted" if number == signal.SIGINT else "terminated")
    running.assert_continues(before)


@pytest.mark.parametrize("kind", [ENOUGH], ids=" ".join)
def test_kill_9_of_sealpoint_in_the_middle(
    workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, kind: tuple[str, ...]
) -> None:
    running = workload(*kind)
    before = running.assert_intact()
    with stalled_dump(sealpoint, keys, running) as (command, _):
        command.signal(signal.SIGKILL)
        assert command.wait().code == -signal.SIGKILL
    sealpoint.settle()
    running.assert_continues(before)


def test_kill_9_of_criu_in_the_middle(
    workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys
) -> None:
    running = workload(*ENOUGH)
    before = running.assert_intact()
    with stalled_dump(sealpoint, keys, running) as (command, _):
        os.kill(command.criu(), signal.SIGKILL)
        result = command.wait()
    result.fails(7, "signal 9")
    running.assert_continues(before)


def test_the_reader_of_the_pipe_goes_away(
    workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys
) -> None:
    running = workload(*ENOUGH)
    before = running.assert_intact()
    with stalled_dump(sealpoint, keys, running) as (command, target):
        target.close()
        result = command.wait()
    result.fails(6, "reader", "went away")
    running.assert_continues(before)
