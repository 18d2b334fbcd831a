"""A bar chart as SVG, written by hand: readable on light and on dark pages, without a plotting library."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from bench.rounds import Series, Table
from bench.variants import Stock
from bench.workloads import KINDS

_WIDTH = 440  # of a panel
_LABEL = 190
_BAR = 170  # of the longest bar
_ROW = 22
_HEAD = 44
_GAP = 18

_STYLE = """
text { font: 12px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2328; }
.title { font-size: 13px; font-weight: 600; }
.small { font-size: 11px; fill: #59636e; }
.other { fill: #afb8c1; } .stock { fill: #6e7781; } .sealpoint { fill: #0969da; }
.spread, .base { stroke: #1f2328; stroke-width: 1; } .base { stroke-dasharray: 3 3; opacity: .5; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .small { fill: #9198a1; }
  .other { fill: #3d444d; } .stock { fill: #768390; } .sealpoint { fill: #4493f8; }
  .spread, .base { stroke: #e6edf3; }
}
"""


def draw(tables: Sequence[Table]) -> str:
    """One panel for each table: dumps to the left, restores to the right."""
    pairs: dict[tuple[str, str], dict[str, Table]] = {}
    for table in tables:
        pairs.setdefault((table.workload, table.target), {})[table.action] = table
    parts: list[str] = []
    top = 10
    for pair in pairs.values():
        rows = max(len(table.series) for table in pair.values())
        for column, action in enumerate(("dump", "restore")):
            if action in pair:
                parts += _panel(pair[action], 10 + column * (_WIDTH + 20), top)
        top += _HEAD + rows * _ROW + _GAP
    width, height = 2 * _WIDTH + 40, top
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="Wall time of dump and restore by variant">'
    )
    return "\n".join([head, f"<style>{_STYLE}</style>", *parts, "</svg>", ""])


def _panel(table: Table, left: int, top: int) -> list[str]:
    longest = max(max(s.values["wall"]) for s in table.series.values())
    scale = _BAR / longest
    zero = left + _LABEL
    title = f"{table.action.capitalize()}, {table.target}"
    what = f"{KINDS[table.workload]}, {table.memory / (1 << 20):.0f} MiB; wall seconds (median, range), ratio to stock"
    parts = [
        f'<text class="title" x="{left}" y="{top + 12}">{escape(title)}</text>',
        f'<text class="small" x="{left}" y="{top + 28}">{escape(what)}</text>',
    ]
    base = table.series[Stock.name]
    for number, (name, series) in enumerate(table.series.items()):
        parts += _bar(name, series, base, zero, top + _HEAD + number * _ROW, scale)
    at = zero + (base.median("wall") or 0) * scale
    end = top + _HEAD + len(table.series) * _ROW - 6
    parts.append(
        f'<line class="base" x1="{at:.1f}" x2="{at:.1f}" y1="{top + _HEAD - 4}" y2="{end}"/>'
    )
    return parts


def _bar(name: str, series: Series, base: Series, zero: int, y: int, scale: float) -> list[str]:
    values = series.values["wall"]
    median = series.median("wall") or 0.0
    ratio = series.ratio(base, "wall")
    kind = (
        "sealpoint" if name.startswith("sealpoint") else "stock" if name == Stock.name else "other"
    )
    label = series.label.partition(" (")[0].replace(" --compress-algo none", "")
    low, high, middle = zero + min(values) * scale, zero + max(values) * scale, y + 7
    shown = f"{median:.2f}" + (
        f" · {ratio:.2f}×" if ratio is not None and name != Stock.name else ""
    )
    return [
        f'<text x="{zero - 8}" y="{y + 11}" text-anchor="end">{escape(label)}</text>',
        f'<rect class="{kind}" x="{zero}" y="{y}" width="{median * scale:.1f}" height="14" rx="2"/>',
        f'<line class="spread" x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}"/>',
        f'<text class="small" x="{high + 6:.1f}" y="{y + 11}">{shown}</text>',
    ]
