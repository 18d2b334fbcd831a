"""What programs that sealpoint starts find in their environment."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import sealpoint
from sealpoint.environment import environment

SOURCE = Path(sealpoint.__file__).parent
GIVEN = {
    "PATH": "/bin",
    "HOME": "/root",
    "CRIU_FAULT": "1",
    "CRIU_LIBS_DIR": "/x",
    "CRIU_CONFIG_FILE": "/x",
    "CRIU_": "1",
    "LD_PRELOAD": "/x",
    "LD_AUDIT": "/x",
    "PYTHONPATH": "/x",
    "PYTHONHOME": "/x",
    "POSIXLY_CORRECT": "1",
    "SEALPOINT_CRIU": "/x",
}


@pytest.mark.parametrize(
    ("options", "more"),
    [
        ({}, set()),
        ({"criu_fault": True}, {"CRIU_FAULT"}),
        ({"own": True}, {"SEALPOINT_CRIU"}),
    ],
)
def test_what_changes_programs_behind_their_backs_is_dropped(
    options: dict[str, bool], more: set[str]
) -> None:
    assert set(environment(GIVEN, **options)) == {"PATH", "HOME"} | more


def starts(tree: ast.AST) -> list[ast.Call]:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call for call in calls if isinstance(call.func, ast.Attribute)]


@pytest.mark.parametrize("file", sorted(SOURCE.rglob("*.py")), ids=lambda p: p.stem)
def test_nothing_is_started_with_our_own_environment(file: Path) -> None:
    for call in starts(ast.parse(file.read_text())):
        assert isinstance(call.func, ast.Attribute)
        owner = call.func.value
        module = owner.id if isinstance(owner, ast.Name) else ""
        where = f"{file}:{call.lineno}"
        if module == "subprocess" and call.func.attr in ("run", "call", "Popen", "check_output"):
            assert any(keyword.arg == "env" for keyword in call.keywords), where
        if module == "os":
            assert call.func.attr not in ("execv", "execvp", "execl", "execlp", "system"), where
            assert not call.func.attr.startswith("popen"), where
