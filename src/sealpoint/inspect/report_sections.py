"""The parts of a report's page: a process with its memory map, the objects, who sealed it for whom."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from sealpoint.inspect import memory_map
from sealpoint.inspect.markup import Element, el, number

if TYPE_CHECKING:
    from sealpoint.inspect.memory import AddressSpace, Mapping
    from sealpoint.inspect.report import OpenedFile, Process, Report, Seal, Stored

_FEW = 24  # rows of a table that are shown without being asked
_LEGEND = (
    ("heap", "heap"),
    ("anon", "anonymous"),
    ("stack", "stack"),
    ("file", "file"),
    ("shared", "shared"),
    ("other", "other"),
)


def process_section(process: Process) -> Element:
    task = process.task
    first = "memory" if process.depth == 0 and task.parent == 0 else None
    return el(
        "section",
        el("span", id=first, class_="anchor") if first else None,
        el("h2", task.command or "?", el("small", f"process {task.pid}")),
        _map(process)
        if process.space and process.band
        else el("p", "No memory map.", class_="quiet"),
        _mappings(process) if process.space else None,
        _files(process.files),
        id=f"p{task.pid}",
        class_="process",
    )


def _map(process: Process) -> Element:
    space, band = process.space, process.band
    assert space is not None
    assert band is not None
    mapped = sum(m.size for m in space.mappings if m.kind != "vsyscall")
    kinds = {memory_map.KINDS.get(m.kind, "other") for m in space.mappings}
    parts = [f"{show_size(band.stored)} stored here"]
    if band.parent:
        parts.append(f"{show_size(band.parent)} in parents")
    parts.append(f"{show_size(mapped)} mapped")
    if space.private.missing:
        parts.append(f"{show_size(space.private.missing)} left behind by a lazy dump")
    found = {(p.state, p.codec) for p in band.parts}
    codecs = {c for _, c in found}
    return el(
        "figure",
        el(
            "figcaption",
            el("span", " · ".join(parts)),
            el(
                "ul",
                [
                    el("li", _swatch(f"k-{k}", "stored"), label)
                    for k, label in _LEGEND
                    if k in kinds
                ],
                el("li", _swatch("k-anon", "mapped"), "mapped, not stored"),
                el("li", _swatch("k-anon", "parent"), "in a parent") if band.parent else None,
                el("li", _swatch("", "packed"), "compressed") if codecs & {"lz4", "zstd"} else None,
                el("li", _swatch("", "zero"), "all zero") if "zero" in codecs else None,
                el("li", _swatch("", "reserved"), "reserved, shortened")
                if any(s == "reserved" for s, _ in found)
                else None,
                class_="legend",
            ),
        ),
        el(
            "div",
            memory_map.draw(space, band, _described(space), f"m{space.pid}-"),
            class_="scroll",
        ),
    )


def _swatch(kind: str, shape: str) -> Element:
    y, height = ("5", "4") if shape in ("packed", "zero") else ("0", "14")
    rects = [el("rect", width="14", height=height, y=y, class_=shape)]
    if shape == "parent":
        rects.insert(0, el("rect", width="14", height="14", class_="mapped"))
    return el(
        "svg", el("g", rects, class_=kind), viewBox="0 0 14 14", class_="swatch", aria_hidden="true"
    )


def _described(space: AddressSpace) -> Callable[[Mapping], str]:
    def describe(mapping: Mapping) -> str:
        stored = sum(e.size for e in space.stored(mapping))
        name = mapping.name or mapping.kind
        return f"{name}, {mapping.access}, {show_size(mapping.size)}, {show_size(stored)} stored, at {mapping.start:#x}"

    return describe


def _mappings(process: Process) -> Element:
    space = process.space
    assert space is not None
    rows = []
    for index, mapping in enumerate(space.mappings):
        stored = sum(e.size for e in space.stored(mapping))
        rows.append(
            el(
                "tr",
                el("td", f"{mapping.start:x}–{mapping.end:x}", class_="code"),
                el("td", mapping.access, class_="code"),
                el("td", show_size(mapping.size), class_="n"),
                el("td", show_size(stored) if stored else "–", class_="n"),
                el("td", bar(stored / mapping.size)),
                el(
                    "td",
                    _swatch(f"k-{memory_map.KINDS.get(mapping.kind, 'other')}", "stored"),
                    mapping.name or mapping.kind,
                    class_="name",
                ),
                id=f"m{space.pid}-{index}",
            )
        )
    return details(
        f"{len(rows)} mappings",
        table(("Addresses", "Access", "Size", "Stored", "", "What"), rows, "", numeric=(2, 3)),
        open_=False,
    )


def _files(files: list[OpenedFile]) -> Element | None:
    if not files:
        return None
    rows = [
        el(
            "tr",
            el("td", file.fd, class_="n"),
            el("td", el("span", file.kind.lower(), class_="chip")),
            el("td", file.name, class_="name"),
            el("td", file.detail, class_="quiet"),
        )
        for file in files
    ]
    shown = table(("FD", "Kind", "Leads to", ""), rows, "", numeric=(0,))
    return details(f"{len(files)} descriptors", shown, open_=len(files) <= _FEW)


def objects_section(report: Report) -> Element:
    objects = sorted(report.objects, key=lambda o: (-o.stored, o.name))
    total = sum(o.stored for o in objects) or 1
    groups = {"pages": 0, "memory": 0, "metadata": 0}
    for each in objects:
        groups[_group(each)] += each.stored
    at, rects = 0.0, []
    for name, taken in groups.items():
        width = taken * 100 / total
        rects.append(
            el(
                "rect",
                el("title", f"{name}: {show_size(taken)}"),
                x=number(at),
                width=number(width),
                height="10",
                class_=f"g-{name}",
            )
        )
        at += width
    most = objects[0].stored if objects else 1
    rows = [
        el(
            "tr",
            el("td", each.name, class_="name code"),
            el("td", el("span", each.role, class_=f"chip {each.role}")),
            el("td", show_size(each.size), class_="n"),
            el("td", show_size(each.stored), class_="n"),
            el(
                "td",
                f"{each.stored * 100 / each.size:.0f} %"
                if each.size and each.stored != each.size
                else "",
                class_="n quiet",
            ),
            el("td", bar(each.stored / max(1, most))),
        )
        for each in objects
    ]
    return el(
        "section",
        el("h2", "Objects"),
        el(
            "svg",
            rects,
            viewBox="0 0 100 10",
            preserveAspectRatio="none",
            class_="shares",
            role="img",
            aria_label="Where the bytes are",
        ),
        el(
            "ul",
            [
                el(
                    "li",
                    el(
                        "svg",
                        el("rect", width="14", height="14", class_=f"g-{n}"),
                        viewBox="0 0 14 14",
                        class_="swatch",
                        aria_hidden="true",
                    ),
                    f"{_GROUPS[n]} {show_size(t)}",
                )
                for n, t in groups.items()
                if t
            ],
            class_="legend",
        ),
        details(
            f"{len(objects)} objects",
            table(("Object", "Role", "Size", "Stored", "", ""), rows, "", numeric=(2, 3, 4)),
            open_=len(objects) <= _FEW,
        ),
        id="objects",
    )


_GROUPS = {"pages": "pages", "memory": "other memory", "metadata": "metadata"}


def _group(stored: Stored) -> str:
    if stored.role == "metadata":
        return "metadata"
    return "pages" if stored.name.rpartition("/")[2].startswith("pages-") else "memory"


def origin_section(seal: Seal) -> Element:
    facts = [
        ("checkpoint", seal.checkpoint),
        ("kind", seal.kind),
        ("suite", seal.suite),
        ("captured", show_time(seal.captured)),
        ("tool", seal.tool),
        ("workload", seal.workload),
        ("header", f"number {seal.sequence}"),
    ]
    return el(
        "section",
        el("h2", "Origin"),
        _chain(seal) if len(seal.chain) > 1 else None,
        el(
            "div",
            el(
                "div",
                el("h3", "Statement"),
                el("dl", [el("div", el("dt", k), el("dd", v)) for k, v in facts if v]),
                class_="card",
            ),
            el(
                "div",
                el("h3", "Signed by"),
                el(
                    "ul",
                    [
                        el(
                            "li",
                            el("strong", name),
                            el(
                                "span",
                                "trusted" if trusted else "not known to you",
                                class_=f"chip {'good' if trusted else 'fair'}",
                            ),
                            el("code", key),
                        )
                        for name, key, trusted in seal.signers
                    ]
                    or el("li", "nobody"),
                ),
                el("h3", "Sealed to"),
                el(
                    "ul",
                    [
                        el(
                            "li",
                            el("strong", name.removesuffix(" (metadata only)")),
                            el(
                                "span",
                                "memory" if opens else "metadata only",
                                class_=f"chip {'memory' if opens else 'metadata'}",
                            ),
                        )
                        for name, opens in seal.recipients
                    ],
                ),
                class_="card people",
            ),
            class_="cards",
        ),
        id="origin",
    )


def _chain(seal: Seal) -> Element:
    return el(
        "ol",
        [
            el(
                "li",
                el("strong", link.label),
                el("span", show_time(link.captured)),
                el("span", f"{show_size(link.size)} · {link.checkpoint[:8]}"),
                class_="this" if link.this else None,
                aria_current="true" if link.this else None,
            )
            for link in seal.chain
        ],
        class_="chain",
        aria_label="Chain of increments",
    )


def details(title: str, content: Element, *, open_: bool) -> Element:
    return el(
        "details",
        el("summary", title),
        el("div", content, class_="scroll"),
        open="" if open_ else None,
    )


def table(
    heads: tuple[str, ...], rows: list[Element], class_: str, *, numeric: tuple[int, ...]
) -> Element:
    cells = [
        el("th", head, scope="col", class_="n" if n in numeric else None)
        for n, head in enumerate(heads)
    ]
    return el("table", el("thead", el("tr", cells)), el("tbody", rows), class_=class_ or None)


def patterns() -> Element:
    """The hatching of pages that lie in a parent."""
    hatching = el("path", d="M-1 5L5 -1M3 7L7 3")
    pattern = el(
        "pattern", hatching, id="hatch", width="6", height="6", patternUnits="userSpaceOnUse"
    )
    attributes = {"width": "0", "height": "0", "class_": "patterns", "aria_hidden": "true"}
    return el("svg", el("defs", pattern), **attributes)


def show_size(value: int) -> str:
    """For people: 1.03 GiB."""
    scaled = float(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if scaled < 1024:
            return (
                f"{scaled:.0f} {unit}" if unit == "B" or scaled >= 100 else f"{scaled:.3g} {unit}"
            )
        scaled /= 1024
    return f"{scaled:.3g} TiB"


def show_time(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(min(seconds, 1 << 40)))


def bar(share: float) -> Element:
    return el(
        "svg",
        el("rect", width="100", height="6", y="1", class_="track"),
        el("rect", width=number(max(0.0, min(1.0, share)) * 100), height="6", y="1", class_="fill"),
        viewBox="0 0 100 8",
        preserveAspectRatio="none",
        class_="bar",
        aria_hidden="true",
    )
