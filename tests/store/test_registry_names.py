"""Names, headers and manifests of registries: what nobody may be able to say to sealpoint without an error."""

from __future__ import annotations

import http.server
import json
import threading
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from sealpoint.errors import FileError, SealpointError, SystemEnvironmentError, UsageError
from sealpoint.store.oci import challenge, open_store, reference
from sealpoint.store.oci.client import Client, origin_of
from sealpoint.store.oci.manifest import ArtifactManifest, Blob, decode_json

DIGEST = "sha256:" + "0" * 64
# CI is busy: how long it takes to make an example says nothing.
unhurried = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@unhurried
@given(st.text() | st.text(alphabet="az09.:/@-_[]", max_size=60).map("oci://".__add__))
def test_a_name_is_refused_or_means_exactly_what_was_typed(url):
    try:
        name = reference.parse(url)
    except UsageError:
        return
    assert str(name) == url


@unhurried
@given(st.text() | st.text(alphabet='Bearer realm="x",\\= \t', max_size=80))
def test_no_challenge_ends_in_an_exception(header):
    chosen = challenge.choose([header])
    assert chosen is None or chosen.scheme in {"basic", "bearer"}
    if chosen and chosen.scheme == "bearer":
        assert chosen.parameters["realm"]


WORDS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
JSON = st.recursive(
    WORDS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
NAMES = st.sampled_from(["schemaVersion", "mediaType", "artifactType", "layers", "annotations"])


@unhurried
@given(st.dictionaries(NAMES, JSON).map(json.dumps).map(str.encode) | st.binary())
def test_any_other_manifest_is_an_error_of_the_file(data):
    with pytest.raises(FileError):
        ArtifactManifest.decode(data, "oci://r/n:t")


FIELDS = ["schemaVersion", "mediaType", "artifactType", "layers", "annotations"]


@unhurried
@given(st.sampled_from(FIELDS), JSON)
def test_a_manifest_with_one_field_exchanged_is_read_as_texts_and_sizes_or_refused(field, value):
    good = ArtifactManifest(Blob(DIGEST, 64 + 16384), (Blob(DIGEST, 5),), "t", {"a": "b"})
    data = json.dumps({**json.loads(good.encode()), field: value}).encode()
    try:
        found = ArtifactManifest.decode(data, "oci://r/n:t")
    except FileError:
        return
    assert all(type(text) is str for text in (found.title, *found.properties.values()))
    assert (found.head, found.body) == (good.head, good.body)


@pytest.mark.parametrize(
    "text", [r'{"a": "\ud800"}', r'{"\udfff": 1}', r'{"a": [{"b": "x\udc00"}]}']
)
def test_half_a_character_is_no_text(text):
    with pytest.raises(FileError, match="malformed"):
        decode_json(text.encode(), "it")


@pytest.mark.parametrize("host", ["a" * 64, f"{'a' * 64}.example", "a..b", ".a", "a_b"])
def test_what_cannot_be_the_name_of_a_host_is_refused(host):
    with pytest.raises(UsageError, match="address"):
        reference.parse(f"oci://{host}/n:t")


@pytest.mark.parametrize(
    ("registry", "named", "own"),
    [
        ("reg.example:443", "https://reg.example/v2/", True),
        ("reg.example", "https://reg.example:443/v2/", True),
        ("Reg.Example", "https://reg.example/v2/", True),
        ("reg.example", "https://reg.example:444/v2/", False),
        ("reg.example:444", "https://reg.example/v2/", False),
        ("reg.example", "https://reg.example.org/v2/", False),
    ],
)
def test_a_registry_is_the_same_with_and_without_the_usual_port(registry, named, own):
    client = Client(reference.parse(f"oci://{registry}/n:t"), plain_http=False)
    first = client.locate("/v2/")
    assert (origin_of(first) == origin_of(urlsplit(named))) is own


class Peer:
    """Answers every request in one way.  Of the tests' own: no real registry leads to such places."""

    def __init__(self, status, name, value):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture(autouse=True)
def no_login(tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))


IMPOSSIBLE = ["a..b", "a" * 64, ".a", f"{'a.' * 127}aaa", "%00", "[::1%25lo]", "a b", ""]


@pytest.mark.parametrize("host", IMPOSSIBLE)
def test_a_redirect_to_an_impossible_host_is_an_error_of_the_registry(host):
    with Peer(307, "Location", f"https://{host}/x") as peer:
        with pytest.raises(SystemEnvironmentError, match="does not name the address"):
            open_store(f"oci://{peer.address}/n:t").open()


@pytest.mark.parametrize("host", IMPOSSIBLE)
def test_a_token_server_at_an_impossible_host_is_an_error_of_the_registry(host):
    with Peer(401, "WWW-Authenticate", f'Bearer realm="https://{host}/x"') as peer:
        with pytest.raises(SystemEnvironmentError, match="does not name the address"):
            open_store(f"oci://{peer.address}/n:t").open()


@pytest.mark.parametrize("scheme", ["Basic", "Bearer"])
@pytest.mark.parametrize(
    "entry",
    [r'{"username": "a\ud800", "password": "p-secret"}', r'{"identitytoken": "\ud800p-secret"}'],
)
def test_credentials_that_cannot_be_sent_are_said_without_showing_them(tmp_path, scheme, entry):
    with Peer(401, "WWW-Authenticate", f'{scheme} realm="https://127.0.0.1:9/x"') as peer:
        config = tmp_path / "config.json"
        config.write_text(f'{{"auths": {{"{peer.address}": {entry}}}}}')
        config.chmod(0o600)
        with pytest.raises(SealpointError, match="malformed") as raised:
            open_store(f"oci://{peer.address}/n:t").open()
        assert "p-secret" not in f"{raised.value!r} {raised.value.hint}"
        assert raised.value.__suppress_context__
