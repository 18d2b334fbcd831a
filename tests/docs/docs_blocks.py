"""The fenced blocks of the documents, and what the comment before each says is done with it.

    <!-- run -->               the test runs it, in the document's session
    <!-- run: with config -->  the same, with the TOML block before it as the user's configuration
    <!-- check -->             not run; its commands and options must exist
    <!-- config -->            TOML that `sealpoint.config` must accept; words after a colon are for the reader
    <!-- example: run by FILE -->   Python, which the test named runs with a real CRIU
    <!-- transcript: make demo -->   its lines must occur, in this order, in what `make demo` prints

In every page that tells people what to type (`PAGES`) every `sh` and `console` block has such a comment. `sh` is a
script. In `console`, lines that begin with `$ ` are commands and the others what they print, compared after `masked`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
CONFIGURATION = ROOT / "docs/reference/configuration.md"
TROUBLESHOOTING = ROOT / "docs/reference/troubleshooting.md"
SECURITY = ROOT / "docs/security.md"
FIGURES = ROOT / "docs/reference/figures.md"
COMMANDS = ROOT / "docs/reference/commands.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
DOCUMENTS = [
    *(README, CONTRIBUTING, ROOT / "SECURITY.md", ROOT / "CHANGELOG.md"),
    *sorted((ROOT / "docs").rglob("*.md")),
]
# Those that tell people what to type.
PAGES = [
    *(README, CONTRIBUTING),
    *sorted((ROOT / "docs/guide").glob("*.md")),
    *sorted((ROOT / "docs/reference").glob("*.md")),
]

_BLOCK = re.compile(
    r"(?:^<!-- ([a-z ]+)(?:: ([^>]+))? -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """action: the word in the comment, empty without one; detail: what follows its colon."""

    line: int
    action: str
    detail: str
    language: str
    text: str


def blocks(document: Path) -> list[Block]:
    text = document.read_text()
    return [
        Block(text.count("\n", 0, m.start(3)) + 1, m[1] or "", m[2] or "", m[3], m[4])
        for m in _BLOCK.finditer(text)
    ]


def masked(text: str) -> str:
    """Without what differs from run to run: keys and ids, then pids, sizes and times."""
    text = re.sub(r"\b[0-9a-f]{8,}\b", "HEX", text)
    return re.sub(r"\d+(?:\.\d+)?", "N", text)


def script(block: Block) -> str:
    """The block as a shell script; what a transcript prints is left out."""
    if block.language == "sh":
        return block.text
    return "".join(line[2:] + "\n" for line in block.text.splitlines() if line.startswith("$ "))


def printed(block: Block) -> str:
    """What a transcript prints."""
    return "".join(line + "\n" for line in block.text.splitlines() if not line.startswith("$ "))


def table(document: Path, heading: str) -> list[list[str]]:
    """The rows of the first table below a heading, without its own heading."""
    text = document.read_text()
    part = re.split(rf"^#+ {re.escape(heading)}\n", text, flags=re.MULTILINE)[1]
    rows = re.search(r"^\|.*\n\|[-:| ]+\|\n((?:\|.*\n)+)", part, re.MULTILINE)[1].splitlines()
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
