"""What a door that runs something says and asks, and what it remembers when the gate has said yes."""

from __future__ import annotations

import time

import pytest

from sealpoint.checkpoint.live.admission import Admission, describe_admitted
from sealpoint.checkpoint.opening.opener import OpenedCheckpoint
from sealpoint.criu import schema
from sealpoint.errors import PolicyError
from sealpoint.state.newest import Newest
from tests.checkpoint.chain_helpers import seal_images
from tests.checkpoint.checkpoint_helpers import Keys

NOW = int(time.time())


def image(name: str, **fields) -> bytes:
    record = schema.message(name)(**fields).SerializeToString()
    return bytes.fromhex("19435654 00000000") + len(record).to_bytes(4, "little") + record


def images(command: bytes = b"python3", host: bytes = b"web-1") -> dict[str, bytes]:
    return {
        "inventory.img": b"",
        "pstree.img": image("pstree_entry", pid=7, ppid=0),
        "core-7.img": image("core_entry", tc={"comm": command}),
        "utsns-10.img": image("utsns_entry", nodename=host),
    }


@pytest.fixture
def door(tmp_path, keys):
    """door(captured, ...) opens a checkpoint of the workload "w" and admits it; what it says is in door.said."""
    opened = []

    def open_(captured, *, by=keys, trust=keys.policy, allow_unsigned=False, contents=None, **more):
        path = tmp_path / f"{len(opened)}.sealed"
        finish = {"workload": "w", "captured": captured} | more.pop("finish", {})
        seal_images(by, path, contents or images(), **finish)
        checkpoint = OpenedCheckpoint.open(
            str(path), trust=trust, identities=[by.identity], allow_unsigned=allow_unsigned
        )
        opened.append(checkpoint)
        return Admission(checkpoint, str(tmp_path / "state"), open_.said.append, **more)

    open_.said = []
    open_.newest = Newest(str(tmp_path / "state"))
    open_.last = lambda: opened[-1]
    yield open_
    for checkpoint in opened:
        checkpoint.close()


def test_the_mark_rises_after_the_yes_and_not_before(door):
    admission = door(NOW)
    admission.permit()
    assert door.newest.of("w") is None
    admission.passed()
    assert door.newest.of("w").captured == NOW
    with pytest.raises(PolicyError, match="it is older than"):
        door(NOW - 1)
    door(NOW + 1).permit()


def test_what_became_older_while_it_was_read_is_refused_at_the_gate(door):
    older, newer = door(NOW - 10), door(NOW)
    newer.permit()
    newer.passed()
    with pytest.raises(PolicyError, match="it is older than"):
        older.permit()


def test_a_step_back_on_request_says_so_and_lowers_nothing(door):
    door(NOW).passed()
    allowed = door(NOW - 5, allow_older=True)
    allowed.permit()
    allowed.passed()
    assert door.newest.of("w").captured == NOW
    door.newest.allow("w", 60)
    once = door(NOW - 5)
    once.permit()
    assert "an older checkpoint is restored" in door.said[-1]
    assert "allowed once" in door.said[-1]
    with pytest.raises(PolicyError):
        once.permit()


def test_what_nobody_trusted_signed_moves_no_mark(door, tmp_path, keys):
    """Whoever writes a file chooses its workload and time: it could have all that is true refused."""
    stranger = Keys(tmp_path / "stranger")
    for trust in ((), keys.policy):
        admission = door(NOW, by=stranger, trust=trust, allow_unsigned=True)
        admission.permit()
        admission.passed()
        assert door.newest.of("w") is None
    door(NOW, trust=keys.policy, allow_unsigned=True).passed()  # signed by somebody who is trusted
    assert door.newest.of("w").captured == NOW


def test_a_time_that_lies_ahead_is_restored_with_a_warning_and_moves_no_mark(door):
    admission = door(NOW + 3600)
    admission.permit()
    admission.passed()
    assert door.newest.of("w") is None
    assert "more than 5 minutes from now" in door.said[-1]


def test_a_mark_that_cannot_be_written_stops_nothing_that_runs(door, tmp_path):
    admission = door(NOW)
    (tmp_path / "state").write_text("")
    admission.passed()
    assert "cannot remember" in door.said[-1]


def test_what_is_restored_is_said(door, keys):
    door(1_700_000_000)
    checkpoint = door.last()
    identifier = checkpoint.origin.checkpoint_id.hex()
    first, second = describe_admitted(checkpoint)
    assert first.startswith(
        f"workload 'w', checkpoint {identifier}, captured 2023-11-14 22:13:20 UTC, "
    )
    assert first.endswith(f"signed by {checkpoint.signers[0].name}")
    assert second == "command 'python3', host 'web-1'"


def test_who_is_not_trusted_is_called_so(door, tmp_path):
    door(
        NOW, by=Keys(tmp_path / "stranger"), trust=(), allow_unsigned=True, finish={"workload": ""}
    )
    first = describe_admitted(door.last())[0]
    assert first.startswith("no workload, ")
    assert first.endswith("(not trusted)")


def test_what_a_file_or_a_signer_is_called_cannot_steer_a_terminal(door, keys):
    nasty = "evil\x1b]0;\n\u202eworkload"
    contents = images(command=b"x\x1b[31m\n\xff", host=b"h\x9b\n\xe2\x80\xae\xff")
    (signer,) = keys.policy.pinned
    trust = keys.policy._replace(pinned=(signer._replace(name="signer\x1b[2J\u202e"),))
    door(NOW, contents=contents, finish={"workload": nasty}, trust=trust)
    lines = describe_admitted(door.last())
    assert all(line.isprintable() for line in lines)
    assert "command 'x" in lines[1]
    assert "host 'h" in lines[1]
