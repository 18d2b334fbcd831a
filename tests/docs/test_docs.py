"""The documents are in step with the code: tests, options, exit codes and links that they name exist."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from sealpoint import errors
from sealpoint.config import Config

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN = [sys.executable, "-c", "from sealpoint.cli import main; main()"]


def help_of(*command: str) -> str:
    done = subprocess.run([*RUN, *command, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def commands() -> list[str]:
    listed = help_of().split("Commands:")[1].split("\n\n")[0]
    return re.findall(r"^  ([a-z][a-z-]*)", listed, re.MULTILINE)


def test_every_test_that_the_security_page_names_exists() -> None:
    file = ""
    named = 0
    for path, test in re.findall(
        r"`([\w/.]*)::(test_\w+)`", (ROOT / "docs/security.md").read_text()
    ):
        file = path or file
        assert (ROOT / file).is_file(), file
        assert re.search(rf"^ *def {test}\(", (ROOT / file).read_text(), re.MULTILINE), (file, test)
        named += 1
    assert named > 30


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)", document.read_text()):
        if "://" not in link:
            assert (document.parent / link).exists(), link


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_and_their_options_exist(document: Path) -> None:
    known = commands()
    texts = {}
    blocks = re.findall(r"```[a-z]*\n(.*?)```", document.read_text(), re.DOTALL)
    for line in "\n".join(blocks).splitlines():
        for command, rest in re.findall(r"\bsealpoint ([a-z][a-z-]*)([^|#]*)", line):
            if not line.lstrip("$ ").startswith(("sealpoint", "ssh", "cat")):
                continue
            assert command in known, line
            text = texts.setdefault(command, help_of(command))
            ours = re.split(r" -- ", rest)[0]
            for option in re.findall(r"(?<=\s)(--?[a-z][a-z-]*)", ours):
                assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text), (
                    command,
                    option,
                )


def test_exit_codes_are_those_of_the_code() -> None:
    table = dict(
        re.findall(r"^\| (\d+) \| (.*) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    )
    codes = {
        kind.exit_code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.SealpointError)
    }
    assert codes | {0, 141} == {int(code) for code in table}


def test_the_operations_guide_names_every_setting() -> None:
    text = (ROOT / "docs/operations.md").read_text()
    for setting in fields(Config):
        assert f"`{setting.name}`" in text, setting.name


def test_every_command_is_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    for command in commands():
        if command != "completion":
            assert re.search(rf"\b{command}\b", text), command
