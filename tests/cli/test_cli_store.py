"""sealpoint store, and --store of commands that read."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from tests.checkpoint.chain_helpers import seal_images
from tests.checkpoint.checkpoint_helpers import seal_objects
from tests.checkpoint.store_helpers import noise


@pytest.fixture
def store(cli):
    assert cli("store", "init", "store", "--tenant-key", "tenant.key").code == 0
    return Path("store")


@pytest.fixture
def big(keys):
    """Two sealed files with the same memory."""
    for name in ("a.sealed", "b.sealed"):
        images = {"inventory.img": b"inventory", "pages-1.img": noise(1, 300)}
        seal_images(keys, Path(name), images)
    return ["a.sealed", "b.sealed"]


@pytest.fixture
def added(cli, store, big, opening, sealing):
    result = cli("store", "add", store, *big, "--tenant-key", "tenant.key", *opening, *sealing)
    assert result.code == 0, result
    return result


@pytest.mark.parametrize("name", ["init", "add", "convert", "stat", "gc"])
def test_the_help_has_an_example(cli, name):
    result = cli("store", name, "--help")
    assert f"Example:\n    sealpoint store {name} " in result.out
    assert max(map(len, result.out.splitlines())) <= 100


def test_init_makes_a_store_and_a_private_key_and_says_so(cli):
    result = cli("store", "init", "new/store", "--tenant-key", "tenant.key")
    assert result.code == 0
    assert "keep it secret" in result.out
    assert os.stat("tenant.key").st_mode & 0o777 == 0o600
    assert Path("tenant.key").read_text().startswith("-----BEGIN SEALPOINT TENANT KEY-----")
    again = cli("store", "init", "second", "--tenant-key", "tenant.key")
    assert again.code == 0
    assert "keep it secret" not in again.out
    taken = cli("store", "init", "second", "--tenant-key", "third.key")
    assert (taken.code, Path("third.key").exists()) == (2, False)


@pytest.mark.parametrize("text", ["", "x", "-----BEGIN SEALPOINT TENANT KEY-----\n"])
def test_what_is_no_tenant_key_is_refused(cli, store, big, opening, sealing, text):
    Path("other.key").write_text(text)
    result = cli("store", "add", store, *big, "--tenant-key", "other.key", *opening, *sealing)
    assert result.code == 4
    assert "other.key" in result.err


def test_an_identity_is_no_tenant_key(cli, store, big, opening, sealing, keys):
    key = keys.identity_path
    result = cli("store", "add", store, *big, "--tenant-key", key, *opening, *sealing)
    assert result.code == 4


def test_add_and_stat_say_what_was_saved(cli, store, added):
    lines = added.out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["store/a.sealed", "store/b.sealed"]
    assert "1.17 MiB" in lines[0]
    assert "0 new chunks" in lines[1]
    shown = cli("store", "stat", store)
    assert shown.code == 0
    assert "% saved" in shown.out
    values = json.loads(cli("store", "stat", store, "--json").out)
    assert len(values["checkpoints"]) == 2
    assert values["size"] < values["size_alone"] * 0.6
    assert values["size_alone"] > 2 * 300 * 4096
    assert values["missing_chunks"] == values["unused_chunks"] == 0


def test_gc_says_what_it_removed_and_did_not_look_at(cli, store, added):
    (store / "b.sealed").unlink()
    assert cli("store", "gc", store).out.startswith("0 chunks removed, 0 B; ")
    (store / "a.sealed").unlink()
    (store / "sub").mkdir()
    values = json.loads(cli("store", "gc", store, "--dry-run", "--json").out)
    assert values["chunks_removed"] > 0
    assert values["chunks_kept"] == 0
    done = cli("store", "gc", store)
    assert done.out.splitlines()[0].startswith(f"{values['chunks_removed']} chunks removed")
    assert "not looked at: " in done.out.splitlines()[1]
    assert not list(store.glob("chunks/??/*"))


def test_gc_keeps_what_files_in_other_named_directories_refer_to(cli, store, added):
    os.mkdir("away")
    for name in ("a.sealed", "b.sealed"):
        (store / name).rename(f"away/{name}")
    values = json.loads(cli("store", "gc", store, "--also", "away", "--json").out)
    assert values["chunks_removed"] == 0


def test_verify_checks_the_chunks_with_and_without_a_key(cli, store, added, opening, keys):
    result = cli("verify", store / "a.sealed", "--trust", keys.trust_path)
    assert result.code == 0
    assert re.search(r"and so do \d+ stored chunks that it refers to", result.out)
    assert json.loads(cli("verify", store / "a.sealed", *opening, "--json").out)[
        "stored_chunks_checked"
    ]
    (store / "a.sealed").rename("a2.sealed")
    for options in (["--trust", keys.trust_path], opening):
        alone = cli("verify", "a2.sealed", *options)
        assert alone.code == 0
        assert "not checked" in alone.err
        assert "chunks that it refers to" not in alone.out
    assert cli("verify", "a2.sealed", "--store", store, *opening).err == ""
    chunk = next(store.glob("chunks/??/*"))
    chunk.unlink()
    for options in (["--trust", keys.trust_path], opening):
        broken = cli("verify", "a2.sealed", "--store", store, *options)
        assert broken.code == 3
        assert chunk.name in broken.err


def test_info_says_what_a_file_refers_to(cli, store, added, opening):
    assert "chunks in a store" in cli("info", store / "a.sealed").out
    values = json.loads(cli("info", store / "a.sealed", *opening, "--json").out)
    assert values["stored_chunks"]["chunks"] == len(list(store.glob("chunks/??/*")))
    sizes = {o["name"]: o["size"] for o in values["objects"]}
    assert sizes["pages-1.img"] == 300 * 4096
    assert "sealpoint-chunks" not in sizes


def test_open_gives_whole_images_or_refuses(cli, store, added, opening):
    assert cli("open", store / "a.sealed", "-o", "images", *opening).code == 0
    assert Path("images/pages-1.img").read_bytes() == noise(1, 300)
    assert not Path("images/sealpoint-chunks").exists()
    (store / "a.sealed").rename("a2.sealed")
    result = cli("open", "a2.sealed", "-o", "images2", *opening)
    assert result.code == 3
    assert "--store" in result.err
    assert not Path("images2").exists()
    assert cli("open", "a2.sealed", "-o", "images2", "--store", store, *opening).code == 0
    assert Path("images2/pages-1.img").read_bytes() == noise(1, 300)


def test_a_rekey_leaves_the_chunks_as_they_are(cli, store, added, opening, keys, others):
    before = {p: p.read_bytes() for p in store.glob("chunks/??/*")}
    path = store / "a.sealed"
    rekey = ["--add", others.recipient_path, "--sign", keys.signer_path]
    assert cli("rekey", path, *opening, *rekey).code == 0
    assert {p: p.read_bytes() for p in store.glob("chunks/??/*")} == before
    result = cli("open", path, "-o", "x", "-i", others.identity_path, "--trust", keys.trust_path)
    assert result.code == 0


def test_flatten_takes_a_file_back_out_of_the_store(cli, store, added, opening, sealing):
    result = cli("flatten", store / "a.sealed", "-o", "whole.sealed", *opening, *sealing)
    assert result.code == 0
    assert json.loads(cli("info", "whole.sealed", "--json").out)["stored_chunks"]["chunks"] == 0
    assert os.stat("whole.sealed").st_size > 300 * 4096


def test_a_damaged_chunk_is_warned_of_and_its_pages_are_sealed(cli, store, added, opening, sealing):
    chunk = next(store.glob("chunks/??/*"))
    chunk.write_bytes(chunk.read_bytes()[:-1])
    os.rename("a.sealed", "c.sealed")
    add = ("store", "add", store, "c.sealed", "--tenant-key", "tenant.key", *opening, *sealing)
    result = cli(*add, "--json")
    assert result.code == 0
    assert json.loads(result.out)[0]["chunks_damaged"] == 1
    assert chunk.name in result.err
    assert cli("open", store / "c.sealed", "-o", "x", *opening).code == 0
    assert Path("x/pages-1.img").read_bytes() == noise(1, 300)


def test_a_metadata_identity_cannot_add(cli, store, big, sealing, keys, others):
    seal_objects(keys, "m.sealed", {"inventory.img": (b"i", None)}, metadata=[others])
    result = cli(
        "store", "add", store, "m.sealed", "--tenant-key", "tenant.key",
        "-i", others.identity_path, "--trust", keys.trust_path, *sealing,
    )  # fmt: skip
    assert result.code == 4
    assert "metadata" in result.err


def test_add_refuses_what_cannot_be(cli, store, added, opening, sealing):
    options = ("--tenant-key", "tenant.key", *opening, *sealing)
    again = cli("store", "add", store, "a.sealed", *options)
    assert (again.code, "exists" in again.err) == (2, True)
    itself = cli("store", "add", store, store / "a.sealed", "--force", *options)
    assert (itself.code, "store's directory" in itself.err) == (2, True)
    os.mkdir("sub")
    os.rename("b.sealed", "sub/a.sealed")
    twice = cli("store", "add", store, "a.sealed", "sub/a.sealed", "--force", *options)
    assert (twice.code, "same name" in twice.err) == (2, True)
    nowhere = cli("store", "add", "sub", "a.sealed", *options)
    assert (nowhere.code, "not a chunk store" in nowhere.err) == (2, True)


def test_dump_takes_a_store_and_its_key_together(cli, store, sealing):
    for options in (["--store", store], ["--tenant-key", "tenant.key"]):
        result = cli("dump", "-t", os.getpid(), "-o", "x.sealed", *options, *sealing)
        assert (result.code, "go together" in result.err) == (2, True)


def test_an_old_store_is_not_added_to_and_is_converted(cli, store, added, opening, sealing):
    """Of version 1: there the tenant key opens all chunks."""
    about = store / "chunks" / "store.json"
    about.write_bytes(about.read_bytes().replace(b'"version":"2"', b'"version":"1"'))
    options = ("--tenant-key", "tenant.key", *opening, *sealing)
    Path("a.sealed").rename("c.sealed")
    refused = cli("store", "add", store, "c.sealed", *options)
    assert refused.code == 2
    assert "store convert" in refused.err
    assert not (store / "c.sealed").exists()
    assert cli("store", "stat", store).code == 0
    before = {p: p.read_bytes() for p in store.rglob("*") if p.is_file()}
    made = cli("store", "convert", store, "new", *options)
    assert made.code == 0, made.err
    assert b'"version":"2"' in Path("new/chunks/store.json").read_bytes()
    assert {p: p.read_bytes() for p in store.rglob("*") if p.is_file()} == before
    Path("new/b.sealed").unlink()
    repeated = cli("store", "convert", store, "new", *options)
    assert repeated.code == 0, repeated.err
    assert [line.split(":")[0] for line in repeated.out.splitlines()] == ["new/b.sealed"]
    store.rename("gone")
    assert cli("verify", "new/a.sealed", *opening).code == 0
