"""Every kind of secret is found wherever it lies, nothing is shown of it, and what only looks like one is left alone.

The secrets are made here: none of them stands in this file.
"""

from __future__ import annotations

import base64
import json
import os
import random
import string
import sys

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519
from hypothesis import given, settings, strategies as st

from sealpoint.errors import SystemEnvironmentError
from sealpoint.inspect import memory, scanner
from sealpoint.inspect.detectors import DETECTORS, KINDS, entropy, looks_secret
from sealpoint.inspect.finding import open_source
from sealpoint.inspect.memory import PAGE
from sealpoint.inspect.scanner import Scanner, Tally, fast_triggers, slow_triggers
from sealpoint.inspect.secrets import Survey
from sealpoint.inspect.source import Access, images
from tests.checkpoint.checkpoint_helpers import seal_objects, seal_path
from tests.inspect.made import PARENT, PRESENT, Made, image, message, page, vma

A = 0x10000
CHUNK = 2 << 20
DER, PEM = serialization.Encoding.DER, serialization.Encoding.PEM
PKCS8, TRADITIONAL = (
    serialization.PrivateFormat.PKCS8,
    serialization.PrivateFormat.TraditionalOpenSSL,
)
SSH = serialization.PrivateFormat.OpenSSH
PLAIN = serialization.NoEncryption()
LOCKED = serialization.BestAvailableEncryption(b"a passphrase")
DICE = random.Random(4)


def letters(count: int, alphabet: str = string.ascii_letters + string.digits) -> bytes:
    return "".join(DICE.choices(alphabet, k=count)).encode()


def jwt() -> bytes:
    parts = [json.dumps({"alg": "HS256", "typ": "JWT"}), json.dumps({"sub": "somebody", "n": 1})]
    encoded = [base64.urlsafe_b64encode(p.encode()).rstrip(b"=") for p in parts]
    return b".".join([*encoded, base64.urlsafe_b64encode(os.urandom(32)).rstrip(b"=")])


def ssh_binary(key) -> bytes:
    text = key.private_bytes(PEM, SSH, PLAIN).decode().splitlines()
    return base64.b64decode("".join(text[1:-1]))


RSA = rsa.generate_private_key(65537, 2048)
BIG = rsa.generate_private_key(65537, 3072)
EC = ec.generate_private_key(ec.SECP256R1())
EC384 = ec.generate_private_key(ec.SECP384R1())
EDWARDS = ed25519.Ed25519PrivateKey.generate()
MONTGOMERY = x25519.X25519PrivateKey.generate()
SECRETS = {
    "RSA, PKCS#8, PEM": ("private-key", RSA.private_bytes(PEM, PKCS8, PLAIN)),
    "RSA, PKCS#1, PEM": ("private-key", RSA.private_bytes(PEM, TRADITIONAL, PLAIN)),
    "EC, SEC1, PEM": ("private-key", EC.private_bytes(PEM, TRADITIONAL, PLAIN)),
    "in JSON": ("private-key", json.dumps(RSA.private_bytes(PEM, PKCS8, PLAIN).decode()).encode()),
    "PKCS#8, encrypted": ("encrypted-key", EC.private_bytes(PEM, PKCS8, LOCKED)),
    "RSA, encrypted by OpenSSL": ("encrypted-key", RSA.private_bytes(PEM, TRADITIONAL, LOCKED)),
    "RSA, PKCS#8, DER": ("private-key", RSA.private_bytes(DER, PKCS8, PLAIN)),
    "RSA, PKCS#1, DER": ("private-key", RSA.private_bytes(DER, TRADITIONAL, PLAIN)),
    "RSA of 3072, PKCS#1, DER": ("private-key", BIG.private_bytes(DER, TRADITIONAL, PLAIN)),
    "EC, PKCS#8, DER": ("private-key", EC.private_bytes(DER, PKCS8, PLAIN)),
    "EC, SEC1, DER": ("private-key", EC.private_bytes(DER, TRADITIONAL, PLAIN)),
    "P-384, PKCS#8, DER": ("private-key", EC384.private_bytes(DER, PKCS8, PLAIN)),
    "P-384, SEC1, DER": ("private-key", EC384.private_bytes(DER, TRADITIONAL, PLAIN)),
    "Ed25519, DER": ("private-key", EDWARDS.private_bytes(DER, PKCS8, PLAIN)),
    "X25519, DER": ("private-key", MONTGOMERY.private_bytes(DER, PKCS8, PLAIN)),
    "OpenSSH": ("ssh-key", EDWARDS.private_bytes(PEM, SSH, PLAIN)),
    "OpenSSH, decoded": ("ssh-key", ssh_binary(EDWARDS)),
    "identity": (
        "private-key",
        b"-----BEGIN SEALPOINT IDENTITY-----\n" + base64.b64encode(os.urandom(99)) + b"\n",
    ),
    "JWT": ("jwt", jwt()),
    "AWS": ("aws-key", b"AKIA" + letters(16, string.ascii_uppercase + "234567")),
    "Google": ("google-key", b"AIza" + letters(35)),
    "Azure": ("azure-key", b"AccountKey=" + base64.b64encode(os.urandom(64))),
    "GitHub": ("github-token", b"ghp_" + letters(36)),
    "GitHub, fine": ("github-token", b"github_pat_" + letters(22) + b"_" + letters(59)),
    "GitLab": ("gitlab-token", b"glpat-" + letters(20)),
    "Slack": ("slack-token", b"xoxb-123456789012-" + letters(24)),
    "Stripe": ("stripe-key", b"sk_live_" + letters(24)),
    "model": ("model-key", b"sk-ant-api03-" + letters(80)),
    "registry": ("package-token", b"npm_" + letters(36)),
    "Vault": ("vault-token", b"hvs." + letters(90)),
    "mail": ("mail-key", b"SG." + letters(22) + b"." + letters(43)),
    "URL": ("url-password", b"postgres://app:" + letters(12) + b"@db.internal/app"),
    "named": ("named-secret", b'"db_password": "' + letters(14) + b'"'),
    "named in a shell": ("named-secret", b"API_KEY=" + letters(32)),
}
TRIGGERS = {"fast": fast_triggers, "slow": slow_triggers}


def survey(directory, **options):
    source = open_source(str(directory), Access.of([], None)).source
    found = Survey(**options)
    found.images(images(source))
    found.objects(source)
    source.close()
    return found.exposure


def memory_of(data: bytes) -> Made:
    data += b"\0" * (-len(data) % PAGE)
    return Made().task(1, [vma(A, len(data) // PAGE)], [(A, PRESENT, data)])


@pytest.mark.parametrize("speed", TRIGGERS)
@pytest.mark.parametrize("name", SECRETS)
def test_every_kind_is_found(name, speed):
    kind, secret = SECRETS[name]
    view = memoryview(b"\0 before\n" + secret + b"\0after")
    hits = list(Scanner(TRIGGERS[speed]()).scan(view))
    assert [h.kind for h in hits] == [kind]
    assert bytes(view[hits[0].start : hits[0].end]) in secret + b"\0"


def test_every_kind_has_a_name_and_a_test():
    assert {kind for kind, _ in SECRETS.values()} | {"environment"} == set(KINDS)
    assert {d.kind for d in DETECTORS} <= set(KINDS)


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_is_found_across_a_chunk_of_a_sealed_file(name, keys, access, tmp_path):
    _, secret = SECRETS[name]
    data = bytearray(CHUNK + 4 * PAGE)
    at = CHUNK - len(secret) // 2
    data[at - 1 : at + len(secret)] = b"\n" + secret
    made = memory_of(bytes(data))
    made.files["inventory.img"] = b""
    seal_path(keys, made.write(tmp_path / "images"), tmp_path / "s.sealed")
    with open_source(str(tmp_path / "s.sealed"), access) as source:
        found = Survey(reveal=True)
        found.images(images(source))
    (finding,) = found.exposure.findings
    assert finding.occurrences == 1
    assert finding.value in secret + b"\0"
    assert at <= finding.places[0].address - A < at + len(secret)


def test_the_same_secret_twice_is_one_finding_with_two_places(tmp_path):
    secret = SECRETS["GitHub"][1]
    made = Made()
    for pid in (1, 2):
        made.task(pid, [vma(A, 1)], [(A, PRESENT, page(b" " + secret + b" "))])
    (finding,) = survey(made.write(tmp_path)).findings
    assert (finding.occurrences, [p.pid for p in finding.places]) == (2, [1, 2])
    assert {p.address for p in finding.places} == {A + 1}


def test_shared_memory_is_searched_once(tmp_path):
    made = Made()
    for pid in (1, 2):
        made.task(pid, [vma(A, 1, memory.ANON_SHARED, shmid=5)], [])
    made.pagemap("shmem-5", [(0, PRESENT, page(b" " + SECRETS["AWS"][1] + b" "))])
    (finding,) = survey(made.write(tmp_path)).findings
    assert finding.occurrences == 1


def test_pages_of_a_parent_are_searched_too(tmp_path):
    secret = SECRETS["GitLab"][1]
    Made().task(1, [vma(A, 2)], [(A, PRESENT, page(secret + b" ") + page())]).write(tmp_path / "1")
    Made().task(1, [vma(A, 2)], [(A, PARENT, 1), (A + PAGE, PRESENT, page())]).write(tmp_path / "2")
    (tmp_path / "2/parent").symlink_to("../1")
    assert survey(tmp_path / "2").counts == {"gitlab-token": 1}


def test_what_was_overwritten_since_lies_in_the_parent_s_pages_and_is_found(tmp_path):
    secret = SECRETS["Vault"][1]
    made = Made().task(1, [vma(A, 2)], [(A, PRESENT, page(b" " + secret + b" ") + page())])
    old = {f"pre-checkpoint/{name}": data for name, data in made.files.items() if name[:2] != "mm"}
    new = Made().task(1, [vma(A, 2)], [(A, PRESENT, page(b"gone")), (A + PAGE, PARENT, 1)])
    directory = tmp_path / "archive"
    for name, data in {**old, **{f"checkpoint/{n}": d for n, d in new.files.items()}}.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)
    (directory / "checkpoint/parent").symlink_to("../pre-checkpoint")
    (finding,) = survey(directory).findings
    assert finding.places[0].within == "pre-checkpoint/pages-1.img"


def test_a_metadata_identity_is_not_told_that_nothing_was_found(keys, analyst, tmp_path, run_cli):
    made = memory_of(SECRETS["JWT"][1])
    made.files["pstree.img"] = image(message("pstree_entry", pid=1, ppid=0), kind="PSTREE")
    objects = {name: (data, None) for name, data in made.files.items()}
    seal_objects(keys, tmp_path / "s.sealed", objects, metadata=[analyst])
    options = ["-i", analyst.identity_path, "--trust", keys.trust_path]
    denied = run_cli("secrets", tmp_path / "s.sealed", *options)
    assert denied.code == 4
    assert keys.fingerprint[:16] in denied.err


def test_variables_that_hold_secrets_are_found_by_their_names(tmp_path):
    pairs = {
        "PATH": "/usr/bin",
        "DB_PASSWORD": "horse",
        "SSH_AUTH_SOCK": "/tmp/agent",
        "PWD": "/root",
        "TOKEN_FILE": "/run/token",
        "SECRET_KEY_BASE": letters(40).decode(),
        "AWS_ACCESS_KEY_ID": SECRETS["AWS"][1].decode(),
        "EMPTY_TOKEN": "",
        "AUTHOR": "somebody",
    }
    block = b"".join(f"{name}={value}\0".encode() for name, value in pairs.items())
    stack = [(A, PRESENT, page(block, 100, fill=b"\0"))]
    region = {"mm_env_start": A + 100, "mm_env_end": A + 100 + len(block)}
    made = Made().task(1, [vma(A, 1)], stack, **region)
    exposure = survey(made.write(tmp_path), reveal=True)
    found = {(f.kind, f.name): f.value.decode() for f in exposure.findings}
    assert found == {
        ("environment", "DB_PASSWORD"): "horse",
        ("environment", "SECRET_KEY_BASE"): pairs["SECRET_KEY_BASE"],
        ("aws-key", ""): pairs["AWS_ACCESS_KEY_ID"],
    }
    assert exposure.findings[0].places[0].address >= A + 100


def test_objects_that_are_no_memory_of_tasks_are_searched(tmp_path):
    made = Made().task(1, [vma(A, 1)], [])
    made.files["sk-queues.img"] = b"..." + SECRETS["Slack"][1] + b" ..."
    (finding,) = survey(made.write(tmp_path)).findings
    place = finding.places[0]
    assert (place.pid, place.address, place.within) == (0, 3, "sk-queues.img")


@pytest.mark.parametrize("speed", TRIGGERS)
@pytest.mark.parametrize(
    "text",
    [
        b"-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----",
        pytest.param(
            b"-----BEGIN CERTIFICATE-----\n" + base64.b64encode(os.urandom(300)), id="certificate"
        ),
        pytest.param(
            b"-----BEGIN PUBLIC KEY-----\n" + base64.b64encode(os.urandom(300)), id="public key"
        ),
        pytest.param(
            RSA.public_key().public_bytes(DER, serialization.PublicFormat.SubjectPublicKeyInfo),
            id="RSA",
        ),
        pytest.param(
            EC.public_key().public_bytes(DER, serialization.PublicFormat.SubjectPublicKeyInfo),
            id="EC",
        ),
        b"eyJhbGciOiJIUzI1NiJ9 and no more",
        b"eyJ" + b"!" * 8 + b".eyJ",
        b"xAKIA" + b"ABCDEFGHIJKLMNOP",
        b"AKIAIOSFODNN7",
        b"password = self.password",
        b"password: getpass.getpass()",
        b"PASSWORD=${DB_PASSWORD}",
        b"token = %s-%s-%s-%s",
        b"secret_key: /run/secrets/key1",
        b"access_token=https://issuer.example/a1",
        b"tokens: 1234567890123",
        b"://user:@host",
        b"https://example.org:8080/path@2",
        b"openssh-key-v1\0\0\0\0\0",
        b"\x30\x82\x01\x0a\x02\x01\x00\x02\x82\x01\x01\x00short",
    ],
)
def test_what_is_no_secret_is_left_alone(text, speed):
    view = memoryview(b"\0" + text + bytes(64))
    assert list(Scanner(TRIGGERS[speed]()).scan(view)) == []


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(st.binary(max_size=40), st.sampled_from([s for _, s in SECRETS.values()])),
        max_size=6,
    )
)
def test_both_ways_of_scanning_find_the_same_and_never_fail(pieces):
    view = memoryview(b" \n".join(pieces) + b"\n")
    fast = list(Scanner(fast_triggers()).scan(view))
    assert fast == list(Scanner(slow_triggers()).scan(view))
    for hit in fast:
        assert 0 <= hit.start < hit.end <= len(view)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_cut_and_damaged_secrets_never_fail(data):
    secret = bytearray(data.draw(st.sampled_from([s for _, s in SECRETS.values()])))
    at = data.draw(st.integers(0, len(secret)))
    secret[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    view = memoryview(bytes(secret[: data.draw(st.integers(1, len(secret)))]) + b"\0")
    for hit in Scanner().scan(view):
        assert 0 <= hit.start < hit.end <= len(view)


def test_memory_that_is_made_of_triggers_ends_soon():
    view = memoryview(b"eyJaaaaaaaa " * 200_000)
    assert list(Scanner().scan(view)) == []


def test_values_are_told_from_words():
    assert entropy(b"aaaaaaaa") == 0
    assert looks_secret(b"correct-horse-6c8ebcba51c6")
    assert not looks_secret(b"self.password_hash")
    assert not looks_secret("pässwort-12345".encode())


def test_a_tally_counts_each_secret_once_and_survives_anything(monkeypatch):
    tally = Tally()
    chunk = memoryview(b"\0".join([s for _, s in SECRETS.values()]) + b"\0")
    tally(chunk)
    first = dict(tally.counts)
    assert set(first) == {kind for kind, _ in SECRETS.values()}
    tally(chunk)
    assert dict(tally.counts) == first
    monkeypatch.setattr(Scanner, "scan", lambda *_: 1 / 0)
    tally(chunk)
    assert tally.failed == "ZeroDivisionError"


def test_a_tally_needs_hyperscan(monkeypatch):
    monkeypatch.setitem(sys.modules, "hyperscan", None)
    assert not scanner.has_hyperscan()
    with pytest.raises(SystemEnvironmentError) as error:
        Tally()
    assert f"{sys.executable} -m pip install hyperscan" in error.value.hint
    # The slow way is there all the same.
    assert [h.kind for h in Scanner().scan(memoryview(SECRETS["JWT"][1] + b" "))] == ["jwt"]


@pytest.fixture
def sealed_secrets(keys, tmp_path):
    data = page(b" " + SECRETS["GitHub"][1] + b" " + SECRETS["named"][1] + b"\x1b[2J ")
    made = Made().task(1, [vma(A, 1)], [(A, PRESENT, data)])
    made.files["inventory.img"] = b""
    objects = {name: (content, None) for name, content in made.files.items()}
    seal_objects(keys, tmp_path / "s.sealed", objects)
    return tmp_path / "s.sealed"


@pytest.mark.parametrize("as_json", [False, True])
def test_the_report_is_masked_unless_asked(run_cli, sealed_secrets, opening, as_json):
    arguments = ["secrets", sealed_secrets, *opening, *(["--json"] if as_json else [])]
    token = SECRETS["GitHub"][1].decode()
    masked = run_cli(*arguments)
    assert masked.code == 0
    assert token[:4] in masked.out
    assert token[4:12] not in masked.out + masked.err
    revealed = run_cli(*arguments, "--reveal")
    assert token in revealed.out
    assert "\x1b" not in revealed.out


def test_policy_is_told_by_the_exit_code(run_cli, sealed_secrets, opening):
    arguments = ["secrets", sealed_secrets, *opening]
    assert run_cli(*arguments, "--fail-on", "private-key").code == 0
    for kind in ("any", "grave", "github-token", "named-secret"):
        failed = run_cli(*arguments, "--json", "--fail-on", kind)
        assert failed.code == 5
        assert json.loads(failed.out)["counts"] == {"github-token": 1, "named-secret": 1}
        assert kind in failed.err
    assert run_cli(*arguments, "--fail-on", "bananas").code == 2
    assert run_cli(*arguments, "--pid", "7").code == 2
