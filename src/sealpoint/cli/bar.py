"""A progress bar on a terminal, for what takes longer than a second."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from sealpoint.checkpoint.progress import Progress
from sealpoint.cli.printable import printable

_PATIENCE = 1.0  # seconds before anything is drawn


class Bar:
    """Context manager; call it with Progress."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._started = time.monotonic()
        self._bar: Any = None
        self._task: Any = None
        self._quiet = not sys.stderr.isatty()
        self._next = 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if self._quiet or now - self._started < _PATIENCE or now < self._next:
            return
        self._next = now + 0.1
        if self._bar is None:
            self._start()
        seconds = now - self._started
        done = max(1, progress.done)
        shares = (
            f"{progress.zero * 100 // done}% zero, {progress.compressed * 100 // done}% compressed"
        )
        self._bar.update(
            self._task,
            completed=progress.done,
            total=progress.total or None,
            detail=f"{progress.done / seconds / 1e6:.0f} MB/s"
            + (f", {shares}" if progress.zero or progress.compressed else ""),
        )

    def counter(self, total: int = 0) -> Callable[[int], None]:
        """For what reports the bytes since its last report; total: 0 if unknown."""
        done = 0

        def count(size: int) -> None:
            nonlocal done
            done += size
            self(Progress(done, total))

        return count

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            TextColumn,
            TimeElapsedColumn,
        )
        from rich.progress import (
            Progress as RichProgress,
        )

        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._bar.start()
        self._task = self._bar.add_task(printable(self._what), total=None, detail="")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
