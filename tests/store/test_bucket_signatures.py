"""Sealed files in a bucket of rclone's S3 server: it checks signatures, ignores conditions, and keeps files."""

from __future__ import annotations

import os

import pytest

from sealpoint.errors import SystemEnvironmentError, UsageError
from sealpoint.store import bucket_upload
from sealpoint.store.bucket import open_store
from tests.store.bucket_helpers import put, send_all
from tests.store.bucket_servers import BUCKET, KEY_ID, SECRET, start_rclone, use
from tests.store.uploads import MIB, Spool, new_head

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def rclone(tmp_path_factory):
    server = start_rclone(tmp_path_factory.mktemp("rclone"))
    yield server
    server.close()


@pytest.fixture
def place(rclone, monkeypatch):
    stores = []

    def opened(name, **settings):
        use(monkeypatch, rclone.url, **settings)
        stores.append(open_store(f"s3://{BUCKET}/{name}"))
        return stores[-1]

    yield opened
    for store in stores:
        store.close()


def parts_of(rclone, name):
    (parts,) = (rclone.files / f"{name}.parts").iterdir()
    return parts


def test_a_store_that_ignores_create_only_is_refused_and_the_probe_is_removed(place, rclone):
    store = place("refused")
    with pytest.raises(UsageError, match="refuse to overwrite") as caught:
        store.begin(Spool(b"x"), force=False, unconditional=False)
    assert "--unconditional" in caught.value.hint
    assert not list((rclone.files).glob("refused*/*"))


def test_unconditionally_it_stores_exactly_the_bytes_of_the_file(place, rclone):
    store, body = place("a file+é"), os.urandom(16 * MIB + 5)
    head = put(store, body, unconditional=True)
    parts = parts_of(rclone, "a file+é")
    assert sorted(file.name for file in parts.iterdir()) == ["body", "head-000000000"]
    assert (parts / "body").read_bytes() == body
    assert (parts / "head-000000000").read_bytes() == head
    assert store.open().size == len(head) + len(body)
    with pytest.raises(UsageError, match="exists already"):
        store.begin(Spool(b"x"), force=False, unconditional=True)


def test_a_range_that_is_answered_with_the_whole_object_is_named(place):
    store = place("ranges")
    put(store, b"body" * 1000, unconditional=True)
    file = store.open()
    with pytest.raises(
        SystemEnvironmentError, match="the whole object instead of a range"
    ) as caught:
        file.read_into(memoryview(bytearray(10)), file.head_size + 5)
    assert "copy the object" in caught.value.hint


def test_a_rekey_where_create_only_is_ignored_is_refused(place):
    store = place("rekey")
    head = put(store, b"body", unconditional=True)
    with pytest.raises(UsageError, match="refuse to overwrite"):
        store.replace_head(store.open(), new_head(head), {})


def test_a_wrong_key_is_refused_and_no_message_names_a_secret(place):
    store = place("secret", secret="another-secret-of-mine")
    with pytest.raises(SystemEnvironmentError, match="SignatureDoesNotMatch") as caught:
        store.check_free(force=False, unconditional=True)
    said = f"{caught.value.message} {caught.value.hint}"
    assert "another-secret" not in said
    assert KEY_ID not in said


def test_credentials_come_from_a_profile_of_the_files_too(place, rclone, tmp_path, monkeypatch):
    use(monkeypatch, rclone.url)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    (tmp_path / "credentials").write_text(
        f"[mine]\naws_access_key_id={KEY_ID}\naws_secret_access_key={SECRET}\n"
    )
    (tmp_path / "config").write_text(f"[profile mine]\nendpoint_url={rclone.url}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "mine")
    store = open_store(f"s3://{BUCKET}/profile")
    put(store, b"body", unconditional=True)
    assert (parts_of(rclone, "profile") / "body").read_bytes() == b"body"
    store.close()


def test_without_credentials_it_says_how_to_give_them(rclone, monkeypatch):
    use(monkeypatch, rclone.url)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    store = open_store(f"s3://{BUCKET}/nobody")
    with pytest.raises(SystemEnvironmentError, match="no credentials") as caught:
        store.check_free(force=False, unconditional=True)
    assert "AWS_PROFILE" in caught.value.hint
    store.close()


def test_an_aborted_upload_leaves_no_file(place, rclone):
    store = place("aborted")
    upload = store.begin(Spool(bytes(17 * MIB)), force=False, unconditional=True)
    send_all(upload, 17 * MIB)
    upload.abort()
    assert not [each for each in rclone.files.glob("**/aborted*/**/*") if each.is_file()]
    assert list(store._client.uploads("aborted")) == []


def test_an_upload_that_the_store_lost_is_sent_again_from_the_spool(place, rclone):
    store, body = place("lost"), os.urandom(33 * MIB)
    upload = store.begin(Spool(body), force=False, unconditional=True)
    upload.send(0, 0, 16 * MIB)
    for key, identity, _ in list(store._client.uploads(store._key)):
        bucket_upload.abort_upload(store._client, key, identity)
    upload.send(1, 16 * MIB, 16 * MIB)
    upload.send(2, 32 * MIB, MIB)
    head = new_head()
    upload.commit(head, {})
    assert (parts_of(rclone, "lost") / "body").read_bytes() == body


def test_an_upload_lost_before_its_completion_is_sent_again(place, rclone):
    store, body = place("lost-2"), os.urandom(MIB)
    upload = store.begin(Spool(body), force=False, unconditional=True)
    upload.send(0, 0, MIB)
    for key, identity, _ in list(store._client.uploads(store._key)):
        bucket_upload.abort_upload(store._client, key, identity)
    head = new_head()
    upload.commit(head, {})
    assert (parts_of(rclone, "lost-2") / "body").read_bytes() == body
