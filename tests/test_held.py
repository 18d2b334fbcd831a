"""No process is signalled, entered or believed by its number: whoever has that number by then could be a stranger.

The cases (`stolen`) each let a stranger take the pid between the look and what follows from it.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import stolen

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "sealpoint"
MECHANISM = "process.py"

# What has a number and needs no descriptor, with the reason: module, function.
EXCEPTIONS = {
    ("criu/run.py", "CriuRun.start"): "pidfd_open of a child that nobody has waited for",
    ("criu/run.py", "CriuRun._end_orphans"): "killpg while the leader is not reaped: its number is taken",
    ("podman/guard.py", "ArchiveGuard._await"): "pidfd_open of a child that nobody has waited for",
    ("dropin/shim.py", "_guard"): "pidfd_open of a process that waits for us meanwhile",
    ("store/output.py", "_descriptor"): "of this process: self and thread-self",
    ("criu/hook.py", "peer"): "asks for the user, not for the process",
    ("podman/broker.py", "_is_root"): "asks for the user, not for the process",
    ("dropin/leftovers.py", "Leftovers._has_it_open"): "within Held.look",
    ("dropin/leftovers.py", "_mount_of"): "within Held.look, or of this process",
    ("machine/thaw.py", "_groups_of"): "within Held.look",
    ("dropin/proxy.py", "_cgroups"): "within Held.look",
    ("criu/callers.py", "Callers._judge"): "the kernel holds the process until it has our answer (ADR 0056)",
    ("criu/callers.py", "Callers._is_sibling"): "the kernel holds the process until it has our answer (ADR 0056)",
    ("criu/callers.py", "_parent"): "looked at twice: ADR 0056 says why that is enough",
    ("machine/real.py", "_await_exec"): "of a child that nobody has waited for",
    ("machine/real.py", "_end_restored"): "within Held.look",
    ("machine/paths.py", "process_path"): "for doctor to tell; nothing follows from it",
    ("machine/paths.py", "processes"): "for doctor to tell; nothing follows from it",
    ("checkpoint/tables/extent.py", "_private"): "an estimate of a size",
    ("checkpoint/tables/extent.py", "_note_shared"): "an estimate of a size",
    ("state/soft_dirty.py", "_identity"): "reads the start time, by which the number is told from a later one",
    ("state/container_workload.py", "container_of"): "the gate asks whether the process still has its number",
}  # fmt: skip


@pytest.mark.parametrize("name", stolen.CASES)
def test_a_stranger_with_the_pid_is_not_taken_for_the_process(name: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can choose pids")
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable]
    done = subprocess.run(
        [*command, "-W", "ignore::ResourceWarning", "-m", "tests.stolen", name],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        if name != MECHANISM:
            yield name, ast.parse(path.read_text())


def functions(node: ast.AST, above: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Each node with the qualified name of the function or class that it is in."""
    for child in ast.iter_child_nodes(node):
        name = above
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{above}.{child.name}".lstrip(".")
        yield name, child
        yield from functions(child, name)


def by_number(node: ast.AST) -> bool:
    """A signal to a number that is not this process's own, a pidfd of one, a path with one, or a peer's."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr == "kill" and ast.unparse(node.func.value) == "os":
            return ast.unparse(node.args[0]) != "os.getpid()"
        return node.func.attr in ("killpg", "pidfd_open", "getppid")
    if isinstance(node, ast.Attribute):
        return node.attr == "SO_PEERCRED"
    if isinstance(node, ast.JoinedStr) and len(node.values) > 1:
        first, second = node.values[:2]
        return (
            isinstance(first, ast.Constant)
            and str(first.value).endswith("/proc/")
            and isinstance(second, ast.FormattedValue)
        )
    return isinstance(node, ast.ImportFrom) and any(
        alias.name in ("kill", "killpg", "pidfd_open", "getppid") for alias in node.names
    )


def test_nothing_is_signalled_or_looked_up_by_its_number() -> None:
    found = {
        (name, function)
        for name, module in modules()
        for function, node in functions(module)
        if by_number(node)
    }
    assert found - EXCEPTIONS.keys() == set(), "hold it: sealpoint.process.Held"
    assert EXCEPTIONS.keys() - found == set(), "no exceptions any more"


@pytest.mark.parametrize(
    "text",
    [
        "os.kill(pid, 9)",
        "os.kill(-pid, 9)",
        "os.killpg(pid, 9)",
        "os.getppid()",
        "os.pidfd_open(pid)",
        "open(f'/proc/{pid}/ns/net')",
        "s.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)",
        "from os import kill",
    ],
)
def test_the_look_for_numbers_finds(text: str) -> None:
    assert any(by_number(node) for node in ast.walk(ast.parse(text)))


def test_the_look_for_numbers_lets_a_process_signal_itself() -> None:
    for text in ("os.kill(os.getpid(), 9)", "open('/proc/self/stat')", "popen.kill()"):
        assert not any(by_number(node) for node in ast.walk(ast.parse(text)))
