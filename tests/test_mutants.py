"""What `make test-mutants` says of mutants that live, die, no longer apply or prove nothing; and our own apply."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants import mutants

ROOT = Path(__file__).resolve().parent.parent

# What each mutant of the little project below is there for, and the beginning of what is said of it.
EXPECTED = {
    "dead": "",
    "dead-in-a-program": "",
    "dead-by-one-parameter": "",
    "living": "it lives: ",
    "half-living": "it lives: tests/test_guard.py::test_of_another_matter is passed",
    "stale": "it does not apply: its old text is 0 times",
    "twice": "it does not apply: its old text is 2 times",
    "moved": "it does not apply: src/guard.py has no gone",
    "no-python": "it does not apply: what it makes of src/guard.py is no Python",
    "no-name": "it does not apply: it uses a name that does not exist",
    "no-import": "it does not apply: the module cannot be imported",
    "fails-anyway": "unmutated, tests/test_guard.py::test_that_fails is failed",
    "skipped": "unmutated, tests/test_guard.py::test_that_is_skipped is skipped",
    "skipped-when-mutated": "it lives: tests/test_guard.py::test_that_looks_away is skipped",
    "no-test": "no such test: tests/test_guard.py::test_gone",
    "ends-pytest": "pytest ended without a result",
}

GUARD = """
def check(value):
    if value > 9:
        raise ValueError(value)
    return value


def other(value):
    if value > 9:
        raise ValueError(value)
    if value < 0:
        raise ValueError(value)
    return value


LIMIT = 3

if __name__ == "__main__":
    import sys

    check(int(sys.argv[1]))
"""

TESTS = """
import subprocess
import sys
from pathlib import Path

import guard
import pytest


def test_large_numbers_are_refused():
    with pytest.raises(ValueError):
        guard.check(10)


def test_the_program_refuses_large_numbers():
    program = Path(__file__).parents[1] / "src" / "guard.py"
    assert subprocess.run([sys.executable, "-I", program, "10"]).returncode == 1


@pytest.mark.parametrize("value", [1, 10])
def test_numbers(value):
    assert (value == 10) == bool(pytest.raises(ValueError, guard.check, 10) if value == 10 else 0)


def test_of_another_matter():
    assert guard.LIMIT == 3


def test_that_fails():
    assert guard.LIMIT == 4


@pytest.mark.skip(reason="not today")
def test_that_is_skipped():
    assert guard.LIMIT == 4


def test_that_looks_away():
    if guard.LIMIT != 3:
        pytest.skip("does not look")
"""

CHECK = "    if value > 9:\n        raise ValueError(value)\n"
NOTHING = "    pass\n"
REFUSED = "tests/test_guard.py::test_large_numbers_are_refused"
OTHER = "tests/test_guard.py::test_of_another_matter"


def entry(
    name: str, *tests: str, function: str = "check", old: str = CHECK, new: str = NOTHING
) -> str:
    return (
        f"[[mutant]]\nname = '{name}'\nfile = 'src/guard.py'\nfunction = '{function}'\n"
        f"old = '''\n{old}'''\nnew = '''\n{new}'''\ntests = {list(tests)}\n"
    )


ENTRIES = [
    entry("dead", REFUSED),
    entry("dead-in-a-program", "tests/test_guard.py::test_the_program_refuses_large_numbers"),
    entry("dead-by-one-parameter", "tests/test_guard.py::test_numbers", REFUSED),
    entry("living", REFUSED, function="other"),
    entry("half-living", REFUSED, OTHER),
    entry("stale", REFUSED, old="    if value > 8:\n"),
    entry("twice", REFUSED, function="other", old="        raise ValueError(value)\n"),
    entry("moved", REFUSED, function="gone"),
    entry("no-python", REFUSED, new="    if\n"),
    entry("no-name", REFUSED, new="    nothing()\n"),
    entry("no-import", OTHER, function="", old="LIMIT = 3", new="LIMIT = 1 // 0"),
    entry("fails-anyway", "tests/test_guard.py::test_that_fails"),
    entry("skipped", "tests/test_guard.py::test_that_is_skipped"),
    entry(
        "skipped-when-mutated",
        "tests/test_guard.py::test_that_looks_away",
        function="",
        old="LIMIT = 3",
        new="LIMIT = 4",
    ),
    entry("no-test", "tests/test_guard.py::test_gone"),
    entry("ends-pytest", REFUSED, new="    import os\n\n    os._exit(1)\n"),
]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A little project with a mutant of every kind."""
    files = {
        "pyproject.toml": "[tool.pytest.ini_options]\npythonpath = ['src']\n",
        "src/guard.py": GUARD,
        "tests/test_guard.py": TESTS,
        "tests/mutants/area.toml": "\n".join(ENTRIES),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def run(*arguments: object, seconds: int = 250) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.mutants.run", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds
    )


def needs_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("root is needed for namespaces")


@pytest.mark.slow
def test_each_kind_of_mutant_is_told_from_the_others(project: Path) -> None:
    needs_root()
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    done = run("--root", project)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[-1] == "3 passed, 13 failed"
    assert done.returncode == 1
    for name, text in EXPECTED.items():
        word = "FAILED" if text else "killed"
        assert any(line.startswith(f"{word}  area/{name}  (") for line in lines), name
        assert not text or any(line.startswith(f"area/{name}: {text}") for line in lines), name
    after = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    assert after == before, "the project itself is not touched"


def test_only_the_named_ones_run(project: Path) -> None:
    needs_root()
    done = run("--root", project, "--only", "dead", "--only", "*-program")
    assert done.stdout.splitlines()[-1] == "2 passed, 0 failed"
    assert done.returncode == 0
    assert run("--root", project, "--only", "nonsense").returncode == 1


def test_a_sample_depends_on_the_seed_alone(project: Path) -> None:
    def sample(seed: str) -> list[str]:
        listed = run("--root", project, "--list", "--sample", "5", "--seed", seed).stdout
        return re.findall(r"^(area/\S+)  ", listed, re.MULTILINE)

    chosen = sample("a")
    assert len(set(chosen)) == 5
    assert sample("a") == chosen
    assert any(sample(seed) != chosen for seed in "bcde")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("name = 'dead'", "name = 'living'"),
        ("name = 'dead'", "nmae = 'dead'"),
        ("function = 'check'", ""),
        ("tests = ['tests/test_guard.py::test_large_numbers_are_refused']", "tests = []"),
        ("tests/test_guard.py::test_large_numbers_are_refused", "test_guard"),
        (f"new = '''\n{NOTHING}'''", f"new = '''\n{CHECK}'''"),
        ("[[mutant]]\n", "[[mutant]]\nneeds = 'luck'\n"),
        ("[[mutant]]\n", "[mutant]\n"),
    ],
)
def test_a_file_with_a_mistake_is_refused(project: Path, old: str, new: str) -> None:
    path = project / "tests/mutants/area.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(mutants.MutantError, match=r"area.toml"):
        mutants.load(path.parent)


# Programs that tests start, each found in another way. None may find another copy of the code than the mutated one.
SEEN = {
    "a-command-of-python": (
        "src/sealpoint/cli/app.py",
        "run",
        "    _handle_signals()",
        "    return 0",
        "tests/cli/test_cli_frame.py::test_the_completion_script_is_valid_bash_and_completes",
    ),
    "the-command": (
        "src/sealpoint/cli/app.py",
        "run",
        "    _handle_signals()",
        "    return 0",
        "tests/real/test_restore_faults.py::test_unsigned",
    ),
    "the-drop-in-in-isolated-mode": (
        "src/sealpoint/dropin/shim.py",
        "run",
        "    usual_children()",
        "    os._exit(3)",
        "tests/real/test_dropin_command_line.py::test_everything_else_is_the_real_one",
    ),
    "the-hook-that-criu-starts": (
        "src/sealpoint/criu/hook.py",
        "main",
        "    action = ",
        "    return 1\n    action = ",
        "tests/real/test_sealed_roundtrip.py::test_dumped_into_a_pipe_and_restored_from_one",
    ),
}


@pytest.mark.criu
@pytest.mark.slow
@pytest.mark.timeout(900)  # eight runs of real tests: a busy machine needs its time
def test_every_program_that_tests_start_is_the_mutated_one(tmp_path: Path) -> None:
    needs_root()
    entries = [
        f"[[mutant]]\nname = '{name}'\nfile = '{file}'\nfunction = '{function}'\n"
        f"old = '{old}'\nnew = \"\"\"{new}\"\"\"\ntests = ['{test}']\nneeds = 'criu'\n"
        for name, (file, function, old, new, test) in SEEN.items()
    ]
    (tmp_path / "seen.toml").write_text("\n".join(entries))
    done = run("--mutants", tmp_path, seconds=850)
    if "no CRIU that works here" in done.stdout and not os.environ.get("SEALPOINT_REQUIRE_CRIU"):
        pytest.skip("no CRIU works here")
    assert done.stdout.splitlines()[-1] == "4 passed, 0 failed", done.stdout


def test_our_own_mutants_apply_and_their_tests_exist() -> None:
    found = mutants.load(ROOT / "tests" / "mutants")
    assert found
    problems = []
    for mutant in found:
        try:
            mutants.applied(ROOT, mutant)
        except mutants.MutantError as error:
            problems.append(f"{mutant.slug}: {error}")
        problems += [f"{mutant.slug}: no {t}" for t in mutants.missing_tests(ROOT, mutant)]
    assert not problems, "\n".join(problems)
