"""Runs in the empty root, by the bundle's Python: what people do with sealpoint, on a real process.

`inside.py command` uses the command line, `inside.py rpc CRIU` the drop-in as engines do; `held` waits during the dump
until there is a file /tmp/go.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, "/root")

SAYS = Path("/tmp/says")


def said() -> tuple[int, int]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        words = SAYS.read_text().split() if SAYS.exists() else []
        if len(words) == 2:
            return int(words[0]), int(words[1])
        time.sleep(0.01)
    raise SystemExit("the workload says nothing")


def start() -> int:
    """The workload, child of nobody here; returns its pid."""
    null = os.open("/dev/null", os.O_RDWR)
    child = os.fork()
    if child == 0:
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.closerange(3, 100)
        os.execv("/root/workload", ["/root/workload", str(SAYS)])
    said()
    return child


def run(*arguments: str) -> None:
    done = subprocess.run(["sealpoint", *arguments], check=False)
    if done.returncode:
        raise SystemExit(f"sealpoint {arguments[0]} ended with {done.returncode}")


def goes_on(before: int) -> None:
    """The restored process counts on from where it was, with its memory intact."""
    SAYS.unlink()
    count, intact = said()
    assert intact == 1, "memory is not what it was"
    assert count >= before, f"it counts from {count}, not from {before}"
    print(f"counts on: {count > 0}")


def command() -> None:
    pid = start()
    run("keygen", "/tmp/k")
    run("keygen", "/tmp/k", "--signer")
    seal = ["-r", "/tmp/k/recipient.pub", "--sign", "/tmp/k/signer.key"]
    trust = ["--trust", "/tmp/k/signer.pub", "-i", "/tmp/k/identity.key"]
    run("dump", "-t", str(pid), "-o", "/tmp/app.sealed", *seal)
    os.waitpid(pid, 0)
    before, _ = said()
    run("verify", "/tmp/app.sealed", *trust)
    run("restore", "/tmp/app.sealed", "-d", *trust)
    goes_on(before)


def held(criu: str) -> None:
    def wait(_script: str, _pid: int) -> bool:
        Path("/tmp/held").touch()
        deadline = time.monotonic() + 200
        while not Path("/tmp/go").exists():
            if time.monotonic() > deadline:
                raise SystemExit("nobody says that the dump may go on")
            time.sleep(0.05)
        return True

    rpc(criu, wait)


def rpc(criu: str, on_notify: Callable[[str, int], bool] | None = None) -> None:
    import rpc as client

    pid = start()
    images, work = Path("/tmp/images"), Path("/tmp/work")
    images.mkdir()
    work.mkdir()
    environment = dict(os.environ)
    places = {
        name: os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        for name, path in (("images_dir_fd", images), ("work_dir_fd", work))
    }
    for kind, options in ((client.DUMP, {"pid": pid}), (client.RESTORE, {})):
        before, _ = said()
        with client.Client(Path(criu), environment) as connection:
            if on_notify is not None and kind == client.DUMP:
                data = client.request(kind, notify_scripts=True, **places, **options)
                reply = connection.call(data, on_notify)
            else:
                reply = connection.call(client.request(kind, log_level=4, **places, **options))
            connection.wait()
        if not reply.success:
            print("".join(p.read_text() for p in work.glob("*.log"))[-2000:])
            raise SystemExit(f"{kind}: {reply.message}")
        if kind == client.DUMP:
            os.waitpid(pid, 0)
            assert [p.name for p in images.iterdir()] == ["inventory.img"], list(images.iterdir())
    goes_on(before)


{"command": command, "held": held, "rpc": rpc}[sys.argv[1]](*sys.argv[2:])
