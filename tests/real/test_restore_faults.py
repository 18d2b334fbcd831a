"""Restores that must not be: a clear message, the documented exit code, nothing of the tree runs or is left."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.real import harness, sealed
from tests.real.sealed import pretended_criu, small_filesystem

StartWorkload = Callable[..., harness.Workload]


class Dumped:
    """A process that is gone, and its sealed file."""

    def __init__(
        self,
        workload: harness.Workload,
        sealpoint: sealed.Sealpoint,
        keys: sealed.Keys,
        file: Path,
        *options: str,
    ) -> None:
        self.workload, self.sealpoint, self.keys, self.file = workload, sealpoint, keys, file
        self.before = workload.assert_intact()
        seal = options or keys.seal
        sealpoint.run("dump", "-t", workload.pid, "-o", file, *seal).ok()
        workload.wait_gone()
        self.files = sorted(os.listdir(workload.dir))
        self.data = file.read_bytes()

    def assert_refused(self, code: int, *words: str, options: list | None = None, **more) -> None:
        options = self.keys.open if options is None else options
        source = more.pop("source", self.file)
        for foreground in ([], ["--detach"]):
            command = ["restore", source, *foreground, *options]
            self.sealpoint.run(*command, **more).fails(code, *words)
            self.assert_nothing_ran()

    def assert_nothing_ran(self) -> None:
        self.sealpoint.settle()
        assert self.workload.remains() == []
        assert sorted(os.listdir(self.workload.dir)) == self.files
        assert self.file.read_bytes() == self.data
        with pytest.raises(harness.NoAnswerError):
            self.workload.check(timeout=0)

    def assert_restores(self, *options: str) -> None:
        self.sealpoint.run("restore", self.file, "--detach", *(options or self.keys.open)).ok()
        self.workload.assert_continues(self.before)


@pytest.fixture
def dumped(
    workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path: Path
) -> Callable[..., Dumped]:
    def dump(*options: str) -> Dumped:
        return Dumped(workload("secret"), sealpoint, keys, tmp_path / "app.sealed", *options)

    return dump


# Who signed


def test_a_signer_who_is_not_trusted(dumped: Callable[..., Dumped]) -> None:
    it = dumped()
    key, pub = it.keys.path("identity.key"), it.keys.path("other/signer.pub")
    it.assert_refused(5, "sign", options=["-i", key, "--trust", pub])
    it.assert_restores()


def test_no_signer_is_trusted(dumped: Callable[..., Dumped]) -> None:
    it = dumped()
    it.assert_refused(
        5, "no trusted signer", "--trust", options=["-i", it.keys.path("identity.key")]
    )


def test_unsigned(dumped: Callable[..., Dumped], keys: sealed.Keys) -> None:
    it = dumped("-r", keys.path("recipient.pub"), "--unsigned")
    it.assert_refused(5, "sign")
    it.assert_refused(5, "no trusted signer", options=["-i", keys.path("identity.key")])
    it.assert_restores("-i", keys.path("identity.key"), "--allow-unsigned")


# Who may open


def test_a_wrong_identity_hears_to_whom_it_is_sealed(
    dumped: Callable[..., Dumped], keys: sealed.Keys
) -> None:
    it = dumped(*keys.seal, "-r", keys.path("p256/recipient.pub"))
    wrong = ["-i", keys.path("other/identity.key"), *keys.open[2:]]
    info = it.sealpoint.run("info", it.file).ok().out.decode()
    it.assert_refused(4, "not sealed to this identity", "hybrid", "p256", options=wrong)
    command = ["restore", it.file, *wrong]
    named = it.sealpoint.run(*command).err.split("but to:")[1].split("\n")[0]
    prints = [word for word in named.replace(",", " ").split() if len(word) == 16]
    assert len(prints) == 2
    assert all(p in info for p in prints)


def test_an_identity_that_opens_metadata_only(
    dumped: Callable[..., Dumped], keys: sealed.Keys
) -> None:
    it = dumped(*keys.seal, "--metadata-recipient", keys.path("x25519/recipient.pub"))
    analyst = ["-i", keys.path("x25519/identity.key"), *keys.open[2:]]
    it.assert_refused(4, "metadata", options=analyst)
    it.assert_restores()


def test_no_identity(dumped: Callable[..., Dumped], keys: sealed.Keys) -> None:
    dumped().assert_refused(2, "no identity", options=keys.open[2:])


def test_a_missing_identity_file(dumped: Callable[..., Dumped], keys: sealed.Keys) -> None:
    it = dumped()
    result = it.sealpoint.run("restore", it.file, "-i", "/missing.key", *keys.open[2:])
    assert result.code in (2, 4), result
    result.fails(result.code, "/missing.key")


# What is given


def test_no_such_file(sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path: Path) -> None:
    sealpoint.run("restore", tmp_path / "missing", *keys.open).fails(2, "does not exist")
    sealpoint.run("restore", tmp_path, *keys.open).fails(2, "not a file")


def test_what_is_no_process_checkpoint(
    sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path: Path
) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a").write_text("dear")
    arguments = ("seal", tmp_path / "letters", "-o", tmp_path / "x.sealed", *keys.seal)
    sealpoint.run(*arguments).fails(2, "holds no images of CRIU", "--as-files")
    sealpoint.run(*arguments, "--as-files").ok()
    sealpoint.run("restore", tmp_path / "x.sealed", *keys.open).fails(3, "no process checkpoint")


@pytest.mark.parametrize("size", [0, 1, 7, 5000, 100_000, -1, -64, -5000])
@pytest.mark.parametrize("spool", [False, True], ids=["held in memory", "spooled"])
def test_a_stream_that_ends_too_early(
    dumped: Callable[..., Dumped], keys: sealed.Keys, tmp_path: Path, size: int, spool: bool
) -> None:
    it = dumped()
    (tmp_path / "spool").mkdir()
    (tmp_path / "stream").write_bytes(it.data[:size])
    options = ["--spool", str(tmp_path / "spool")] if spool else []
    # Through cat, because standard input that is a file would be used as it is.
    pipe = f'cat {tmp_path}/stream | "$@"'
    command = ["/bin/sh", "-c", pipe, "sh", *sealed.SEALPOINT, "restore", "-", *options, *keys.open]
    result = sealed.run_plainly(command, it.sealpoint.environment)
    result.fails(3)
    assert list((tmp_path / "spool").iterdir()) == []
    it.assert_nothing_ran()


def test_nowhere_to_spool(dumped: Callable[..., Dumped], keys: sealed.Keys, tmp_path: Path) -> None:
    it = dumped()
    pipe = f'cat {it.file} | "$@"'
    restore = [*sealed.SEALPOINT, "restore", "-", *keys.open, "--spool"]
    command = ["/bin/sh", "-c", pipe, "sh", *restore]
    environment = it.sealpoint.environment
    sealed.run_plainly([*command, "/missing"], environment).fails(6, "/missing")
    with small_filesystem(tmp_path / "small", "size=512k") as small:
        sealed.run_plainly([*command, str(small)], environment).fails(6, "no space", str(small))
        assert os.listdir(small) == []
    it.assert_nothing_ran()


# What CRIU does


def test_the_pid_is_taken_and_whoever_has_it_is_left_alone(
    workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path: Path
) -> None:
    running = workload("tree")
    before = running.assert_intact()
    file = tmp_path / "app.sealed"
    sealpoint.run("dump", "-R", "-t", running.pid, "-o", file, *keys.seal).ok()
    for options in ([], ["--detach"]):
        sealpoint.run("restore", file, *options, *keys.open).fails(
            7, "criu restore", "has that pid"
        )
        assert sorted(running.processes()) == sorted(running.pids.values())
        running.assert_continues(before)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("exit 0", "without asking"),
        ("exit 3", "status 3"),
        ("kill -9 $$", "signal 9"),
        ("sleep 600 & exit 0", "without asking"),
        ("setsid sleep 600 & exit 1", "status 1"),
    ],
)
def test_a_criu_that_does_not_do_its_work(
    dumped: Callable[..., Dumped], keys: sealed.Keys, tmp_path: Path, body: str, words: str
) -> None:
    """Whatever it started is ended, too: it could be half of the tree."""
    it = dumped()
    criu = pretended_criu(tmp_path, body)
    it.assert_refused(7, words, options=[*keys.open, "--criu", str(criu)])


def test_a_criu_that_restores_without_asking(
    dumped: Callable[..., Dumped], keys: sealed.Keys, tmp_path: Path, criu: Path
) -> None:
    """As if action scripts were not run: the tree runs for a moment, which only CRIU can prevent, and is ended."""
    it = dumped()
    body = f"""case $1 in --version) exec {criu} --version; esac
for word; do
  shift
  if [ "$word" = --action-script ]; then skip=1; continue; fi
  if [ "$skip" ]; then skip=; continue; fi
  set -- "$@" "$word"
done
exec {criu} "$@" """
    deaf = sealed.script(tmp_path / "deaf-criu", body)
    command = ["restore", it.file, "--detach", *keys.open, "--criu", deaf]
    it.sealpoint.run(*command).fails(7, "without asking")
    it.sealpoint.settle()
    assert it.workload.remains() == []


@pytest.mark.parametrize(
    "options",
    [("-D", "/tmp"), ("--lazy-pages",), ("--auto-dedup",), ("-d",), ("-sd",), ("--stream",)],
    ids=" ".join,
)
def test_criu_options_that_cannot_be(
    dumped: Callable[..., Dumped], keys: sealed.Keys, options: tuple[str, ...]
) -> None:
    dumped().assert_refused(2, "cannot be used here", options=[*keys.open, "--", *options])


def test_without_the_privileges(dumped: Callable[..., Dumped], keys: sealed.Keys) -> None:
    it = dumped()
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    command = [*drop, *sealed.SEALPOINT, "restore", str(it.file), *keys.open]
    sealed.run_plainly(command, it.sealpoint.environment).fails(6, "root")
    it.assert_nothing_ran()
