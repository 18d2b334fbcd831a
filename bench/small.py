"""Commands that must be quick whatever the size of the file: medians in milliseconds."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import measure
from bench.tools import Tools, say
from sealpoint.checkpoint.history.rekey import RekeyRequest, rekey
from sealpoint.checkpoint.opening.access import signing_by
from sealpoint.inspect.finding import open_source
from sealpoint.inspect.memory import AddressSpace, pids
from sealpoint.inspect.search import literal, search
from sealpoint.inspect.source import Access, images
from sealpoint.keys import TrustPolicy, load_identity, load_recipient, load_signer, load_trust

# Of the command line, in milliseconds: what was promised.
TARGETS = {"rekey": 50.0, "info": 300.0, "info -i": 300.0, "open --only": 300.0, "--version": 150.0}
_NEEDLE = b"a string that nobody has in memory"
# Of the search: 1 GB/s, for as much as was stored.
_SEARCH_SPEED = 1e9


def figures(tools: Tools, sealed: Path, scratch: Path, repeats: int) -> dict[str, dict[str, Any]]:
    """Measure them on one sealed file, one after the other in each round."""
    out = scratch / "opened"
    colleague = str(tools.keys / "colleague" / "recipient.pub")
    sign = ["--sign", tools.signer]
    key, trust = ["-i", tools.identity], ["--trust", tools.trusted]
    commands = {
        "--version": ["--version"],
        "info": ["info", str(sealed), *trust],
        "info -i": ["info", str(sealed), *trust, *key],
        "open --only": ["open", str(sealed), "-o", str(out), *trust, *key, "--only", "core-*"],
        "rekey": ["rekey", str(sealed), *key, *trust, *sign, "--add", colleague],
        "rekey (back)": ["rekey", str(sealed), *key, *trust, *sign, "--remove", colleague],
        "verify": ["verify", str(sealed), *trust],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(repeats + 1):
        for name, arguments in commands.items():
            shutil.rmtree(out, ignore_errors=True)
            command = [str(tools.sealpoint), *arguments]
            cost = measure.run(command, environment=tools.environment, scratch=scratch)
            if number:
                times[name].append(cost.wall * 1000)
    shutil.rmtree(out, ignore_errors=True)
    times["rekey (back)"] += times.pop("rekey")
    times["rekey"] = times.pop("rekey (back)")
    times["rekey (library call)"] = _rekey_calls(tools, sealed, repeats)
    times["search (library call)"], searched = _searches(tools, sealed, repeats)
    say("small figures: done")
    found = {name: _summary(name, values) for name, values in sorted(times.items())}
    found["search (library call)"]["target_ms"] = searched / _SEARCH_SPEED * 1000
    return found


def _summary(name: str, values: list[float]) -> dict[str, Any]:
    result = {"ms": statistics.median(values), "min": min(values), "max": max(values)}
    return result | ({"target_ms": TARGETS[name]} if name in TARGETS else {})


def _rekey_calls(tools: Tools, sealed: Path, repeats: int) -> list[float]:
    """The call alone, keys loaded and modules imported: the work itself with its two fsyncs."""
    colleague = load_recipient(str(tools.keys / "colleague" / "recipient.pub"))
    identities = [load_identity(tools.identity)]
    signing = signing_by(load_signer(tools.signer))
    policy = TrustPolicy(allow_unsigned=True)
    add = RekeyRequest(identities, signing, policy, add=[colleague])
    remove = RekeyRequest(identities, signing, policy, remove=[colleague.fingerprint.hex()])
    times: list[float] = []
    for number in range(repeats + 1):
        for request in (add, remove):
            elapsed = _time(lambda request=request: rekey(str(sealed), request))  # type: ignore[misc]
            if number:
                times.append(elapsed * 1000)
    return times


def _searches(tools: Tools, sealed: Path, repeats: int) -> tuple[list[float], int]:
    """All memory looked through for a plain string, in one thread; and how many bytes that is."""
    access = Access.of([load_identity(tools.identity)], load_trust([tools.trusted]))
    times: list[float] = []
    searched = 0
    with open_source(str(sealed), access) as source:
        for number in range(repeats + 1):
            done: list[int] = []

            def look(done: list[int] = done) -> None:
                found = images(source)
                for pid in pids(found):
                    space = AddressSpace.load(found, pid)
                    assert not list(search(space, literal(_NEEDLE), progress=done.append))

            elapsed = _time(look)
            searched = sum(done)
            if number:
                times.append(elapsed * 1000)
    return times, searched


def _time(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
