"""Trying a request to a store again, while that may help: a bounded number of times, after growing pauses."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar

from sealpoint.errors import SealpointError, SystemEnvironmentError

ATTEMPTS: Final = 6
FIRST_PAUSE: Final = 0.2  # seconds; twice as long each time, up to the longest
LONGEST_PAUSE: Final = 10.0

T = TypeVar("T")


class Failure(NamedTuple):
    """Why an attempt failed that may work the next time.  after: seconds that the server asks for."""

    reason: str
    after: float = 0.0


def again(
    attempt: Callable[[], T],
    judge: Callable[[Exception], Failure],
    give_up: Callable[[str], SystemEnvironmentError],
    cancelled: threading.Event | None = None,
) -> T:
    """Try until it works, or will not.

    judge: raises what will not change; give_up: the error for the last reason; cancelled: no further attempt once it
    is set.  Raises SealpointError, what `judge` raises, and `give_up`.
    """
    stop = cancelled or threading.Event()
    pause, failure = FIRST_PAUSE, Failure("")
    for number in range(ATTEMPTS):
        if number:
            if stop.wait(max(failure.after, pause * random.uniform(0.5, 1.0))):  # noqa: S311 (no secret)
                break
            pause = min(2 * pause, LONGEST_PAUSE)
        try:
            return attempt()
        except SealpointError:
            raise
        except Exception as error:  # noqa: BLE001 (what is not known is raised again by `judge`)
            failure = judge(error)
    raise give_up(failure.reason or "given up")
