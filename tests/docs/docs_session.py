"""First process of a pid namespace in which the blocks of one document are run, one after the other.

    unshare --mount --pid --fork --kill-child --mount-proc python docs_session.py <blocks.json

A namespace, because restores want their pid back, nothing shall be left of any process, and the machine's own
configuration must not matter. Blocks: [{"script": ..., "config": TOML or null}]; prints [{"code": ..., "out": ...}].
`$PID` is a process that lives when a block begins; `ssh HOST COMMAND` runs the command in a pid namespace of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECRET = ROOT / "tests/workloads/secret.py"
STUBS = {
    "sealpoint": '#!/bin/sh\nexec {python} -c "from sealpoint.cli import main; main()" "$@"\n',
    "ssh": '#!/bin/sh\n[ "$1" = -- ] && shift\nshift\n'
    'exec unshare --pid --fork --kill-child --mount-proc -- sh -c "$*"\n',
}
TIMEOUT = 60


def reap(process: subprocess.Popen) -> int:
    """Wait for a child, and for whatever becomes a child of ours meanwhile."""
    timer = threading.Timer(TIMEOUT, process.kill)
    timer.start()
    try:
        while True:
            pid, status = os.wait()
            if pid == process.pid:
                return os.waitstatus_to_exitcode(status)
    finally:
        timer.cancel()


def workload(number: int) -> str:
    """Start a process to be dumped; its pid."""
    directory = Path(f".workload-{number}").resolve()
    directory.mkdir()
    with open(directory / "pid", "w+") as out:
        command = [sys.executable, SECRET, "--dir", directory, "--daemon"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out) as process:
            process.stdin.write(b"password correct-horse\n")
            process.stdin.close()
            process.returncode = reap(process)
        out.seek(0)
        return out.read().strip()


def main() -> None:
    if os.path.isdir("/etc/sealpoint"):
        subprocess.run(["mount", "-t", "tmpfs", "none", "/etc/sealpoint"], check=True)
    # Small pids are those of threads in the namespaces of `ssh`: nothing could be restored there.
    Path("/proc/sys/kernel/ns_last_pid").write_text("20000")
    stubs, home = Path(".bin").resolve(), Path(".home").resolve()
    for directory in (stubs, home / "sealpoint"):
        directory.mkdir(parents=True)
    for name, text in STUBS.items():
        (stubs / name).write_text(text.format(python=sys.executable))
        (stubs / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{stubs}:{os.environ['PATH']}",
        "XDG_CONFIG_HOME": str(home),
        "HOST": "far",
        "PASSPHRASE": "a passphrase of several words",
        "PID": "0",
    }
    results = []
    for number, block in enumerate(json.load(sys.stdin)):
        if not os.path.isdir(f"/proc/{environment['PID']}"):
            environment["PID"] = workload(number)
        settings = home / "sealpoint/config.toml"
        # What is remembered of these dumps is not for the machine.
        settings.write_text(f'state = "{home}/state"\n' + (block["config"] or ""))
        if block["config"] is not None:
            # Its paths are relative to it, and the keys lie in the working directory.
            for entry in Path().iterdir():
                if entry.is_dir() and not (link := settings.parent / entry.name).exists():
                    link.symlink_to(entry.resolve())
        with open(".out", "w+") as out:
            process = subprocess.Popen(
                ["bash", "-c", block["script"]],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment,
            )  # fmt: skip
            code = process.returncode = reap(process)
            out.seek(0)
            results.append({"code": code, "out": out.read()})
        settings.unlink(missing_ok=True)
    json.dump(results, sys.stdout)


main()
