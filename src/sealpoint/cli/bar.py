"""A progress bar on a terminal, for what takes longer than a second."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

import click

from sealpoint.cli import notice
from sealpoint.cli.printable import printable
from sealpoint.progress import Progress

_PATIENCE = 1.0  # seconds before anything is drawn
_PAUSE: Final = 0.1  # seconds from one drawing to the next
_WIDTH: Final = 30  # columns of the bar itself, where there is room
_NARROW: Final = 12  # columns: below, there is room for nothing
_ERASE: Final = "\r\033[K\033[?25h"  # the line goes, and the cursor, which click hides, comes back
# What gives way in a narrow terminal, in this order, and how much stays of it.
_SHRINK: Final = (
    *(("width", 10), ("label", 16), ("current_item", 20)),
    *(("width", 0), ("label", 0), ("current_item", 0)),
)


class Bar:
    """Context manager; call it with Progress.  It is gone when its work is done, and it never makes a command fail."""

    def __init__(self, what: str) -> None:
        self._what = printable(what)
        self._started = time.monotonic()
        self._bar: Any = None
        self._quiet = not _wanted()
        self._next = 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if self._quiet or now - self._started < _PATIENCE or now < self._next:
            return
        self._next = now + _PAUSE
        try:
            self._draw(progress, now - self._started)
        except (OSError, ValueError):  # the terminal has gone
            self._quiet = True

    def counter(self, total: int = 0) -> Callable[[int], None]:
        """For what reports the bytes since its last report; total: 0 if unknown."""
        done = 0

        def count(size: int) -> None:
            nonlocal done
            done += size
            self(Progress(done, total))

        return count

    def _draw(self, progress: Progress, seconds: float) -> None:
        if self._bar is None:
            nothing = (None for _ in ())  # what is counted is told, not iterated over
            self._bar = click.progressbar(
                nothing,
                fill_char="#",
                empty_char="-",
                bar_template="%(label)s  %(bar)s  %(info)s",
                show_eta=False,
                item_show_func=lambda detail: detail,
                file=sys.stderr,
            )
        bar = self._bar
        bar.length = progress.total or None
        bar.finished = False
        bar.make_step(progress.done - bar.pos)
        bar.current_item = _detail(progress, seconds)
        columns = _columns()
        if columns >= _NARROW:
            self._fit(columns - 1)  # in the last column some terminals go to the next line
            bar.render_progress()

    def _fit(self, columns: int) -> None:
        """Make the line as long as the terminal is wide now: what is longer would be drawn over several lines."""
        bar = self._bar
        bar.label, bar.width = self._what, _WIDTH
        for part, least in _SHRINK:
            excess = len(bar.format_progress_line()) - columns
            if excess <= 0:
                break
            value = getattr(bar, part)
            if isinstance(value, int):
                setattr(bar, part, min(value, max(least, value - excess)))
            else:
                setattr(bar, part, value[: max(least, len(value) - excess)])
        if bar.max_width is not None:
            bar.max_width = min(bar.max_width, columns)  # what is overwritten with spaces

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is None:
            return
        try:
            sys.stderr.write(_ERASE)
            sys.stderr.flush()
        except (OSError, ValueError):
            pass


def _wanted() -> bool:
    if os.environ.get("SEALPOINT_PROGRESS") == "0" or os.environ.get("TERM") == "dumb":
        return False
    return sys.stderr.isatty()


def _columns() -> int:
    """Of the terminal behind standard error as it is now; standard output may be a file."""
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        columns = 0
    return columns or shutil.get_terminal_size().columns


def _detail(progress: Progress, seconds: float) -> str:
    done = notice.show_size(progress.done)
    if progress.total:
        done += f" of {notice.show_size(progress.total)}"
    detail = f"{done}, {progress.done / seconds / 1e6:.0f} MB/s"
    if progress.zero or progress.compressed:
        all_of_it = max(1, progress.done)
        zero = progress.zero * 100 // all_of_it
        compressed = progress.compressed * 100 // all_of_it
        detail += f", {zero}% zero, {compressed}% compressed"
    return detail
