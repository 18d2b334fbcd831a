"""The main job, on a live process: `make demo`.

A process holds a password in memory.  It is dumped once plainly and once sealed, both are searched for the password,
the process is killed, the sealed file verified and looked into, the process restored: it counts on where it stopped.
Everything is real: stock CRIU, the sealpoint of this checkout, and nothing is written outside one temporary directory.
"""

from __future__ import annotations

import os
import secrets
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SEALPOINT = ROOT / ".venv/bin/sealpoint"
CRIU = ROOT / ".criu/bin/criu"
WORKLOADS = ROOT / "tests/workloads"
COLOUR = sys.stdout.isatty()


def say(text: str) -> None:
    """A heading."""
    print(f"\n\033[1m# {text}\033[0m" if COLOUR else f"\n# {text}", flush=True)


def run(*command: object, show: bool = True, stdin: str | None = None) -> str:
    """Run a command, show it with its output; ends the demo if it fails."""
    words = [str(word) for word in command]
    if show:
        short = [
            w.replace(f"{ROOT}/.venv/bin/", "").replace(f"{ROOT}/.criu/bin/", "") for w in words
        ]
        print(f"$ {shlex.join(short)}", flush=True)
    result = subprocess.run(words, capture_output=True, text=True, input=stdin, check=False)
    if show and result.stdout:
        print(result.stdout, end="", flush=True)
    if result.returncode:
        sys.exit(
            f"{result.stderr}\nthe demo failed: {shlex.join(words)} ended with {result.returncode}"
        )
    return result.stdout


def find(needle: str, *paths: Path) -> bool:
    """Search files for a string, byte by byte, as grep does."""
    print(f"$ grep -rl '{needle}' {' '.join(p.name for p in paths)}", flush=True)
    files = [f for p in paths for f in ([p] if p.is_file() else sorted(p.iterdir()))]
    hits = [f for f in files if needle.encode() in f.read_bytes()]
    for file in hits:
        print(f"{file.parent.name}/{file.name}")
    print("  -> FOUND" if hits else "  -> not found", flush=True)
    return bool(hits)


def wait_gone(pid: int) -> None:
    """Until the process is gone, so that its pid is free for the restore."""
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)


def main() -> None:
    """The demo."""
    if os.geteuid() != 0:
        sys.exit("CRIU needs root: run make demo as root")
    os.environ["SEALPOINT_CRIU"] = str(CRIU)
    password = f"correct-horse-{secrets.token_hex(6)}"
    with tempfile.TemporaryDirectory(prefix="sealpoint-demo.", dir="/dev/shm") as name:
        os.chdir(name)
        home = Path(name)
        pid = 0
        try:
            pid = show(home, password)
        finally:
            if pid:
                os.kill(pid, signal.SIGKILL)


def show(home: Path, password: str) -> int:
    """All steps; returns the pid of the restored process."""
    state = home / "state"
    state.mkdir()
    say("A process that holds a password in memory, and counts")
    command = [sys.executable, WORKLOADS / "secret.py", "--dir", state, "--daemon"]
    pid = int(run(*command, show=False, stdin=f"password {password}\n"))
    ask = [sys.executable, WORKLOADS / "workload_ask.py", state]
    print(f"process {pid}, password {password}")
    try:
        counter = int(run(*ask, show=False).split()[1])
        print(f"it has counted to {counter}")
        plain_and_sealed(home, pid, password)
    except BaseException:
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGKILL)
        raise
    wait_gone(pid)
    say("Is the sealed file intact, and who signed it?")
    run(SEALPOINT, "verify", "app.sealed", "--trust", "keys/signer.pub")
    say("Which processes are in it?")
    contents = run(SEALPOINT, "info", "app.sealed", "-i", "keys/identity.key", show=False)
    print("$ sealpoint info app.sealed -i keys/identity.key")
    print("\n".join(contents.split("\n\n")[1].splitlines()))
    say("Restore it")
    command = ["restore", "app.sealed", "-i", "keys/identity.key", "--trust", "keys/signer.pub"]
    run(SEALPOINT, *command, "--detach")
    after = run(*ask, show=False).split()
    print(f"process {after[3]} says: memory {after[0]}, counted to {after[1]}")
    if after[0] != "ok" or int(after[1]) < counter or int(after[3]) != pid:
        sys.exit("the demo failed: the process did not continue where it stopped")
    say(
        f"It counts on: {counter} before, {after[1]} now. Nothing of it was ever on a disk in the clear."
    )
    return pid


def plain_and_sealed(home: Path, pid: int, password: str) -> None:
    """Dump it both ways and search both for the password; the second dump ends the process."""
    say("Keys: an identity that opens, a signer that vouches")
    run(SEALPOINT, "keygen", "keys")
    run(SEALPOINT, "keygen", "keys", "--signer")
    say("Dumped plainly, as CRIU does: is the password in the images?")
    (home / "plain").mkdir()
    run(CRIU, "dump", "-t", pid, "-D", "plain", "--leave-running")
    if not find(password, home / "plain"):
        sys.exit("the demo failed: the plain dump should hold the password")
    say("Dumped sealed (this ends the process): is it in the file?")
    command = ["dump", "-t", pid, "-o", "app.sealed", "-r", "keys/recipient.pub"]
    run(SEALPOINT, *command, "--sign", "keys/signer.key")
    if find(password, home / "app.sealed"):
        sys.exit("the demo failed: the sealed file must not hold the password")


if __name__ == "__main__":
    main()
