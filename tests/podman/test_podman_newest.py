"""`sealpoint podman restore`: what it says, what it expects, and that it refuses what is older."""

from __future__ import annotations

import shutil
import time

from sealpoint.checkpoint.opening.access import signing_by, wrap_for
from sealpoint.checkpoint.sealing.archive import seal_path
from sealpoint.checkpoint.sealing.builder import CheckpointBuilder
from sealpoint.format.constants import Suite
from sealpoint.format.writer import SealedWriter
from sealpoint.keys import load_recipient, load_signer
from sealpoint.progress import silent
from sealpoint.state.newest import Newest
from sealpoint.store.output import OutputFile
from tests.podman.test_podman_gate import NAME, assert_nothing_left, container, engine
from tests.real import sealed

__all__ = ["container", "engine"]  # fixtures
NOW = int(time.time())


def seal(it, keys: sealed.Keys, file, **finish) -> str:
    """As `podman checkpoint` seals it, of a workload and at a time."""
    with OutputFile(str(file), force=True) as out:
        writer = SealedWriter(
            out, suite=Suite.AES_256_GCM, wrap=wrap_for([load_recipient(keys.path("recipient.pub"))]),
            signing=signing_by(load_signer(keys.path("signer.key"))),
        )  # fmt: skip
        builder = CheckpointBuilder(writer, compression="none")
        seal_path(str(it.plain), builder, silent)
        builder.finish(**finish)
        out.commit()
    return builder.checkpoint_id.hex()


def test_an_older_container_is_refused_and_allowed_once(
    container, engine, sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path
) -> None:
    it = container("secret")
    older, newer = tmp_path / "older.sealed", tmp_path / "newer.sealed"
    identifier = seal(it, keys, older, workload="w", captured=NOW - 60)
    seal(it, keys, newer, workload="w", captured=NOW)
    state = ["--state", str(tmp_path / "state")]

    def restore(file, *more):
        return sealpoint.run(
            "podman", "restore", file, "--podman", engine, *keys.open, *state, *more
        )

    def gone() -> None:
        it.workload.kill()
        it.workload.reap()
        for name in (NAME, f"{NAME}.work"):
            shutil.rmtree(tmp_path / "containers" / name)

    refused = restore(older, "--workload", "another")
    refused.fails(5, "another checkpoint was expected")
    restore(newer).ok()
    it.workload.assert_continues(it.before)
    assert Newest(str(tmp_path / "state")).of("w").captured == NOW
    gone()
    restore(older).fails(5, "it is older than checkpoint")
    assert_nothing_left(it, tmp_path)
    sealpoint.run("state", "allow-older", "w", *state).ok()
    done = restore(older, "--workload", "w", "--expect", identifier).ok()
    assert f"sealpoint: restoring workload 'w', checkpoint {identifier}" in done.err
    assert "an older checkpoint is restored" in done.err
    it.workload.assert_continues(it.before)
    assert Newest(str(tmp_path / "state")).of("w").captured == NOW
    gone()
    restore(older).fails(5, "it is older than checkpoint")
    assert_nothing_left(it, tmp_path)
    restore(older, "--allow-older").ok()
    it.workload.assert_continues(it.before)
