"""The documents are in step with the code: tests, options, exit codes, settings, messages and links that they name."""

from __future__ import annotations

import ast
import functools
import importlib.util
import os
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

from sealpoint import config, errors
from sealpoint.criu import options as criu_options, run as criu_run
from tests.docs.docs_blocks import (
    COMMANDS,
    CONFIGURATION,
    DOCUMENTS,
    FIGURES,
    PAGES,
    README,
    ROOT,
    SECURITY,
    TROUBLESHOOTING,
    blocks,
    script,
    table,
)

RUN_BLOCKS = 35
RUN = [sys.executable, "-c", "from sealpoint.cli import main; main()"]
ADRS = sorted((ROOT / "docs/adr").glob("[0-9]*.md"))
# Options of other programs that the documents name.
FOREIGN = {
    *(f"--{name}" for name in criu_options.OPTIONS),
    *(f"-{letter}" for letter in criu_options.SHORT),
    *("--help", "-v4"),
    "--encrypt",  # of a CRIU with the CRIUsec patches
    *("--ignore-rootfs", "--ignore-volumes", "--tcp-close", "--print-stats", "--pod", "--publish"),
    *("--ignore-static-ip", "--ignore-static-mac"),
    *("--pre-checkpoint", "--with-previous", "--export", "--import"),  # podman's
}


@functools.cache
def help_of(*command: str, columns: str = "80") -> str:
    environment = os.environ | {"COLUMNS": columns}
    done = subprocess.run(
        [*RUN, *command, "--help"], capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@functools.cache
def commands() -> tuple[str, ...]:
    listed = help_of().split("Commands:")[1].split("\n\n")[0]
    return tuple(re.findall(r"^  ([a-z][a-z-]*)", listed, re.MULTILINE))


def has_option(text: str, option: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text) is not None


def short(document: Path) -> str:
    return str(document.relative_to(ROOT))


def called(text: str) -> Iterator[tuple[str, str]]:
    """(command, its arguments up to a `--` of its own) of every call of sealpoint in a script."""
    text = re.sub(r"\\\n", " ", text)
    text = re.sub(r"(^|\s)#.*", "", text, flags=re.MULTILINE)
    for words in re.split(r"[|\n;]|&&", text):
        if match := re.search(r"(?:^|\s)sealpoint ([a-z][a-z-]*)\b(.*)", words):
            yield match[1], re.split(r"\s--\s", match[2] + " ")[0]


def test_every_test_that_the_security_page_names_exists() -> None:
    named = re.findall(r"`([\w/.]+\.py)::(\w+)`", SECURITY.read_text())
    assert len(named) > 80
    for path, test in named:
        assert (ROOT / path).is_file(), path
        assert re.search(rf"^def {test}\(", (ROOT / path).read_text(), re.MULTILINE), (path, test)


def test_every_attack_names_a_test() -> None:
    text = SECURITY.read_text().split("## Attacks and answers")[1].split("\n## ")[0]
    rows = [row for row in text.splitlines() if row.startswith("| ") and "| test |" not in row]
    assert len(rows) > 40
    for row in rows:
        assert "::test_" in row, row


def anchors(document: Path) -> set[str]:
    """As the usual renderers make them of headings."""
    headings = re.findall(r"^#+ (.*)", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}


def test_every_page_is_on_the_map_of_the_readme() -> None:
    linked = set(re.findall(r"\]\(([^)#\s]+)", README.read_text()))
    pages = {short(page) for page in DOCUMENTS if page not in (README, *ADRS)}
    assert pages <= linked, pages - linked


@pytest.mark.parametrize("document", DOCUMENTS, ids=short)
def test_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize("document", DOCUMENTS, ids=short)
def test_commands_and_their_options_exist(document: Path) -> None:
    text = document.read_text()
    scripts = [script(b) for b in blocks(document) if b.language in ("sh", "console")]
    # Some messages begin with the name, too.
    scripts += re.findall(
        r"`(sealpoint [^`]+)`", re.sub(r"\n## Messages\n.*?(?=\n## |\Z)", "", text, flags=re.DOTALL)
    )
    for command, arguments in (call for each in scripts for call in called(each)):
        assert command in commands(), command
        words = [
            command,
            *(arguments.split()[:1] if command in ("crit", "node", "podman", "store") else []),
        ]
        for option in re.findall(r"(?<=\s)(--?[a-zA-Z][a-z-]*)", arguments):
            assert has_option(help_of(*words), option), (words, option)


@pytest.mark.parametrize("document", DOCUMENTS, ids=short)
def test_options_named_in_running_text_exist(document: Path) -> None:
    crit = ("show", "decode", "encode", "info", "x", "recode")
    helps = [help_of(command) for command in commands()] + [help_of("crit", name) for name in crit]
    helps += [help_of("podman", name) for name in ("checkpoint", "restore")]
    helps += [help_of("node", name) for name in ("install", "status", "uninstall")]
    helps += [help_of("store", name) for name in ("init", "add", "stat", "gc")]
    everything = "\n".join([help_of(), *helps])
    for quoted in re.findall(r"`([^`\n]+)`", document.read_text()):
        if match := re.match(r"(--?[a-zA-Z][a-zA-Z0-9-]*)", quoted):
            known = match[1] in FOREIGN or has_option(everything, match[1])
            assert known or quoted == "-", quoted


def test_the_pages_lose_no_examples() -> None:
    """As many as when they were two long pages; what has a block to run is run (test_docs_run)."""
    assert {README, CONFIGURATION, TROUBLESHOOTING} < set(PAGES)
    found = [block for page in PAGES for block in blocks(page)]
    assert sum(block.action == "run" for block in found) >= RUN_BLOCKS
    assert sum(block.action == "config" for block in found) >= 3
    assert sum(block.action == "transcript" for block in blocks(README)) == 1


@pytest.mark.parametrize("document", PAGES, ids=short)
def test_every_block_says_what_is_done_with_it(document: Path) -> None:
    found = blocks(document)
    for block in found:
        wanted = {
            "sh": {"run", "check"},
            "console": {"run", "transcript"},
            "toml": {"config"},
            "python": {"example"},
        }
        allowed = wanted.get(block.language, {""} if block.language == "text" else set())
        assert block.action in allowed, f"{document.name}:{block.line}"
    assert document.read_text().count("\n```") == 2 * len(found)


@pytest.mark.parametrize("document", PAGES, ids=short)
def test_configurations_are_valid(document: Path) -> None:
    for block in blocks(document):
        if block.language == "toml":
            assert config.parse(block.text.encode(), "/x/config.toml")


def test_exit_codes_are_those_of_the_code_and_of_the_help() -> None:
    rows = dict(table(COMMANDS, "Exit codes"))
    listed = re.findall(r"^ +(\d+)  (.*)", help_of().split("Exit codes:")[1], re.MULTILINE)
    of_help = {code: text for code, text in listed if code != "130"}
    assert {code: rows[code] for code in of_help} == of_help
    kinds = [k for k in vars(errors).values() if isinstance(k, type)]
    of_code = {k.exit_code for k in kinds if issubclass(k, errors.SealpointError)}
    assert {str(code) for code in of_code | {0}} == set(of_help)
    assert set(rows) == {*of_help, "128 + n"}


def test_the_settings_are_those_of_the_code() -> None:
    named = [row[0].strip("`") for row in table(CONFIGURATION, "config.toml")]
    assert named == list(config.Config._fields)


def test_the_refused_criu_options_are_those_of_the_code() -> None:
    rows = table(CONFIGURATION, "Refused CRIU options")
    named = [name for row in rows for name in re.findall(r"`(-[^`]+)`", row[0])]
    assert sorted(named) == sorted(criu_run._REFUSED)


def constants() -> list[str]:
    """Every literal text in the program; the parts of an f-string joined by the ellipsis."""
    found = []
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [v.value if isinstance(v, ast.Constant) else "…" for v in node.values]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_the_messages_of_the_troubleshooting_table_are_those_of_the_code() -> None:
    texts = constants()
    rows = table(TROUBLESHOOTING, "Messages")
    assert len(rows) > 25
    for row in rows:
        message = row[0].strip("`")
        parts = [re.escape(part) for part in message.split("…")]
        assert any(re.search(".*".join(parts), text) for text in texts), message


def script_module(name: str) -> types.ModuleType:
    loader = SourceFileLoader(name.replace("-", "_"), str(ROOT / "scripts" / name))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


def test_the_pages_of_figures_are_filled_in() -> None:
    module = script_module("readme-figures")
    latest = module.load("latest")
    content = module.figures(latest, {name: module.load(name) for name in module.MORE})
    for page, name, wanted in (
        (FIGURES, "bench", content),
        (README, "figures", module.few(latest)),
    ):
        assert module.fill(page.read_text(), name, wanted) == page.read_text(), (
            "run scripts/readme-figures"
        )


def test_the_readme_is_short_and_its_three_figures_are_honest() -> None:
    assert README.read_text().count("\n") <= 180
    module = script_module("readme-figures")
    shown = module.few({"dump_tmpfs_ratio": 1.2, "dump_disk_ratio": 0.9})
    assert shown.count("\n") == 2 + 3
    assert "| 1.20 (missed) | at most 1 |" in shown
    assert "| 0.90 | at most 1 |" in shown
    assert "| not measured | at most 1.15 |" in shown


def test_the_page_of_commands_is_what_the_command_line_says() -> None:
    module = script_module("command-pages")
    assert module.page() == COMMANDS.read_text(), "run scripts/command-pages"
    text = COMMANDS.read_text()
    for command in commands():
        assert f"\n### sealpoint {command}\n" in text, command
        assert all(line in text for line in help_of(command, columns="100").splitlines()), command


def test_manual_pages_have_every_command_and_option(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/command-pages", "--man", tmp_path], timeout=60
    )
    assert done.returncode == 0
    pages = {path.name for path in (tmp_path / "man1").iterdir()}
    assert {"sealpoint.1", "sealpoint-crit-show.1"} < pages
    for command in commands():
        text = (tmp_path / f"man1/sealpoint-{command}.1").read_text().replace("\\-", "-")
        for option in re.findall(r"^  (?:-\w, )?(--[a-z-]+)", help_of(command), re.MULTILINE):
            assert has_option(text, option), (command, option)
        assert "\b" not in text


def test_missing_figures_are_said_and_missed_ones_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    module = script_module("readme-figures")
    assert "Not measured" in module.figures(None, {})
    shown = module.figures({"dump_tmpfs_ratio": 1.2, "restore_tmpfs_ratio": 1.1}, {})
    assert "| 1.20 (missed) | at most 1 | 2.1 |" in shown
    assert "| 1.10 | at most 1.15 | 5.2 |" in shown
    assert "| not measured | at most 1.0001 | 1.0 |" in shown


def test_figures_that_say_themselves_what_was_promised_are_marked() -> None:
    module = script_module("readme-figures")
    figure = {"what": "size", "value": 1.031, "decimals": 2, "most": 1.02, "least": None}
    speed = {"what": "speed", "value": 0.5, "decimals": 1, "most": None, "least": 1.0}
    size = {"what": "bytes", "value": 0.98, "decimals": 2, "most": None, "least": None}
    machine = {"date": "2026-11-25T03:00:00", "kernel": "6.1"}
    found = {
        "figures": [figure, speed, size],
        "skipped": {"a disk": "none here"},
        "machine": machine,
    }
    shown = module.figures(None, {"sinks": found | {"rounds": 4}, "migration": None})
    assert "| size | 1.03 (missed) | at most 1.02 |" in shown
    assert "| speed | 0.5 (missed) | at least 1 |" in shown
    assert "| bytes | 0.98 |  |" in shown
    assert "| not measured: a disk |" in shown
    assert "`python -m bench migration`" in shown
    assert "`sinks`: 2026-11-25, kernel 6.1, 4 rounds." in shown


def test_decisions_are_numbered_and_complete() -> None:
    numbers = [int(path.name[:4]) for path in ADRS]
    assert numbers == sorted(set(numbers))
    index = (ROOT / "docs/adr/README.md").read_text()
    for gap in set(range(1, numbers[-1])) - set(numbers):
        assert re.search(rf"^{gap:04}: \S", index, re.MULTILINE), (
            f"{gap:04}: the index says no reason"
        )
    for path in ADRS:
        text = path.read_text()
        assert text.startswith(f"# {path.name[:4]}: "), path
        parts = re.findall(r"^## (.*)", text, re.MULTILINE)
        assert parts == ["Context", "Options", "Decision", "Consequences"], path
        assert text.count("\n") < 60, path


def test_the_index_of_decisions_has_status_and_date_of_each() -> None:
    module = script_module("adr-index")
    index = (ROOT / "docs/adr/README.md").read_text()
    assert module.filled(index) == index, "run scripts/adr-index"
    rows = re.findall(
        r"^\| \[\d{4}\]\(([^)]+)\) \| .+ \| (.+) \| \d{4}-\d\d-\d\d \|$", index, re.MULTILINE
    )
    assert [name for name, _ in rows] == [path.name for path in ADRS]
    for _, status in rows:
        for other in re.findall(r"\d{4}", status):
            assert list((ROOT / "docs/adr").glob(f"{other}-*.md")), status
