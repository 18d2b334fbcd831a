"""What the subcommands share: options, figures (docs/reference/figures.md), and results as JSON, Markdown and SVG."""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench import machine, place, report, tree
from bench.plot import Chart, charts
from bench.tools import Tools, say

MIB = 1 << 20
HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"  # committed
PARTIAL = HERE.parent / "build" / "bench"


@dataclass(frozen=True)
class Figure:
    """A line of the table in docs/reference/figures.md. most, least: what was promised, if something was."""

    what: str
    value: float
    decimals: int = 2
    most: float | None = None
    least: float | None = None

    @property
    def target(self) -> str:
        if self.least is not None:
            return f"at least {self.least:g}"
        return "" if self.most is None else f"at most {self.most:g}"

    @property
    def reached(self) -> str:
        text = f"{self.value:.{self.decimals}f}"
        over = self.most is not None and self.value > self.most
        under = self.least is not None and self.value < self.least
        return text + (" (missed)" if over or under else "")


def parser(
    name: str, text: str | None, *, rounds: int, size: int | None = None
) -> argparse.ArgumentParser:
    """With the options that all have. size: MiB of the workload, if it has a size."""
    made = argparse.ArgumentParser(
        prog=f"python -m bench {name}",
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if size is not None:
        made.add_argument("--size", type=int, default=size, metavar="MIB", help=f"default {size}")
    made.add_argument("--rounds", type=int, default=rounds, help=f"default {rounds}, and a first")
    made.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="where results go (a whole run: bench/results)",
    )
    return made


def parse(made: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Results of a partial run must not replace those that are committed."""
    options = made.parse_args(arguments)
    whole = all(
        value == made.get_default(name) for name, value in vars(options).items() if name != "output"
    )
    options.output = options.output or (RESULTS if whole else PARTIAL)
    return options


@contextlib.contextmanager
def instruments(minutes: float) -> Iterator[tuple[Tools, Path]]:
    """Programs and keys, and a directory in memory. minutes: that a whole run takes, for the user."""
    say(f"a whole run takes about {minutes:g} minutes")
    tree.become_subreaper()
    with place.temporary() as directory:
        tools = Tools.prepare(directory / "keys")
        try:
            yield tools, directory
        finally:
            tools.close()


def spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "rounds": list(values),
    }


@dataclass
class Findings:
    """name: of the files and of the subcommand. data: all there is to know; notes: how it was measured, a line each."""

    name: str
    title: str
    figures: list[Figure]
    table: tuple[list[str], list[list[str]]]
    charts: list[Chart]
    notes: str
    data: dict[str, Any]
    skipped: dict[str, str]

    def publish(self, options: argparse.Namespace, tools: Tools) -> int:
        """Write all files, print the table; the exit status."""
        about = {
            "machine": machine.facts(tools, {}),
            "rounds": options.rounds,
        }
        if "size" in options:
            about["size_mib"] = options.size
        directory = options.output
        directory.mkdir(parents=True, exist_ok=True)
        data = {
            "figures": [asdict(figure) for figure in self.figures],
            **about,
            "skipped": self.skipped,
            **self.data,
        }
        text = json.dumps(report.rounded(data), indent=1) + "\n"
        (directory / f"{self.name}.json").write_text(text)
        (directory / f"{self.name}.md").write_text(self._markdown(about))
        (directory / f"{self.name}.svg").write_text(charts(self.charts, self.title))
        print(report.aligned(*self.table))
        promised = [[f.what, f.reached, f.target] for f in self.figures]
        print("\n" + report.aligned(["figure", "reached", "target"], promised))
        for what, why in self.skipped.items():
            print(f"not measured: {what}: {why}")
        names = ", ".join(f"{self.name}.{kind}" for kind in ("json", "md", "svg"))
        say(f"written to {directory}: {names}")
        return 0

    def _intro(self, about: dict[str, Any]) -> str:
        facts = about["machine"]
        return (
            f"{facts['date'][:10]}, {about['rounds']} rounds; sealpoint {facts['sealpoint']} ({facts['commit']}), "
            f"CRIU {facts['criu']}, Python {facts['python']}, {facts['cpu']} with {facts['cores']} cores, "
            f"kernel {facts['kernel']}. Made by `python -m bench {self.name}`.\n"
        )

    def _markdown(self, about: dict[str, Any]) -> str:
        promised = [[f.what, f.reached, f.target] for f in self.figures]
        parts = [
            f"# {self.title}\n",
            self._intro(about),
            f"![{self.title}]({self.name}.svg)\n",
            report.markdown_table(["figure", "reached", "target"], promised),
            report.markdown_table(*self.table),
        ]
        if self.skipped:
            parts.append("Not measured:\n")
            parts.append("".join(f"- {what}: {why}\n" for what, why in self.skipped.items()))
        parts.append("".join(f"- {note}\n" for note in self.notes.strip().splitlines()))
        return "\n".join(parts)
