"""HTML and SVG as a tree of elements: text becomes part of a page by this module alone, and only escaped.

No template library: this is all that a report needs of one, and here nothing can be left unescaped by mistake.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Final

from sealpoint.names import printable

_VOID: Final = frozenset({"meta", "input", "br"})
_RAW: Final = frozenset({"style", "script"})  # the report's own, never a checkpoint's


class Element:
    """name, attributes (None leaves one out; `class_` is class), children: elements, text, numbers, lists of them."""

    __slots__ = ("_attributes", "_children", "_name")

    def __init__(self, name: str, /, *children: object, **attributes: str | float | None) -> None:
        self._name = name
        self._children = children
        self._attributes = attributes

    def render(self) -> str:
        """The element as text."""
        out: list[str] = []
        self._render(out)
        return "".join(out)

    def _render(self, out: list[str]) -> None:
        out.append(f"<{self._name}")
        for key, value in self._attributes.items():
            if value is not None:
                name = key.rstrip("_").replace("_", "-")
                out.append(f' {name}="{html.escape(visible(str(value)))}"')
        out.append(">")
        if self._name in _VOID:
            return
        if self._name in _RAW:
            out += [str(child) for child in self._children]
        else:
            _render_all(self._children, out)
        out.append(f"</{self._name}>")


def el(name: str, /, *children: object, **attributes: str | float | None) -> Element:
    """An element, in short."""
    return Element(name, *children, **attributes)


def _render_all(children: Iterable[object], out: list[str]) -> None:
    for child in children:
        if isinstance(child, Element):
            child._render(out)  # noqa: SLF001 - its own class
        elif isinstance(child, str | int):
            out.append(html.escape(visible(str(child)), quote=False))
        elif child is not None:
            assert isinstance(child, Iterable)
            _render_all(child, out)


def visible(text: str) -> str:
    """Without control characters, and without those that change the direction of what follows."""
    return printable(text)


def page(*children: object) -> str:
    """A whole document."""
    return "<!DOCTYPE html>\n" + Element("html", *children, lang="en").render() + "\n"


def number(value: float) -> str:
    """A coordinate: short."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
