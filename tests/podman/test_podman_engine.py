"""Podman's own options, and the archive that it gets for a restore.  With podman itself: tests/vm."""

from __future__ import annotations

import pytest

from sealpoint.errors import SystemEnvironmentError, UsageError
from sealpoint.podman.engine import Podman, check_options, explain, parse


@pytest.mark.parametrize(
    "option",
    [
        "--export=/tmp/x", "--export", "-e", "-e/tmp/x", "--import=x", "-i", "--keep", "-k", "--all", "-a",
        "--latest", "-l", "--compress=gzip", "-c", "--leave-running", "-R", "--create-image=x", "-P",
        "--pre-checkpoint", "--with-previous", "--import-previous=x", "--unheard-of", "-Re/tmp/x", "-x", "--name=x",
        "-n", "-", "--",
    ],
)  # fmt: skip
def test_options_that_lead_past_the_seal_are_refused(option):
    with pytest.raises(UsageError, match="podman's option"):
        check_options(("--tcp-established", option))


@pytest.mark.parametrize(
    "options",
    [
        ("--tcp-established", "--file-locks"),
        ("--publish", "8081:80", "-p", "8082:80", "-p8083:80"),
        ("--pod", "--x", "--pod=x", "--ignore-rootfs", "--ignore-volumes", "--print-stats"),
        (),
    ],
)
def test_others_pass(options):
    check_options(options)


def test_no_other_container_is_named():
    for options in (("web2",), ("--publish=80", "web2"), ("--publish", "80", "web2")):
        with pytest.raises(UsageError, match="web2 is not an option"):
            check_options(options)


def test_a_podman_that_is_not_there(monkeypatch):
    with pytest.raises(SystemEnvironmentError, match=r"no-such-podman is not installed"):
        Podman("no-such-podman")


def test_errors_end_with_what_podman_said():
    said = b"one\n\ntwo\nthree\nError: four\nfive\n"
    text = "podman container checkpoint failed: two / three / Error: four / five"
    assert explain("container checkpoint", said) == text
    assert explain("stop", b"\n").endswith("without a word")


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"[" * 100_000, b"3"])
def test_members_that_are_not_podmans(data):
    with pytest.raises(UsageError, match=r"config\.dump"):
        parse(data, "config.dump")
