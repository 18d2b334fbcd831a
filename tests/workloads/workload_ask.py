#!/usr/bin/env python3
"""Ask running workloads to verify themselves; also a command: `workload_ask.py DIR [NAME ...]`.

Question and answers are the *targets of symbolic links*, not the contents of files: a link is
read and replaced in one system call, so no process of the tree ever has a descriptor open for
it. A file would be one more thing for CRIU to dump, with a size that must still be the same at
the restore. The link `ask` holds the number of the question, `status-NAME` the answer.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path

POLL_SECONDS = 0.002


class NoAnswerError(Exception):
    """A process of the workload did not answer in time."""


def set_link(path: str, text: str) -> None:
    """Replace the link at `path` in one step; the last part of the name is per process."""
    new = f"{path}.{os.getpid()}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)
    os.symlink(text, new)
    os.rename(new, path)


def get_link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except FileNotFoundError:
        return None


def ask(directory: str | Path, names: Sequence[str], timeout: float = 30.0) -> dict[str, str]:
    """Ask the processes `names` and return the text of each answer, without the question."""
    question = secrets.token_hex(8)
    set_link(f"{directory}/ask", question)
    deadline = time.monotonic() + timeout
    answers: dict[str, str] = {}
    while True:
        for name in names:
            words = (get_link(f"{directory}/status-{name}") or "").split(" ", 1)
            if words[0] == question:
                answers[name] = words[1]
        missing = [name for name in names if name not in answers]
        if not missing:
            return answers
        if time.monotonic() > deadline:
            raise NoAnswerError(f"no answer from {', '.join(missing)} within {timeout:g} s")
        time.sleep(POLL_SECONDS)


def main(argv: list[str]) -> int:
    if not argv:
        print("usage: workload_ask.py DIR [NAME ...]", file=sys.stderr)
        return 2
    try:
        answers = ask(argv[0], argv[1:] or ["main"], timeout=10.0)
    except NoAnswerError as error:
        print(error, file=sys.stderr)
        return 1
    for text in answers.values():
        print(text)
    return 0 if all(text.startswith("ok ") for text in answers.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
