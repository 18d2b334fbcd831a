"""`make release`, in a clone of this checkout: what it refuses, and what it makes."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import sealpoint

ROOT = Path(__file__).resolve().parent.parent
VERSION = sealpoint.__version__


def run(directory: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    return subprocess.run(
        words, cwd=directory, capture_output=True, text=True, timeout=200, stdin=subprocess.DEVNULL
    )


def git(directory: Path, *words: str) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@localhost", "-c", f"safe.directory={ROOT}"]
    done = run(directory, "git", *who, "-c", "safe.directory=*", *words)
    assert done.returncode == 0, done
    return done.stdout


pytestmark = pytest.mark.slow


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Of what is committed here, with a changelog for a release of today's version."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    git(tmp_path, "clone", "--quiet", "--no-hardlinks", str(ROOT), "clone")
    directory = tmp_path / "clone"
    # What is tried is the script as it is here, committed or not.
    shutil.copy(ROOT / "scripts" / "release", directory / "scripts" / "release")
    shutil.copy(ROOT / "pyproject.toml", directory / "pyproject.toml")
    date_it(directory, f"{VERSION}, 2026-01-31")
    git(directory, "add", "--all")
    git(directory, "commit", "--quiet", "--message", "release")
    return directory


def date_it(directory: Path, heading: str) -> None:
    path = directory / "CHANGELOG.md"
    path.write_text(re.sub(r"(?m)^## .*$", f"## {heading}", path.read_text(), count=1))


def release(directory: Path) -> subprocess.CompletedProcess[str]:
    return run(directory, sys.executable, "scripts/release")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("something is not committed", "not clean"),
        ("something is not known to git", "not clean"),
        ("the changelog has no date", "not released"),
        ("the changelog is another version's", "9.9.9"),
        ("the tag is on another commit", "another commit"),
    ],
)
def test_what_is_no_release_is_refused(clone: Path, wrong: str, words: str) -> None:
    if wrong == "something is not committed":
        (clone / "README.md").write_text("changed")
    elif wrong == "something is not known to git":
        (clone / "more").write_text("")
    elif wrong == "the tag is on another commit":
        git(clone, "tag", f"v{VERSION}", "HEAD~1")
    else:
        date_it(clone, f"{VERSION}, not released" if "no date" in wrong else "9.9.9, 2026-01-31")
        git(clone, "commit", "--quiet", "--all", "--message", "wrong")
    done = release(clone)
    assert done.returncode == 1, done
    assert words in done.stderr
    assert not (clone / "dist").exists()


def test_a_release_has_wheel_sdist_sbom_and_checksums(clone: Path, tmp_path: Path) -> None:
    git(clone, "tag", f"v{VERSION}")
    done = release(clone)
    assert done.returncode == 0, done
    out = clone / "dist" / VERSION
    names = {f"sealpoint-{VERSION}-py3-none-any.whl", f"sealpoint-{VERSION}.tar.gz"}
    names |= {f"sealpoint-{VERSION}.cdx.json"}
    assert {p.name for p in out.iterdir()} == names | {"SHA256SUMS"}
    sums = dict(line.split("  ")[::-1] for line in (out / "SHA256SUMS").read_text().splitlines())
    assert sums == {n: hashlib.sha256((out / n).read_bytes()).hexdigest() for n in names}
    bom = json.loads((out / f"sealpoint-{VERSION}.cdx.json").read_bytes())
    pinned = re.findall(r"(?m)^([a-z0-9-]+)==(\S+)", (clone / "requirements/run.txt").read_text())
    assert [(c["name"], c["version"]) for c in bom["components"]] == pinned
    # The sdist holds all that is committed, so its tests run.
    with tarfile.open(out / f"sealpoint-{VERSION}.tar.gz") as archive:
        archive.extractall(tmp_path / "sdist", filter="data")
    [unpacked] = (tmp_path / "sdist").iterdir()
    missing = [n for n in git(clone, "ls-files").splitlines() if not (unpacked / n).exists()]
    assert missing == []
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/format/test_format_slots.py"]
    tried = run(unpacked, "env", f"PYTHONPATH={unpacked / 'src'}", sys.executable, *words)
    assert tried.returncode == 0, tried
