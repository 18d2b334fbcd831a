"""`chain`, `flatten` and `prune` on the command line."""

from __future__ import annotations

import json

import pytest

from tests.checkpoint.test_delta import Dumps, image


@pytest.fixture
def dumps(tmp_path, keys, monkeypatch):
    made = Dumps(tmp_path / "work", keys)
    path = None
    for step in range(4):
        path = made.add({"pages-1.img": [step, 1, 2, 3]}, parent=path)
    return made


def seal(keys):
    return ("-r", keys.recipient_path, "--sign", keys.signer_path)


def open_(keys):
    return ("-i", keys.identity_path, "--trust", keys.trust_path)


def test_chain_shows_all_files_newest_first(cli, keys, dumps):
    result = cli("chain", dumps.files[3], "--trust", keys.trust_path)
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert [line.split()[0] for line in lines] == ["NUMBER", "3", "2", "1", "0"]
    assert [line.split()[-1] for line in lines[1:]] == [str(f) for f in reversed(dumps.files)]
    rows = json.loads(cli("chain", dumps.files[3], "--json").out)
    assert [r["kind"] for r in rows] == ["increment", "increment", "increment", "full"]
    assert [r["sequence"] for r in rows] == [3, 2, 1, 0]


def test_chain_of_an_incomplete_one_ends_with_3(cli, dumps):
    dumps.files[1].unlink()
    result = cli("chain", dumps.files[3])
    assert result.code == 3
    assert "its parent" in result.err
    assert "--parents" in result.err


def test_info_names_parent_and_place(cli, keys, dumps):
    result = cli("info", dumps.files[2])
    assert "kind        increment" in result.out
    assert "chain       number 2 after" in result.out


def test_flatten_makes_one_file_that_stands_alone(cli, keys, dumps):
    result = cli("flatten", dumps.files[3], "-o", "whole.sealed", *open_(keys), *seal(keys))
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("4 files in whole.sealed: ")
    for file in dumps.files:
        file.unlink()
    assert dumps.read("whole.sealed") == {"pages-1.img": image([3, 1, 2, 3])}
    again = cli("flatten", "whole.sealed", "-o", "whole.sealed", *open_(keys), *seal(keys))
    assert again.code == 2
    values = json.loads(
        cli("flatten", "whole.sealed", "-o", "b.sealed", "--json", *open_(keys), *seal(keys)).out
    )
    assert values["files"] == 1


def test_open_gives_what_is_in_the_file_and_says_that_it_is_not_all(cli, keys, dumps):
    result = cli("open", dumps.files[2], "-o", "images", *open_(keys))
    assert result.code == 0
    assert "this is an increment" in result.err
    assert cli("open", dumps.files[0], "-o", "first", *open_(keys)).err == ""


def test_flatten_wants_trust_and_a_key(cli, keys, dumps):
    untrusted = cli("flatten", dumps.files[3], "-o", "x", "-i", keys.identity_path, *seal(keys))
    assert untrusted.code == 5
    keyless = cli("flatten", dumps.files[3], "-o", "x", "--trust", keys.trust_path, *seal(keys))
    assert keyless.code == 2
    assert cli("flatten", "-", "-o", "x", *open_(keys), *seal(keys)).code == 2


def test_prune_says_what_it_would_do_and_does_it(cli, keys, dumps):
    arguments = ("prune", dumps.files[3], "--keep-last", "2", *open_(keys), *seal(keys))
    would = cli(*arguments, "--dry-run")
    assert (would.code, would.err) == (0, "")
    assert would.out.splitlines() == [
        f"kept {dumps.files[2]}, would be merged with older ones",
        f"kept {dumps.files[3]}",
        f"would be removed {dumps.files[1]}",
        f"would be removed {dumps.files[0]}",
    ]
    assert all(f.exists() for f in dumps.files)
    done = json.loads(cli(*arguments, "--json").out)
    assert done["kept"] == [str(f) for f in dumps.files[2:]]
    assert [f.exists() for f in dumps.files] == [False, False, True, True]
    assert dumps.read(dumps.files[3]) == {"pages-1.img": image([3, 1, 2, 3])}
    assert cli("prune", dumps.files[3], *open_(keys), *seal(keys)).code == 2
