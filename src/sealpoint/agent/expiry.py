"""Which sealed files of each container stay in the store.  Only what the agent put there itself is ever removed."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from sealpoint.agent.depot import Depot
from sealpoint.agent.journal import AgentQueue, Kept
from sealpoint.agent.settings import Retention

_NANO: Final = 1_000_000_000


def expire(journal: AgentQueue, depot: Depot, retention: Retention) -> Iterator[Kept]:
    """Remove what is not kept; yields what is gone.  Raises SystemEnvironmentError, UsageError.

    A file that has another id by now was put there by somebody else, and stays.
    """
    for kept in surplus(journal.kept(), retention, time.time_ns()):
        if depot.identifier(kept.url) == kept.checkpoint:
            depot.remove(kept.url)
            journal.forget(kept)
            yield kept
        else:
            journal.forget(kept)


def surplus(kept: list[Kept], retention: Retention, now: int) -> list[Kept]:
    """What goes: the oldest first.  The newest of each container always stays."""
    containers: dict[tuple[str, str, str], list[Kept]] = defaultdict(list)
    for one in sorted(kept, key=lambda k: (k.when, k.identifier), reverse=True):
        containers[one.container].append(one)
    gone = []
    for files in containers.values():
        size = files[0].size
        for number, one in enumerate(files[1:], 1):
            size += one.size
            if (
                (retention.last and number >= retention.last)
                or (retention.age and now - one.when > retention.age * _NANO)
                or (retention.size and size > retention.size)
            ):
                gone.append(one)
    return sorted(gone, key=lambda k: (k.when, k.identifier))
