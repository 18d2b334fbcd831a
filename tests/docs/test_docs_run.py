"""The commands of the documents do what the documents say: they are run, on real processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.docs_blocks import (
    PAGES,
    README,
    ROOT,
    Block,
    blocks,
    masked,
    printed,
    script as script_of,
)
from tests.real import stock_criu

HERE = Path(__file__).resolve().parent

NAMESPACES = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")

pytestmark = [pytest.mark.criu, pytest.mark.slow]


@pytest.fixture(scope="module")
def criu() -> str:
    path = stock_criu.find_criu()
    problem = "" if path else stock_criu.criu_problem()
    if not problem and (os.geteuid() != 0 or shutil.which("unshare") is None):
        problem = "needs root and unshare"
    if problem and os.environ.get("SEALPOINT_REQUIRE_CRIU"):
        pytest.fail(problem)
    if problem:
        pytest.skip(problem)
    return str(path)


def session(commands: list[dict], criu: str) -> list[dict]:
    with stock_criu.ram_directory() as directory:
        done = subprocess.run(
            [*NAMESPACES, sys.executable, str(HERE / "docs_session.py")],
            input=json.dumps(commands), capture_output=True, text=True, timeout=250, cwd=directory,
            env=os.environ | {"SEALPOINT_CRIU": criu, "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def with_configs(document: Path) -> list[tuple[Block, str | None]]:
    """The blocks to run, each with its configuration."""
    found, config = [], ""
    for block in blocks(document):
        if block.language == "toml":
            config = block.text
        if block.action == "run":
            found.append((block, config if block.detail == "with config" else None))
    return found


@pytest.mark.parametrize(
    "document", [page for page in PAGES if with_configs(page)], ids=lambda p: p.name
)
def test_every_command_works_as_it_stands(document: Path, criu: str) -> None:
    todo = with_configs(document)
    strict = {"sh": "set -euo pipefail\n", "console": ""}
    commands = [{"script": strict[b.language] + script_of(b), "config": c} for b, c in todo]
    for (block, _), result in zip(todo, session(commands, criu), strict=True):
        where = f"{document.name}:{block.line}"
        assert result["code"] == 0, (where, result["out"])
        if block.language == "console":
            assert masked(result["out"]) == masked(printed(block)), where


def test_the_demonstration_prints_what_the_readme_shows(criu: str) -> None:
    """Some of its lines, in their order."""
    shown = next(b.text for b in blocks(README) if b.action == "transcript")
    script = f"exec {sys.executable} {ROOT}/scripts/demo.py"
    (result,) = session([{"script": script, "config": None}], criu)
    assert result["code"] == 0, result["out"]
    lines = iter(masked(result["out"]).splitlines())
    for line in masked(shown).splitlines():
        assert line in lines, f"{line!r} does not follow in what the demonstration prints"
