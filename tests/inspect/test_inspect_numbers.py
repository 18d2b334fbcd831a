"""Numbers in images are a stranger's word: whatever they are, readers show them or say what is wrong."""

from __future__ import annotations

import json

import pytest

from tests.checkpoint.checkpoint_helpers import seal_path
from tests.inspect import small_dump
from tests.inspect.small_dump import image

NUMBERS = (0, 1, 2**31 - 1, 2**31, 2**32 - 1)
JSON_NUMBERS = (-1, 2**31, 2**32, 2**63, 2**64, 10**30)


def with_pid(pid: int) -> dict[str, bytes]:
    """The small dump, but its first process has another number, and so have its group, session and thread."""
    files = {}
    for name, data in small_dump.a_tree().items():
        files[name.replace("-10.", f"-{pid}.")] = data
    tree = [{"pid": pid, "ppid": 0, "pgid": pid, "sid": pid, "threads": [pid, pid ^ 1]}]
    tree += [{"pid": p, "ppid": pid, "pgid": pid, "sid": pid, "threads": [p]} for p in (11, 12)]
    files["pstree.img"] = image("PSTREE", *(("pstree_entry", entry) for entry in tree))
    return files


COMMANDS = (
    ("inspect", "{}", "--all"),
    ("inspect", "{}", "--all", "--json"),
    ("inspect", "{}", "--ps-tree", "--pid", "2147483647"),
    ("show", "{}"),
    ("info", "{}"),
    ("info", "{}", "--json"),
    ("verify", "{}"),
    ("memparse", "{}"),
    ("memparse", "{}", "--pid", "2147483647"),
    ("memparse", "{}", "--search", "t0psecret"),
    ("secrets", "{}"),
    ("secrets", "{}", "--pid", "2147483647"),
    ("report", "{}", "-o", "page.html", "--force"),
    ("coredump", "{}", "--pid", "2147483647", "-o", "core", "--force"),
    ("crit", "x", "{}", "ps"),
    ("crit", "x", "{}", "fds"),
    ("crit", "x", "{}", "mems"),
    ("crit", "x", "{}", "rss"),
    ("diff", "{}", "{}"),
)


@pytest.mark.parametrize("pid", NUMBERS)
def test_no_pid_in_an_image_is_a_defect(run_cli, opening, keys, monkeypatch, tmp_path, pid) -> None:
    monkeypatch.chdir(tmp_path)
    plain = tmp_path / "plain"
    plain.mkdir()
    for name, data in with_pid(pid).items():
        (plain / name).write_bytes(data)
    seal_path(keys, plain, tmp_path / "dump.sealed")
    for words in COMMANDS:
        if words[0] == "verify":
            done = run_cli("verify", tmp_path / "dump.sealed", "--trust", keys.trust_path)
        else:
            done = run_cli(*(w.format(tmp_path / "dump.sealed") for w in words), *opening)
        assert done.code in (0, 2, 3), (words, done)
    told = json.loads(
        run_cli("inspect", tmp_path / "dump.sealed", "--ps-tree", "--json", *opening).out
    )
    assert told[0]["process_tree"][0]["pid"] == pid


@pytest.mark.parametrize("number", JSON_NUMBERS)
@pytest.mark.parametrize("name", ["pid", "ppid", "threads"])
def test_no_number_of_an_image_in_json_is_a_defect(run_cli, tmp_path, number, name) -> None:
    entry = {"pid": 1, "ppid": 0, "pgid": 1, "sid": 1, "threads": [1]}
    entry[name] = [number] if name == "threads" else number
    text = tmp_path / "pstree.json"
    text.write_text(json.dumps({"magic": "PSTREE", "entries": [entry]}))
    done = run_cli("crit", "encode", text, "-o", tmp_path / "pstree.img")
    fits = 0 <= number < 2**32
    assert done.code == (0 if fits else 3), done
    if not fits:
        assert name in done.err


def test_a_number_of_very_many_digits_is_no_defect(run_cli, tmp_path) -> None:
    text = tmp_path / "pstree.json"
    text.write_text('{"magic": "PSTREE", "entries": [{"pid": %s}]}' % ("9" * 5000))
    done = run_cli("crit", "encode", text, "-o", tmp_path / "pstree.img")
    assert done.code in (2, 3), done
