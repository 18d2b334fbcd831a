"""CRIU's configuration files and environment with `criu dump` and `criu restore` as typed, and with sealpoint's own."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from sealpoint.criu.options import UnknownError, scan
from sealpoint.dropin import criu_config
from tests.real import harness, leaks, sealed
from tests.real.typed import DropIn

StartWorkload = Callable[..., harness.Workload]

ATTACKS = [
    "images-dir\t{link}\n",
    "images-di {link}\n",
    "# {comments}\nimages-dir {link}\n",
    "tcp-established -D{link}\n",
    'work-dir "{link}"\n',
    "page-se\naddr 127.0.0.1\npor 9\n",
    "act {link}/script\n",
    "libdir {link}\n",
    "log-file {link}/x\n",
    "version\n",
]


def in_home(dropin: DropIn, text: str) -> list[str]:
    directory = Path(dropin.environment["HOME"]) / ".criu"
    directory.mkdir(exist_ok=True)
    (directory / "default.conf").write_text(text)
    return []


def in_environment(dropin: DropIn, text: str) -> list[str]:
    file = dropin.home / "environment.conf"
    file.write_text(text)
    dropin.environment["CRIU_CONFIG_FILE"] = str(file)
    return []


def as_argument(dropin: DropIn, text: str) -> list[str]:
    file = dropin.home / "argument.conf"
    file.write_text(text)
    return ["--config", str(file)]


PLACES = [in_home, in_environment, as_argument]
Place = Callable[[DropIn, str], list[str]]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda text: text[:20])
def test_a_file_leads_no_dump_past_the_seal(
    workload: StartWorkload, dropin: DropIn, tmp_path: Path, attack: str, place: Place
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    images, elsewhere = tmp_path / "images", tmp_path / "elsewhere"
    images.mkdir()
    elsewhere.mkdir()
    text = attack.format(link=elsewhere, comments="x" * (1 << 20))
    status, said = dropin.run("dump", *place(dropin, text), "-t", running.pid, "-D", images)
    assert status == 1, said
    assert re.search(r"\.conf, line \d+: the option ", said), said
    running.assert_continues(before)
    assert os.listdir(elsewhere) == []
    assert leaks.scan_directory(tmp_path, running.needles) == {}


def test_a_file_leads_no_restore_to_other_images(
    workload: StartWorkload, dropin: DropIn, tmp_path: Path
) -> None:
    running = workload("secret")
    images = tmp_path / "images"
    images.mkdir()
    assert dropin.run("dump", "-t", running.pid, "-D", images)[0] == 0
    running.wait_gone()
    status, said = dropin.run("restore", "-d", "-D", images, *as_argument(dropin, "im /tmp\n"))
    assert status == 1, said
    assert "line 1" in said
    running.wait_gone()


SAYS = {
    "tcp-established": "Will dump/restore TCP connections",
    "link-remap": "Will allow link remaps on FS",
    "skip-in-flight": "Will skip in-flight TCP connections",
    "tcp-close": "Will drop all TCP connections on restore",
    "weak-sysctls": "Will skip non-existent sysctls on restore",
    "deprecated": "Turn deprecated stuff ON",
}


@pytest.mark.parametrize("seed", range(4))
def test_files_count_in_the_order_of_stock_criu(
    workload: StartWorkload, dropin: DropIn, criu: Path, tmp_path: Path, ram_dir: Path, seed: int
) -> None:
    running = workload("secret")
    source = random.Random(seed)

    def words() -> list[str]:
        chosen = [s for s in SAYS if source.random() < 0.5]
        return [source.choice(("", "no-")) + name for name in chosen]

    arguments = in_home(dropin, "\n".join(words()) + "\nlog-file home.log\n")
    if seed & 1:
        in_environment(dropin, "\n".join(words()) + "\nlog-f=environment.log")
    if seed & 2:
        arguments = as_argument(dropin, "\n".join(words()) + "\n")
    arguments += [f"--{word}" for word in words()]
    outcomes = []
    for program, images in ((criu, ram_dir / "plain"), (dropin.path, tmp_path / "images")):
        images.mkdir()
        done = subprocess.run(
            [program, "dump", "-R", "-v4", "-t", str(running.pid), "-D", images, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=dropin.environment,
        )
        assert done.returncode == 0, done.stderr
        logs = list(images.glob("*.log"))
        # Without a log file CRIU says it on standard output.
        text = "".join(p.read_text(errors="replace") for p in logs) + done.stdout.decode(
            errors="replace"
        )
        outcomes.append(([p.name for p in logs], {s for s in SAYS.values() if s in text}))
    assert outcomes[0] == outcomes[1]
    running.assert_intact()


def test_a_command_that_takes_an_option_for_a_file_of_settings_is_refused(
    workload: StartWorkload, dropin: DropIn, tmp_path: Path
) -> None:
    """CRIU looks for --config everywhere, also behind `--` and in values."""
    running = workload("secret")
    images = tmp_path / "images"
    images.mkdir()
    file = tmp_path / "own.conf"
    file.write_text(f"images-dir {tmp_path}\n")
    for words in (["--external", f"x--config={file}"], ["--", "--config", file]):
        status, said = dropin.run("dump", "-t", running.pid, "-D", images, *words)
        assert status == 1
        assert "for --config" in said
    running.assert_intact()
    assert os.listdir(images) == []


# --- the grammar -----------------------------------------------------------------------------------

PIECES = st.sampled_from(
    [
        *("tree", "tre", "port", "tcp-established", "tcp-est", "no-tcp-close", "log-file", "lo", "im"),
        *("verbosity", "=", "=x", " ", "\t", "  ", "\n", '"', '\\"', "#", "x", "y z", "abc", "\v", "\f"),
        *("--", "-j", "-t", "-", "zz", '""', '"x#y"', '"a b"'),
    ]
)  # fmt: skip
FILES = st.builds(
    lambda start, pieces, end: start + "".join(pieces) + end,
    st.sampled_from(["", "tree ", "tree\t", "tree=", "tree \t", 'tree "']),
    st.lists(PIECES, max_size=7),
    st.sampled_from(["", "\n"]),
)


def stock(criu: Path, file: Path) -> tuple[str, str]:
    """How CRIU's reading of a file ends: at a mistake, at a value that it shows, or well."""
    done = subprocess.run(
        [criu, "--no-default-config", "check", "--not-an-option"],
        capture_output=True,
        env={"PATH": os.defpath, "CRIU_CONFIG_FILE": str(file)},
    )
    said = (done.stdout + done.stderr).decode()
    if found := re.search(r"invalid argument for --(tree|port): (.*)", said):
        return "value", found[2]
    wrong = ("Unsupported", "ambiguous", "requires an argument", "doesn't allow an argument")
    if any(word in said for word in wrong) or "unrecognized option '--not-an-option'" not in said:
        return "mistake", ""
    return "well", ""


def ours(path: Path) -> tuple[str, str]:
    try:
        words = criu_config.split(path.read_bytes(), str(path))
        for option in scan([word for word, _ in words]):
            number = re.match(r"\s*[+-]?\d+", option.value or "")
            if option.name in ("tree", "port") and (number is None or int(number[0]) <= 0):
                return "value", option.value or ""
    except (criu_config.RefusedError, UnknownError):
        return "mistake", ""
    return "well", ""


@settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(FILES)
def test_a_file_means_to_us_what_it_means_to_criu_or_is_refused(
    criu: Path, tmp_path: Path, text: str
) -> None:
    file = tmp_path / "criu.conf"
    file.write_text(text)
    meant = ours(file)
    # CRIU's own end of a value behind a mark for comments depends on what lies behind it in memory.
    if meant[0] != "mistake" and "#" not in text and '\\"' not in text:
        assert meant == stock(criu, file)


# --- the environment -------------------------------------------------------------------------------

HOSTILE = {
    "CRIU_LIBS_DIR": "/nowhere",
    "CRIU_FAULT": "255",
    "CRIU_DEPRECATED": "1",
    "LD_LIBRARY_PATH": "/nowhere",
    "LD_BIND_NOW": "1",
    "PYTHONPATH": "/nowhere",
    "PYTHONSTARTUP": "/nowhere",
    "POSIXLY_CORRECT": "1",
}


def recorder(directory: Path, criu: Path) -> tuple[Path, Path]:
    """A CRIU that writes down its environment first, and where."""
    seen, program = directory / "environment", directory / "recorder"
    program.write_text(f'#!/bin/sh\n/usr/bin/env -0 >>{seen}\nexec {criu} "$@"\n')
    program.chmod(0o755)
    return program, seen


def names(seen: Path) -> set[str]:
    return {e.partition(b"=")[0].decode() for e in seen.read_bytes().split(b"\0") if e}


@pytest.mark.parametrize("allowed", [False, True])
def test_what_changes_criu_behind_its_back_does_not_reach_it(
    workload: StartWorkload, dropin: DropIn, criu: Path, tmp_path: Path, allowed: bool
) -> None:
    running = workload("secret")
    images = tmp_path / "images"
    images.mkdir()
    program, seen = recorder(tmp_path, criu)
    # CRIU_FAULT is let through by the system's configuration alone, which here is one of the test.
    system = tmp_path / "system.toml"
    system.write_text(f'criu = "{program}"\n' + "criu_fault = true\n" * allowed)
    dropin.path.write_text(
        f"#!{sys.executable} -I\nfrom sealpoint import config\nconfig.SYSTEM_PATH = {str(system)!r}\n"
        "from sealpoint.dropin import main\n\nmain()\n"
    )
    dropin.environment |= HOSTILE
    for words in (("dump", "-R", "-t", running.pid, "-D", images), ("check",), ("--version",)):
        dropin.run(*words)
    found = names(seen)
    assert found & set(HOSTILE) == ({"CRIU_FAULT"} if allowed else set())
    assert "PATH" in found
    running.assert_intact()


def test_a_command_of_sealpoint_passes_nothing_of_it_on_either(
    workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, criu: Path,
    tmp_path: Path, out: Path,
) -> None:  # fmt: skip
    running = workload("secret")
    program, seen = recorder(tmp_path, criu)
    kinds = ["--leave-running", "-r", keys.path("recipient.pub"), "--sign", keys.path("signer.key")]
    done = subprocess.run(
        [
            *sealed.SEALPOINT,
            "dump",
            "--criu",
            str(program),
            "-t",
            str(running.pid),
            "-o",
            str(out),
            *kinds,
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=sealpoint.environment | HOSTILE,
    )
    assert done.returncode == 0, done.stderr
    assert names(seen) & set(HOSTILE) == set()
    assert "PATH" in names(seen)
