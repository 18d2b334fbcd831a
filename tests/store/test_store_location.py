"""What a name given for a sealed file is."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from sealpoint.errors import UsageError
from sealpoint.store import location
from sealpoint.store.location import is_url, open_remote, open_store, split_url
from sealpoint.store.output import destination
from tests.store import memory_store


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("s3://bucket/key", True),
        ("oci://registry/name:tag", True),
        ("gs://bucket/key", True),
        ("S3://bucket/key", True),
        ("-", False),
        ("app.sealed", False),
        ("./s3://bucket/key", False),
        ("/s3://bucket/key", False),
        ("s3:/bucket/key", False),
        ("://x", False),
        ("", False),
    ],
)
def test_urls_and_paths_are_told_apart(name, expected):
    assert is_url(name) is expected


@pytest.mark.parametrize("url", ["gs://b/k", "az://b/k", "http://h/x", "file:///x", "S3X://b"])
def test_other_kinds_of_store_are_refused_by_name(url):
    for use in (open_store, open_remote):
        with pytest.raises(UsageError, match="no store of the kind") as caught:
            use(url)
        assert "s3://" in caught.value.hint


def test_a_missing_package_names_the_extra(monkeypatch):
    for name in [n for n in sys.modules if n.startswith("sealpoint.store.bucket")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "botocore", None)
    with pytest.raises(UsageError, match="buckets need sealpoint's extra `s3`") as caught:
        open_store("s3://bucket/key")
    assert "sealpoint[s3]" in caught.value.hint


def test_plain_http_counts_as_long_as_it_was_asked_for(monkeypatch):
    seen = []
    adapter = SimpleNamespace(open_store=lambda url, *, plain_http: seen.append(plain_http))
    monkeypatch.setitem(sys.modules, "sealpoint.store.mem", adapter)
    monkeypatch.setattr(location, "_ADAPTERS", {"mem": "sealpoint.store.mem"})
    open_store("mem://x")
    with location.plain_http():
        open_store("mem://x")
        with location.plain_http():
            open_store("mem://x")
        open_store("mem://x")
    open_store("mem://x")
    assert seen == [False, True, True, True, False]


@pytest.mark.parametrize("url", ["s3://bucket/key", "gs://b/k"])
def test_outputs_that_are_not_sealed_go_to_no_store(url):
    with pytest.raises(UsageError, match="is in a store"):
        destination(url)


REFERENCE = "oci://reg.example:5000/a/b"
DIGEST = f"sha256:{'0' * 64}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mem://here/file", ("mem://here/file", "")),
        ("mem://here/file:core-1.img", ("mem://here/file", "core-1.img")),
        ("mem://here/a:b", ("mem://here/a:b", "")),
        ("mem://here/a:b:checkpoint/x:y", ("mem://here/a:b", "checkpoint/x:y")),
        ("mem://here/none:core-1.img", ("mem://here/none:core-1.img", "")),
        (f"{REFERENCE}:tag", (f"{REFERENCE}:tag", "")),
        (f"{REFERENCE}:tag:core-1.img", (f"{REFERENCE}:tag", "core-1.img")),
        (f"{REFERENCE}:tag:checkpoint/core-1.img", (f"{REFERENCE}:tag", "checkpoint/core-1.img")),
        (f"{REFERENCE}@{DIGEST}", (f"{REFERENCE}@{DIGEST}", "")),
        (f"{REFERENCE}@{DIGEST}:core-1.img", (f"{REFERENCE}@{DIGEST}", "core-1.img")),
    ],
)
def test_a_url_and_what_is_meant_in_it_are_told_apart(monkeypatch, text, expected):
    world = memory_store.install(monkeypatch)
    for name in ("file", "a:b"):
        world.files[f"mem://here/{name}"] = memory_store.Stored(b"head", b"body", {})
    assert split_url(text) == expected
    assert world.open == 0


def test_no_adapter_is_loaded_before_a_url_is_used():
    script = (
        "import sys, sealpoint.cli.app, sealpoint.store.location, sealpoint.checkpoint.opening.opener\n"
        "import sealpoint.cli.dump, sealpoint.cli.restore\n"
        "bad = [m for m in sys.modules if m.startswith(('botocore', 'sealpoint.store.bucket'))]\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
    assert set(location._ADAPTERS) >= {"s3"}
