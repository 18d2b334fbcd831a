"""A stock CRIU, and plain dumps and restores with it, for comparison.

`find_criu` looks for one that really works here, by dumping and restoring something small.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.real.harness import ROOT, Workload, make_needles


def ram_directory() -> tempfile.TemporaryDirectory[str]:
    """A directory in memory, for plain images: not even a test puts them on a disk."""
    return tempfile.TemporaryDirectory(prefix="sealpoint-test-", dir="/dev/shm")


def _run_criu(command: list[str], log: Path) -> None:
    """Run CRIU, with the end of its log in the error. Its output goes into a file and not a pipe:
    a restored process that kept the pipe's end would keep us waiting."""
    with open(log.with_suffix(".out"), "wb") as out:
        result = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=120, check=False
        )
    if result.returncode:
        tail = [line for line in log.read_text(errors="replace").splitlines() if "Error" in line]
        raise RuntimeError(f"{command[1]} failed ({result.returncode}): " + "\n".join(tail[-8:]))


def plain_dump(criu: Path, workload: Workload, images: Path, *options: str) -> None:
    """A stock dump into the directory `images` (use one in memory). The tree is killed and its
    pids are free again, unless `--leave-running` is among the options."""
    images.mkdir(parents=True, exist_ok=True)
    command = [str(criu), "dump", "-t", str(workload.pid), "-D", str(images)]
    _run_criu([*command, "-o", "dump.log", "-v2", *options], images / "dump.log")
    if not {"--leave-running", "-R"} & set(options):
        workload.wait_gone()


def plain_restore(criu: Path, images: Path, *options: str) -> None:
    """A stock restore; the tree runs on as children of this process."""
    command = [str(criu), "restore", "-d", "-D", str(images)]
    _run_criu([*command, "-o", "restore.log", "-v2", *options], images / "restore.log")


@functools.cache
def _probe() -> tuple[Path | None, str]:
    if os.geteuid() != 0:
        return None, "CRIU needs root"
    wanted = os.environ.get("SEALPOINT_CRIU")
    found = shutil.which("criu")
    candidates = [Path(wanted)] if wanted else [ROOT / ".criu" / "bin" / "criu"]
    if found and not wanted:
        candidates.append(Path(found))
    problems = []
    for path in candidates:
        if not os.access(path, os.X_OK):
            problems.append(f"{path}: not there")
            continue
        try:
            _try_out(path)
        except Exception as error:
            problems.append(f"{path}: {error}")
            continue
        return path, ""
    return None, "no CRIU that works here (" + "; ".join(problems) + ")"


def _try_out(criu: Path) -> None:
    """Dump and restore something: `criu check` and the version do not tell whether the kernel's
    vdso, say, is one that this CRIU understands."""
    with ram_directory() as directory:
        workload = Workload("secret", Path(directory) / "work", make_needles())
        try:
            plain_dump(criu, workload, Path(directory) / "images")
            plain_restore(criu, Path(directory) / "images")
            workload.assert_continues(workload.start)
        finally:
            workload.close()


def find_criu() -> Path | None:
    """A CRIU that works here: SEALPOINT_CRIU, else the project's private one, else PATH's."""
    return _probe()[0]


def criu_problem() -> str:
    """Why find_criu() found none."""
    return _probe()[1]
