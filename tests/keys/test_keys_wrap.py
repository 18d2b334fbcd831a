"""Wrapping and unwrapping: every kind does the same, and every failure looks the same."""

from __future__ import annotations

import os

import pytest
from cryptography.hazmat.primitives import hpke

from sealpoint.errors import IdentityError, UsageError
from sealpoint.format.constants import MAX_STANZA_BODY, Roots, StanzaKind, Suite
from sealpoint.format.stanza import Stanza, WrapContext, decode_stanzas, encode_stanzas
from sealpoint.keys import (
    Identity,
    Recipient,
    hybrid,
    passphrase_identity,
    passphrase_recipient,
    rsa as rsa_keys,
    scrypt,
    x25519,
)
from tests.keys.keys_helpers import IDENTITIES, CheapPassphrase, rsa_key

UNIFORM = "the key does not open this checkpoint"


def assert_uniform(identity, stanza, context):
    with pytest.raises(IdentityError) as caught:
        identity.unwrap(stanza, context)
    error = caught.value
    assert type(error) is IdentityError
    assert (str(error), error.hint) == (UNIFORM, None)
    assert error.__cause__ is None
    assert error.__context__ is None


@pytest.mark.parametrize("which", list(Roots))
def test_what_is_wrapped_is_unwrapped(identity, which):
    context = WrapContext(Suite.CHACHA20_POLY1305, os.urandom(16), which)
    roots = os.urandom(32 if which is Roots.METADATA else 64)
    recipient = identity.recipient()
    stanza = recipient.wrap(roots, context)
    assert identity.matches(stanza)
    assert identity.unwrap(stanza, context) == roots
    assert stanza.kind is recipient.kind is identity.kind
    assert stanza.fingerprint == recipient.fingerprint == identity.fingerprint
    assert decode_stanzas(encode_stanzas([stanza])) == [stanza]


def test_identities_and_recipients_are_what_the_interface_says(identity):
    assert isinstance(identity, Identity)
    assert isinstance(identity.recipient(), Recipient)


def test_wrapping_twice_gives_different_bodies(identity, context, roots):
    recipient = identity.recipient()
    assert recipient.wrap(roots, context).body != recipient.wrap(roots, context).body


@pytest.mark.parametrize("size", [0, 31, 32, 63, 65])
def test_roots_of_another_length_are_not_wrapped(identity, context, size):
    with pytest.raises(ValueError):
        identity.recipient().wrap(bytes(size), context)


@pytest.mark.parametrize(
    "change",
    [
        {"suite": Suite.CHACHA20_POLY1305},
        {"checkpoint_id": bytes(16)},
        {"roots": Roots.METADATA},
    ],
    ids=lambda c: next(iter(c)),
)
def test_a_stanza_moved_to_another_context_does_not_open(identity, context, roots, change):
    stanza = identity.recipient().wrap(roots, context)
    assert_uniform(identity, stanza, context._replace(**change))


def test_a_stanza_that_claims_other_roots_does_not_open(identity, context, roots):
    stanza = identity.recipient().wrap(roots, context)
    metadata = context._replace(roots=Roots.METADATA)
    moved = stanza._replace(roots=Roots.METADATA)
    assert_uniform(identity, moved, metadata)
    assert_uniform(identity, moved, context)


def test_a_stanza_whose_fingerprint_or_kind_was_changed_does_not_open(identity, context, roots):
    stanza = identity.recipient().wrap(roots, context)
    assert_uniform(identity, stanza._replace(fingerprint=b"\1" * 32), context)
    other = StanzaKind.X25519 if stanza.kind is not StanzaKind.X25519 else StanzaKind.HYBRID
    moved = stanza._replace(kind=other)
    assert not identity.matches(moved)
    assert_uniform(identity, moved, context)


def test_a_truncated_extended_or_empty_body_does_not_open(identity, context, roots):
    stanza = identity.recipient().wrap(roots, context)
    body = stanza.body
    for changed in (b"", body[:1], body[:-1], body[1:], body + b"\0", bytes(MAX_STANZA_BODY)):
        assert_uniform(identity, stanza._replace(body=changed), context)


def test_a_flipped_bit_anywhere_in_the_body_does_not_open(identity, context, roots):
    stanza = identity.recipient().wrap(roots, context)
    step = max(1, len(stanza.body) // 40)
    positions = {*range(0, len(stanza.body), step), len(stanza.body) - 1}
    if identity.kind is StanzaKind.SCRYPT:
        positions -= {scrypt.SALT_SIZE}  # the cost: has a test of its own, a high one takes long
    for position in positions:
        body = bytearray(stanza.body)
        body[position] ^= 1 << (position % 8)
        assert_uniform(identity, stanza._replace(body=bytes(body)), context)


@pytest.mark.parametrize("kind", [k for k in IDENTITIES if k != "rsa"])
def test_another_key_of_the_same_kind_does_not_open(kind, context, roots):
    owner, stranger = IDENTITIES[kind](), IDENTITIES[kind]()
    stanza = owner.recipient().wrap(roots, context)
    assert not stranger.matches(stanza)
    assert_uniform(stranger, stanza, context)
    readdressed = stanza._replace(fingerprint=stranger.fingerprint)
    assert_uniform(stranger, readdressed, context)


def test_another_rsa_key_does_not_open(context, roots):
    stanza = rsa_keys.RsaIdentity(rsa_key(0)).recipient().wrap(roots, context)
    stranger = rsa_keys.RsaIdentity(rsa_key(1))
    assert not stranger.matches(stanza)
    assert_uniform(stranger, stanza._replace(fingerprint=stranger.fingerprint), context)


def test_another_passphrase_does_not_open(context, roots):
    stanza = CheapPassphrase(b"one").recipient().wrap(roots, context)
    assert passphrase_identity(b"two").matches(stanza)
    assert_uniform(passphrase_identity(b"two"), stanza, context)
    assert_uniform(passphrase_identity(b"one\n"), stanza, context)


@pytest.mark.parametrize("log2_n", [0, 9, 21, 31, 63, 255])
def test_a_scrypt_cost_out_of_range_is_refused_before_it_is_spent(
    context, roots, log2_n, monkeypatch
):
    stanza = CheapPassphrase(b"one").recipient().wrap(roots, context)
    body = bytearray(stanza.body)
    body[scrypt.SALT_SIZE] = log2_n
    monkeypatch.setattr(scrypt, "_derive", lambda *_: pytest.fail("spent"))
    assert_uniform(passphrase_identity(b"one"), stanza._replace(body=bytes(body)), context)
    with pytest.raises(ValueError):
        passphrase_recipient(b"one", log2_n=log2_n).wrap(roots, context)


def test_a_changed_scrypt_cost_within_the_range_does_not_open(context, roots):
    stanza = CheapPassphrase(b"one").recipient().wrap(roots, context)
    body = bytearray(stanza.body)
    body[scrypt.SALT_SIZE] = 11
    assert_uniform(passphrase_identity(b"one"), stanza._replace(body=bytes(body)), context)


def test_a_passphrase_body_of_a_wrong_length_costs_no_scrypt(context, roots, monkeypatch):
    stanza = CheapPassphrase(b"one").recipient().wrap(roots, context)
    monkeypatch.setattr(scrypt, "_derive", lambda *_: pytest.fail("spent"))
    longer = stanza._replace(body=stanza.body + b"\0")
    assert_uniform(passphrase_identity(b"one"), longer, context)


def test_the_default_scrypt_cost_is_2_to_the_17(context, roots, monkeypatch):
    monkeypatch.setattr(scrypt, "_derive", lambda *_: bytes(32))
    stanza = passphrase_recipient(b"one").wrap(roots, context)
    assert stanza.body[16] == 17
    assert len(stanza.body) == 16 + 1 + 64 + 16


def test_an_empty_passphrase_is_a_mistake():
    with pytest.raises(UsageError):
        passphrase_recipient(b"")
    with pytest.raises(UsageError):
        passphrase_identity(b"")


def test_unwrap_uses_the_key_at_most_once(context, roots):
    calls = []

    class Counting(scrypt.PassphraseIdentity):
        pass

    original = scrypt.unseal
    stanza = CheapPassphrase(b"one").recipient().wrap(roots, context)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scrypt, "unseal", lambda *a: calls.append(1) or original(*a))
        Counting(b"one").unwrap(stanza, context)
    assert calls == [1]


def test_no_secret_shows_in_text_forms_or_errors(identity, context, roots):
    stanza = identity.recipient().wrap(roots, context)
    for thing in (identity, identity.recipient()):
        shown = f"{thing!r} {thing} {thing.name}"
        assert "horse" not in shown
        assert roots.hex() not in shown
        if identity.kind is not StanzaKind.SCRYPT:
            assert identity.fingerprint.hex()[:12] in shown
        assert "key=" not in shown
    broken = stanza._replace(body=stanza.body[:-1])
    with pytest.raises(IdentityError) as caught:
        identity.unwrap(broken, context)
    assert roots.hex() not in repr(caught.value)


def test_a_public_key_of_small_order_is_an_error_and_no_stanza(context, roots):
    for public in (bytes(32), b"\1" + bytes(31)):
        with pytest.raises(IdentityError, match="not a usable public key"):
            x25519.recipient(public).wrap(roots, context)


def test_a_malformed_ml_kem_key_is_refused_when_it_is_loaded():
    with pytest.raises(IdentityError):
        hybrid.recipient(b"\xff" * 1216)


def test_fingerprints_are_hashes_of_the_public_bytes_of_the_specification():
    import hashlib

    sizes = {"hybrid": 1216, "x25519": 32, "p256": 65, "p384": 97}
    for kind, size in sizes.items():
        recipient = IDENTITIES[kind]().recipient()
        assert len(recipient.public) == size
        assert recipient.fingerprint == hashlib.sha256(recipient.public).digest()


def test_stanzas_fit_their_limit(identity, context, roots):
    stanza = identity.recipient().wrap(roots, context)
    assert isinstance(stanza, Stanza)
    assert len(stanza.body) <= MAX_STANZA_BODY


def test_an_rsa_stanza_opens_with_oaep_sha256_and_the_context_as_label(context, roots):
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    recipient = rsa_keys.RsaIdentity(rsa_key()).recipient()
    stanza = recipient.wrap(roots, context)
    label = context.info(StanzaKind.RSA_OAEP, recipient.fingerprint)
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), label)
    assert rsa_key().decrypt(stanza.body, oaep) == roots


@pytest.mark.parametrize(
    ("kind", "kem", "kdf"),
    [
        ("hybrid", hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256),
        ("x25519", hpke.KEM.X25519, hpke.KDF.HKDF_SHA256),
        ("p256", hpke.KEM.P256, hpke.KDF.HKDF_SHA256),
        ("p384", hpke.KEM.P384, hpke.KDF.HKDF_SHA384),
    ],
)
def test_an_hpke_stanza_is_enc_and_ciphertext_of_the_suite_of_its_kind(
    kind, kem, kdf, context, roots
):
    identity = IDENTITIES[kind]()
    stanza = identity.recipient().wrap(roots, context)
    info = context.info(identity.kind, identity.fingerprint)
    suite = hpke.Suite(kem, kdf, hpke.AEAD.AES_256_GCM)
    assert suite.decrypt(stanza.body, identity._key, info=info) == roots
    assert len(stanza.body) == kem.enc_length() + 64 + 16


def test_a_passphrase_stanza_is_what_the_specification_says(context, roots):
    import hashlib

    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    body = CheapPassphrase(b"correct horse").recipient().wrap(roots, context).body
    salt, log2_n, ciphertext = body[:16], body[16], body[17:]
    key = hashlib.scrypt(b"correct horse", salt=salt, n=1 << log2_n, r=8, p=1, dklen=32)
    aad = context.info(StanzaKind.SCRYPT, bytes(32))
    assert AESGCM(key).decrypt(bytes(12), ciphertext, aad) == roots


def test_short_rsa_keys_are_refused():
    from cryptography.hazmat.primitives.asymmetric import rsa

    with pytest.raises(IdentityError, match="1024 bits"):
        rsa_keys.RsaIdentity(rsa.generate_private_key(65537, 1024))
