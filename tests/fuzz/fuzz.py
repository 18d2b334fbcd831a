#!/usr/bin/env python3
"""fuzz.py TARGET [libFuzzer's options]: fuzzes one target of targets.py, for instance for ten minutes:

    .venv/bin/python -m tests.fuzz.fuzz image -max_total_time=600

New inputs go to a temporary directory unless one is given with --keep DIR; crashes are written to the current one.
"""

from __future__ import annotations

import resource
import sys
import tempfile
from pathlib import Path

import atheris

from sealpoint.errors import SealpointError

HERE = Path(__file__).resolve().parent
# What libFuzzer takes for this process's peak of memory starts with that of the process that started it
# (exec_mmap in Linux's fs/exec.c hands it on), which says nothing of the target.
INHERITED_MIB = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
RSS_LIMIT_MIB = 1024


with atheris.instrument_imports(include=["sealpoint"]):
    from tests.fuzz import targets


def main() -> None:
    arguments = sys.argv[1:]
    name = arguments.pop(0)
    target = targets.TARGETS[name]
    kept = HERE / "corpus" / name
    keep = None
    if "--keep" in arguments:
        at = arguments.index("--keep")
        keep = Path(arguments[at + 1])
        del arguments[at : at + 2]

    def one(data: bytes) -> None:
        try:
            target(data)
        except SealpointError:
            pass

    with tempfile.TemporaryDirectory(prefix="sealpoint-fuzz-") as scratch:
        found = keep or Path(scratch, "found")
        seeds = Path(scratch, "seeds")
        for directory in (found, seeds):
            directory.mkdir(parents=True, exist_ok=True)
        for n, data in enumerate(targets.seeds(name)):
            (seeds / f"seed-{n}").write_bytes(data)
        corpora = [str(found), str(seeds), *([str(kept)] if kept.is_dir() else [])]
        rss = f"-rss_limit_mb={INHERITED_MIB + RSS_LIMIT_MIB}"
        limits = [rss, "-timeout=20", "-max_len=65536", "-print_final_stats=1"]
        atheris.Setup([sys.argv[0], *limits, *arguments, *corpora], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
