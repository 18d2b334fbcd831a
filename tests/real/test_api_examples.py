"""The examples of the Python API, as they are printed, with a real CRIU on a real process tree."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.real import harness, sealed

PAGE = Path(__file__).parents[2] / "docs/reference/api.md"
# As the design of the API was written down; the dots stand for arguments.
DESIGN = """
import sealpoint as sp
sealing = sp.Sealing(recipients=[...], signer=..., compression="auto")
sp.dump(4711, "app.sealed", sealing, leave_running=True)
with sp.Checkpoint.open("app.sealed", trust=..., identities=[...]) as checkpoint:
    checkpoint.verify()
    checkpoint.images["pstree.img"].read()
    for task in checkpoint.tree(): ...
    sp.restore(checkpoint, detach=True)
"""
ARGUMENTS = {
    "recipients=[...]": 'recipients=["keys/recipient.pub"]',
    "signer=...": 'signer="keys/signer.key"',
    "trust=...": 'trust=["keys/signer.pub"]',
    "identities=[...]": 'identities=["keys/identity.key"]',
}


def examples() -> list[str]:
    found: list[str] = re.findall(
        r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    assert found
    design = DESIGN
    for dots, argument in ARGUMENTS.items():
        assert dots in design
        design = design.replace(dots, argument)
    return [*found, design]


@pytest.mark.parametrize("example", examples(), ids=lambda e: "left" if "leave" in e else "ended")
def test_the_examples_run_as_they_are_printed(
    workload: Callable[..., harness.Workload],
    keys: sealed.Keys,
    criu: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    example: str,
) -> None:
    running = workload("tree")
    before = running.assert_intact()
    pids = set(running.processes())
    (tmp_path / "keys").symlink_to(keys.directory)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEALPOINT_CRIU", str(criu))
    for name in ("HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    assert "4711" in example
    names: dict[str, object] = {}
    for statement in ast.parse(example.replace("4711", str(running.pid))).body:
        code = ast.Module([statement], [])
        exec(compile(code, "example", "exec"), names)
        if (tmp_path / "app.sealed").exists() and "checkpoint" not in names:
            if "leave_running" in example:
                assert running.assert_intact().keys() == before.keys()
                before = running.assert_intact()
                running.kill()
            running.wait_gone()
    checkpoint = names["checkpoint"]
    assert names["task"].pid in pids  # type: ignore[attr-defined]
    assert checkpoint.signers[0].trusted  # type: ignore[attr-defined]
    if "leave_running" not in example:
        running.assert_continues(before)
    else:
        running.assert_intact()
