"""Who may push to a registry and pull from it: passwords, tokens, helpers, and that credentials follow nobody."""

from __future__ import annotations

import json
import os
from urllib.parse import urlsplit

import pytest

from sealpoint.errors import SystemEnvironmentError
from sealpoint.store import retry
from sealpoint.store.oci import open_store
from tests.store.bucket_servers import Proxy
from tests.store.registry_helpers import (  # noqa: F401 - a fixture
    PROPERTIES,
    api,
    is_range,
    put,
    refuse,
    registry,
    send_all,
    store_at,
)
from tests.store.registry_servers import (
    PASSWORD,
    USER,
    log_in,
    with_passwords,
    with_tokens,
)
from tests.store.uploads import Spool, content, new_head

pytestmark = pytest.mark.services


@pytest.fixture(autouse=True)
def no_login(tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "nobody"))
    monkeypatch.setattr("sealpoint.store.retry.FIRST_PAUSE", 0.01)


@pytest.fixture
def guarded(tmp_path, monkeypatch):
    """(a proxy in front of a registry with tokens, its store)"""
    server, tokens = with_tokens(tmp_path / "guarded")
    proxy = Proxy(server.port)
    address = urlsplit(proxy.url).netloc
    monkeypatch.setenv("DOCKER_CONFIG", str(log_in(tmp_path / "config", address)))
    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.01)
    yield proxy, store_at(proxy, "secret/one")
    for each in (proxy, server, tokens):
        each.close()


def test_credentials_do_not_follow_a_redirect(guarded):
    proxy, store = guarded
    put(store, b"body")
    elsewhere = Proxy(1)
    seen = []

    def serve(exchange):
        seen.append({name.lower() for name in exchange.headers})
        exchange.start(
            206,
            {"content-length": "4", "content-range": "bytes 0-3/4"},
        )
        exchange.handler.wfile.write(b"body")
        return True

    elsewhere.before = serve
    try:
        file = store.open()
        proxy.before = lambda e: (
            is_range(e)
            and (e.start(307, {"location": f"{elsewhere.url}/blob", "content-length": "0"}) or True)
        )
        out = memoryview(bytearray(4))
        file.read_into(out, file.head_size)
        assert bytes(out) == b"body"
        assert len(seen) == 1
        assert "range" in seen[0]
        assert "authorization" not in seen[0]
    finally:
        elsewhere.close()


def test_credentials_do_not_follow_an_upload(guarded):
    """The place where an upload goes on may be on another host; the token is not for that."""
    proxy, store = guarded
    elsewhere = Proxy(1)
    seen = []
    elsewhere.before = lambda e: seen.append(set(map(str.lower, e.headers))) or refuse(e, 403, "NO")
    try:
        proxy.after = lambda e: (
            e.method == "POST"
            and e.status == 202
            and e.send(location=f"{elsewhere.url}/upload?state=1")
        )
        sending = store.begin(Spool(b"body"), force=False, unconditional=False)
        with pytest.raises(SystemEnvironmentError, match="NO"):
            sending.send(0, 0, 4)
        assert seen
        assert all("authorization" not in names for names in seen)
        sending.abort()
    finally:
        elsewhere.close()


def test_a_token_that_is_never_accepted_ends_after_one_renewal(guarded):
    proxy, store = guarded
    put(store, b"body")
    realm = {}
    proxy.after = lambda e: e.status == 401 and bool(realm.update(e.answer))
    store._client._auth._tokens.clear()
    proxy.before = lambda e: (
        realm != {} and refuse(e, 401, "UNAUTHORIZED", www_authenticate=realm["www-authenticate"])
    )
    store._client._auth._bearer = None
    proxy.seen.clear()
    with pytest.raises(SystemEnvironmentError, match="does not accept"):
        store.open()
    assert len(proxy.seen) == 2


def test_a_password_is_sent_over_tls_by_an_authority_of_the_users(tmp_path, monkeypatch):
    server = with_passwords(tmp_path / "registry")
    try:
        place = f"oci://{server.address}/secret/one:one"
        with pytest.raises(SystemEnvironmentError, match="certificate") as raised:
            open_store(place).open()
        assert "SSL_CERT_FILE" in raised.value.hint
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "registry" / "ca.crt"))
        with pytest.raises(SystemEnvironmentError, match="wants a user name and a password"):
            open_store(place).open()
        wrong = log_in(tmp_path / "wrong", server.address, password="wrong-and-secret")
        monkeypatch.setenv("DOCKER_CONFIG", str(wrong))
        with pytest.raises(SystemEnvironmentError, match="does not accept") as raised:
            open_store(place).open()
        assert "wrong-and-secret" not in f"{raised.value!r} {raised.value.hint}"
        monkeypatch.setenv("DOCKER_CONFIG", str(log_in(tmp_path / "config", server.address)))
        head, _ = put(open_store(place), b"body" * 1000)
        assert content(open_store(place)) == head + b"body" * 1000
    finally:
        server.close()


def test_tokens_are_asked_for_by_scope_and_renewed(tmp_path, monkeypatch):
    server, tokens = with_tokens(tmp_path / "registry", seconds=300)
    try:
        monkeypatch.setenv("DOCKER_CONFIG", str(log_in(tmp_path / "config", server.address)))
        store = open_store(f"oci://{server.address}/secret/one:one")
        head, _ = put(store, b"body" * 1000)
        assert content(store) == head + b"body" * 1000
        assert set(tokens.seen) == {
            "repository:secret/one:pull,push",
            "repository:secret/one:pull",
        }
        assert len(tokens.seen) == 2
        # What is refused by now is asked for once more.
        auth = store._client._auth
        auth._tokens = {scope: ("Bearer old", until) for scope, (_, until) in auth._tokens.items()}
        assert content(store) == head + b"body" * 1000
        assert len(tokens.seen) == 3
        new = new_head(head)
        store.replace_head(store.open(), new, {})
        assert "repository:secret/one:pull,delete" in tokens.seen
        assert content(store) == new + b"body" * 1000
    finally:
        server.close()
        tokens.close()


def test_without_the_password_the_token_server_gives_nothing(tmp_path, monkeypatch):
    server, tokens = with_tokens(tmp_path / "registry")
    try:
        store = open_store(f"oci://{server.address}/secret/one:one")
        with pytest.raises(SystemEnvironmentError, match="token server refused"):
            store.open()
        monkeypatch.setenv(
            "DOCKER_CONFIG", str(log_in(tmp_path / "c", server.address, password="n0"))
        )
        with pytest.raises(SystemEnvironmentError, match="token server refused") as raised:
            open_store(f"oci://{server.address}/secret/one:one").open()
        assert "n0" not in raised.value.message
    finally:
        server.close()
        tokens.close()


def test_a_credential_helper_is_asked_on_its_standard_input(tmp_path, monkeypatch):
    server = with_passwords(tmp_path / "registry")
    try:
        programs = tmp_path / "bin"
        programs.mkdir()
        helper = programs / "docker-credential-tests"
        helper.write_text(
            "#!/bin/sh\n"
            f'[ "$*" = get ] && [ "$(cat)" = "{server.address}" ] || exit 1\n'
            f'echo \'{{"ServerURL": "x", "Username": "{USER}", "Secret": "{PASSWORD}"}}\'\n'
        )
        helper.chmod(0o755)
        config = tmp_path / "config"
        config.mkdir()
        text = json.dumps({"credHelpers": {server.address: "tests"}})
        (config / "config.json").write_text(text)
        monkeypatch.setenv("DOCKER_CONFIG", str(config))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "registry" / "ca.crt"))
        monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        head, _ = put(open_store(f"oci://{server.address}/secret/one:one"), b"x")
        assert content(open_store(f"oci://{server.address}/secret/one:one")) == head + b"x"
    finally:
        server.close()
