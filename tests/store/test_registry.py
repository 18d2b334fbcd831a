"""Sealed files in a real docker-registry: push, ranges, rekey, list; skopeo and oras judge what is there."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess

import pytest

from sealpoint.errors import FileError, SystemEnvironmentError, UsageError
from sealpoint.store.oci import open_store, upload
from sealpoint.store.oci.manifest import (
    ARTIFACT_TYPE,
    BODY_TYPE,
    EMPTY_TYPE,
    HEAD_TYPE,
    INDEX_TYPE,
    MEDIA_TYPE,
    TITLE,
)
from sealpoint.store.oci.referrers import fallback_tag, referrers
from tests.store.bucket_servers import SERVICES, need_services
from tests.store.registry_helpers import PROPERTIES, api, put, refuse, registry, send_all, store_at  # noqa: F401 - a fixture
from tests.store.registry_servers import (
    Registry,
    skopeo,
)
from tests.store.uploads import MIB, Spool, content, new_head

pytestmark = pytest.mark.services


@pytest.fixture(autouse=True)
def no_login(tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "nobody"))
    monkeypatch.setattr("sealpoint.store.retry.FIRST_PAUSE", 0.01)


@pytest.fixture
def place(registry, request):
    """A URL in a repository of this test alone."""
    digest = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]
    return f"oci://{registry.address}/tests/{digest}:one"


@pytest.fixture
def small(monkeypatch):
    """Layers of 3 MiB, parts of 1 MiB, so that several of each are made."""
    monkeypatch.setattr(upload, "LAYER_SIZE", 3 * MIB)
    monkeypatch.setattr(upload, "PART_SIZE", MIB)


def test_what_was_pushed_is_read_back_byte_for_byte(place, small):
    body = random.randbytes(7 * MIB + 5)
    head, url = put(open_store(place), body)
    assert content(open_store(place)) == head + body
    assert content(open_store(url)) == head + body
    file = open_store(place).open()
    assert [blob.size for blob in file.manifest.body] == [3 * MIB, 3 * MIB, MIB + 5]
    assert (file.head_size, file.size) == (len(head), len(head) + len(body))
    assert file.properties == PROPERTIES
    file.close()


def test_any_range_is_the_one_of_the_file(place, small):
    body = random.randbytes(7 * MIB)
    head, _ = put(open_store(place), body)
    whole = head + body
    file = open_store(place).open()
    border = len(head) + 3 * MIB
    for start, size in [
        (0, 1),
        (0, len(head)),
        (len(head) - 1, 2),
        (border - 2, 4),
        (5, 0),
        (len(whole) - 1, 1),
        (border - 2, 3 * MIB + 4),
    ]:
        out = bytearray(size)
        file.read_into(memoryview(out), start)
        assert out == whole[start : start + size]
    with pytest.raises(FileError, match="ends before"):
        file.read_into(memoryview(bytearray(2)), len(whole) - 1)
    file.close()


def test_nothing_is_under_the_tag_before_the_commit(place):
    store = open_store(place)
    body = random.randbytes(MIB)
    sending = store.begin(Spool(body), force=False, unconditional=False)
    send_all(sending, len(body))
    with pytest.raises(UsageError, match="does not exist"):
        open_store(place).open()
    sending.commit(new_head(), {})
    open_store(place).open().close()


def test_a_tag_that_is_taken_stays_unless_forced(place):
    first, _ = put(open_store(place), b"a" * 1000)
    with pytest.raises(UsageError, match="exists already"):
        open_store(place).begin(Spool(b"b"), force=False, unconditional=False)
    assert content(open_store(place)) == first + b"a" * 1000
    second, _ = put(open_store(place), b"b" * 1000, force=True)
    assert content(open_store(place)) == second + b"b" * 1000


def test_a_tag_that_was_taken_during_the_upload_stays(place):
    sending = open_store(place).begin(Spool(b"late"), force=False, unconditional=False)
    send_all(sending, 4)
    head, _ = put(open_store(place), b"early")
    with pytest.raises(UsageError, match="exists already"):
        sending.commit(new_head(), {})
    sending.abort()
    assert content(open_store(place)) == head + b"early"


def test_an_aborted_upload_leaves_no_layer(registry, place, small):
    body = random.randbytes(4 * MIB)
    sending = open_store(place).begin(Spool(body), force=False, unconditional=False)
    send_all(sending, len(body))
    digest = hashlib.sha256(body[: 3 * MIB]).hexdigest()
    name = place.removeprefix(f"oci://{registry.address}/").removesuffix(":one")
    api(registry, f"{name}/blobs/sha256:{digest}", "HEAD").close()
    sending.abort()
    with pytest.raises(OSError, match="404"):
        api(registry, f"{name}/blobs/sha256:{digest}", "HEAD")
    with pytest.raises(SystemEnvironmentError, match="given up"):
        sending.send(9, len(body), 1)


def test_an_aborted_upload_of_a_file_that_is_there_already_takes_no_layer_from_it(place, small):
    body = random.randbytes(4 * MIB)
    head, _ = put(open_store(place), body)
    other = open_store(place.replace(":one", ":two"))
    sending = other.begin(Spool(body), force=False, unconditional=False)
    send_all(sending, len(body))
    put(open_store(place.replace(":one", ":two")), b"taken")
    with pytest.raises(UsageError, match="exists already"):
        sending.commit(head, PROPERTIES)
    sending.abort()
    assert content(open_store(place)) == head + body


def test_skopeo_reads_the_manifest_and_copies_all_layers(registry, place, tmp_path, small):
    body = random.randbytes(4 * MIB)
    head, _ = put(open_store(place), body)
    docker = place.replace("oci://", "docker://")
    manifest = json.loads(skopeo("inspect", "--raw", "--tls-verify=false", docker).stdout)
    assert manifest["artifactType"] == ARTIFACT_TYPE
    kinds = [layer["mediaType"] for layer in manifest["layers"]]
    assert kinds == [HEAD_TYPE, BODY_TYPE, BODY_TYPE]
    assert manifest["annotations"] == {**PROPERTIES, TITLE: "one.sealed"}
    skopeo(
        "--insecure-policy", "copy", "--src-tls-verify=false", docker, f"oci:{tmp_path}/copy:one"
    )
    blobs = tmp_path / "copy" / "blobs" / "sha256"
    layers = [
        (blobs / layer["digest"].removeprefix("sha256:")).read_bytes()
        for layer in manifest["layers"]
    ]
    assert b"".join(layers) == head + body


def test_a_copy_by_skopeo_is_read_like_the_original(registry, place):
    head, _ = put(open_store(place), b"x" * 5000)
    docker = place.replace("oci://", "docker://")
    there = docker.replace(":one", "/copy:two")
    skopeo(
        "--insecure-policy",
        "copy",
        "--src-tls-verify=false",
        "--dest-tls-verify=false",
        docker,
        there,
    )
    assert content(open_store(there.replace("docker://", "oci://"))) == head + b"x" * 5000


def push_in_one_layer(directory, data, docker):
    """A file as it is, by skopeo, as an artifact of no type that anybody knows."""
    config, layer = (f"sha256:{hashlib.sha256(each).hexdigest()}" for each in (b"{}", data))
    manifest = {
        "schemaVersion": 2,
        "mediaType": MEDIA_TYPE,
        "artifactType": "application/vnd.unknown.artifact.v1",
        "config": {"mediaType": EMPTY_TYPE, "digest": config, "size": 2},
        "layers": [
            {
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": layer,
                "size": len(data),
                "annotations": {TITLE: "app.sealed"},
            }
        ],
    }
    directory.mkdir()
    (directory / "version").write_text("Directory Transport Version: 1.1\n")
    (directory / "manifest.json").write_text(json.dumps(manifest))
    (directory / config.removeprefix("sha256:")).write_bytes(b"{}")
    (directory / layer.removeprefix("sha256:")).write_bytes(data)
    skopeo("--insecure-policy", "copy", "--dest-tls-verify=false", f"dir:{directory}", docker)


def test_a_file_that_skopeo_pushed_in_one_layer_is_read_as_it_is(place, tmp_path):
    head = new_head()
    whole = head + random.randbytes(MIB)
    push_in_one_layer(tmp_path / "there", whole, place.replace("oci://", "docker://"))
    push_in_one_layer(
        tmp_path / "other", b"a layer " * 99, place.replace("oci://", "docker://") + "2"
    )
    file = open_store(place).open()
    assert (file.size, file.head_size, file.properties) == (len(whole), len(head), {})
    assert content(open_store(place)) == whole
    assert [(each.name, each.size) for each in open_store(place).list()] == [(place, len(whole))]
    with pytest.raises(UsageError, match="in one piece") as caught:
        open_store(place).replace_head(file, new_head(head), {})
    assert "sealpoint copy URL URL --force" in caught.value.hint
    put(open_store(place), whole[len(head) :], head, force=True)  # as `copy` does in its place
    assert content(open_store(place)) == whole
    assert open_store(place).open().manifest is not None
    with pytest.raises(FileError, match="unknown"):
        open_store(place + "2").open()


def oras(directory, call):
    """A client of the oras project, as a program of its own; `call`: of one of its methods."""
    script = f"import oras.client; oras.client.OrasClient(insecure=True).{call}"
    python = SERVICES / "bin" / "python"
    done = subprocess.run(
        [str(python), "-c", script],
        cwd=directory,
        env={"PATH": os.defpath, "HOME": str(directory)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_file_that_oras_pushed_is_read_and_oras_pulls_what_was_pushed_here(place, tmp_path):
    need_services()
    head = new_head()
    whole = head + random.randbytes(MIB)
    (tmp_path / "app.sealed").write_bytes(whole)
    target = place.removeprefix("oci://")
    oras(tmp_path, f"push(target={target!r}, files=['app.sealed'], quiet=True)")
    assert open_store(place).open().manifest is None
    assert content(open_store(place)) == whole
    put(open_store(place), whole[len(head) :], head, force=True)
    oras(tmp_path, f"pull(target={target!r}, outdir='there')")
    pulled = sorted((tmp_path / "there").iterdir())
    assert [path.name for path in pulled] == ["one.sealed.0000", "one.sealed.0001"]
    assert b"".join(path.read_bytes() for path in pulled) == whole


def test_an_image_of_somebody_else_is_refused_with_its_kind(registry, place, tmp_path):
    name = place.removeprefix(f"oci://{registry.address}/").removesuffix(":one")
    put(open_store(place), b"x")
    config = b'{"architecture":"amd64","os":"linux"}'
    digest = f"sha256:{hashlib.sha256(config).hexdigest()}"
    start = api(registry, f"{name}/blobs/uploads/", "POST", b"").headers["Location"]
    path = start.split("/v2/")[1]
    api(registry, f"{path}&digest={digest}", "PUT", config, Content_Type="application/octet-stream")
    kind = "application/vnd.oci.image.config.v1+json"
    media = "application/vnd.oci.image.manifest.v1+json"
    manifest = {
        "schemaVersion": 2,
        "mediaType": media,
        "config": {"mediaType": kind, "digest": digest, "size": len(config)},
        "layers": [],
    }
    data = json.dumps(manifest).encode()
    api(registry, f"{name}/manifests/image", "PUT", data, Content_Type=media)
    with pytest.raises(FileError, match=r"not a sealed checkpoint but .*image\.config"):
        open_store(place.replace(":one", ":image")).open()
    names = [each.name for each in open_store(place.removesuffix(":one")).list()]
    assert names == [place]


def test_a_listing_has_every_sealed_file_with_size_and_properties(place):
    head, _ = put(open_store(place), b"x" * 10)
    put(open_store(place.replace(":one", ":two")), b"y" * 20, properties={})
    found = {each.name: each for each in open_store(place.removesuffix(":one")).list()}
    assert set(found) == {place, place.replace(":one", ":two")}
    assert (found[place].size, found[place].properties) == (len(head) + 10, PROPERTIES)


def test_a_repository_that_is_not_there_is_said(registry):
    with pytest.raises(UsageError, match="does not exist"):
        list(open_store(f"oci://{registry.address}/nobody/nothing").list())


def test_removed_is_the_manifest_with_its_tag(place):
    _, url = put(open_store(place), b"x")
    open_store(place).remove()
    for name in (place, url):
        with pytest.raises(UsageError, match="does not exist"):
            open_store(name).open()


def test_what_refers_to_a_removed_file_goes_with_it(registry, place):
    _, url = put(open_store(place), b"x")
    name = place.removeprefix(f"oci://{registry.address}/").removesuffix(":one")
    attached = attach_signature(registry, name, url.partition("@")[2])
    accept = f"{MEDIA_TYPE}, {INDEX_TYPE}"
    for digest in attached:
        api(registry, f"{name}/manifests/{digest}", Accept=accept).close()
    open_store(place).remove()
    for digest in attached:
        with pytest.raises(OSError, match="404"):
            api(registry, f"{name}/manifests/{digest}", Accept=accept)


def test_a_list_of_referrers_does_not_choose_what_is_removed(registry, place):
    other = place.replace(":one", ":other")
    _, url = put(open_store(place), b"x")
    head, other_url = put(open_store(other), b"y")
    name = place.removeprefix(f"oci://{registry.address}/").removesuffix(":one")
    victim = {"mediaType": MEDIA_TYPE, "digest": other_url.partition("@")[2], "size": 1}
    index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [victim]}
    path = f"{name}/manifests/{fallback_tag(url.partition('@')[2])}"
    api(registry, path, "PUT", json.dumps(index).encode(), Content_Type=INDEX_TYPE)
    open_store(place).remove()
    assert content(open_store(other)) == head + b"y"


# --- Rekey. ---


def test_a_new_head_stands_before_the_same_body(place, small):
    body = random.randbytes(4 * MIB)
    old, old_url = put(open_store(place), body)
    store = open_store(place)
    file = store.open()
    new = new_head(old)
    url = store.replace_head(file, new, {"dev.sealpoint.workload": "other"})
    assert content(open_store(place)) == content(open_store(url)) == new + body
    again = open_store(place).open()
    assert again.properties == {"dev.sealpoint.workload": "other"}
    assert again.manifest.body == file.manifest.body
    with pytest.raises(UsageError, match="does not exist"):
        open_store(old_url).open()


def test_every_tag_of_the_old_manifest_gets_the_new_head(registry, place):
    old, _ = put(open_store(place), b"body")
    name = place.removeprefix(f"oci://{registry.address}/").removesuffix(":one")
    media = "application/vnd.oci.image.manifest.v1+json"
    data = api(registry, f"{name}/manifests/one", Accept=media).read()
    api(registry, f"{name}/manifests/also", "PUT", data, Content_Type=media)
    store = open_store(place)
    new = new_head(old)
    store.replace_head(store.open(), new, {})
    assert content(open_store(place.replace(":one", ":also"))) == new + b"body"


def test_of_two_who_rekey_the_same_file_the_second_fails(place):
    old, _ = put(open_store(place), b"body")
    first, second = open_store(place), open_store(place)
    theirs, ours = first.open(), second.open()
    new = new_head(old)
    first.replace_head(theirs, new, {})
    with pytest.raises(SystemEnvironmentError, match="someone else"):
        second.replace_head(ours, new_head(old), {})
    assert content(open_store(place)) == new + b"body"


def test_a_head_of_another_checkpoint_is_not_put_before_a_body(place):
    old, _ = put(open_store(place), b"body")
    store = open_store(place)
    with pytest.raises(FileError, match="not one of this checkpoint"):
        store.replace_head(store.open(), new_head(), {})
    assert content(open_store(place)) == old + b"body"


def attach_signature(registry, name, digest):
    """By the tag of the fallback.  Returns the digests of the signature and of the index."""
    media = "application/vnd.oci.image.manifest.v1+json"
    empty = {
        "mediaType": "application/vnd.oci.empty.v1+json",
        "digest": f"sha256:{hashlib.sha256(b'{}').hexdigest()}",
        "size": 2,
    }
    signature = {
        "schemaVersion": 2,
        "mediaType": media,
        "artifactType": "application/vnd.example.signature",
        "config": empty,
        "layers": [empty],
        "subject": {"mediaType": media, "digest": digest, "size": 1},
    }
    data = json.dumps(signature).encode()
    described = {
        "mediaType": media,
        "digest": f"sha256:{hashlib.sha256(data).hexdigest()}",
        "size": len(data),
    }
    api(registry, f"{name}/manifests/{described['digest']}", "PUT", data, Content_Type=media)
    kind = "application/vnd.oci.image.index.v1+json"
    index = json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": [described]}).encode()
    api(registry, f"{name}/manifests/{fallback_tag(digest)}", "PUT", index, Content_Type=kind)
    return described["digest"], f"sha256:{hashlib.sha256(index).hexdigest()}"


def test_what_refers_to_the_file_is_attached_to_the_new_manifest(registry, place):
    old, url = put(open_store(place), b"body")
    name = place.removeprefix(f"oci://{registry.address}/").removesuffix(":one")
    digest = url.partition("@")[2]
    store = open_store(place)
    file = store.open()
    attach_signature(registry, name, digest)
    media = "application/vnd.oci.image.manifest.v1+json"

    moved_url = store.replace_head(file, new_head(old), {})

    moved = moved_url.partition("@")[2]
    (found,) = referrers(store._client, moved)
    answer = json.loads(api(registry, f"{name}/manifests/{found}", Accept=media).read())
    assert answer["subject"]["digest"] == moved
    assert answer["artifactType"] == "application/vnd.example.signature"
    assert referrers(store._client, digest) == []
    listed = [each.name for each in open_store(place.removesuffix(":one")).list()]
    assert listed == [place]


def test_where_nothing_can_be_deleted_a_rekey_says_what_is_left(tmp_path):
    server = Registry(tmp_path / "registry", delete=False)
    try:
        place = f"oci://{server.address}/kept:one"
        old, _ = put(open_store(place), b"body")
        store, new = open_store(place), new_head(old)
        with pytest.raises(SystemEnvironmentError, match=r"deletes nothing.*may still be there"):
            store.replace_head(store.open(), new, {})
        assert content(open_store(place)) == new + b"body"
    finally:
        server.close()
