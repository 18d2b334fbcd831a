"""Tests end in the same way whoever runs them, and none of them asserts a time."""

from __future__ import annotations

import ast
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
IGNORED = [
    getattr(signal, f"SIG{name}")
    for name in [
        "HUP",
        "INT",
        "QUIT",
        "TERM",
        "USR1",
        "USR2",
        "ALRM",
        "CHLD",
        "TSTP",
        "TTIN",
        "TTOU",
        "WINCH",
    ]
]
INNER = "SEALPOINT_TEST_INNER"


def ignore() -> None:
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)


def block() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)


def other_umask() -> None:
    os.umask(0o077)


def no_umask() -> None:
    os.umask(0)


def no_input() -> None:
    os.close(0)


def no_core() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def without_home() -> None:
    os.environ.pop("HOME", None)


STRANGE = {
    "nohup": ([ignore], {}),
    "blocked signals": ([block], {}),
    "umask 077": ([other_umask], {}),
    "umask 000": ([no_umask], {}),
    "standard input closed": ([no_input], {}),
    "core limit 0": ([no_core], {}),
    "settings": (
        [],
        {
            "SEALPOINT_DEBUG": "1",
            "CRIU_CONFIG_FILE": "/x",
            "XDG_CONFIG_HOME": "/x",
            "COLUMNS": "20",
        },
    ),
    "colours": ([], {"FORCE_COLOR": "1", "CLICOLOR_FORCE": "1", "TERM": "xterm-256color"}),
    "another locale": ([], {"LC_ALL": "C", "LANG": "de_DE.UTF-8", "LANGUAGE": "de"}),
    "no home": ([], {"HOME": ""}),
    "all of it": (
        [ignore, block, no_umask, no_input, no_core],
        {"LC_ALL": "C", "HOME": "/nowhere"},
    ),
}
# One for each matter: signals, children, modes of files, a terminal, standard input, output of our own and of others.
SENSITIVE = (
    "cli/test_cli_frame.py::test_a_signal_ends_a_command_once_and_lets_it_clean_up",
    "cli/test_cli_frame.py::test_ctrl_c_while_starting_is_no_traceback",
    "cli/test_cli_frame.py::test_a_defect_is_one_line_without_a_traceback_or_its_message",
    "cli/test_cli_passphrase_config.py::test_prompts_on_a_terminal_hide_what_is_typed",
    "cli/test_cli_passphrase_config.py::test_without_a_terminal_nobody_is_asked",
    "cli/test_cli_seal_open.py::test_standard_input_that_is_a_terminal_is_refused",
    "checkpoint/test_rekey.py::test_a_change_together_with_the_repair_works",
    "keys/test_keys_generate.py::test_private_files_are_private_whatever_the_umask",
    "store/test_store_output.py::test_what_exists_is_kept_unless_forced",
    "test_process.py",
    "test_surroundings.py::test_here",
)


@pytest.mark.slow
@pytest.mark.parametrize("how", STRANGE)
def test_strange_surroundings_change_nothing(how: str, tmp_path: Path) -> None:
    calls, settings = STRANGE[how]

    def prepare() -> None:
        for call in calls:
            call()

    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *(f"--basetemp={tmp_path / 'inner'}", "--timeout=60"),
            *(str(TESTS / name) for name in SENSITIVE),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {INNER: "1"} | settings,
        preexec_fn=prepare,
        start_new_session=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-5000:]


def test_here() -> None:
    """What a test finds: usual dispositions and modes, no settings of the caller."""
    defaults = (signal.SIG_DFL, signal.default_int_handler)
    unusual = [number for number in IGNORED if signal.getsignal(number) not in defaults]
    # pytest-timeout has a handler of its own for SIGALRM.
    assert [n for n in unusual if n is not signal.SIGALRM] == []
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    mask = os.umask(0o022)
    assert mask == 0o022
    for name in (
        "SEALPOINT_DEBUG",
        "CRIU_CONFIG_FILE",
        "XDG_CONFIG_HOME",
        "COLUMNS",
        "FORCE_COLOR",
    ):
        assert name not in os.environ
    assert Path(os.environ["HOME"]).is_dir()
    done = subprocess.run(["sh", "-c", "kill -HUP $$; exit 3"], check=False)
    assert done.returncode == -signal.SIGHUP
    assert subprocess.run(["sh", "-c", "exit 3"], check=False).returncode == 3


CLOCKS = {
    "monotonic",
    "perf_counter",
    "time",
    "process_time",
    "monotonic_ns",
    "perf_counter_ns",
    "time_ns",
}


def reads_a_clock(node: ast.AST) -> bool:
    return any(
        isinstance(n, ast.Call)
        and isinstance(n.func, ast.Attribute)
        and n.func.attr in CLOCKS
        and isinstance(n.func.value, ast.Name)
        and n.func.value.id == "time"
        for n in ast.walk(node)
    )


def timed(tree: ast.AST) -> Iterator[int]:
    """Lines with an assertion on how long something took; a deadline within a loop that waits is none."""
    waiting = {
        id(inner)
        for loop in ast.walk(tree)
        if isinstance(loop, ast.While)
        for inner in ast.walk(loop)
    }
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        taken = {
            target.id
            for node in ast.walk(function)
            if isinstance(node, ast.Assign) and reads_a_clock(node.value) and _differs(node.value)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(function):
            if isinstance(node, ast.Assert) and id(node) not in waiting:
                names = {n.id for n in ast.walk(node.test) if isinstance(n, ast.Name)}
                if reads_a_clock(node.test) or names & taken:
                    yield node.lineno


def _differs(node: ast.AST) -> bool:
    return any(isinstance(n, ast.BinOp) and isinstance(n.op, ast.Sub) for n in ast.walk(node))


def test_no_test_asserts_a_time() -> None:
    """On a machine that is busy with something else it would fail although nothing is wrong."""
    found = [
        f"{path.relative_to(TESTS)}:{line}"
        for path in sorted(TESTS.rglob("*.py"))
        for line in timed(ast.parse(path.read_text()))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("def f():\n    t = time.monotonic()\n    assert time.monotonic() - t < 2\n", [3]),
        (
            "def f():\n    t = time.time()\n    x()\n    d = time.time() - t\n    assert d < 2\n",
            [5],
        ),
        ("def f():\n    while x():\n        assert time.monotonic() < deadline\n", []),
        ("def f():\n    assert record.time == 5\n", []),
    ],
)
def test_what_counts_as_asserting_a_time(source: str, lines: list[int]) -> None:
    assert list(timed(ast.parse(source))) == lines
