"""inspect and memparse on a real sealed dump say what the kernel said of the processes before."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.real import harness, sealed

StartWorkload = Callable[..., harness.Workload]


def of_proc(pid: int) -> dict:
    proc = Path("/proc", str(pid))
    fds = {fd.name: str(fd.readlink()) for fd in (proc / "fd").iterdir()}
    return {
        "comm": (proc / "comm").read_text().strip(),
        "cmdline": (proc / "cmdline").read_bytes().decode().rstrip("\0").replace("\0", " "),
        "environment": dict(
            w.partition("=")[::2] for w in (proc / "environ").read_text().split("\0") if w
        ),
        "files": {fd: path for fd, path in fds.items() if path.startswith("/")},
        "cwd": str((proc / "cwd").readlink()),
    }


def test_a_sealed_dump_is_inspected(
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    tmp_path: Path,
) -> None:
    running = workload("tree")
    before = {pid: of_proc(pid) for pid in running.pids.values()}
    out = tmp_path / "app.sealed"
    metadata = ["--metadata-recipient", keys.path("other/recipient.pub")]
    sealpoint.run("dump", "-t", running.pid, "-o", out, *keys.seal, *metadata).ok()
    analyst = ["-i", keys.path("other/identity.key"), "--trust", keys.path("signer.pub")]

    # Not through the command, whose output may have no secrets: this asks for them.
    from sealpoint.inspect.finding import open_source
    from sealpoint.inspect.inspection import Inspection, Parts
    from sealpoint.inspect.source import Access, images
    from sealpoint.keys import load_identity, load_trust

    access = Access.of(
        [load_identity(keys.path("identity.key"))], load_trust([keys.path("signer.pub")])
    )
    with open_source(str(out), access) as source:
        values = Inspection(images(source)).collect(
            Parts(ps_tree=True, ps_tree_cmd=True, ps_tree_env=True, files=True, stats=True)
        )
    node, seen = values["process_tree"][0], {}
    while node:
        seen[node["pid"]] = node
        node = (node.get("children") or [None])[0]
    assert seen.keys() == before.keys()
    for pid, told in before.items():
        assert seen[pid]["command"] == told["comm"]
        assert seen[pid]["cmdline"] == told["cmdline"]
        assert seen[pid]["environment_variables"] == told["environment"]
    for item in values["file_descriptors"]:
        told = before[item["pid"]]
        files = {f["fd"].split()[-1]: f["path"] for f in item["open_files"] if f["type"] == "REG"}
        assert files == told["files"]
        assert {"type": "", "fd": "cwd", "path": told["cwd"]} in item["open_files"]
    assert values["statistics"] == {}  # CRIU writes them when the file is complete
    told = sealpoint.run("inspect", out, "--stats", *keys.open).ok()
    assert "no statistics" in told.err

    shown = sealpoint.run("inspect", out, "--all", "--format", "json", *analyst).ok()
    (less,) = json.loads(shown.out)
    assert less["process_tree"][0]["command"] == before[running.pid]["comm"]
    assert "cmdline" not in less["process_tree"][0]
    assert [f["pid"] for f in less["file_descriptors"]] == [
        f["pid"] for f in values["file_descriptors"]
    ]
    sealpoint.run("inspect", out, "--ps-tree-cmd", *analyst).fails(
        4, "metadata only", "use the identity of"
    )
    sizes = json.loads(sealpoint.run("memparse", out, "--json", *keys.open).ok().out)
    assert {s["pid"] for s in sizes} == before.keys()
    assert all(s["private"] > 8 << 20 and s["shared"] > 0 for s in sizes)
