"""Mutants: small changes to the code, each of which takes one promised check away, and the tests that must notice.

`*.toml` beside this file holds them, a file for each area (README.md has the format). Here they are read, and applied
to a text.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

NEEDS = ("", "criu", "services", "vm")
_KEYS = {"name", "file", "function", "old", "new", "tests", "needs", "why"}
_RUFF = Path(sys.executable).with_name("ruff")


class MutantError(Exception):
    """A mutant, or a file of them, that means nothing."""


class Mutant(NamedTuple):
    area: str  # the name of its file, without ".toml"
    name: str
    file: str  # from the root of the project
    function: str  # its qualified name, "Class.method"; "": the whole file
    old: str
    new: str
    tests: tuple[str, ...]  # "tests/x/test_y.py::test_z", with or without parameters
    needs: str = ""
    why: str = ""

    @property
    def slug(self) -> str:
        return f"{self.area}/{self.name}"

    @property
    def module(self) -> str:
        """The name it is imported by, "" for what is no module below src."""
        path = Path(self.file)
        if path.parts[0] != "src" or path.suffix != ".py":
            return ""
        parts = path.with_suffix("").parts[1:]
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def load(directory: Path) -> list[Mutant]:
    """All mutants of the files in a directory. Raises MutantError."""
    found: dict[str, Mutant] = {}
    for path in sorted(directory.glob("*.toml")):
        try:
            entries = tomllib.loads(path.read_text())
        except tomllib.TOMLDecodeError as error:
            raise MutantError(f"{path.name}: {error}") from None
        if set(entries) != {"mutant"}:
            raise MutantError(f"{path.name}: holds {sorted(entries)}, not [[mutant]] alone")
        for number, entry in enumerate(entries["mutant"], 1):
            try:
                mutant = _mutant(path.stem, entry)
            except MutantError as error:
                raise MutantError(f"{path.name}, mutant {number}: {error}") from None
            if mutant.slug in found:
                raise MutantError(f"{path.name}: two mutants are named {mutant.name}")
            found[mutant.slug] = mutant
    return list(found.values())


def _mutant(area: str, entry: dict[str, object]) -> Mutant:
    if unknown := set(entry) - _KEYS:
        raise MutantError(f"unknown: {', '.join(sorted(unknown))}")
    if missing := _KEYS - {"needs", "why"} - set(entry):
        raise MutantError(f"missing: {', '.join(sorted(missing))}")
    tests = entry.pop("tests")
    if not isinstance(tests, list) or not tests or not all(isinstance(t, str) for t in tests):
        raise MutantError("tests: a list of names is needed")
    if not all(isinstance(value, str) for value in entry.values()):
        raise MutantError("everything but tests is text")
    mutant = Mutant(area=area, tests=tuple(tests), **entry)
    if mutant.needs not in NEEDS:
        raise MutantError(f"needs: {mutant.needs!r} is none of {', '.join(NEEDS[1:])}")
    if not mutant.name or not mutant.old.strip() or mutant.old == mutant.new:
        raise MutantError("a name, and an old text that the new one differs from, are needed")
    if any("::" not in test for test in tests):
        raise MutantError("a test is named file::test")
    return mutant


def applied(root: Path, mutant: Mutant) -> str:
    """The mutated text of its file. Raises MutantError where it no longer applies."""
    path = root / mutant.file
    if not path.is_file():
        raise MutantError(f"{mutant.file} is not there")
    text = path.read_text()
    start, end = _extent(text, mutant)
    times = text.count(mutant.old, start, end)
    if times != 1:
        where = mutant.function or mutant.file
        raise MutantError(f"its old text is {times} times in {where}, not once")
    mutated = text[:start] + text[start:end].replace(mutant.old, mutant.new) + text[end:]
    if path.suffix == ".py":
        _check(mutated, mutant)
    return mutated


def _extent(text: str, mutant: Mutant) -> tuple[int, int]:
    """Where its function begins and ends."""
    if not mutant.function:
        return 0, len(text)
    scope: list[ast.stmt] = ast.parse(text).body
    node = None
    for name in mutant.function.split("."):
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        named = [n for n in _statements(scope) if isinstance(n, kinds) and n.name == name]
        if len(named) != 1:
            raise MutantError(f"{mutant.file} has no {mutant.function}, or more than one")
        node = named[0]
        scope = node.body
    assert node is not None
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    lines = text.splitlines(keepends=True)
    start = sum(map(len, lines[: first - 1]))
    return start, start + sum(map(len, lines[first - 1 : node.end_lineno]))


def _statements(body: list[ast.stmt]) -> list[ast.stmt]:
    """Those of one scope, also below `if`, `try` and `with`."""
    found = []
    for statement in body:
        found.append(statement)
        if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = [n for n in ast.iter_child_nodes(statement) if isinstance(n, ast.stmt)]
            found += _statements(inner)
    return found


def _check(mutated: str, mutant: Mutant) -> None:
    """A mutant that is no program, or uses a name that does not exist, fails every test and proves nothing."""
    try:
        ast.parse(mutated)
    except SyntaxError as error:
        raise MutantError(f"what it makes of {mutant.file} is no Python: {error}") from None
    command = [_RUFF, "check", "--isolated", "--quiet", "--no-cache", "--output-format=concise"]
    command += ["--select=F821,F823", "-"]
    done = subprocess.run(command, input=mutated, capture_output=True, text=True)
    if done.returncode:
        raise MutantError(f"it uses a name that does not exist: {done.stdout.splitlines()[0]}")


def missing_tests(root: Path, mutant: Mutant) -> list[str]:
    """Those of its tests that are in no file, as far as can be told without running one."""
    missing = []
    for test in mutant.tests:
        file, *names = test.split("::")
        path = root / file
        tree = ast.parse(path.read_text()) if path.is_file() else ast.Module([], [])
        defined = {
            node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)
        }
        if not {name.partition("[")[0] for name in names} <= defined:
            missing.append(test)
    return missing
