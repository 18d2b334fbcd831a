"""Runs CRIU's own test suite with stock CRIU and through the drop-in: `make test-zdtm ARGS="..."`.

A test that stock CRIU passes and the drop-in does not is run three times more with both. If stock then passes more
often, it is a fault, unless differences.toml has a reason; what that file names has to differ still.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from tests.zdtm import zdtm_cases as known
from tests.zdtm.zdtm_cases import HERE, PLACES, Case

PROJECT: Final = HERE.parent.parent
SIDES: Final = ("stock", "drop-in")
REPEATS: Final = 3
_RESULT: Final = re.compile(r"^zdtm-result zdtm/(\S+) (pass|fail|skip) ([0-9.]+)$", re.MULTILINE)
# Seconds for a list, and more for each test in it: some run into timeouts of 60 s. An emulated machine is slower.
_LIMITS: Final = {"machine": (60, 15), "vm": (240, 90)}
_BOOT: Final = 90


class Result(NamedTuple):
    """word: pass, fail, skip, or none where zdtm.py did not get that far.  log: what it printed."""

    word: str = "none"
    seconds: float = 0.0
    log: str = ""


Results = dict[Case, Result]


def lists(cases: Iterable[Case]) -> dict[tuple[str, tuple[str, ...]], list[Case]]:
    """Those that one zdtm.py can run."""
    found: dict[tuple[str, tuple[str, ...]], list[Case]] = {}
    for case in cases:
        found.setdefault((case.flavour, case.options), []).append(case)
    return found


def write_plan(plan: Path, cases: Iterable[Case], place: str) -> int:
    """The files that tests/zdtm/inside reads. Returns the seconds after which all must have ended."""
    limit = 60
    base, each = _LIMITS[place]
    for number, ((flavour, options), of_it) in enumerate(lists(cases).items()):
        seconds = base + each * len(of_it)
        limit += seconds
        (plan / f"{number:03}.list").write_text("".join(f"zdtm/{case.test}\n" for case in of_it))
        (plan / f"{number:03}.args").write_text("\n".join((str(seconds), flavour, *options)) + "\n")
    return limit


def read_results(plan: Path, cases: Iterable[Case]) -> Results:
    """What the logs say; none for a test that they do not name."""
    found = {}
    for number, of_it in enumerate(lists(cases).values()):
        log = plan / f"{number:03}.log"
        text = log.read_text(errors="replace") if log.exists() else ""
        start, results = 0, {}
        for match in _RESULT.finditer(text):
            results[match[1]] = Result(match[2], float(match[3]), text[start : match.end()])
            start = match.end()
        for case in of_it:
            found[case] = results.get(case.test, Result(log=text[start:]))
    return found


class Runner:
    """Both sides at the same time, each in namespaces or a virtual machine of its own.

    suite: what get-zdtm made; work: an empty directory on a disk; logs: kept there, None for nowhere.
    """

    def __init__(self, suite: Path, work: Path, logs: Path | None) -> None:
        self.suite = suite
        self.work = work
        self.logs = logs
        self.runs = 0

    def run(self, cases: list[Case], place: str) -> dict[str, Results]:
        """Raises RuntimeError if one side could not even be started."""
        self.runs += 1
        started = {}
        for side in SIDES:
            directory = self.work / f"{self.runs:02}-{side}"
            plan, inner = directory / "plan", directory / "work"
            for path in (directory, plan, inner):
                path.mkdir()
            limit = write_plan(plan, cases, place)
            command = self._command(side, place, plan, inner, limit)
            with (plan / "inside.log").open("wb") as log:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                    start_new_session=True,
                )  # fmt: skip
            started[side] = (process, plan, directory, limit + _BOOT)
        results = {}
        try:
            for side, (process, plan, _, limit) in started.items():
                try:
                    status = process.wait(limit)
                except subprocess.TimeoutExpired:
                    status = -1
                results[side] = read_results(plan, cases)
                if status and all(result.word == "none" for result in results[side].values()):
                    said = "".join(
                        file.read_text(errors="replace") for file in sorted(plan.glob("in*.log"))
                    )
                    raise RuntimeError(f"{side} in {place} ended with {status}:\n{said[-2000:]}")
        finally:
            for side, (process, plan, directory, _) in started.items():
                if place == "machine":
                    process.kill()  # unshare ignores SIGTERM; all that runs in the namespaces ends with it
                else:
                    process.terminate()
                process.wait()
                if self.logs is not None:
                    ignore = shutil.ignore_patterns("suite.tar")
                    shutil.copytree(
                        plan, self.logs / f"{self.runs:02}-{place}-{side}", ignore=ignore
                    )
                remove(directory)
        return results

    def _command(self, side: str, place: str, plan: Path, inner: Path, limit: int) -> list[str]:
        inside = str(HERE / "inside")
        if place == "machine":
            return [
                "setpriv", "--pdeathsig", "KILL", "--",
                "unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc",
                "--net", "--ipc", "--uts", "--",
                "bash", inside, side, place, str(PROJECT), str(self.suite), str(plan), str(inner),
            ]  # fmt: skip
        subprocess.run(
            ["tar", "-cf", str(plan / "suite.tar"), "-C", str(self.suite), "."], check=True
        )
        return [
            "setpriv", "--pdeathsig", "TERM", "--",
            str(PROJECT / "scripts" / "vm-run"), "-m", "2048", "-t", str(limit + 30), "-o", str(plan),
            inside, side, place, "/mnt/project", "/mnt/out/suite.tar", "/mnt/out", "/var/lib/zdtm",
        ]  # fmt: skip


def remove(directory: Path) -> None:
    """Although processes that were just killed may be writing there still."""
    for _ in range(50):
        shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            return
        time.sleep(0.1)


def passes(results: Results, case: Case) -> bool:
    return results[case].word == "pass"


def suspects(results: dict[str, Results]) -> list[Case]:
    """What stock passes and the drop-in does not."""
    stock, ours = (results[side] for side in SIDES)
    return [case for case in stock if passes(stock, case) and not passes(ours, case)]


def confirmed(repeats: list[dict[str, Results]], cases: Iterable[Case]) -> list[Case]:
    """Those that stock passes more often."""

    def often(side: str, case: Case) -> int:
        return sum(passes(repeat[side], case) for repeat in repeats)

    return [case for case in cases if often("stock", case) > often("drop-in", case)]


class Verdict(NamedTuple):
    """faults: differ without a reason; expected: with one; settled: have a reason and do not differ any more."""

    faults: list[Case]
    expected: list[Case]
    settled: list[Case]


def judge(ran: Iterable[Case], differ: list[Case], reasons: dict[Case, str]) -> Verdict:
    return Verdict(
        [case for case in differ if case not in reasons],
        [case for case in differ if case in reasons],
        [case for case in ran if case in reasons and case not in differ],
    )


def table(results: dict[str, Results], places: dict[Case, str]) -> None:
    for case in results["stock"]:
        stock, ours = (results[side][case] for side in SIDES)
        print(
            f"{case!s:58} {places[case]:8} stock {stock.word:5}{stock.seconds:5.1f} s"
            f"   drop-in {ours.word:5}{ours.seconds:5.1f} s"
        )


def show(case: Case, place: str, result: Result) -> None:
    print(f"\n--- {case}: the drop-in: {result.word}")
    print("\n".join(result.log.rstrip().splitlines()[-40:]))
    print(f"--- again: make test-zdtm ARGS=\"--only '{case}' --place {place} --logs DIRECTORY\"")


def run(runner: Runner, places: dict[Case, str], arguments: argparse.Namespace) -> int:
    """Returns an exit status."""
    reasons = known.differences()
    results: dict[str, Results] = {side: {} for side in SIDES}

    def go(wanted: dict[Case, str]) -> None:
        for place in PLACES:
            cases = [case for case in wanted if wanted[case] == place]
            if cases:
                print(f"{len(cases)} tests with stock CRIU and the drop-in: {place}", flush=True)
                for side, found in runner.run(cases, place).items():
                    results[side] |= found

    go(places)
    if not arguments.selected and not arguments.no_vm and not arguments.place:
        # What stock does not pass here has a second chance there.
        again = [
            case
            for case in places
            if places[case] == "machine" and not passes(results["stock"], case)
        ]
        places |= dict.fromkeys(again, "vm")
        go(dict.fromkeys(again, "vm"))
    differ = suspects(results)
    for place in PLACES:
        here = [case for case in differ if places[case] == place]
        if here:
            print(f"{len(here)} differ: {REPEATS} times more", flush=True)
            kept = confirmed([runner.run(here, place) for _ in range(REPEATS)], here)
            differ = [case for case in differ if case not in here or case in kept]
    verdict = judge(places, differ, reasons)

    table(results, places)
    for case in verdict.expected:
        print(f"differs by design: {case}: {reasons[case]}")
    for case in verdict.faults:
        show(case, places[case], results["drop-in"][case])
    for case in verdict.settled:
        stock, ours = (results[side][case].word for side in SIDES)
        print(
            f"does not differ (stock: {stock}, drop-in: {ours}): take {case} out of differences.toml"
        )
    proved = [case for case in places if passes(results["stock"], case)]
    failed = len(verdict.faults) + len(verdict.settled)
    if arguments.selected and len(proved) * 10 < len(places) * 9:
        print(f"stock CRIU passes {len(proved)} of {len(places)} only: here they prove too little")
        failed += 1
    for case in places:
        if (result := results["stock"][case]).word in ("fail", "none") and arguments.only:
            print(f"\n--- {case}: stock CRIU: {result.word}\n{result.log[-3000:]}")
    print(
        f"{len(proved) - len(differ)} passed, {failed} failed, {len(places) - len(proved)} skipped"
    )
    return 1 if failed else 0


def main() -> None:
    parser = argparse.ArgumentParser(prog="test-zdtm", description=__doc__.partition("\n")[0])
    parser.add_argument("--selected", action="store_true", help="the cases of CI (selected.toml)")
    parser.add_argument(
        "--only", action="append", metavar="CASE", help="'static/pipe00 h --rpc'; repeatable"
    )
    parser.add_argument("--place", choices=PLACES, help="where to run them")
    parser.add_argument(
        "--no-vm", action="store_true", help="leave out what needs the virtual machine"
    )
    parser.add_argument("--only-vm", action="store_true", help="leave out what does not")
    parser.add_argument(
        "--logs", type=Path, metavar="DIR", help="a new directory for what zdtm.py prints"
    )
    parser.add_argument("--list", action="store_true", help="print the cases and end")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("test-zdtm: root is needed, for CRIU and the namespaces that the tests run in")
    done = subprocess.run(
        [str(PROJECT / "scripts" / "get-zdtm")], stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        sys.exit(done.returncode)
    suite = Path(done.stdout.strip())
    try:
        if arguments.only:
            places = {case: case.place for case in map(known.parse, arguments.only)}
        else:
            places = known.selected() if arguments.selected else known.everything(suite)
        known.differences()
    except ValueError as error:
        sys.exit(f"test-zdtm: {error}")
    if arguments.place:
        places = dict.fromkeys(places, arguments.place)
    if arguments.no_vm:
        places = {case: place for case, place in places.items() if place != "vm"}
    if arguments.only_vm:
        places = {case: place for case, place in places.items() if place == "vm"}
    if arguments.list:
        print("".join(f"{case!s:58} {place}\n" for case, place in places.items()), end="")
        return
    if arguments.logs is not None:
        arguments.logs.mkdir(parents=True)
    begun = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing is left behind
    # On a disk: some tests need what a file system in memory has not.
    with tempfile.TemporaryDirectory(prefix="sealpoint-zdtm-", dir="/var/tmp") as work:
        os.chmod(work, 0o755)  # tests run as other users
        try:
            status = run(Runner(suite, Path(work), arguments.logs), places, arguments)
        except RuntimeError as error:
            sys.exit(f"test-zdtm: {error}")
    print(f"{time.monotonic() - begun:.0f} s")
    sys.exit(status)


if __name__ == "__main__":
    main()
