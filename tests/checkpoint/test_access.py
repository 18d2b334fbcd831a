"""Who is believed, and when: certificates count in their time, at the capture and at each change of the header."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from sealpoint.checkpoint.opening.access import CheckedFile
from sealpoint.errors import PolicyError
from sealpoint.keys import load_signer, load_trust
from tests.checkpoint.checkpoint_helpers import Keys, attributes, seal_objects
from tests.keys.keys_helpers import DAY, NOW, ec_key, make_cert, pem

OBJECTS = {"inventory.img": (b"inventory", attributes()), "core-1.img": (b"core", attributes())}
WITHIN, BEFORE, AFTER = NOW - 7 * DAY, NOW - 11 * DAY, NOW - 2 * DAY


@pytest.fixture
def certified(tmp_path):
    """Keys whose signer has a certificate that was valid for five days, and a policy that pins it."""
    mine = Keys(tmp_path / "certified")
    key = ec_key()
    certificate = make_cert("Sally", key, start=-10 * DAY, end=-5 * DAY)
    Path(mine.signer_path).write_bytes(pem(key) + certificate.pem)
    (tmp_path / "sally.pem").write_bytes(certificate.pem)
    mine.signer = load_signer(mine.signer_path, allow_expired=True)
    mine.policy = load_trust([str(tmp_path / "sally.pem")])
    return mine


@pytest.mark.parametrize(
    ("captured", "header", "refused"),
    [
        pytest.param(WITHIN, WITHIN, False, id="both in its time"),
        pytest.param(BEFORE, WITHIN, True, id="captured before"),
        pytest.param(AFTER, WITHIN, True, id="captured after"),
        pytest.param(WITHIN, BEFORE, True, id="header before"),
        pytest.param(WITHIN, AFTER, True, id="header after"),
    ],
)
def test_a_certificate_counts_for_both_statements_in_its_time(
    certified, tmp_path, monkeypatch, captured, header, refused
):
    """The capture time is the origin's; the header has its own, which a rekey sets anew."""
    with monkeypatch.context() as clock:
        clock.setattr(time, "time", lambda: float(header))
        seal_objects(certified, tmp_path / "s", OBJECTS, captured=captured)
    if not refused:
        with CheckedFile.open(str(tmp_path / "s"), certified.policy) as checkpoint:
            assert checkpoint.unlock([certified.identity]).entries
        return
    with pytest.raises(PolicyError, match="no trusted signer was valid"):
        CheckedFile.open(str(tmp_path / "s"), certified.policy)
