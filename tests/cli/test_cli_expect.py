"""`--workload` and `--expect`, and `sealpoint state allow-older`."""

from __future__ import annotations

import json

import pytest

from sealpoint.state.newest import Mark, Newest
from tests.checkpoint.chain_helpers import seal_images


@pytest.fixture
def command(keys, cli, tmp_path):
    path = str(tmp_path / "a.sealed")
    state = seal_images(keys, tmp_path / "a.sealed", {"inventory.img": b"x"}, workload="billing")
    opening = ["-i", keys.identity_path, "--trust", keys.trust_path]
    target = tmp_path / "out"

    def run(name: str, *more):
        words = {
            "verify": ["verify", path, *opening],
            "open": ["open", path, "-o", target, *opening],
            "mount": ["mount", path, tmp_path, *opening],
        }[name]
        return cli(*words, *more)

    run.reference = state.reference
    return run


@pytest.mark.parametrize("name", ["verify", "open", "mount"])
def test_commands_refuse_what_is_not_expected(command, name, tmp_path):
    before = sorted(p.name for p in tmp_path.iterdir())
    for more in (["--workload", "other"], ["--expect", "ab" * 16], ["--expect", "ab" * 32]):
        done = command(name, *more)
        assert (done.code, done.out) == (5, ""), done.err
        assert "another checkpoint was expected" in done.err
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    done = command(name, "--expect", "ab")
    assert done.code == 2


@pytest.mark.parametrize("name", ["verify", "open"])
def test_commands_take_what_is_expected(command, name):
    reference = command.reference
    expected = ["--workload", "billing", "--expect", reference.origin_digest.hex()]
    done = command(name, *expected, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)


def test_a_dump_that_is_not_sealed_is_never_what_is_expected(cli, tmp_path):
    """Nothing in the CRIUsec format says which checkpoint it is."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "cipher.img").write_bytes(b"x" * 100)
    (tmp_path / "d" / "inventory.img").write_bytes(b"x")
    for command in (["verify"], ["open", "-o", tmp_path / "o"]):
        done = cli(*command, tmp_path / "d", "--workload", "billing")
        assert (done.code, "nothing in it says which checkpoint it is" in done.err) == (2, True)


def test_a_step_back_is_allowed_for_a_workload_that_is_known(cli, tmp_path):
    state = tmp_path / "state"
    words = ["state", "allow-older", "billing", "--state", state]
    done = cli(*words)
    assert (done.code, done.out) == (5, "")
    assert "no checkpoint of workload 'billing' is known here" in done.err
    Newest(str(state)).note("billing", Mark(bytes(16), 100, 1))
    done = cli(*words)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("one older checkpoint of billing may be restored until 20")
    values = json.loads(cli(*words, "--for", "30s", "--json").out)
    assert values["workload"] == "billing"
    for wrong in ("0", "0s", "-1", "8d", "1.5h", "1w", "x", "9999999999"):
        assert cli(*words, "--for", wrong).code == 2
