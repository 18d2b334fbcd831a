"""Numbers of the command line: written in digits, within bounds that what uses them can bear."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    _Integers = click.ParamType[int]
    _Floats = click.ParamType[float]
else:  # older versions of click know no parameter of it
    _Integers = _Floats = click.ParamType

_INTEGER: Final = re.compile(r"-?[0-9]+(?!\n)")
_DECIMAL: Final = re.compile(r"(?=[0-9.])[0-9]*\.?[0-9]*(?!\n)")
_LONGEST: Final = 40  # characters, of which none is quoted in full beyond
_PID_MAX: Final = 2**31 - 1  # a pid is a signed number of 32 bits
_COUNT_MAX: Final = 10**9
_SECONDS_MAX: Final = (
    7 * 24 * 3600
)  # poll(2) counts milliseconds in 32 bits, and some wait three times as long


class Whole(_Integers):
    """A whole number from `least` to `most`, both included."""

    def __init__(self, name: str, metavar: str, least: int, most: int) -> None:
        self.name, self._metavar = name, metavar
        self._least, self._most = least, most

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:  # noqa: ARG002
        """For the help."""
        return self._metavar

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Raises BadParameter.  A default, which is a number already, may lie outside: it means none."""
        if isinstance(value, int):
            return value
        if len(value) <= _LONGEST and _INTEGER.fullmatch(value):
            number = int(value)
            if self._least <= number <= self._most:
                return number
        shown = value if len(value) <= _LONGEST else f"{value[:_LONGEST]}…"
        problem = f"{shown!r} is not a {self.name} from {self._least} to {self._most}"
        raise click.BadParameter(problem, ctx, param)


class Seconds(_Floats):
    """A number of seconds, more than none, perhaps with a point."""

    name = "number of seconds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Raises BadParameter."""
        if isinstance(value, float):
            return value
        if len(value) <= _LONGEST and _DECIMAL.fullmatch(value) and value != ".":
            number = float(value)
            if 0 < number <= _SECONDS_MAX:
                return number
        shown = value if len(value) <= _LONGEST else f"{value[:_LONGEST]}…"
        problem = f"{shown!r} is not a number of seconds up to {_SECONDS_MAX}"
        raise click.BadParameter(problem, ctx, param)


PID: Final = Whole("process ID", "PID", 1, _PID_MAX)
SECONDS: Final = Seconds()


def count(least: int = 0, most: int = _COUNT_MAX) -> Whole:
    """A number of things."""
    return Whole("number", "N", least, most)
