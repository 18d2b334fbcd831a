"""What a registry, a user or a configuration hands over: names, challenges, manifests, credentials."""

from __future__ import annotations

import base64
import json
import string

import pytest
from hypothesis import given, strategies as st

from sealpoint.errors import FileError, SystemEnvironmentError, UsageError
from sealpoint.store.oci import challenge, credentials, reference
from sealpoint.store.oci.authorizer import _parse as parse_token
from sealpoint.store.oci.manifest import (
    ARTIFACT_TYPE,
    MAX_HEAD,
    MEDIA_TYPE,
    TITLE,
    ArtifactManifest,
    Blob,
    decode_json,
)
from sealpoint.store.oci.place import _next_page
from tests.store.test_registry_names import unhurried

DIGEST = "sha256:" + "0123456789abcdef" * 4

# --- Names. ---

NAMES = {
    "oci://localhost:5000/a:b": ("localhost:5000", "a", "b", ""),
    "oci://registry.example/team/app:v1.2_3-x": ("registry.example", "team/app", "v1.2_3-x", ""),
    f"oci://registry.example/a/b__c/d--e@{DIGEST}": (
        "registry.example",
        "a/b__c/d--e",
        "",
        DIGEST,
    ),
    "oci://[::1]:5000/a:b": ("[::1]:5000", "a", "b", ""),
    "oci://docker.io/library/x:latest": ("docker.io", "library/x", "latest", ""),
    "oci://registry.example/whole/repository": ("registry.example", "whole/repository", "", ""),
}


@pytest.mark.parametrize("url", NAMES)
def test_a_name_has_its_parts(url):
    found = reference.parse(url)
    assert tuple(found) == NAMES[url]
    assert str(found) == url


@pytest.mark.parametrize(
    "url",
    [
        "oci://",
        "oci://registry",
        "oci:///a:b",
        "oci://registry/",
        "oci://registry/:b",
        "oci://registry/a:",
        "oci://registry/a@",
        f"oci://registry/a:b@{DIGEST}",
        f"oci://registry/a@{DIGEST.upper()}",
        f"oci://registry/a@{DIGEST[:-1]}",
        "oci://registry/a@sha512:" + "0" * 128,
        "oci://registry/A:b",
        "oci://registry/a//b:c",
        "oci://registry/../a:b",
        "oci://registry/a/./b:c",
        "oci://registry/a___b:c",
        "oci://registry/a:b c",
        "oci://registry/a:b\n",
        "oci://registry/a\n:b",
        "oci://registry/a:b?x=y",
        "oci://registry/a:b#x",
        "oci://registry/a:" + "b" * 129,
        "oci://registry/" + "a" * 300 + ":b",
        "oci://registry:0/a:b",
        "oci://registry:65536/a:b",
        "oci://registry:/a:b",
        "oci://registry:http/a:b",
        "oci://user:password@registry/a:b",
        "oci://reg istry/a:b",
        "oci://registry\n/a:b",
        "oci://-registry/a:b",
        "oci://registry./a:b",
        "oci://ré/a:b",
        "oci://registry/٣:b",
        "OCI://registry/a:b",
        "s3://registry/a:b",
    ],
)
def test_what_is_no_name_is_refused(url):
    with pytest.raises(UsageError):
        reference.parse(url)


def test_a_password_in_a_name_is_not_shown_as_its_reason():
    with pytest.raises(UsageError, match="docker login"):
        reference.parse("oci://user:x@registry/a:b")


@unhurried
@given(st.text(max_size=80))
def test_a_name_is_its_own_text_or_refused(text):
    try:
        found = reference.parse(f"oci://{text}")
    except UsageError:
        return
    assert str(found) == f"oci://{text}"
    assert reference.parse(str(found)) == found


# --- Challenges. ---


def test_a_challenge_has_its_parameters():
    header = 'Bearer realm="https://a/t?x=1,2",service="s \\"q\\"",scope="repository:a:pull,push"'
    assert challenge.parse(header) == [
        challenge.Challenge(
            "bearer",
            {
                "realm": "https://a/t?x=1,2",
                "service": 's "q"',
                "scope": "repository:a:pull,push",
            },
        )
    ]


def test_of_several_challenges_the_token_is_taken():
    found = challenge.parse('Basic realm="x", Negotiate, BEARER Realm=https , , error = "e"')
    assert [each.scheme for each in found] == ["basic", "negotiate", "bearer"]
    assert found[2].parameters == {"realm": "https", "error": "e"}
    assert challenge.choose(['Basic realm="x"', 'Bearer realm="https://t"']).scheme == "bearer"
    assert challenge.choose(['Basic realm="x"', "Bearer"]).scheme == "basic"
    assert challenge.choose(["Negotiate", "Bearer service=x"]) is None


def test_the_first_of_two_parameters_of_one_name_counts():
    (found,) = challenge.parse('Bearer realm="https://a",realm="https://b"')
    assert found.parameters == {"realm": "https://a"}


@unhurried
@given(st.text(alphabet=string.printable, max_size=200) | st.text(max_size=50))
def test_no_challenge_is_an_error(text):
    for found in challenge.parse(text):
        assert found.scheme == found.scheme.lower()
        assert all(name == name.lower() for name in found.parameters)


@unhurried
@given(
    st.dictionaries(
        st.text(alphabet=string.ascii_lowercase, min_size=1, max_size=8),
        st.text(alphabet=string.printable.strip(), max_size=20),
        min_size=1,
        max_size=5,
    )
)
def test_quoted_parameters_come_back(parameters):
    quoted = ",".join(
        '{}="{}"'.format(name, value.replace("\\", "\\\\").replace('"', '\\"'))
        for name, value in parameters.items()
    )
    assert challenge.parse(f"Bearer {quoted}") == [challenge.Challenge("bearer", parameters)]


# --- Manifests. ---


def made(**changes):
    value = json.loads(
        ArtifactManifest(Blob(DIGEST, 64 + 16384), (Blob(DIGEST, 5),), "t", {"k": "v"}).encode()
    )
    value.update(changes)
    return value


def layer(**changes):
    return {**made()["layers"][1], **changes}


def test_a_manifest_is_read_as_it_was_written():
    written = ArtifactManifest(
        Blob(DIGEST, 64 + 16384),
        (Blob(DIGEST, 4 * 1024**3), Blob(DIGEST, 1)),
        "x.sealed",
        {"ü": "ö"},
    )
    assert ArtifactManifest.decode(written.encode(), "x") == written
    titles = [each["annotations"][TITLE] for each in json.loads(written.encode())["layers"]]
    assert titles == sorted(titles) == ["x.sealed.0000", "x.sealed.0001", "x.sealed.0002"]


HEAD = made()["layers"][0]
WRONG = {
    "another artifact": made(artifactType="application/vnd.example"),
    "no artifact type": {k: v for k, v in made().items() if k != "artifactType"},
    "an index": made(mediaType="application/vnd.oci.image.index.v1+json"),
    "another version": made(schemaVersion=3),
    "no layers": made(layers=[]),
    "layers that are none": made(layers={"0": HEAD}),
    "no head": made(layers=[layer(), layer()]),
    "a head only": made(layers=[HEAD]),
    "two heads": made(layers=[HEAD, HEAD, layer()]),
    "the head at the end": made(layers=[layer(), HEAD]),
    "a layer of another type": made(layers=[HEAD, layer(mediaType="text/plain")]),
    "a layer that is none": made(layers=[HEAD, "layer"]),
    "no digest": made(layers=[HEAD, layer(digest=None)]),
    "another digest": made(layers=[HEAD, layer(digest="md5:0")]),
    "a way out in the digest": made(layers=[HEAD, layer(digest="../../../v2/x")]),
    "a negative size": made(layers=[HEAD, layer(size=-1)]),
    "an empty body": made(layers=[HEAD, layer(size=0)]),
    "a size that is none": made(layers=[HEAD, layer(size="5")]),
    "a size that is true": made(layers=[HEAD, layer(size=True)]),
    "a vast size": made(layers=[HEAD, layer(size=1 << 63)]),
    "many vast sizes": made(layers=[HEAD] + [layer(size=1 << 50)] * 3),
    "a vast head": made(layers=[{**HEAD, "size": MAX_HEAD + 1}, layer()]),
    "a short head": made(layers=[{**HEAD, "size": 64}, layer()]),
    "annotations that are none": made(annotations=[]),
    "annotations that are no texts": made(annotations={"a": 1}),
    "too many annotations": made(annotations={str(n): "" for n in range(66)}),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_manifest_that_is_not_ours_is_refused(what):
    with pytest.raises(FileError):
        ArtifactManifest.decode(json.dumps(WRONG[what]).encode(), "x")


def test_what_else_it_is_is_said():
    with pytest.raises(FileError, match=r"an artifact of the type application/vnd\.example"):
        ArtifactManifest.decode(json.dumps(WRONG["another artifact"]).encode(), "x")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'{"a":1,"a":2}',
        b'{"a":1.0}',
        b'{"a":NaN}',
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"a":' * 100_000,
        b"\xff",
    ],
)
def test_json_that_two_readers_could_read_differently_is_refused(data):
    with pytest.raises(FileError):
        decode_json(data, "it")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=20,
)


@unhurried
@given(st.sampled_from(sorted(made())), JSON)
def test_a_manifest_with_anything_in_it_is_read_or_refused(key, value):
    try:
        found = ArtifactManifest.decode(json.dumps(made(**{key: value})).encode(), "x")
    except FileError:
        return
    assert found.size == 64 + 16384 + 5 or key == "layers"


@unhurried
@given(st.binary(max_size=200))
def test_bytes_are_no_manifest(data):
    with pytest.raises(FileError):
        ArtifactManifest.decode(data, "x")


def test_types_are_those_of_the_documents():
    assert made()["mediaType"] == MEDIA_TYPE
    assert made()["artifactType"] == ARTIFACT_TYPE == "application/vnd.sealpoint.checkpoint.v1"
    assert made()["config"]["mediaType"] == "application/vnd.oci.empty.v1+json"


@unhurried
@given(st.text(max_size=100))
def test_any_link_is_a_page_or_none(link):
    assert "<" not in _next_page(link)


# --- Credentials. ---


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))

    def write(value):
        path = tmp_path / "config.json"
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        path.chmod(0o600)

    return write


def encoded(text):
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"auth": encoded("alice:pass:word")}, ("alice", "pass:word", "")),
        ({"username": "alice", "password": "p"}, ("alice", "p", "")),
        ({"identitytoken": "t"}, ("", "", "t")),
        ({}, None),
    ],
)
def test_an_entry_gives_its_credentials(config, entry, expected):
    config({"auths": {"registry:5000": entry}})
    found = credentials.find("registry:5000")
    assert (None if found is None else tuple(found)) == expected
    assert credentials.find("registry:5001") is None


def test_an_entry_with_a_url_is_found(config):
    config({"auths": {"https://index.docker.io/v1/": {"auth": encoded("a:b")}}})
    assert credentials.find("docker.io") == ("a", "b", "")


def test_without_a_file_nobody_logs_in(tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "none"))
    assert credentials.find("registry") is None


@pytest.mark.parametrize(
    "value",
    [
        "{",
        {"auths": {"r": "secret-words"}},
        {"auths": {"r": {"auth": "secret-words"}}},
        {"auths": {"r": {"auth": encoded("secret-words")}}},
        {"auths": {"r": {"auth": 5}}},
        {"credHelpers": {"r": "../secret-words"}},
        {"credHelpers": {"r": ["a"]}},
        {"credsStore": "is-not-there"},
    ],
)
def test_a_file_that_cannot_be_used_is_said_without_its_words(config, value):
    config(value)
    with pytest.raises(SystemEnvironmentError) as raised:
        credentials.find("r")
    assert "secret-words" not in f"{raised.value.message} {raised.value.hint}"
    assert encoded("secret-words") not in raised.value.message


def test_credentials_are_not_in_their_text():
    assert "b" not in repr(credentials.Credentials("b", "b", "b")).replace("Credentials", "")


@pytest.mark.parametrize(
    "answer",
    [b"", b"{}", b'{"token":5}', b'{"token":""}', b'{"token":"a\\r\\nX: y"}', b'{"token":"a b"}'],
)
def test_a_token_that_is_none_is_refused(answer):
    with pytest.raises(SystemEnvironmentError):
        parse_token(answer, "it")


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [
        (b'{"token":"a.b-c=","expires_in":300}', 300.0),
        (b'{"access_token":"a.b-c="}', 60.0),
        (b'{"token":"a.b-c=","expires_in":-1}', 60.0),
        (b'{"token":"a.b-c=","expires_in":"x"}', 60.0),
        (b'{"token":"a.b-c=","expires_in":true}', 60.0),
    ],
)
def test_a_token_has_its_life(answer, seconds):
    assert parse_token(answer, "it") == ("Bearer a.b-c=", seconds)


def test_a_helper_of_any_path_is_not_run(config, tmp_path, monkeypatch):
    (tmp_path / "docker-credential-x").mkdir()
    program = tmp_path / "evil"
    program.write_text('#!/bin/sh\necho \'{"Username": "u", "Secret": "s"}\'\n')
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    config({"credHelpers": {"r": "x/../evil"}})
    with pytest.raises(SystemEnvironmentError, match="names a helper that is not valid"):
        credentials.find("r")
