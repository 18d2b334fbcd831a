"""The project's own tools: what `make`, the scripts and the set-up promise."""

import ast
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import sealpoint

ROOT = Path(__file__).resolve().parent.parent
GIT = shutil.which("git")


def host(*labels: str) -> str:
    """A pattern of a host name, in parts: this file must not contain what it forbids."""
    return re.escape(".".join(labels))


FORBIDDEN = {
    "a package registry's host": "|".join(
        [
            host("pypi", "org"),
            host("pythonhosted", "org"),
            host("crates", "io"),
            host("registry", "npmjs"),
        ]
    ),
    "a distribution mirror's host": "|".join(
        host(name, "debian", "org") for name in ("deb", "ftp", "httpredir", "security", "snapshot")
    ),
    "a pip option that names an index": "--(extra-)?index-{}|--find-{}".format("url", "links"),
    "a path of one machine": r"(?<![\w.-])/work/({}|\.{})\b".format("main|shared", "library"),
}


def run(*command: str | Path, **options) -> subprocess.CompletedProcess[str]:
    options = {"capture_output": True, "text": True, "timeout": 120, "cwd": ROOT} | options
    return subprocess.run([str(part) for part in command], stdin=subprocess.DEVNULL, **options)


def tracked_files() -> list[Path]:
    if GIT is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = run(GIT, "-c", f"safe.directory={ROOT}", "ls-files", "-z", check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def make_targets() -> dict[str, str]:
    """{target: what `make help` says of it, or ""}"""
    found = {}
    for line in (ROOT / "Makefile").read_text().splitlines():
        if match := re.match(r"([a-z][a-z-]*):(?!=)(?:.*## (.*))?", line):
            found[match[1]] = match[2] or ""
    return found


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_tracked_file_depends_on_one_machine_or_host(what: str) -> None:
    pattern = re.compile(FORBIDDEN[what])
    found = []
    for path in tracked_files():
        data = path.read_bytes()
        if b"\0" in data:
            continue  # recorded images and the like
        lines = data.decode(errors="replace").splitlines()
        found += [
            f"{path.relative_to(ROOT)}:{number}: {match[0]}"
            for number, line in enumerate(lines, 1)
            if (match := pattern.search(line))
        ]
    assert not found, f"names {what}"


def test_make_alone_explains_every_verb() -> None:
    shown = run("make", "--no-print-directory", check=True).stdout
    documented = {target for target, text in make_targets().items() if text}
    wanted = {"demo", "dev", "test", "test-fast", "lint", "fmt"}
    wanted |= {"install", "uninstall", "bench", "clean", "lock", "help", "man"}
    assert wanted <= documented
    for target in documented:
        assert re.search(rf"^ +make {target} ", shown, re.MULTILINE), target


def test_the_make_verbs_that_the_documents_name_exist() -> None:
    targets = make_targets()
    documents = [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").rglob("*.md"),
        ROOT / ".ci" / "run",
    ]
    documents += [path for path in (ROOT / "scripts").iterdir() if path.is_file()]
    for path in documents:
        if not path.exists():
            continue
        text = path.read_text(errors="replace")
        # In running text "make" is an English word: only `make x` in code, or a line that is a command.
        named = re.findall(r"`make ([a-z][a-z-]*)", text)
        named += re.findall(r"^(?:\s*\$)?\s*make ([a-z][a-z-]*)(?:\s+#.*)?$", text, re.MULTILINE)
        for target in named:
            assert target in targets, f"{path.relative_to(ROOT)}: make {target}"


def pins_of(name: str) -> set[str]:
    """Each pin of a lock file, with its hashes, on one line."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text().replace(" \\\n", "")
    return {line for line in text.splitlines() if line and not line.startswith("#")}


def test_every_pin_is_exact_has_hashes_and_all_lock_files_agree() -> None:
    locked = {name: pins_of(name) for name in ("run", "vm", "dev")}
    for pin in set.union(*locked.values()):
        exact = r"[a-z0-9-]+==[0-9][^;\s]*( ; [^-]+)?( +--hash=sha256:[0-9a-f]{64})+"
        assert re.fullmatch(exact, pin), pin
    assert locked["run"] <= locked["vm"] <= locked["dev"]


# By script: the call of pip that brings what is pinned.
PINNED = {
    "setup-venv": "dev.txt",
    "install": "run.txt",
    "bundle": "run.txt",
    "vm-build": "vm.txt",
}


@pytest.mark.parametrize("script", PINNED)
def test_what_is_pinned_is_installed_with_hashes_only(script: str) -> None:
    text = (ROOT / "scripts" / script).read_text().replace("\\\n", "")
    calls = [line for line in text.splitlines() if re.search(r"(--requirement\b|\"-r\")", line)]
    assert calls
    for call in calls:
        assert "--require-hashes" in call, call
        assert PINNED[script] in call, call


@pytest.mark.parametrize("tampered", ["hash", "wheel", "no hash"])
def test_a_package_that_does_not_have_its_hash_is_not_installed(
    tampered: str, tmp_path: Path
) -> None:
    """With pip, as the scripts call it, and a wheel that was changed after it was pinned."""
    wheel = tmp_path / "mdurl-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("mdurl.py", "")
        about = "mdurl-0.1.2.dist-info"
        archive.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: mdurl\nVersion: 0.1.2\n"
        )
        archive.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{about}/RECORD", "")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    pins = tmp_path / "pins.txt"

    def install(pin: str) -> subprocess.CompletedProcess[str]:
        pins.write_text(pin)
        words = ["pip", "install", "--isolated", "--no-deps", "--require-hashes", "--dry-run"]
        target = ["--target", tmp_path / "into", "--requirement", pins]
        return run(sys.executable, "-m", *words, *target)

    good = f"mdurl @ {wheel.as_uri()} --hash=sha256:{digest}\n"
    done = install(good)
    assert done.returncode == 0, done
    if tampered == "wheel":
        with zipfile.ZipFile(wheel, "a") as archive:
            archive.writestr("more.py", "")
    other = digest[:-1] + ("0" if digest[-1] != "0" else "1")
    bad = {
        "hash": good.replace(digest, other),
        "wheel": good,
        "no hash": good.split(" --hash", maxsplit=1)[0] + "\n",
    }
    done = install(bad[tampered])
    assert done.returncode != 0
    assert "hash" in done.stderr.lower()


def test_every_declared_dependency_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = {
        "run": project["project"]["dependencies"],
        "dev": project["dependency-groups"]["dev"],
    }
    for name, requirements in wanted.items():
        locked = (ROOT / "requirements" / f"{name}.txt").read_text()
        for requirement in requirements:
            package = re.match(r"[\w-]+", requirement)[0]
            assert f"\n{package}==" in locked, f"{package}: run `make lock`"


def test_version_has_one_source() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" in project["dynamic"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", sealpoint.__version__)


SEARCHES = {"FileWatcher", "watched"}  # what is written anywhere, for secrets (tests/real/leaks.py)


def test_a_test_that_searches_all_that_is_written_for_secrets_runs_alone() -> None:
    """Else it would search what other tests write at the same time, and for long."""
    found, wrong = 0, []
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        if "vm" in file.relative_to(ROOT).parts:
            continue  # one after another, there
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                inside = {
                    ast.unparse(n.func).split(".")[-1]
                    for n in ast.walk(node)
                    if isinstance(n, ast.Call)
                }
                if inside & SEARCHES:
                    found += 1
                    marks = [ast.unparse(decorator) for decorator in node.decorator_list]
                    if "pytest.mark.alone" not in marks:
                        wrong.append(f"{file.relative_to(ROOT)}::{node.name}")
    assert found > 15
    assert wrong == []


def test_scripts_are_executable_and_parse() -> None:
    for path in [ROOT / ".ci" / "run", *(ROOT / "scripts").iterdir()]:
        if not path.is_file():
            continue
        first = path.read_text(errors="replace").partition("\n")[0]
        if not first.startswith("#!"):
            continue
        assert os.access(path, os.X_OK), path
        if first.endswith("bash"):
            assert run("bash", "-n", path).returncode == 0, path
            assert "\nset -euo pipefail\n" in path.read_text(), path


class TestGetCriu:
    SCRIPT = ROOT / "scripts" / "get-criu"

    @pytest.mark.parametrize(
        "arguments", [[], ["--suite"], ["x", "y"], ["--nonsense"], ["x", "--suite", "a b"], ["a'b"]]
    )
    def test_refuses_a_wrong_call(self, arguments: list[str], tmp_path: Path) -> None:
        result = run(self.SCRIPT, *arguments, cwd=tmp_path)
        assert result.returncode == 1
        assert result.stderr.startswith("get-criu: ")
        assert list(tmp_path.iterdir()) == []

    def test_never_deletes_what_it_has_not_made(self, tmp_path: Path) -> None:
        mine = tmp_path / "prefix" / "thesis.txt"
        mine.parent.mkdir()
        mine.write_text("years of work")
        result = run(self.SCRIPT, mine.parent)
        assert result.returncode == 1
        assert "was not made by this script" in result.stderr
        assert mine.read_text() == "years of work"

    def test_a_complete_prefix_is_left_alone(self, tmp_path: Path) -> None:
        if not (ROOT / ".criu" / "complete").exists():
            pytest.skip("no .criu; `make dev` makes it")
        for name in ("bin/criu", "bin/crit"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("#!/bin/sh\n")
            (tmp_path / name).chmod(0o755)
        shutil.copy(ROOT / ".criu" / "complete", tmp_path)
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        # Without any other program in PATH: it has nothing to do, so it needs none.
        result = run(self.SCRIPT, tmp_path, env={"PATH": os.defpath})
        assert (result.returncode, result.stderr) == (0, "")
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before

    @pytest.mark.parametrize("name", ["criu", "crit"])
    def test_wrappers_keep_their_libraries_to_themselves(self, name: str) -> None:
        wrapper = ROOT / ".criu" / "bin" / name
        if not wrapper.exists():
            pytest.skip("no .criu; `make dev` makes it")
        script = wrapper.read_text()
        # What CRIU starts (action scripts, tar, ip) would inherit any variable and load its libraries.
        assert "LD_" not in script
        assert "PYTHON" not in script
        assert re.search(r"^exec ", script, re.MULTILINE), "the wrapper must not stay as a parent"
        assert script.rstrip().endswith('"$@"')

    def test_what_criu_starts_sees_the_environment_unchanged(self, tmp_path: Path) -> None:
        crit = ROOT / ".criu" / "bin" / "crit"
        if not crit.exists() or "ld-linux" not in crit.read_text():
            pytest.skip("no .criu, or it is the system's CRIU")
        # A module of that name in the working directory or in PYTHONPATH must not be taken for crit's.
        (tmp_path / "pycriu.py").write_text("raise SystemExit('wrong pycriu')")
        env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(tmp_path),
            "PYTHONHOME": "/nonexistent",
        }
        result = run(crit, "--help", cwd=tmp_path, env=env)
        assert result.returncode == 0, result.stderr
        assert "decode" in result.stdout


class TestInstall:
    SCRIPT = ROOT / "scripts" / "install"

    @pytest.mark.parametrize("arguments", [[], ["--uninstall"]])
    def test_never_deletes_what_it_has_not_made(self, arguments: list[str], tmp_path: Path) -> None:
        mine = tmp_path / "prefix" / "thesis.txt"
        mine.parent.mkdir()
        mine.write_text("years of work")
        result = run(self.SCRIPT, *arguments, mine.parent, tmp_path / "bin")
        assert result.returncode == 1
        assert "is not an installation of sealpoint" in result.stderr
        assert mine.read_text() == "years of work"

    def test_does_not_replace_another_program_of_that_name(self, tmp_path: Path) -> None:
        (tmp_path / "sealpoint").write_text("#!/bin/sh\n")
        result = run(self.SCRIPT, tmp_path / "prefix", tmp_path)
        assert result.returncode == 1
        assert "belongs to something else" in result.stderr
        assert not (tmp_path / "prefix").exists()

    @pytest.fixture
    def public(self) -> Iterator[Path]:
        """A directory that, other than pytest's own, every user can enter."""
        with tempfile.TemporaryDirectory(prefix="sealpoint-install-") as directory:
            Path(directory).chmod(0o755)
            yield Path(directory)

    @pytest.mark.slow
    def test_is_independent_of_the_checkout_and_readable_by_services(self, public: Path) -> None:
        if os.geteuid() != 0:
            pytest.skip("needs root, to become another user")
        prefix, bindir = public / "prefix", public / "bin"
        for _ in range(2):  # the second time it replaces the first
            run(self.SCRIPT, prefix, bindir, check=True, timeout=250)
        assert len([path for path in prefix.iterdir() if not path.name.startswith(".")]) == 2
        manual = public / "share/man/man1/sealpoint-crit-show.1"
        assert manual.read_text().startswith('.TH "SEALPOINT\\-CRIT\\-SHOW" 1')
        mine = manual.with_name("sealpoint-mine.1")
        mine.write_text("not from there")
        nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        version = run(*nobody, bindir / "sealpoint", "--version", cwd="/", env={"PATH": os.defpath})
        assert sealpoint.__version__ in version.stdout, version.stderr
        names_checkout = run("grep", "-rlIF", "--", f"{ROOT}/", prefix)
        assert names_checkout.stdout == ""
        not_roots = run(
            "find", prefix, "(", "!", "-user", "root", "-o", "-perm", "-002", ")", "!", "-type", "l"
        )
        assert not_roots.stdout == ""
        run(self.SCRIPT, "--uninstall", prefix, bindir, check=True)
        assert not prefix.exists()
        assert list(bindir.iterdir()) == []
        assert list(manual.parent.iterdir()) == [mine]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it gives files to others")
@pytest.mark.parametrize("what", ["nothing", "checkout", "above", "writable", "sticky above"])
def test_make_says_how_root_goes_on_in_the_checkout_of_somebody_else(tmp_path: Path, what) -> None:
    checkout = tmp_path / "above" / "checkout"
    checkout.mkdir(parents=True)
    if what in ("checkout", "above"):
        os.chown(checkout if what == "checkout" else checkout.parent, 65534, 65534)
    elif what == "writable":
        checkout.chmod(0o777)
    elif what == "sticky above":
        checkout.parent.chmod(0o1777)
    done = run(ROOT / "scripts/check-owner", checkout)
    if what in ("nothing", "sticky above"):
        assert (done.returncode, done.stderr) == (0, "")
        return
    assert done.returncode == 1
    place = checkout.parent if what == "above" else checkout
    assert f"make: {place} " in done.stderr
    assert f"chown -R root: '{checkout}'" in done.stderr
    assert "cp -r" in done.stderr
    for verb in ("demo", "test", "bench", "install"):
        planned = run("make", "--no-print-directory", "-n", verb, check=True).stdout
        assert planned.startswith("scripts/check-owner"), verb
