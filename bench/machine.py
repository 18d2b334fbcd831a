"""What the figures depend on. No host name and no path."""

from __future__ import annotations

import datetime as dt
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import cryptography

import sealpoint
from bench.tools import ROOT, Tools


def facts(tools: Tools, places: dict[str, Path]) -> dict[str, Any]:
    """`places`: target name -> directory, for their file systems."""
    return {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "cpu": _field("/proc/cpuinfo", "model name"),
        "cores": os.cpu_count(),
        "memory_mib": int(_field("/proc/meminfo", "MemTotal").split()[0]) // 1024,
        "kernel": platform.release(),
        "huge_pages": _chosen("/sys/kernel/mm/transparent_hugepage/enabled"),
        "load": os.getloadavg()[0],
        "criu": _version([str(tools.criu), "--version"]),
        "sealpoint": sealpoint.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "cryptography": cryptography.__version__,
        "file_systems": {name: file_system(path) for name, path in places.items()},
    }


def file_system(path: Path) -> str:
    """The type of the file system that holds `path`."""
    best, kind = "", "unknown"
    real = os.path.realpath(path)
    for line in Path("/proc/self/mounts").read_text().splitlines():
        fields = line.split()
        mount = fields[1].encode().decode("unicode_escape")
        inside = real == mount or real.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, fields[2]
    return kind


def available_memory() -> int:
    """Bytes that can be had without swapping."""
    return int(_field("/proc/meminfo", "MemAvailable").split()[0]) * 1024


def _field(path: str, name: str) -> str:
    match = re.search(rf"^{name}\s*:\s*(.+)$", Path(path).read_text(), re.MULTILINE)
    return match[1].strip() if match else "0"


def _chosen(path: str) -> str:
    try:
        match = re.search(r"\[(\w+)\]", Path(path).read_text())
    except OSError:
        return "unknown"
    return match[1] if match else "unknown"


def _version(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    match = re.search(r"Version:\s*(\S+)", result.stdout)
    return match[1] if match else "unknown"


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return result.stdout.strip() or "unknown"
