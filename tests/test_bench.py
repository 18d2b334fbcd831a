"""The benchmark runs from end to end and its report is complete and plausible. No test looks at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

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
    sys.path.insert(0, str(ROOT / "tests" / "real"))
    import harness

    if harness.find_criu() is None:
        if os.environ.get("SEALPOINT_REQUIRE_CRIU"):
            pytest.fail(harness.criu_problem())
        pytest.skip(harness.criu_problem())


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


@pytest.mark.criu
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sinks_of_limited_speed_get_every_policy(tmp_path: Path) -> None:
    need_criu()
    out = tmp_path / "sinks.json"
    result = bench("sinks", "--size", "100", "--rounds", "1", "--rate", "200", "--output", str(out))
    assert result.returncode == 0, result.stderr
    [sink] = json.loads(out.read_text())["sinks_mb_per_s"].values()
    assert sink.keys() == {"none", "lz4", "zstd", "auto"}
    assert sink["zstd"]["bytes"] < sink["lz4"]["bytes"] < sink["none"]["bytes"]
    assert sink["auto"]["bytes"] <= sink["none"]["bytes"]
