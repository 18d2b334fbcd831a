"""killed.py STEP before|after NUMBER ARGUMENTS...: sealpoint, which SIGKILL ends at the NUMBERth time of a step.

The process dies as it would at a loss of power to it, with nothing said and nothing undone.  STEP: module:Class.method.
"""

from __future__ import annotations

import functools
import importlib
import os
import signal
import sys


def arm(step: str, when: str, number: int) -> None:
    module, _, qualified = step.partition(":")
    owner = importlib.import_module(module)
    *outer, name = qualified.split(".")
    for each in outer:
        owner = getattr(owner, each)
    original = getattr(owner, name)
    calls = 0

    @functools.wraps(original)
    def killed(*args, **given):
        nonlocal calls
        calls += 1
        if calls == number and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **given)
        if calls == number and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, killed)


if __name__ == "__main__":
    arm(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    sys.argv[1:4] = []
    from sealpoint.cli import main

    main()
