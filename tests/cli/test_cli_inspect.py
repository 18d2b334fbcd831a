"""`list`, `show`, `inspect`, `memparse`, `diff`, the plugin: on sealed and plain checkpoints, with either identity."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sealpoint.cli import checkpointctl
from tests.checkpoint.checkpoint_helpers import make_tar, member, seal_path
from tests.inspect import small_dump
from tests.inspect.small_dump import ARGUMENTS, image


def write(directory, files) -> str:
    for name, data in files.items():
        path = Path(directory, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return str(directory)


@pytest.fixture
def archive():
    path = Path("checkpoint-shop_prod-web-2026-01-02T04:00:00Z.tar")
    path.write_bytes(make_tar(*(member(n, d) for n, d in small_dump.a_container().items())))
    return str(path)


@pytest.fixture
def sealed(keys, others, archive):
    """Sealed to `keys`; `others` can read its metadata."""
    seal_path(keys, archive, "web.sealed", metadata=[others])
    return "web.sealed"


@pytest.fixture
def analyst(keys, others):
    return ["-i", others.identity_path, "--trust", keys.trust_path]


def inspected(cli, *arguments):
    done = cli("inspect", "--format", "json", *arguments)
    assert done.code == 0, done.err
    return json.loads(done.out)[0]


def test_everything_of_a_container_is_told(cli, sealed, opening, archive):
    values = inspected(cli, sealed, "--all", *opening)
    assert values["container_name"] == "web"
    assert values["image"] == "example/web:1"
    assert values["engine"] == "CRI-O"
    assert values["ip"] == "10.0.0.7"
    assert values["checkpoint_size"]["memory_pages_size"] == 3 * 5 * 4096
    assert values["checkpoint_size"]["root_fs_diff_size"] == 1000
    assert values["statistics"]["frozen_time"] == 1500
    assert values["metadata"]["pod_name"] == "shop"
    assert values["metadata"]["kubernetes_namespace"] == "prod"
    root = values["process_tree"][0]
    assert (root["pid"], root["command"], root["task_state"]) == (10, "task10", "alive")
    assert root["cmdline"] == "/bin/task --secret=hunter2 with space"
    assert root["environment_variables"] == {"HOME": "/root", "TOKEN": "t0psecret", "EMPTY": ""}
    assert root["children"][0]["children"][0]["pid"] == 12
    files = values["file_descriptors"][1]
    assert files["pid"] == 11
    assert {"type": "PIPE", "fd": "PIPE 1", "path": "pipe[99]"} in files["open_files"]
    assert {"type": "", "fd": "cwd", "path": "/bin/x\x1b[2J"} in files["open_files"]
    inet, unix = values["sockets"][0]["open_sockets"]
    assert inet["protocol"] == "TCP"
    assert inet["data"]["state"] == "ESTABLISHED"
    assert (inet["data"]["src"], inet["data"]["src_port"]) == ("127.0.0.1", 8080)
    assert (inet["data"]["dst"], inet["data"]["recv_buf"]) == ("8.8.8.8", 1024)
    assert unix["data"]["address"] == "@abstract"
    assert values["mounts"] == [{"destination": "/data", "type": "bind", "source": "/srv/data"}]
    plain = inspected(cli, archive, "--all")
    values.pop("sealed")
    assert plain == values


def test_a_tree_is_drawn_and_steers_no_terminal(cli, sealed, opening):
    shown = cli("inspect", sealed, "--all", *opening)
    assert shown.code == 0
    assert "\x1b" not in shown.out
    assert "│       └── [11]  /bin/task --secret=hunter2 with space" in shown.out
    assert r"[REG 0]  /bin/x\x1b[2J" in shown.out
    assert "TCP (ESTABLISHED)  127.0.0.1:8080 -> 8.8.8.8:443" in shown.out
    assert "Frozen time: 1.500 ms" in shown.out


def test_a_metadata_identity_sees_all_but_memory(cli, sealed, analyst, keys):
    shown = cli("inspect", sealed, "--all", "--format", "json", *analyst)
    assert shown.code == 0
    assert "metadata only" in shown.err
    values = json.loads(shown.out)[0]
    assert values["container_name"] == "web"
    assert values["checkpoint_size"]["memory_pages_size"] == 3 * 5 * 4096
    root = values["process_tree"][0]
    assert (root["pid"], root["command"]) == (10, "task10")
    assert "cmdline" not in root
    assert {"destination": "/", "type": "xfs", "source": "/dev/sda1"} in values["mounts"]
    assert values["mounts"][1] == {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"}
    assert values["sockets"][0]["open_sockets"][0]["data"]["dst_port"] == 443
    assert values["statistics"]["pages_written"] == 5
    assert b"hunter2" not in shown.out.encode()
    for part in ("--ps-tree-cmd", "--ps-tree-env"):
        refused = cli("inspect", sealed, part, *analyst)
        assert refused.code == 4
        assert keys.fingerprint[:16] in refused.err
    for command in (
        ("memparse", sealed),
        ("memparse", sealed, "--pid", "10"),
        ("memparse", sealed, "--search", "x"),
    ):
        refused = cli(*command, *analyst)
        assert refused.code == 4
        assert keys.fingerprint[:16] in refused.err


def test_one_process_and_its_children(cli, archive):
    values = inspected(cli, archive, "--ps-tree", "--files", "--pid", "11")
    assert [n["pid"] for n in values["process_tree"]] == [11]
    assert [f["pid"] for f in values["file_descriptors"]] == [11, 12]
    refused = cli("inspect", archive, "--ps-tree", "--pid", "99")
    assert refused.code == 2
    assert "it has: 10, 11, 12" in refused.err


def test_several_checkpoints_at_once(cli, archive, sealed, opening):
    shown = cli("inspect", archive, sealed, "--format", "json", *opening)
    assert len(json.loads(shown.out)) == 2
    rows = cli("show", archive, sealed, *opening).out.splitlines()
    assert [row.split()[1] for row in rows] == ["CONTAINER", "web", "web"]
    assert "0123456789ab " in rows[1]
    assert json.loads(cli("show", sealed, "--json", *opening).out)[0]["engine"] == "CRI-O"


def test_show_works_with_a_metadata_identity(cli, sealed, analyst):
    row = cli("show", sealed, *analyst).out.splitlines()[1]
    assert "example/web:1" in row
    assert "60.0 KiB" in row


def test_damaged_parts_are_left_out_and_named(cli):
    files = small_dump.a_tree()
    files["core-11.img"] = files["core-11.img"][:-3]
    files["fdinfo-12.img"] = files["fdinfo-12.img"][:9]
    del files["mm-10.img"]
    directory = write("broken", files)
    shown = cli("inspect", directory, "--ps-tree", "--files", "--format", "json")
    assert shown.code == 3
    values = json.loads(shown.out)[0]
    assert values["process_tree"][0]["children"][0] == {
        "pid": 11,
        "command": "",
        "children": [{"pid": 12, "command": "task12", "task_state": "alive"}],
    }
    assert [f["pid"] for f in values["file_descriptors"]] == [10, 11]
    assert "core-11.img" in shown.err
    assert "fdinfo-12.img" in shown.err


def test_an_image_of_another_type_than_its_name_says_is_refused(cli):
    files = small_dump.a_tree()
    files["mm-10.img"] = files["core-10.img"]
    refused = cli("crit", "x", write("odd", files), "mems")
    assert refused.code == 3
    assert "mm-10.img: is an image of type CORE, not MM" in refused.err


def test_trees_deeper_than_a_stack_are_shown(cli):
    count = 3000
    files = {
        "pstree.img": image(
            "PSTREE", *(("pstree_entry", {"pid": n, "ppid": n - 1}) for n in range(1, count + 1))
        ),
    }
    for n in range(1, count + 1):
        files[f"core-{n}.img"] = image(
            "CORE", ("core_entry", {"tc": {"task_state": 1, "comm": b"t"}})
        )
    directory = write("deep", files)
    for form in ("json", "tree"):
        shown = cli("inspect", directory, "--ps-tree", "--format", form)
        assert shown.code == 0, shown.err
        assert str(count) in shown.out
    assert str(count) in cli("crit", "x", directory, "ps").out
    assert cli("diff", directory, directory).code == 0


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[",
        b"5",
        b"[[]]",
        b'{"name": 5, "runtime": []}',
        b'{"annotations": 5, "mounts": [5, {"type": 5}]}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_an_engine_s_documents_may_be_anything(cli, document):
    files = small_dump.a_container()
    for name in ("config.dump", "spec.dump", "status.dump", "network.status"):
        files[name] = document
    shown = cli("inspect", write("odd", files), "--all", "--format", "json")
    assert shown.code == 0, shown.err
    assert json.loads(shown.out)[0]["process_tree"][0]["pid"] == 10


def test_list_tells_what_is_in_a_directory(cli, sealed, archive, opening):
    write("images", small_dump.a_tree())
    Path("notes.txt").write_text("no checkpoint")
    Path("broken.tar.gz").write_bytes(b"\x1f\x8b" + bytes(50))
    listed = {e["name"]: e for e in json.loads(cli("list", ".", "--json").out)}
    assert set(listed) == {archive, sealed, "images", "broken.tar.gz"}
    assert listed[archive] == {
        "name": archive, "kind": "archive", "size": Path(archive).stat().st_size, "container": "web", "pod": "shop",
        "namespace": "prod", "engine": "CRI-O", "checkpointed": "2026-01-02T04:00:00Z",
    }  # fmt: skip
    assert listed["images"]["kind"] == "directory"
    assert "damaged" in listed["broken.tar.gz"]["error"]
    assert listed[sealed]["kind"] == "sealed"
    assert "container" not in listed[sealed]  # not without a key
    opened = {e["name"]: e for e in json.loads(cli("list", ".", "--json", *opening).out)}
    assert opened[sealed]["container"] == "web"
    assert "web" in cli("list", ".").out
    assert cli("list", "nowhere").code == 6


def test_memory_per_process(cli, sealed, opening):
    told = json.loads(cli("memparse", sealed, "--json", *opening).out)
    assert told[0] == {
        "pid": 10,
        "command": "task10",
        "mapped": 6 * 4096,
        "private": 5 * 4096,
        "shared": 0,
    }
    rows = cli("memparse", sealed, *opening).out.splitlines()
    assert rows[1].split()[:2] == ["10", "task10"]


def test_memory_as_a_hexdump(cli, sealed, opening):
    shown = cli("memparse", sealed, "--pid", "11", *opening).out.splitlines()
    assert "7000-9000 rw-p" in shown
    assert any(line.startswith("0000000000007000  2f 62 69 6e") for line in shown)
    assert "|/bin/task.--secr|" in next(
        line for line in shown if line.startswith("0000000000007000")
    )
    assert "*" in shown
    done = cli("memparse", sealed, "--pid", "11", "-o", "memory.txt", *opening)
    assert done.code == 0
    assert Path("memory.txt").read_text().splitlines() == shown
    assert Path("memory.txt").stat().st_mode & 0o777 == 0o600
    assert cli("memparse", sealed, "--pid", "99", *opening).code == 2
    assert cli("memparse", sealed, "-o", "x", *opening).code == 2


def test_memory_is_searched(cli, sealed, opening):
    found = json.loads(
        cli("memparse", sealed, "--search", "hunter2", "--context", "9", "--json", *opening).out
    )
    assert [m["pid"] for m in found] == [10, 11, 12]
    address = 0x7000 + ARGUMENTS.index(b"hunter2")
    assert found[0]["address"] == f"{address:#x}"
    assert found[0]["text"] == "--secret=hunter2.with spa"
    by_expression = cli(
        "memparse", sealed, "--search-regex", "TOKEN=[a-z0-9]+", "--pid", "12", *opening
    ).out
    assert by_expression.count("\n") == 1
    assert "TOKEN=t0psecret" in by_expression
    assert cli("memparse", sealed, "--search-regex", "(", *opening).code == 2
    assert cli("memparse", sealed, "--search", "a", "--search-regex", "a", *opening).code == 2


def test_diff_tells_what_came_went_and_changed(cli, sealed, opening, archive):
    files = small_dump.a_container()
    tree = [(10, 0), (11, 10), (13, 10)]
    files["checkpoint/pstree.img"] = image(
        "PSTREE", *(("pstree_entry", {"pid": p, "ppid": up}) for p, up in tree)
    )
    files["checkpoint/core-11.img"] = image(
        "CORE", ("core_entry", {"tc": {"task_state": 3, "comm": b"renamed"}})
    )
    for name in ("core", "mm", "ids", "fdinfo", "pagemap", "fs"):
        files[f"checkpoint/{name}-13.img"] = files[f"checkpoint/{name}-12.img"]
    files["checkpoint/fdinfo-13.img"] = files["checkpoint/fdinfo-12.img"]
    files["checkpoint/fdinfo-10.img"] = image(
        "FDINFO", ("fdinfo_entry", {"id": 2, "type": 2, "fd": 0})
    )
    changed = write("changed", files)
    told = json.loads(
        cli("diff", sealed, changed, "--files", "--sockets", "--format", "json", *opening).out
    )
    tasks = {t["id"]: t for t in told["tasks"]}
    assert {pid: t["status"] for pid, t in tasks.items()} == {
        10: "modified",
        11: "modified",
        12: "removed",
        13: "added",
    }
    assert {
        "category": "process",
        "field": "command",
        "before": "task11",
        "after": "renamed",
    } in tasks[11]["changes"]
    assert {
        "category": "files",
        "field": "REG 0",
        "before": "/bin/x\x1b[2J",
        "after": None,
    } in tasks[10]["changes"]
    assert {c["category"] for c in tasks[10]["changes"]} == {"files", "sockets"}
    shown = cli("diff", sealed, changed, *opening).out
    assert "+ [13]" in shown
    assert "- [12]" in shown
    assert "command: task11 -> renamed" in shown
    same = json.loads(
        cli(
            "diff",
            sealed,
            archive,
            "--ps-tree-cmd",
            "--ps-tree-env",
            "--show-unchanged",
            "--json",
            *opening,
        ).out
    )
    assert {t["status"] for t in same["tasks"]} == {"unchanged"}
    assert "no difference" in cli("diff", sealed, archive, *opening).out


def test_diff_of_environments_takes_a_memory_identity(cli, sealed, analyst, archive, keys):
    assert cli("diff", sealed, archive, "--files", *analyst).code == 0
    refused = cli("diff", sealed, archive, "--ps-tree-env", *analyst)
    assert refused.code == 4
    assert keys.fingerprint[:16] in refused.err


def test_the_plugin_describes_itself_in_one_line_and_with_42():
    program = Path(sys.executable).with_name("checkpointctl-sealpoint")
    asked = subprocess.run([program, "--plugin-description"], capture_output=True, text=True)
    assert asked.returncode == 42
    assert asked.stdout == checkpointctl.DESCRIPTION + "\n"
    assert not asked.stderr


def test_the_plugin_is_sealpoint_otherwise(sealed, opening):
    program = Path(sys.executable).with_name("checkpointctl-sealpoint")
    shown = subprocess.run([program, "show", sealed, *opening], capture_output=True, text=True)
    assert shown.returncode == 0
    assert "example/web:1" in shown.stdout
