"""Secrets of a real process are found in its sealed dump, and counted while it is made; nothing shows one."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, sys, time
held = sys.stdin.buffer.read()
print("ready", flush=True)
os.dup2(os.open(os.devnull, os.O_RDWR), 0); os.dup2(0, 1); os.dup2(0, 2)
time.sleep(1e6)
"""


@pytest.fixture
def planted() -> dict[str, str]:
    """Made here: none stands in this file."""
    token = "".join(c for c in base64.b64encode(os.urandom(90)).decode() if c.isalnum())[:36]
    key = base64.b64encode(os.urandom(600)).decode()
    return {
        "github-token": "ghp_" + token,
        "private-key": f"-----BEGIN PRIVATE KEY-----\n{key}\n-----END PRIVATE KEY-----\n",
        "environment": "x1-" + token[::-1],
    }


@pytest.fixture
def process(planted):
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env={"PATH": os.defpath, "DB_PASSWORD": planted["environment"]}, start_new_session=True,
    )  # fmt: skip
    child.stdin.write(f" {planted['github-token']} \n{planted['private-key']}".encode())
    child.stdin.close()
    assert child.stdout.readline() == b"ready\n"
    yield child
    child.kill()
    child.wait()
    child.stdout.close()


def test_secrets_of_a_process_are_counted_while_it_is_dumped_and_found_afterwards(
    sealpoint, keys, planted, process, tmp_path: Path
):
    pytest.importorskip("hyperscan")
    file = tmp_path / "app.sealed"
    dumped = sealpoint.run(
        "dump", "-t", process.pid, "-R", "-o", file, "--scan", "--json", *keys.seal
    ).ok()
    counts = json.loads(dumped.out)["secrets"]
    assert counts["github-token"] == 1
    assert counts["private-key"] == 1
    assert counts["named-secret"] >= 1  # to the dump, the environment is memory like any other
    looked = sealpoint.run("secrets", file, "--json", *keys.open).ok()
    report = json.loads(looked.out)
    assert report["counts"]["github-token"] == 1
    named = {f["name"]: f for f in report["findings"] if f["kind"] == "environment"}
    assert named["DB_PASSWORD"]["places"][0]["mapping"] == "[stack]"
    assert named["DB_PASSWORD"]["places"][0]["pid"] == process.pid
    sealpoint.run("secrets", file, "--fail-on", "grave", *keys.open).fails(5, "exposes secrets")
    said = sealpoint.said()
    assert not [secret for secret in planted.values() if secret.encode() in said]
    assert planted["private-key"].encode()[40:80] not in said


def test_secrets_are_counted_in_a_dump_into_a_chunk_store_too(
    sealpoint, keys, planted, process, tmp_path: Path
):
    pytest.importorskip("hyperscan")
    store, key = tmp_path / "store", tmp_path / "tenant.key"
    sealpoint.run("store", "init", store, "--tenant-key", key).ok()
    file = store / "app.sealed"
    dumped = sealpoint.run(
        "dump", "-t", process.pid, "-R", "-o", file, "--scan", "--json", *keys.seal,
        "--store", store, "--tenant-key", key,
    ).ok()  # fmt: skip
    counts = json.loads(dumped.out)["secrets"]
    assert counts["github-token"] == counts["private-key"] == 1
    report = json.loads(sealpoint.run("secrets", file, "--json", *keys.open).ok().out)
    assert report["counts"]["github-token"] == 1


def test_a_dump_is_the_same_whether_it_is_scanned_or_not(sealpoint, keys, process, tmp_path: Path):
    pytest.importorskip("hyperscan")
    names = []
    for number, more in enumerate([[], ["--scan"]]):
        file = tmp_path / f"{number}.sealed"
        sealpoint.run("dump", "-t", process.pid, "-R", "-o", file, *keys.seal, *more).ok()
        sealpoint.run("verify", file, *keys.open).ok()
        shown = json.loads(sealpoint.run("info", file, "--json", *keys.open).ok().out)
        names.append({o["name"] for o in shown["objects"]})
    assert names[0] == names[1]


def test_the_memory_of_a_process_is_searched_by_address(
    sealpoint, keys, planted, process, tmp_path
):
    """What the search says is where the kernel has it."""
    file = tmp_path / "app.sealed"
    sealpoint.run("dump", "-t", process.pid, "-R", "-o", file, *keys.seal).ok()
    looked = sealpoint.run("secrets", file, "--json", *keys.open).ok()
    (found,) = [f for f in json.loads(looked.out)["findings"] if f["kind"] == "github-token"]
    secret = planted["github-token"].encode()
    with open(f"/proc/{process.pid}/mem", "rb") as memory:
        for place in found["places"]:
            memory.seek(int(place["address"], 16))
            assert memory.read(len(secret)) == secret
