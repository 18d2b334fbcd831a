"""Applies mutants to a copy of the code and runs the tests that must notice: `make test-mutants ARGS="..."`.

A mutant is one small change that takes a promised check away (mutants.py). Without it the tests that it names must
pass; with it each of them must fail. One that lives, no longer applies, or whose tests fail or are skipped without it,
fails the run.

The copy is mounted over the checkout's own `src` and `scripts`, in mount, pid and IPC namespaces that end with the
run. So every program that a test starts is the mutated one, however it finds its modules, and the checkout stays as it
is.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

from tests.mutants.mutants import Mutant, MutantError, applied, load, missing_tests

HERE = Path(__file__).resolve().parent

PARTS = ("src", "scripts")  # what can be mutated
TEST_SECONDS = 120  # of one test with a mutant
RUN_SECONDS = 900  # of all tests of one mutant
_NAMESPACES = (
    "unshare",
    "--fork",
    "--kill-child=KILL",
    "--pid",
    "--mount",
    "--ipc",
    "--mount-proc",
)
# The shell stays as the first process of the pid namespace: it reaps what nobody else does.
_INSIDE = """set -e
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
for part in src scripts; do
    if [ -d "$1/$part" ]; then mount --bind "$1/$part" "$2/$part"; fi
done
cd "$2"
shift 2
"$@"
exit $?"""


class Outcome(NamedTuple):
    tests: dict[str, tuple[str, str]]  # {name: (passed, failed, skipped or not found; why)}
    problem: str = ""  # why there is no outcome


class Workspace:
    """A copy of what can be mutated, and where a run's temporary files are."""

    def __init__(self, root: Path, directory: Path) -> None:
        self.root = root
        self.directory = directory
        self.copy = directory / "copy"
        for part in PARTS:
            if (root / part).is_dir():
                shutil.copytree(root / part, self.copy / part, symlinks=True)
        self._clock = time.time()

    def run(self, names: Iterable[str], *, seconds: int, options: Iterable[str] = ()) -> Outcome:
        """Run tests with the code as it is in the copy."""
        results = self.directory / "results"
        results.unlink(missing_ok=True)
        temporary = self.directory / "tmp"
        arguments = {
            "root": str(self.root),
            "names": list(names),
            "options": [f"--basetemp={temporary}", *options],
        }
        command = [sys.executable, str(HERE / "named.py"), str(results)]
        output, late = self._inside(command, json.dumps(arguments), seconds)
        shutil.rmtree(temporary, ignore_errors=True)
        if results.exists():
            return _outcome(json.loads(results.read_text()), output)
        ended = f"was ended after {seconds} s" if late else "ended without a result"
        return Outcome({}, f"pytest {ended}:\n{output[-3000:]}")

    def run_vm(self, names: Iterable[str], *, seconds: int) -> Outcome:
        """The same in the virtual machine.

        It shares a copy of the whole checkout: mounts below what it shares are none of its business (EREMOTE).
        """
        wanted = list(names)
        whole = self.directory / "whole"
        ignored = shutil.ignore_patterns(".?*", "__pycache__", *PARTS)
        shutil.rmtree(whole, ignore_errors=True)
        shutil.copytree(self.root, whole, symlinks=True, ignore=ignored)
        for part in PARTS:
            shutil.copytree(self.copy / part, whole / part, symlinks=True)
        for mount_point in (".venv", ".criu"):  # the machine has its own
            (whole / mount_point).mkdir()
        selected = " or ".join(sorted({re.sub(r"\[.*", "", n.rpartition("::")[2]) for n in wanted}))
        command = [str(whole / "scripts/vm-run"), "-m", "2048", "-t", str(seconds - 60)]
        command += [str(whole / "tests/vm/run.sh"), "-rA", "-k", selected]
        output, _ = self._inside(command, "", seconds)
        if not re.search(r"^=+ .*(passed|failed|error|skipped).* =+$", output, re.MULTILINE):
            return Outcome({}, f"the virtual machine showed no result:\n{output[-3000:]}")
        found = {}
        for name in wanted:
            pattern = rf"^(PASSED|FAILED|ERROR|SKIPPED) {re.escape(name)}(?![\w])"
            seen = set(re.findall(pattern, output, re.MULTILINE))
            order = (("FAILED", "failed"), ("ERROR", "failed"), ("PASSED", "passed"))
            what = next((o for word, o in order if word in seen), "not found")
            found[name] = (what, output[-1500:] if what == "not found" else "")
        return Outcome(found)

    def mutate(self, mutant: Mutant) -> str:
        """Apply it; what is wrong with it, or "". `restore` takes it back."""
        try:
            text = applied(self.root, mutant)
        except MutantError as error:
            return str(error)
        self._write(mutant, text)
        if mutant.module:
            code = f"import sys; sys.path.insert(0, sys.argv[1]); import {mutant.module}"
            command = [sys.executable, "-c", code, str(self.root / "src")]
            output, _ = self._inside(command, "", 60, check=True)
            if output:
                return f"the module cannot be imported any more:\n{output[-1000:]}"
        return ""

    def restore(self, mutant: Mutant) -> None:
        if (self.root / mutant.file).is_file():
            self._write(mutant, (self.root / mutant.file).read_text())

    def _write(self, mutant: Mutant, text: str) -> None:
        path = self.copy / mutant.file
        path.write_text(text)
        # Python takes compiled code for that of a source with the same size and the same second.
        self._clock += 2
        os.utime(path, (self._clock, self._clock))
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
            compiled.unlink()

    def _inside(
        self, command: list[str], given: str, seconds: int, *, check: bool = False
    ) -> tuple[str, bool]:
        """Run a command in the namespaces: what it printed, and whether it was ended.

        With `check` only a failure counts: "" is the output of success.
        """
        environment = (
            os.environ
            | {
                "PYTHONDONTWRITEBYTECODE": "1",  # beside the tests, which are those of the project itself
                "SEALPOINT_REQUIRE_CRIU": "1",
                "SEALPOINT_VM": os.environ.get("SEALPOINT_VM", str(self.root / ".vm")),
                "HYPOTHESIS_STORAGE_DIRECTORY": str(self.directory / "hypothesis"),
            }
        )
        shell = ["bash", "-c", _INSIDE, "bash", str(self.copy), str(self.root), *command]
        process = subprocess.Popen(
            [*_NAMESPACES, *shell],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            text=True,
            errors="replace",
        )
        try:
            output, _ = process.communicate(given, timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()  # and with it the first process in there, and so all of them
            output, _ = process.communicate()
            return output, True
        except BaseException:
            process.kill()
            process.wait()
            raise
        return ("" if check and process.returncode == 0 else output or " "), False


def _outcome(result: dict, output: str) -> Outcome:
    # 0 and 1: tests ran. 2: interrupted, for instance by a file that cannot be imported. 5: there are none.
    problem = "" if result["code"] in (0, 1, 5) else f"pytest gave up:\n{output[-3000:]}"
    return Outcome({name: tuple(each) for name, each in result["tests"].items()}, problem)


class Run:
    """One run over some mutants of a project."""

    def __init__(self, root: Path, mutants: list[Mutant], jobs: int) -> None:
        self.root = root
        self.mutants = mutants
        self.jobs = jobs
        self.failures: dict[str, str] = {}  # {the mutant's name: why}
        self._lock = threading.Lock()
        self._sound: dict[str, tuple[str, str]] = {}

    def everything(self, directory: Path) -> None:
        spaces: SimpleQueue[Workspace] = SimpleQueue()
        for number in range(self.jobs):
            spaces.put(Workspace(self.root, directory / str(number)))
        with ThreadPoolExecutor(self.jobs) as pool:
            self._unmutated(pool, spaces)
            list(pool.map(lambda mutant: self._one(mutant, spaces), self.mutants))

    def _unmutated(self, pool: ThreadPoolExecutor, spaces: SimpleQueue[Workspace]) -> None:
        """Run the tests of all mutants once, as they are: a share of the files for each job."""
        names = {test for mutant in self.mutants for test in mutant.tests}
        files = sorted({name.partition("::")[0] for name in names})
        shares = [set(files[number :: self.jobs]) for number in range(self.jobs)]

        def run(share: set[str]) -> Outcome:
            space = spaces.get()
            try:
                wanted = sorted(name for name in names if name.partition("::")[0] in share)
                vm = any(mutant.needs == "vm" for mutant in self.mutants)
                if vm and wanted:
                    return space.run_vm(wanted, seconds=3600)
                return space.run(wanted, seconds=3600) if wanted else Outcome({})
            finally:
                spaces.put(space)

        started = time.monotonic()
        for outcome in pool.map(run, shares):
            self._sound |= outcome.tests
            if outcome.problem:
                say(outcome.problem)
        passed = sum(1 for what, _ in self._sound.values() if what == "passed")
        say(f"unmutated: {passed} of {len(names)} tests pass ({time.monotonic() - started:.0f} s)")

    def _one(self, mutant: Mutant, spaces: SimpleQueue[Workspace]) -> None:
        space = spaces.get()
        started = time.monotonic()
        try:
            problem = self._problem(mutant, space)
        except OSError as error:
            problem = str(error)
        finally:
            spaces.put(space)
        with self._lock:
            if problem:
                self.failures[mutant.slug] = problem
            word = "FAILED" if problem else "killed"
            say(f"{word}  {mutant.slug}  ({time.monotonic() - started:.1f} s)")
            if problem:
                say("    " + problem.replace("\n", "\n    "))

    def _problem(self, mutant: Mutant, space: Workspace) -> str:
        """Why it is not killed by each of its tests, or ""."""
        if missing := missing_tests(self.root, mutant):
            return f"no such test: {', '.join(missing)}"
        for test in mutant.tests:
            what, why = self._sound.get(test, ("not run", ""))
            if what != "passed":
                return f"unmutated, {test} is {what}{': ' if why else ''}{why}"
        try:
            if problem := space.mutate(mutant):
                return f"it does not apply: {problem}"
            if mutant.needs == "vm":
                outcome = space.run_vm(mutant.tests, seconds=1500)
            else:
                options = [f"--timeout={TEST_SECONDS}"]
                outcome = space.run(mutant.tests, seconds=RUN_SECONDS, options=options)
        finally:
            space.restore(mutant)
        if outcome.problem:
            return outcome.problem
        alive = [t for t in mutant.tests if outcome.tests.get(t, ("", ""))[0] != "failed"]
        return "\n".join(f"it lives: {t} is {outcome.tests.get(t, ('not run',))[0]}" for t in alive)


def say(text: str) -> None:
    print(text, flush=True)


def chosen(mutants: list[Mutant], arguments: argparse.Namespace, root: Path) -> list[Mutant]:
    """Those that the options select."""
    if not arguments.list:
        mutants = [mutant for mutant in mutants if (mutant.needs == "vm") == arguments.vm]
        if not (root / ".services").is_dir():
            left = [mutant for mutant in mutants if mutant.needs != "services"]
            if len(left) < len(mutants):
                say(f"left out, without servers (make services): {len(mutants) - len(left)}")
            mutants = left
    if arguments.only:
        mutants = [mutant for mutant in mutants if any(_matches(mutant, o) for o in arguments.only)]
        if not mutants:
            sys.exit(f"test-mutants: no mutant is named {', '.join(arguments.only)}")
    if arguments.sample is None:
        return mutants
    seed = arguments.seed or _commit(root)
    say(f"a sample of {arguments.sample}, chosen by --seed {seed}")
    order = {m.slug: hashlib.sha256(f"{seed} {m.slug}".encode()).digest() for m in mutants}
    return sorted(mutants, key=lambda mutant: order[mutant.slug])[: arguments.sample]


def _matches(mutant: Mutant, wanted: str) -> bool:
    names = (mutant.slug, mutant.name, mutant.area, f"{mutant.area}.toml", mutant.file)
    return any(fnmatch.fnmatchcase(name, wanted) for name in names)


def _commit(root: Path) -> str:
    command = ["git", "-c", f"safe.directory={root}", "-C", str(root), "rev-parse", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or "no commit"


def main() -> int:
    parser = argparse.ArgumentParser(prog="test-mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="list the mutants, run nothing")
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="an area, a mutant or a module; patterns"
    )
    parser.add_argument("--sample", type=int, metavar="N", help="N of them, chosen by --seed")
    parser.add_argument("--seed", help="any text (default: the commit)")
    parser.add_argument("--vm", action="store_true", help="those that need the virtual machine")
    parser.add_argument("-j", "--jobs", type=int, default=2, help="at the same time (default 2)")
    parser.add_argument("--root", type=Path, default=HERE.parent.parent, help="the project")
    parser.add_argument("--mutants", type=Path, help="the directory with *.toml")
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    try:
        mutants = chosen(load(arguments.mutants or root / "tests/mutants"), arguments, root)
    except MutantError as error:
        sys.exit(f"test-mutants: {error}")
    if arguments.list:
        for mutant in mutants:
            say(f"{mutant.slug}  {mutant.file}  {mutant.needs}".rstrip())
        return 0
    if os.geteuid() != 0:
        sys.exit("test-mutants: root is needed, for the namespaces that the tests run in")
    run = Run(root, mutants, max(1, 1 if arguments.vm else arguments.jobs))
    with tempfile.TemporaryDirectory(prefix="sealpoint-mutants-") as directory:
        run.everything(Path(directory))
    say("")
    for slug, problem in sorted(run.failures.items()):
        say(f"{slug}: {problem.partition(chr(10))[0]}")
    say(f"{len(mutants) - len(run.failures)} passed, {len(run.failures)} failed")
    return 1 if run.failures else 0


if __name__ == "__main__":
    sys.exit(main())
