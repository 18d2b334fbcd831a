"""From measured tables to results: JSON, Markdown, text on a terminal."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.rounds import Series, Table
from bench.variants import DropIn, Sealpoint, SealpointScan, Stock
from bench.workloads import KINDS

MIB = 1 << 20

# name of the plain number -> workload is always the random one; (target, action, quantity), promised at most
RATIOS: dict[str, tuple[str, str, str, float]] = {
    "dump_tmpfs_ratio": ("tmpfs", "dump", "wall", 1.0),
    "frozen_tmpfs_ratio": ("tmpfs", "dump", "frozen", 1.0),
    "restore_tmpfs_ratio": ("tmpfs", "restore", "wall", 1.15),
    "dump_disk_ratio": ("disk", "dump", "wall", 1.0),
    "frozen_disk_ratio": ("disk", "dump", "frozen", 1.0),
    "restore_disk_ratio": ("disk", "restore", "wall", 1.15),
    "size_random_ratio": ("tmpfs", "dump", "bytes", 1.0001),
}
# The same of the drop-in `criu`.
DROPIN_RATIOS: dict[str, tuple[str, str, str, float]] = {
    "dropin_dump_tmpfs_ratio": ("tmpfs", "dump", "wall", 1.25),
    "dropin_restore_tmpfs_ratio": ("tmpfs", "restore", "wall", 1.4),
}
PEAK_TARGET = 150.0
DROPIN_PEAK_TARGET = 200.0
SCAN_TARGET = 1.1  # of a dump with --scan to one without

# One note a line.
NOTES = """\
Medians; in brackets the least and the most of all rounds. Ratios are medians of the ratios within the rounds, to \
stock CRIU at the same target. Every round runs every variant once, beginning with another one each time; a first \
round is discarded, and in it each restored process verified its memory (stress-ng: only that all its processes run).
All dumps leave the process running (--leave-running), so all variants dump the same process; what a dump wrote is \
removed before the next. Restores read files that are in the page cache. Frozen: CRIU's own figure.
Before each command as much memory as it can need is allocated and freed, so that none pays for a virtual machine's \
host handing out pages for the first time.
CPU: user and system time of the command, of all it ran, and of the dumped or restored process meanwhile.
On disk, `criu` syncs every image and their directory in its post-dump hook, with the tree still frozen, as sealpoint \
does with its file; `criu, not synced` leaves its images in the page cache.
The rows with tar stage plain images in memory, also where the target is on disk. openssl enc authenticates nothing; \
gpg's own compression is off. None of them signs.
Peak: resident memory of the sealpoint process, or of the drop-in's helper. What a piped restore holds is ciphertext \
in a memfd, and not part of it.
""".splitlines()


def plain_numbers(tables: Sequence[Table]) -> dict[str, float | None]:
    """The figures that are promised and compared between releases; null for what was not measured."""
    found = {(t.target, t.action): t for t in tables if t.workload == "random"}
    numbers: dict[str, float | None] = {}
    for name, (target, action, quantity, _) in (RATIOS | DROPIN_RATIOS).items():
        table = found.get((target, action))
        variant = DropIn.name if name in DROPIN_RATIOS else Sealpoint.name
        ratio = table.ratio(variant, quantity) if table else None
        numbers[name] = None if ratio is None else round(ratio, 6 if quantity == "bytes" else 3)
    dumps = found.get(("tmpfs", "dump"))
    scan = dumps.ratio(SealpointScan.name, "wall", Sealpoint.name) if dumps else None
    numbers["scan_tmpfs_ratio"] = None if scan is None else round(scan, 3)
    numbers["peak_rss_mib"] = _peak(found.values(), Sealpoint.name)
    numbers["dropin_peak_rss_mib"] = _peak(found.values(), DropIn.name)
    return numbers


def _peak(tables: Iterable[Table], variant: str) -> float | None:
    """The most of all variants whose name begins so, in MiB."""
    peaks = [
        max(series.values["peak"])
        for table in tables
        for name, series in table.series.items()
        if name.startswith(variant) and series.values.get("peak")
    ]
    return round(max(peaks) / MIB, 1) if peaks else None


def results(
    tables: Sequence[Table], small: dict[str, Any], about: dict[str, Any], skipped: dict[str, str]
) -> dict[str, Any]:
    """Everything, for latest.json."""
    return {
        **plain_numbers(tables),
        **about,
        "small": small,
        "skipped": skipped,
        "tables": [table.as_json() for table in tables],
    }


Row = list[str]


def markdown(
    tables: Sequence[Table],
    small: dict[str, Any],
    about: dict[str, Any],
    skipped: dict[str, str],
    plot: str,
) -> str:
    """The report for people."""
    machine = about["machine"]
    systems = ", ".join(f"{name} ({kind})" for name, kind in machine["file_systems"].items())
    intro = (
        f"{machine['date'][:10]}, {about['rounds']} rounds, {about['size_mib']} MiB of random memory; "
        f"sealpoint {machine['sealpoint']} ({machine['commit']}), CRIU {machine['criu']}, "
        f"Python {machine['python']}, {machine['cpu']} with {machine['cores']} cores, "
        f"kernel {machine['kernel']}, targets {systems}. Made by `make bench`.\n"
    )
    parts = [
        "# Benchmark against stock CRIU\n",
        intro,
        f"![wall time by variant]({plot})\n",
        "## What was promised\n",
        markdown_table(["figure", "reached", "target"], _promises(tables)),
        "## Every variant\n",
    ]
    for table in tables:
        parts.append(f"### {_title(table)}\n")
        parts.append(markdown_table(*_table_rows(table)))
    if small:
        parts.append(f"## Commands on a sealed file of {about['size_mib']} MiB\n")
        for target, figures in small.items():
            header = [f"on {target}", "ms", "target"]
            parts.append(markdown_table(header, _small_rows(figures)))
    if skipped:
        parts.append("## Not measured\n")
        parts.append("".join(f"- {what}: {why}\n" for what, why in skipped.items()))
    parts.append("## How\n")
    parts.append("".join(f"- {note}\n" for note in NOTES))
    return "\n".join(parts)


def text(tables: Sequence[Table], small: dict[str, Any], skipped: dict[str, str]) -> str:
    """The same, aligned, for a terminal."""
    parts = []
    for table in tables:
        parts += [_title(table), aligned(*_table_rows(table)), ""]
    for target, figures in small.items():
        parts += [aligned([f"commands, {target}", "ms", "target"], _small_rows(figures)), ""]
    parts += [f"not measured: {what}: {why}" for what, why in skipped.items()]
    parts.append(aligned(["promised", "reached", "target"], _promises(tables)))
    return "\n".join(parts)


def _promises(tables: Sequence[Table]) -> list[Row]:
    rows = []
    targets = {name: most for name, (_, _, _, most) in (RATIOS | DROPIN_RATIOS).items()}
    targets["peak_rss_mib"] = PEAK_TARGET
    targets["dropin_peak_rss_mib"] = DROPIN_PEAK_TARGET
    targets["scan_tmpfs_ratio"] = SCAN_TARGET
    for name, value in plain_numbers(tables).items():
        reached = "not measured" if value is None else f"{value:g}"
        missed = value is not None and value > targets[name]
        rows.append([name, reached + (" (missed)" if missed else ""), f"<= {targets[name]:g}"])
    return rows


def _title(table: Table) -> str:
    memory = f"{table.memory / MIB:.0f} MiB"
    return f"{table.action.capitalize()}, {table.target}: {KINDS[table.workload]}, {memory}"


def _table_rows(table: Table) -> tuple[Row, list[Row]]:
    base = table.series[Stock.name]
    dump = table.action == "dump"
    header = ["variant", "wall s", "ratio", "CPU s"]
    header += ["frozen s", "ratio", "MiB", "ratio", "peak MiB"] if dump else ["peak MiB"]
    rows = []
    for series in table.series.values():
        row = [series.label, _spread(series, "wall"), _ratio(series, base, "wall")]
        row.append(_value(series, "cpu", lambda v: f"{v:.2f}"))
        if dump:
            row += [_value(series, "frozen", lambda v: f"{v:.2f}"), _ratio(series, base, "frozen")]
            row += [_value(series, "bytes", lambda v: f"{v / MIB:.1f}")]
            row += [_ratio(series, base, "bytes")]
        row.append(_value(series, "peak", lambda v: f"{v / MIB:.0f}"))
        rows.append(row)
    return header, rows


def _small_rows(figures: dict[str, Any]) -> list[Row]:
    return [
        [name, f"{v['ms']:.0f} ({v['min']:.0f}-{v['max']:.0f})", _most(v)]
        for name, v in figures.items()
    ]


def _most(figure: dict[str, Any]) -> str:
    return f"<= {figure['target_ms']:g}" if "target_ms" in figure else ""


def _spread(series: Series, quantity: str) -> str:
    values = series.values[quantity]
    return f"{series.median(quantity):.2f} ({min(values):.2f}-{max(values):.2f})"


def _value(series: Series, quantity: str, show: Callable[[float], str]) -> str:
    median = series.median(quantity)
    return "" if median is None else show(median)


def _ratio(series: Series, base: Series, quantity: str) -> str:
    ratio = series.ratio(base, quantity)
    return "" if ratio is None else f"{ratio:.2f}"


def markdown_table(header: Row, rows: Sequence[Row]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def aligned(header: Row, rows: Sequence[Row]) -> str:
    widths = [max(len(row[n]) for row in [header, *rows]) for n in range(len(header))]
    return "\n".join(
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
            ]
        ).rstrip()
        for row in [header, *rows]
    )


def write(directory: Path, data: dict[str, Any], report: str, plot: str) -> None:
    """latest.json, latest.md and latest.svg."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "latest.json").write_text(json.dumps(rounded(data), indent=1) + "\n")
    (directory / "latest.md").write_text(report)
    (directory / "latest.svg").write_text(plot)


def rounded(value: Any) -> Any:
    # Microseconds are more than enough, and long fractions make unreadable diffs.
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return value
