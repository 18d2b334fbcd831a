"""A dump by RPC through the drop-in when something breaks: it leaves its process as it was."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engines import dropin as dropin_tools, rpc
from tests.engines.rpc_faults import (
    BIG,
    LOST,
    Places,
    assert_refused,
    dump,
    helper,
    places,
    restore,
)
from tests.keys.keys_helpers import DAY, ec_key, make_ca, pem
from tests.real import harness, sealed

__all__ = ["places"]  # a fixture

StartWorkload = Callable[..., harness.Workload]


# --- killed in a dump ----------------------------------------------------------------------------------


def at_once(places: Places) -> None:
    pass


def when_pages_are_dumped(places: Places) -> None:
    def begun() -> bool:
        log = places.work / "dump.log"
        return log.exists() and "Dumping pages" in log.read_text(errors="replace")

    sealed.wait_until(begun, "pages are dumped", 20)


MOMENTS = [at_once, when_pages_are_dumped]


@pytest.mark.parametrize("victim", ["helper", "criu", "client"])
@pytest.mark.parametrize("moment", MOMENTS, ids=lambda m: m.__name__)
@pytest.mark.parametrize("delay", [0.0, 0.02])
def test_kill_9_in_a_dump_leaves_the_process_as_it_was(
    dropin: dropin_tools.DropIn,
    workload: StartWorkload,
    places: Places,
    victim: str,
    moment: Callable[[Places], None],
    delay: float,
) -> None:
    running = workload(*BIG)
    before = running.assert_intact()
    with places.options(log_file="dump.log", leave_running=True) as options:
        data = rpc.request(rpc.DUMP, pid=running.pid, **options)
        if victim == "client":
            pid = os.fork()
            if pid == 0:  # a client that can be killed; CRIU becomes ours
                with contextlib.suppress(BaseException):
                    rpc.Client(dropin.path, dropin.environment).call(data)
                os._exit(0)
            moment(places)
            time.sleep(delay)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        else:
            with rpc.Client(dropin.path, dropin.environment) as connection:
                connection.send(data)
                target = connection.process.pid if victim == "criu" else helper(dropin, connection)
                moment(places)
                time.sleep(delay)
                os.kill(target, signal.SIGKILL)
                try:
                    reply = connection.finish()
                except LOST:
                    assert victim == "helper" or moment is at_once
                else:
                    assert reply.success or reply.message.startswith("sealpoint: ")
    dropin.settle()
    running.assert_continues(before)
    # It may have been complete before; then CRIU could not say so to a client that is gone.
    assert set(os.listdir(places.images)) <= {"inventory.img", "inventory.img.failed"}
    again = dump(dropin, places, running.pid, leave_running=True)
    assert again.success, again
    running.assert_continues(before)


@pytest.mark.parametrize("script", ["pre-dump", "query-ext-files", "post-dump"])
@pytest.mark.parametrize("victim", ["helper", "criu"])
def test_kill_9_at_a_notification_leaves_the_process_as_it_was(
    dropin: dropin_tools.DropIn, workload: StartWorkload, places: Places, script: str, victim: str
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    with places.options(notify_scripts=True, leave_running=True) as options:
        with rpc.Client(dropin.path, dropin.environment) as connection:

            def kill(notified: str, _: int) -> bool:
                if notified == script:
                    os.kill(
                        helper(dropin, connection)
                        if victim == "helper"
                        else connection.process.pid,
                        signal.SIGKILL,
                    )
                return True

            with contextlib.suppress(*LOST):
                reply = connection.call(rpc.request(rpc.DUMP, pid=running.pid, **options), kill)
                assert not reply.success
    dropin.settle()
    running.assert_continues(before)
    if victim == "criu":
        assert set(os.listdir(places.images)) <= {"inventory.img.failed"}


def test_a_client_that_never_answers_and_goes_leaves_the_process_as_it_was(
    dropin: dropin_tools.DropIn, workload: StartWorkload, places: Places
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    with places.options(notify_scripts=True) as options:
        with rpc.Client(dropin.path, dropin.environment) as connection:
            connection.send(rpc.request(rpc.DUMP, pid=running.pid, **options))
            connection.receive()
    dropin.settle()
    running.assert_continues(before)
    assert os.listdir(places.images) == []


# --- a dump that cannot be sealed -----------------------------------------------------------------------


def test_a_full_disk_fails_the_dump_and_leaves_nothing_on_it(
    dropin: dropin_tools.DropIn, workload: StartWorkload, tmp_path: Path, work: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "sealtest", small], check=True)
    try:
        running = workload(*BIG)
        before = running.assert_intact()
        places = Places(small, work)
        reply = dump(dropin, places, running.pid)
        assert_refused(reply, places.log("dump.log"), "no space left", "inventory.img")
        running.assert_continues(before)
        assert os.listdir(small) == []
        assert shutil.disk_usage(small).used == 0
    finally:
        subprocess.run(["umount", "-l", small], check=True)


BROKEN = {
    "no recipients": ({"recipients": None}, ["no recipient", "config.toml"]),
    "no signer": ({"signer": None}, ["no signer", "config.toml"]),
    "signer is not there": ({"signer": "/nowhere/signer.key"}, ["/nowhere/signer.key"]),
    "signer is a directory": ({"signer": "/tmp"}, ["/tmp"]),
    "recipient is not there": ({"recipients": ["/nowhere/r.pub"]}, ["/nowhere/r.pub"]),
    "unknown suite": ({"suite": "rot13"}, ["config.toml, line 7: suite"]),
    "wrong type": ({"recipients": 7}, ["config.toml, line 1: recipients"]),
    "unknown key": ({"recipient": "x"}, ["config.toml, line 7: recipient"]),
}


@pytest.mark.parametrize("mistake", BROKEN)
def test_a_mistake_in_the_configuration_is_named_to_the_client_and_in_the_log(
    dropin: dropin_tools.DropIn, workload: StartWorkload, places: Places, mistake: str
) -> None:
    settings, words = BROKEN[mistake]
    dropin.configure(**settings)
    if mistake == "wrong type":
        dropin.config.write_text(dropin.config.read_text().replace('"7"', "7"))
    running = workload("secret")
    before = running.assert_intact()
    reply = dump(dropin, places, running.pid)
    assert_refused(reply, places.log("dump.log"), *words)
    running.assert_continues(before)
    assert os.listdir(places.images) == []


@pytest.mark.parametrize(
    "text", [None, "recipients = [\n", "\xff\xfe"], ids=["none", "cut", "bytes"]
)
def test_a_configuration_that_is_missing_or_no_toml_is_named(
    dropin: dropin_tools.DropIn, workload: StartWorkload, places: Places, text: str | None
) -> None:
    if text is None:
        dropin.config.unlink()
    else:
        dropin.config.write_bytes(text.encode("latin-1"))
    running = workload("secret")
    reply = dump(dropin, places, running.pid)
    assert_refused(reply, places.log("dump.log"), str(dropin.config))
    running.assert_intact()


def certified(directory: Path, name: str, **options: object) -> Path:
    """A signer with a certificate of an authority's, in one file; the authority is beside it."""
    authority = make_ca(start=-30 * DAY, end=30 * DAY)
    key = ec_key()
    leaf = authority.issue(name, key, usage=("digital_signature",), **options)
    path = directory / f"{name}.pem"
    path.write_bytes(pem(key) + leaf.pem)
    path.chmod(0o600)
    (directory / f"{name}-ca.pem").write_bytes(authority.pem)
    return path


def test_an_expired_certificate_of_the_signer_fails_the_dump(
    dropin: dropin_tools.DropIn, workload: StartWorkload, places: Places, tmp_path: Path
) -> None:
    dropin.configure(signer=certified(tmp_path, "old", start=-2 * DAY, end=-DAY))
    running = workload("secret")
    before = running.assert_intact()
    reply = dump(dropin, places, running.pid)
    assert_refused(reply, places.log("dump.log"), "expired", "old.pem")
    running.assert_continues(before)


def test_a_recipient_that_the_configured_authorities_did_not_certify_is_refused(
    dropin: dropin_tools.DropIn,
    workload: StartWorkload,
    places: Places,
    tmp_path: Path,
    keys: sealed.Keys,
) -> None:
    certified(tmp_path, "any")
    dropin.configure(
        recipients=[keys.path("x509-ec/recipient.pem")],
        recipient_authorities=[tmp_path / "any-ca.pem"],
    )
    running = workload("secret")
    reply = dump(dropin, places, running.pid)
    assert_refused(reply, places.log("dump.log"), "recipient.pem")
    running.assert_intact()


def test_three_processes_are_dumped_at_the_same_time(
    dropin: dropin_tools.DropIn, workload: StartWorkload, tmp_path: Path
) -> None:
    running = [workload(kind) for kind in ("secret", "ipc", "tree")]
    before = [each.assert_intact() for each in running]
    replies: dict[int, rpc.Reply] = {}
    places = []
    for number in range(3):
        for kind in ("images", "work"):
            (tmp_path / f"{kind}-{number}").mkdir()
        places.append(Places(tmp_path / f"images-{number}", tmp_path / f"work-{number}"))

    def one(number: int) -> None:
        replies[number] = dump(dropin, places[number], running[number].pid)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, each in enumerate(running):
        assert replies[number].success, replies[number]
        each.wait_gone()
    for number, each in enumerate(running):
        reply = restore(dropin, places[number], rst_sibling=True)
        assert reply.success, reply
        each.assert_continues(before[number])
