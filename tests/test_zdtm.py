"""How CRIU's own tests are chosen, started and judged. They themselves run in `make test-zdtm`."""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

import pytest

from tests.zdtm import prepare, side_by_side, zdtm_cases

ZDTM = Path(__file__).resolve().parent / "zdtm"

PIPE, FORK = (
    zdtm_cases.parse(text) for text in ("static/pipe00 h --rpc", "transition/fork h --pre 2")
)
ARGUMENTS = argparse.Namespace(selected=False, no_vm=True, place=None, only=None)


def test_ci_runs_sixty_cases_with_every_flavour_and_option() -> None:
    cases = zdtm_cases.selected()
    assert len(cases) == 60
    assert {case.flavour for case in cases} == set(zdtm_cases.FLAVOURS)
    options = {option for case in cases for option in case.options}
    wanted = "--rpc --pre --page-server --lazy-pages --fault --freezecg --join-ns"
    assert set(wanted.split()) <= options
    for case, place in cases.items():
        assert place == case.place, f"{case} needs the virtual machine"


def test_a_name_says_all_of_a_case() -> None:
    assert str(PIPE) == "static/pipe00 h --rpc"
    assert zdtm_cases.parse(str(PIPE)) == PIPE
    assert (PIPE.place, FORK.place) == ("machine", "vm")


@pytest.mark.parametrize(
    "text", ["", "static/pipe00", "static/pipe00 x", "pipe00 h", "zdtm/static/pipe00 h"]
)
def test_what_is_no_name_of_a_case_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not TEST FLAVOUR"):
        zdtm_cases.parse(text)


def entry(case: str, reason: str = "a reason that is long enough") -> str:
    return f'[[difference]]\ncase = "{case}"\nreason = "{reason}"\n'


def test_ten_cases_at_most_may_differ_each_with_a_reason(tmp_path: Path) -> None:
    assert len(zdtm_cases.differences()) <= 10
    file = tmp_path / "differences.toml"
    cases = [entry(f"static/test{number} h") for number in range(11)]
    file.write_text("".join(cases[:10]))
    assert len(zdtm_cases.differences(file)) == 10
    for text in ("".join(cases), entry("static/pipe00 h", ""), entry("static/pipe00 h") * 2):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"differ|reason"):
            zdtm_cases.differences(file)


def test_all_tests_of_a_suite_are_run_in_the_flavours_that_they_name(tmp_path: Path) -> None:
    described = {
        "pipe00": None,
        "mntns_open": "{'flavor': 'ns uns', 'flags': 'suid'}",
        "vt": "{'flavor': 'h', 'flags': 'noauto'}",
        "mnt_ext_dev": "os.getenv('ZDTM_NO_SUCH') and {} or {'flags': 'noauto'}",  # they are expressions
    }
    for directory in ("static", "transition"):
        (tmp_path / "zdtm" / directory).mkdir(parents=True)
    for name, text in described.items():
        program = tmp_path / "zdtm" / "static" / name
        for path in (program, program.with_name(f"{name}.hook"), program.with_name(f"{name}.c")):
            path.write_text("")
            path.chmod(0o644 if path.suffix == ".c" else 0o755)
        if text:
            program.with_name(f"{name}.desc").write_text(text)
    places = zdtm_cases.everything(tmp_path)
    plain = {str(case): place for case, place in places.items() if not case.options}
    assert plain == {
        "static/pipe00 h": "machine",
        "static/mntns_open ns": "machine",
        "static/mntns_open uns": "machine",
    }
    options = {option for case in places for option in case.options}
    assert {"--rpc", "--pre", "--page-server", "--lazy-pages", "--freezecg", "--join-ns"} <= options


class Scripted:
    """In place of side_by_side.Runner: what each run finds for PIPE, stock and drop-in."""

    def __init__(self, *runs: str) -> None:
        self.runs = [run.split() for run in runs]

    def run(self, cases: list, place: str) -> dict:
        assert list(cases) == [PIPE]
        words = dict(zip(side_by_side.SIDES, self.runs.pop(0), strict=True))
        return {side: {PIPE: side_by_side.Result(word, 0.1, "log")} for side, word in words.items()}


@pytest.mark.parametrize(
    ("runs", "reasons", "status", "says"),
    [
        (["pass pass"], {}, 0, "1 passed, 0 failed, 0 skipped"),
        (["fail fail"], {}, 0, "0 passed, 0 failed, 1 skipped"),
        (["fail pass"], {}, 0, "0 passed, 0 failed, 1 skipped"),
        (["skip skip"], {}, 0, "0 passed, 0 failed, 1 skipped"),
        (["pass fail"] * 4, {}, 1, "0 passed, 1 failed, 0 skipped"),
        (["pass skip"] * 4, {}, 1, "0 passed, 1 failed, 0 skipped"),
        (["pass none"] * 4, {}, 1, "0 passed, 1 failed, 0 skipped"),
        (["pass fail", "pass pass", "fail pass", "pass fail"], {}, 0, "1 passed, 0 failed, 0 skipped"),
        (["pass fail", "pass pass", "pass fail", "pass pass"], {}, 1, "0 passed, 1 failed, 0 skipped"),
        (["pass fail"] * 4, {PIPE: "by design"}, 0, "differs by design: static/pipe00 h --rpc: by design"),
        (["pass pass"], {PIPE: "by design"}, 1, "take static/pipe00 h --rpc out of differences.toml"),
        (["fail fail"], {PIPE: "by design"}, 1, "take static/pipe00 h --rpc out of differences.toml"),
    ],
)  # fmt: skip
def test_a_case_counts_if_stock_passes_more_often_and_nothing_explains_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
    runs: list[str], reasons: dict, status: int, says: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(zdtm_cases, "differences", lambda: reasons)
    runner = Scripted(*runs)
    assert side_by_side.run(runner, {PIPE: "machine"}, ARGUMENTS) == status
    assert says in capsys.readouterr().out
    assert runner.runs == []


def test_a_run_in_which_stock_passes_too_little_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(zdtm_cases, "differences", dict)
    arguments = argparse.Namespace(selected=True, no_vm=True, place=None, only=None)
    assert side_by_side.run(Scripted("skip skip"), {PIPE: "machine"}, arguments) == 1
    assert "prove too little" in capsys.readouterr().out


def test_results_are_read_from_what_zdtm_prints_and_a_missing_one_is_none(tmp_path: Path) -> None:
    cases = [zdtm_cases.parse(f"static/{name} h") for name in ("pipe00", "env00", "fifo", "lost")]
    side_by_side.write_plan(tmp_path, cases, "machine")
    assert (tmp_path / "000.list").read_text().split()[0] == "zdtm/static/pipe00"
    (tmp_path / "000.log").write_text(
        "first\nzdtm-result zdtm/static/pipe00 pass 1.5\nsecond\nzdtm-result zdtm/static/env00 fail 2.0\n"
        "zdtm-result zdtm/static/fifo skip 0\nthe rest\n"
    )
    found = side_by_side.read_results(tmp_path, cases)
    assert [found[case].word for case in cases] == ["pass", "fail", "skip", "none"]
    assert "second" in found[cases[1]].log
    assert "first" not in found[cases[1]].log
    assert "the rest" in found[cases[3]].log


def test_what_is_in_place_of_make_starts_a_test_with_its_arguments_and_cleans_up(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "zdtm" / "static"
    directory.mkdir(parents=True)
    (tmp_path / "arguments").write_text(
        "zdtm/static/maps0 file\nzdtm/static/cwd00 directory\nzdtm/static/chroot both\n"
    )
    wanted = {
        "maps00": "",
        "maps0": "--filename=maps0.test",
        "cwd00": "--dirname=cwd00.test",
        "chroot": "--dirname=chroot.dir.test --filename=chroot.test",
        "env00": "--envname=ENV_00_TEST",
    }
    for name, more in wanted.items():
        program = directory / name
        program.write_text('#!/bin/sh\necho "$@" >said\n')
        program.chmod(0o755)
        make(tmp_path, f"{name}.pid")
        said = (directory / "said").read_text().split()
        assert said == [f"--pidfile={name}.pid", f"--outfile={name}.out", *more.split()]
    for left in ("maps00.pid", "maps00.out", "maps00.out.inprogress", "maps00.test", "env00.pid"):
        (directory / left).write_text("")
    make(tmp_path, "maps00.cleanout")
    assert sorted(path.name for path in directory.iterdir()) == sorted(
        [*wanted, "env00.pid", "said"]
    )


def make(suite: Path, target: str) -> None:
    subprocess.run(
        [ZDTM / "make", "--no-print-directory", "-C", "zdtm/static", target],
        cwd=suite, env={"PATH": "/usr/bin:/bin", "ZDTM_ARGUMENTS": str(suite / "arguments")}, check=True, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("times", [0, 2])
def test_a_suite_that_is_not_the_known_one_is_not_edited_by_guess(times: int) -> None:
    text = "".join(old for old, _ in prepare._EDITS)
    assert prepare.edit(text)
    other = text.replace("import yaml\n", "import yaml\n" * times)
    with pytest.raises(SystemExit, match="not one"):
        prepare.edit(other)
