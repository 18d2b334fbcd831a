"""A report as one HTML page that needs nothing else: no network, no other file.

The content security policy allows the page's own style and script by their hashes and nothing besides.  It can be read
without script, which only adds the filter.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Iterator
from importlib import resources
from typing import TYPE_CHECKING

from sealpoint.inspect.markup import Element, el, number, page
from sealpoint.inspect.report_sections import (
    bar,
    objects_section,
    origin_section,
    patterns,
    process_section,
    show_size,
    show_time,
    table,
)
from sealpoint.version import __version__

if TYPE_CHECKING:
    from sealpoint.inspect.report import Report, Seal


@functools.cache
def _resource(name: str) -> str:
    return resources.files("sealpoint.inspect").joinpath(name).read_text()


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


def render(report: Report) -> str:
    """The page."""
    style, script = _resource("report.css"), _resource("report.js")
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    return page(
        el(
            "head",
            el("meta", charset="utf-8"),
            el("meta", http_equiv="Content-Security-Policy", content=policy),
            el("meta", name="viewport", content="width=device-width, initial-scale=1"),
            el("meta", name="color-scheme", content="light dark"),
            el("title", f"{report.label} · sealpoint"),
            el("style", style),
        ),
        el(
            "body",
            el("a", "Skip to the contents", href="#contents", class_="skip"),
            _header(report),
            el(
                "main",
                _figures(report),
                _notes(report),
                _tree(report),
                [process_section(p) for p in report.processes],
                objects_section(report),
                origin_section(report.seal) if report.seal else None,
                id="contents",
            ),
            el(
                "footer",
                f"Made by sealpoint {__version__}. Memory contents were not read, and none is in this page.",
            ),
            patterns(),
            el("script", script),
        ),
    )


def _header(report: Report) -> Element:
    seal = report.seal
    roots = [p for p in report.processes if p.depth == 0]
    first = roots[0].task.command if roots else "nothing"
    others = len(report.processes) - 1
    what = f"{first or 'A process'} and {others} more" if others > 0 else first or "A process"
    when = f", captured {show_time(seal.captured)}" if seal else ""
    name = report.container.get("name")
    container = f" in the container {name}" if name else ""
    return el(
        "header",
        el("p", "sealpoint", el("span", "checkpoint report"), class_="brand"),
        el(
            "div",
            el("h1", report.label),
            el("p", f"{what}{container}{when}", class_="lead"),
            class_="title",
        ),
        _badge(seal),
        el(
            "nav",
            [
                el("a", label, href=f"#{anchor}")
                for anchor, label in (
                    ("processes", "Processes"),
                    ("memory", "Memory"),
                    ("objects", "Objects"),
                    *((("origin", "Origin"),) if seal else ()),
                )
            ],
            el(
                "input",
                type="search",
                id="filter",
                placeholder="Filter rows  ( / )",
                aria_label="Filter rows",
                hidden="",
            ),
            aria_label="Sections",
        ),
    )


def _badge(seal: Seal | None) -> Element:
    if seal is None:
        state, title, text = "bad", "Not sealed", "Plain images: anybody could have changed them."
    elif not seal.signers:
        state, title, text = "bad", "Unsigned", "Sealed, but nobody vouches for it."
    elif all(trusted for _, _, trusted in seal.signers):
        names = ", ".join(dict.fromkeys(name for name, _, _ in seal.signers))
        state, title, text = "good", "Sealed and signed", f"by {names}, whom you trust"
    else:
        state, title, text = (
            "fair",
            "Sealed and signed",
            "by a key that you did not name as trusted",
        )
    mark = "M6 12.5l4 4 8-9" if state == "good" else "M12 6v8M12 17.5v.5"
    points = []
    for n in range(24):
        radius = 11.5 if n % 2 else 10.2
        x, y = _CIRCLE[n]
        points.append(f"{number(12 + radius * x)},{number(12 + radius * y)}")
    return el(
        "div",
        el(
            "svg",
            el("polygon", points=" ".join(points)),
            el("path", d=mark),
            viewBox="0 0 24 24",
            aria_hidden="true",
        ),
        el("div", el("strong", title), el("span", text)),
        class_=f"badge {state}",
    )


def _circle() -> list[tuple[float, float]]:
    import math

    return [(math.cos(n * math.pi / 12), math.sin(n * math.pi / 12)) for n in range(24)]


_CIRCLE = _circle()


def _figures(report: Report) -> Element:
    # Pages that processes share lie in one object, so objects are what is added up.
    pages = [o.size for o in report.objects if o.name.rpartition("/")[2].startswith("pages-")]
    stored = sum(pages) if pages else sum(p.memory for p in report.processes)
    plain = sum(o.size for o in report.objects)
    cards = [("memory", show_size(stored), "stored pages of all processes")]
    if report.seal:
        taken = report.seal.size
        share = (
            f"{taken * 100 / plain:.0f} % of {show_size(plain)}"
            if plain and not report.hidden[0]
            else "on disk"
        )
        cards.append(("sealed file", show_size(taken), share))
    parents = sum(p.band.parent for p in report.processes if p.band)
    if parents:
        cards.append(("in parents", show_size(parents), "unchanged since an earlier checkpoint"))
    threads = sum(len(p.task.threads) for p in report.processes)
    cards.append(("processes", str(len(report.processes)), f"{threads} threads"))
    files = [f for p in report.processes for f in p.files]
    sockets = sum(f.kind in ("INETSK", "UNIXSK", "NETLINKSK", "PACKETSK") for f in files)
    cards.append(("descriptors", str(len(files)), f"{sockets} of them sockets"))
    return el(
        "section",
        [
            el("div", el("dt", label), el("dd", value), el("p", more))
            for label, value, more in cards
        ],
        class_="figures",
        aria_label="In figures",
    )


def _notes(report: Report) -> Element | None:
    notes = list(report.notes)
    if report.hidden[0]:
        notes.insert(
            0,
            f"{report.hidden[0]} objects ({show_size(report.hidden[1])}) are of the memory role, "
            "which this identity cannot open.",
        )
    if not notes:
        return None
    return el(
        "section", el("ul", [el("li", note) for note in notes]), class_="notes", aria_label="Notes"
    )


def _tree(report: Report) -> Element:
    most = max((p.memory for p in report.processes), default=0) or 1
    rows = []
    for process in report.processes:
        task = process.task
        depth = min(process.depth, 24)
        rows.append(
            el(
                "tr",
                el(
                    "td",
                    el(
                        "svg",
                        _branch(depth),
                        viewBox=f"0 0 {depth * 22 + 8} 40",
                        width=depth * 22 + 8,
                        height=40,
                        class_="branch",
                        aria_hidden="true",
                    ),
                    el("a", task.command or "?", href=f"#p{task.pid}"),
                ),
                el("td", task.pid, class_="n"),
                el("td", task.parent or "", class_="n"),
                el("td", len(task.threads) or "", class_="n"),
                el("td", task.state),
                el("td", len(process.files), class_="n"),
                el("td", show_size(process.memory), class_="n"),
                el("td", bar(process.memory / most)),
            )
        )
    return el(
        "section",
        el("h2", "Processes"),
        table(
            ("Command", "PID", "Parent", "Threads", "State", "Files", "Memory", ""),
            rows,
            "tree",
            numeric=(1, 2, 3, 5, 6),
        ),
        id="processes",
    )


def _branch(depth: int) -> Iterator[Element]:
    if depth:
        x = depth * 22 - 14
        yield el("path", d=f"M{x} 0V20H{x + 14}")
