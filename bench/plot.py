"""A bar chart as SVG, written by hand: readable on light and on dark pages, without a plotting library."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from bench.rounds import Table
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


@dataclass(frozen=True)
class Bar:
    """kind: `stock`, `sealpoint` or `other`, for the colour. values: of all rounds. note: behind the median."""

    label: str
    kind: str
    values: Sequence[float]
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)


@dataclass(frozen=True)
class Chart:
    """A panel. base: where a dashed line stands, in the unit of the values."""

    title: str
    what: str
    bars: Sequence[Bar]
    base: float | None = None
    decimals: int = 2


def draw(tables: Sequence[Table]) -> str:
    """One panel for each table: dumps to the left, restores to the right."""
    pairs: dict[tuple[str, str], dict[str, Table]] = {}
    for table in tables:
        pairs.setdefault((table.workload, table.target), {})[table.action] = table
    rows = [
        [chart_of(pair[a]) if a in pair else None for a in ("dump", "restore")]
        for pair in pairs.values()
    ]
    return _page(rows, "Wall time of dump and restore by variant")


def charts(found: Sequence[Chart], title: str) -> str:
    """Panels in two columns."""
    return _page([list(found[at : at + 2]) for at in range(0, len(found), 2)], title)


def chart_of(table: Table) -> Chart:
    """The wall times of a table."""
    base = table.series[Stock.name]
    bars = []
    for name, series in table.series.items():
        ratio = series.ratio(base, "wall")
        kind = (
            "sealpoint"
            if name.startswith("sealpoint")
            else "stock"
            if name == Stock.name
            else "other"
        )
        label = series.label.partition(" (")[0].replace(" --compress-algo none", "")
        note = f" · {ratio:.2f}×" if ratio is not None and name != Stock.name else ""
        bars.append(Bar(label, kind, series.values["wall"], note))
    what = f"{KINDS[table.workload]}, {table.memory / (1 << 20):.0f} MiB; wall seconds (median, range), ratio to stock"
    return Chart(
        f"{table.action.capitalize()}, {table.target}", what, bars, base.median("wall") or 0.0
    )


def _page(rows: Sequence[Sequence[Chart | None]], title: str) -> str:
    parts: list[str] = []
    top = 10
    for row in rows:
        for column, chart in enumerate(row):
            if chart is not None:
                parts += _panel(chart, 10 + column * (_WIDTH + 20), top)
        top += _HEAD + max(len(c.bars) for c in row if c is not None) * _ROW + _GAP
    width, height = 2 * _WIDTH + 40, top
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(title)}">'
    )
    return "\n".join([head, f"<style>{_STYLE}</style>", *parts, "</svg>", ""])


def _panel(chart: Chart, left: int, top: int) -> list[str]:
    longest = max(max(bar.values) for bar in chart.bars)
    scale = _BAR / max(longest, chart.base or 0.0)
    zero = left + _LABEL
    parts = [
        f'<text class="title" x="{left}" y="{top + 12}">{escape(chart.title)}</text>',
        f'<text class="small" x="{left}" y="{top + 28}">{escape(chart.what)}</text>',
    ]
    for number, bar in enumerate(chart.bars):
        parts += _bar(bar, chart, zero, top + _HEAD + number * _ROW, scale)
    if chart.base is not None:
        at = zero + chart.base * scale
        end = top + _HEAD + len(chart.bars) * _ROW - 6
        parts.append(
            f'<line class="base" x1="{at:.1f}" x2="{at:.1f}" y1="{top + _HEAD - 4}" y2="{end}"/>'
        )
    return parts


def _bar(bar: Bar, chart: Chart, zero: int, y: int, scale: float) -> list[str]:
    low, high = zero + min(bar.values) * scale, zero + max(bar.values) * scale
    middle = y + 7
    shown = f"{bar.median:.{chart.decimals}f}{bar.note}"
    return [
        f'<text x="{zero - 8}" y="{y + 11}" text-anchor="end">{escape(bar.label)}</text>',
        f'<rect class="{bar.kind}" x="{zero}" y="{y}" width="{bar.median * scale:.1f}" height="14" rx="2"/>',
        f'<line class="spread" x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}"/>',
        f'<text class="small" x="{high + 6:.1f}" y="{y + 11}">{escape(shown)}</text>',
    ]
