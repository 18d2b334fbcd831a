"""Which checkpoint is expected: by workload, id or origin digest, compared before a key is loaded."""

from __future__ import annotations

import pytest

from sealpoint.checkpoint.opening.expectation import Expectation
from sealpoint.checkpoint.opening.opener import OpenedCheckpoint
from sealpoint.errors import PolicyError, UsageError
from tests.checkpoint.chain_helpers import seal_images


@pytest.fixture
def made(tmp_path, keys):
    def make(name: str, workload: str):
        path = tmp_path / name
        return str(path), seal_images(keys, path, {"inventory.img": b"x"}, workload=workload)

    return make


def unasked():
    raise AssertionError("the keys were asked for")


def test_another_checkpoint_of_the_same_signer_is_refused(made, keys):
    billing, state = made("billing", "billing")
    other, another = made("other", "other")
    nameless, _ = made("nameless", "")
    own = state.reference
    for expectation in (
        {"workloads": ["billing"]},
        {"workloads": ["x", "billing"]},
        {"expect": [own.checkpoint_id.hex()]},
        {"expect": [own.origin_digest.hex().upper()]},
        {"expect": [another.reference.checkpoint_id.hex()[::-1], own.checkpoint_id.hex()]},
        {"workloads": ["billing"], "expect": [own.origin_digest.hex()]},
    ):
        with OpenedCheckpoint.open(billing, trust=keys.policy, **expectation) as checkpoint:
            assert checkpoint.origin.workload == "billing"
        for path in (other, nameless):
            with pytest.raises(PolicyError, match="another checkpoint was expected") as caught:
                OpenedCheckpoint.open(path, trust=keys.policy, identities=unasked, **expectation)
            assert path in caught.value.message


@pytest.mark.parametrize(
    "wrong",
    [
        {"workloads": ["billing"], "expect": ["00" * 16]},
        {"workloads": ["Billing"]},
        {"workloads": ["bill"]},
        {"expect": ["00" * 32]},
    ],
)
def test_every_kind_that_is_named_must_fit(made, keys, wrong):
    billing, _ = made("billing", "billing")
    with pytest.raises(PolicyError, match="another checkpoint was expected"):
        OpenedCheckpoint.open(billing, trust=keys.policy, **wrong)


@pytest.mark.parametrize("reference", ["", "00", "0" * 31, "0" * 33, "x" * 32, "0" * 63, "٠" * 32])
def test_what_is_no_id_and_no_digest_is_a_mistake(reference):
    with pytest.raises(UsageError, match="neither a checkpoint id nor an origin digest"):
        Expectation.of((), [reference])
    with pytest.raises(UsageError, match="needs a name"):
        Expectation.of([""], ())
