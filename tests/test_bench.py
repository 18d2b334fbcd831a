"""The benchmark runs from end to end and its report is complete and plausible. No test looks at a time."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bench import far, findings, increments, place, slow_disk, tools
from tests.store.bucket_servers import need_services
from tests.store.registry_servers import need_registry

ROOT = Path(__file__).resolve().parents[1]

NUMBERS = {
    "dump_tmpfs_ratio",
    "restore_tmpfs_ratio",
    "frozen_tmpfs_ratio",
    "dump_disk_ratio",
    "restore_disk_ratio",
    "scan_tmpfs_ratio",
    "size_random_ratio",
    "peak_rss_mib",
    "dropin_dump_tmpfs_ratio",
    "dropin_restore_tmpfs_ratio",
    "dropin_peak_rss_mib",
}


def bench(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )


def need_criu() -> None:
    from tests.real import stock_criu

    if stock_criu.find_criu() is None:
        if os.environ.get("SEALPOINT_REQUIRE_CRIU"):
            pytest.fail(stock_criu.criu_problem())
        pytest.skip(stock_criu.criu_problem())


@pytest.mark.criu
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_quick_run_is_complete(tmp_path: Path) -> None:
    need_criu()
    work = ROOT / "bench" / "work"
    existed = work.exists()
    before = set(os.listdir("/dev/shm"))
    wanted = ["--workload", "random", "--workload", "heap"]

    result = bench("--quick", "--no-install", "--output", str(tmp_path), *wanted)

    assert result.returncode == 0, result.stderr
    data = json.loads((tmp_path / "latest.json").read_text())
    for name in NUMBERS:
        assert isinstance(data[name], float), name
        assert data[name] > 0, name
    assert data["rounds"] == 2
    assert data["size_mib"] == 64
    # The interpreter beside the random memory compresses; a gross mistake would be a file left out, or counted twice.
    assert 0.9 < data["size_random_ratio"] < 1.01
    assert 10 < data["peak_rss_mib"] < 150
    assert 10 < data["dropin_peak_rss_mib"] < 200
    found = {(t["workload"], t["target"], t["action"]): t for t in data["tables"]}
    assert found.keys() == {
        (workload, target, action)
        for workload in ("random", "heap")
        for target in ("tmpfs", "disk")
        for action in ("dump", "restore")
    }
    for (_, target, action), table in found.items():
        check_table(table, target, action)
    for figures in data["small"].values():
        wanted_commands = {"--version", "info", "info -i", "open --only", "rekey", "verify"}
        assert wanted_commands | {"rekey (library call)", "search (library call)"} <= figures.keys()
        assert all(0 < f["min"] <= f["ms"] <= f["max"] for f in figures.values())
    check_report(tmp_path, data)
    leftover = set(os.listdir("/dev/shm")) - before
    assert not [name for name in leftover if name.startswith("sealpoint-bench-")]
    assert existed or not work.exists()


def check_table(table: dict, target: str, action: str) -> None:
    variants = table["variants"]
    expected = {"stock", "sealpoint", "sealpoint-none", "dropin"}
    expected.add("sealpoint-piped" if action == "restore" else "sealpoint-scan")
    if action == "dump" and target == "disk":
        expected.add("stock-unsynced")
    assert expected <= variants.keys()
    quantities = ["wall", "cpu", "frozen", "bytes"] if action == "dump" else ["wall", "cpu"]
    for name, variant in variants.items():
        for quantity in quantities:
            value = variant[quantity]
            assert len(value["rounds"]) == 2
            assert 0 < value["min"] <= value["median"] <= value["max"], (name, quantity)
        assert ("peak" in variant) == name.startswith(("sealpoint", "dropin"))
        if action == "dump":
            assert variant["frozen"]["max"] < variant["wall"]["max"]
            if name not in ("sealpoint", "sealpoint-scan", "dropin"):  # they alone compress
                assert variant["bytes"]["median"] > 0.8 * variants["stock"]["bytes"]["median"]
    assert variants["stock"]["wall"]["ratio"] == 1


def check_report(directory: Path, data: dict) -> None:
    report = (directory / "latest.md").read_text()
    for name in NUMBERS:
        assert f"| {name} | {data[name]:g}" in report
    assert "latest.svg" in report
    plot = ET.parse(directory / "latest.svg").getroot()
    assert plot.tag == "{http://www.w3.org/2000/svg}svg"
    for text in (report, json.dumps(data)):
        assert os.uname().nodename not in text or len(os.uname().nodename) < 4
        assert str(ROOT) not in text


def test_unknown_variant_is_refused() -> None:
    result = bench("--quick", "--variant", "rot13")
    assert result.returncode == 2
    assert "rot13" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_micro_measures_every_case() -> None:
    result = bench("micro", "--size", "4", "--rounds", "1", "--json")
    assert result.returncode == 0, result.stderr
    speeds = json.loads(result.stdout)
    assert {"seal auto", "seal none", "read auto", "read zstd", "step: BLAKE3"} <= speeds.keys()
    for speed in speeds.values():
        assert speed.keys() == {"random", "compressible", "zero"}
        assert all(value > 0 for value in speed.values())


def run_of(tmp_path: Path, name: str, *arguments: str) -> dict:
    """What `python -m bench NAME` found, with all that it writes checked."""
    need_criu()
    result = bench(name, *arguments, "--output", str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "minutes" in result.stderr
    data = json.loads((tmp_path / f"{name}.json").read_text())
    report = (tmp_path / f"{name}.md").read_text()
    assert data["figures"]
    for figure in data["figures"]:
        assert math.isfinite(figure["value"])
        assert f"| {figure['what']} | {figure['value']:.{figure['decimals']}f}" in report
    assert f"{name}.svg" in report
    plot = ET.parse(tmp_path / f"{name}.svg").getroot()
    assert len(list(plot.iter("{http://www.w3.org/2000/svg}rect"))) > 1
    for text in (report, json.dumps(data)):
        assert str(ROOT) not in text
    return data


def promised(data: dict, words: str) -> float:
    [value] = [figure["value"] for figure in data["figures"] if words in figure["what"]]
    return value


@pytest.mark.criu
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sinks_of_limited_speed_get_every_policy(tmp_path: Path) -> None:
    small = ["--size", "100", "--rounds", "1", "--rate", "200", "--only", "pipe"]
    data = run_of(tmp_path, "sinks", *small)
    [sink] = data["sinks_mb_per_s"].values()
    assert sink.keys() == {"none", "lz4", "zstd", "auto"}
    assert sink["zstd"]["bytes"] < sink["lz4"]["bytes"] < sink["none"]["bytes"]
    assert sink["auto"]["bytes"] <= sink["none"]["bytes"]
    assert promised(data, "auto") > 0


@pytest.mark.criu
@pytest.mark.slow
@pytest.mark.services
@pytest.mark.timeout(600)
def test_stores_are_measured_with_what_a_finished_file_costs_beside_it(tmp_path: Path) -> None:
    need_services()
    need_registry()
    data = run_of(tmp_path, "stores", "--size", "24", "--rounds", "1")
    assert data["servers"].keys() == {"moto", "rclone", "docker-registry"}
    for name, server in data["servers"].items():
        copied_back = {"copy back"} if name != "rclone" else set()
        assert server.keys() == {"bytes", "dump", "copy there", "plain PUT"} | copied_back
        assert server["bytes"] > 24 << 20
        assert server["dump"]["peak"]["median"] > 1 << 20
        assert promised(data, f"time to dump into {name}") > 0


@pytest.mark.criu
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_disk_of_limited_speed_is_one_and_is_taken_away_again(tmp_path: Path) -> None:
    if reason := slow_disk.why_not():
        pytest.skip(reason)
    mounts = Path("/proc/self/mounts").read_text()
    limits = slow_disk._limits().read_text()
    small = ["--size", "100", "--disk-rounds", "1", "--disk-rate", "100", "--only", "disk"]
    data = run_of(tmp_path, "sinks", *small)
    variants = data["disk"]["variants"]
    assert variants.keys() == {"stock", "stock-unsynced", "sealpoint"}
    assert variants["sealpoint"]["bytes"]["median"] <= variants["stock"]["bytes"]["median"] * 1.01
    assert promised(data, "time to dump a compressible process to a disk of 100 MB/s") > 0
    assert Path("/proc/self/mounts").read_text() == mounts
    assert slow_disk._limits().read_text() == limits


@pytest.mark.criu
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_increments_are_measured_against_stock_dumps_and_restored(tmp_path: Path) -> None:
    data = run_of(tmp_path, "increments", "--size", "32", "--rounds", "1")
    assert data["changes"].keys() == {"1", "10", "50"}
    least = {"1": 32 * 256 / 100, "10": 32 * 25.6, "50": 32 * 128}
    for percent, found in data["changes"].items():
        assert found["pages_changed"]["median"] > 0.9 * least[percent]
        stored = found["file_size"]["median"]
        assert stored > 4096 * found["pages_changed"]["median"]
        assert found["bytes_per_changed_byte"]["median"] == pytest.approx(
            stored / 4096 / found["pages_changed"]["median"], rel=1e-4
        )
    # What is stored beside the pages is bounded: a gross mistake would be a page stored twice.
    assert data["overhead"]["bytes_per_page"] < 40
    assert data["restore"]["chain"]["median"] > 0


@pytest.mark.criu
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ten_checkpoints_are_measured_with_a_chunk_store_and_without(tmp_path: Path) -> None:
    data = run_of(tmp_path, "store", "--size", "48")
    cases = data["cases"]
    assert len(cases) == 5
    for found in cases.values():
        assert 0 < found["together"] < found["alone"] * 1.2
        assert found["ratio"] == pytest.approx(found["together"] / found["alone"], rel=1e-3)
    assert cases["service, 1 % new"]["ratio"] < 0.6
    assert cases["replicas, model"]["ratio"] < 0.5


@pytest.mark.criu
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_migration_is_measured_by_the_process_that_moves(tmp_path: Path) -> None:
    if reason := far.why_not():
        pytest.skip(reason)
    data = run_of(tmp_path, "migration", "--size", "32", "--rounds", "1", "--rate", "2000")
    assert {"sealpoint", "sealpoint-0"} <= data["ways"].keys()
    assert "stock" in data["ways"] or data["skipped"]
    for way in data["ways"].values():
        assert 0 < way["frozen"]["median"] <= way["still"]["median"] < way["total"]["median"]
        assert 32 << 20 < way["wire"]["median"] < 2 * (32 << 20)
    [copied] = data["said"]["sealpoint"]
    assert copied["rounds"]
    [straight] = data["said"]["sealpoint-0"]
    assert straight["rounds"] == []


@pytest.mark.criu
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_small_container_is_measured_with_either_criu(tmp_path: Path) -> None:
    need_criu()
    tools.install_missing(tools.RUNC)
    if reason := tools.missing(tools.RUNC):
        pytest.skip(reason)
    data = run_of(tmp_path, "containers", "--rounds", "1")
    assert data["variants"].keys() == {"stock", "dropin"}
    for variant in data["variants"].values():
        assert all(
            variant[quantity]["median"] > 0 for quantity in ("checkpoint", "restore", "bytes")
        )
    assert 10 < promised(data, "helper") < 200


# --- A run that ends before its time ------------------------------------------------------------------------


def runs() -> set[Path]:
    return set(place.MEMORY.glob(place.PREFIX + "*"))


def busy(timeout: float = 60) -> tuple[subprocess.Popen, set[Path]]:
    """A benchmark at work, and its directories; a workload lives in one of them."""
    need_criu()
    before = runs()
    options = ["--quick", "--no-install", "--only", "tmpfs", "--workload", "random"]
    running = subprocess.Popen(
        [sys.executable, "-m", "bench", *options, "--rounds", "50"],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for line in running.stderr:
        if "round 0 of 50" in line:
            return running, runs() - before
    raise AssertionError(f"it ended with {running.wait()}")


@pytest.mark.criu
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_a_signal_ends_leaves_nothing(number: signal.Signals) -> None:
    running, directories = busy()
    assert [p for d in directories for p in place._living_in(d)]
    running.send_signal(number)
    assert "interrupted" in running.stderr.read()
    running.stderr.close()
    assert running.wait(60) == 128 + number
    assert not directories & runs()
    assert not [p for d in directories for p in place._living_in(d)]


@pytest.mark.criu
@pytest.mark.slow
def test_what_a_killed_run_has_left_is_taken_away_by_the_next_and_what_lives_is_not() -> None:
    running, directories = busy()
    with place.temporary():  # sweeps
        assert directories <= runs()
        running.kill()
        running.wait()
        running.stderr.close()
        assert directories <= runs()
        with place.temporary():
            assert not directories & runs()
    assert not [p for d in directories for p in place._living_in(d)]


def test_directories_of_a_dead_run_are_swept_and_those_of_a_living_one_kept(tmp_path: Path) -> None:
    dead = tmp_path / f"{place.PREFIX}dead"
    (dead / "deep").mkdir(parents=True)
    (dead / "deep" / "file").write_bytes(bytes(1000))
    foreign = tmp_path / "else"
    foreign.mkdir()
    left = subprocess.Popen(["sleep", "1000"], cwd=dead / "deep")
    with place.temporary(tmp_path) as mine:
        assert left.wait(20) == -signal.SIGKILL
        assert not dead.exists()
        with place.temporary(tmp_path) as other:
            assert mine.exists()
            assert other != mine
        assert not other.exists()
    assert list(tmp_path.iterdir()) == [foreign]


def test_a_partial_run_does_not_replace_the_committed_results() -> None:
    parser = findings.parser("increments", "", size=1024, rounds=5)
    assert findings.parse(parser, []).output == findings.RESULTS
    assert findings.parse(parser, ["--size", "64"]).output == findings.PARTIAL
    assert findings.parse(parser, ["--size", "64", "--output", "x"]).output == Path("x")


def test_a_missed_promise_is_marked() -> None:
    assert findings.Figure("a", 1.25, most=1.3).reached == "1.25"
    assert findings.Figure("a", 1.35, most=1.3).reached == "1.35 (missed)"
    assert findings.Figure("a", 0.9, least=1).reached == "0.90 (missed)"
    assert findings.Figure("a", 0.9).target == ""


def test_the_fixed_part_of_an_increment_is_told_from_what_each_page_takes() -> None:
    def row(pages: int) -> dict:
        return {"pages_changed": {"median": pages}, "file_size": {"median": 5000 + pages * 4120}}

    assert increments.overhead({1: row(100), 10: row(1000), 50: row(5000)}) == (5000, 24)
