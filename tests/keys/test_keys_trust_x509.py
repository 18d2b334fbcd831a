"""Signers with X.509 certificates: authorities, paths, validity."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from sealpoint.errors import FileError, PolicyError
from sealpoint.keys import TrustPolicy, load_trust
from sealpoint.keys.certificate import ANY_USAGE
from sealpoint.keys.trust import SIGNER_USAGE
from tests.keys.keys_helpers import (
    DAY,
    NOW,
    change,
    ec_key,
    ed_key,
    make_ca,
    make_cert,
    rsa_key,
    signed,
)

CLIENT_AUTH = "1.3.6.1.5.5.7.3.2"
CODE_SIGNING = "1.3.6.1.5.5.7.3.3"


def test_a_certificate_of_a_trusted_authority_is_trusted(key, make_signer, write):
    ca = make_ca()
    signer = make_signer(key, ca.issue("Sally", key, usage=("digital_signature",)))
    by_path = load_trust([write("ca.pem", ca.pem)])
    by_bundle = load_trust([], ca_bundles=[write("bundle.pem", ca.pem)])
    for policy in (by_path, by_bundle):
        assert policy.pinned == ()
        verified = policy.evaluate(signed(signer))
        policy.check_time(verified, NOW)
        assert [v.name for v in verified.trusted] == ["CN=Sally"]
        assert verified.trusted[0].certificate.subject == "CN=Sally"


@pytest.mark.parametrize("ca_key", [ec_key, lambda: ec_key(ec.SECP384R1), lambda: rsa_key(1)])
def test_authorities_may_have_ec_and_rsa_keys(ca_key, make_signer, write):
    ca, key = make_ca(key=ca_key()), ed_key()
    signer = make_signer(key, ca.issue("Sally", key))
    assert load_trust([write("ca.pem", ca.pem)]).evaluate(signed(signer)).trusted


def test_a_certificate_issued_by_an_ed25519_authority_can_be_pinned_only(make_signer, write):
    ca, key = make_ca(key=ed_key()), ed_key()
    leaf = ca.issue("Sally", key)
    signer = make_signer(key, leaf)
    with pytest.raises(PolicyError, match="no valid path"):
        load_trust([write("ca.pem", ca.pem)]).evaluate(signed(signer))
    assert load_trust([write("leaf.pem", leaf.pem)]).evaluate(signed(signer)).trusted


def test_a_path_over_carried_intermediates_is_found(make_signer, write):
    ca, key = make_ca(), ec_key()
    middle = make_ca("Middle", issuer=ca)
    leaf = middle.issue("Sally", key)
    policy = load_trust([write("ca.pem", ca.pem)])
    verified = policy.evaluate(signed(make_signer(key, leaf, middle)))
    policy.check_time(verified, NOW)
    with pytest.raises(PolicyError, match="no valid path"):
        policy.evaluate(signed(make_signer(key, leaf)))


UNTRUSTED = {
    "another authority of the same name": lambda ca, key: make_ca().issue("x", key),
    "a self-signed certificate": lambda _, key: make_cert("x", key),
    "an issuer that is no authority": lambda ca, key: ca.issue("y", ca.key).issue("x", key),
    "an unknown critical extension": lambda ca, key: ca.issue("x", key, critical_unknown=True),
    "an authority that signs itself": lambda _, key: make_ca("x", key=key),
}


@pytest.mark.parametrize("make", UNTRUSTED.values(), ids=UNTRUSTED.keys())
def test_a_certificate_is_not_trusted_if_it_is_of(make, make_signer, write):
    ca, key = make_ca(), ec_key()
    if make is UNTRUSTED["an authority that signs itself"]:
        usage = ("digital_signature", "key_cert_sign")
        leaf = make_cert("x", key, ca=True, usage=usage, extended=SIGNER_USAGE)
    else:
        leaf = make(ca, key)
    with pytest.raises(PolicyError, match="no valid path"):
        load_trust([write("ca.pem", ca.pem)]).evaluate(signed(make_signer(key, leaf)))


def test_a_path_of_one_authority_to_itself_is_trusted(make_signer, write):
    key = ec_key()  # what `openssl req -x509` makes: CA:TRUE, no keyUsage
    both = make_cert("x", key, ca=True)
    policy = load_trust([write("c.pem", both.pem)])
    policy.check_time(policy.evaluate(signed(make_signer(key, both))), NOW)


def test_a_certificate_without_digital_signature_is_not_trusted(make_signer, write):
    ca, key = make_ca(), ec_key()
    signer = make_signer(key, ca.issue("x", key))
    crippled = ca.issue("x", key, usage=("key_agreement",))
    with pytest.raises(PolicyError, match="digitalSignature"):
        load_trust([write("ca.pem", ca.pem)]).evaluate(
            change(signed(signer), certificates=(crippled.der,))
        )
    with pytest.raises(PolicyError, match="digitalSignature"):
        load_trust([write("leaf.pem", crippled.pem)])


def test_a_required_extended_key_usage_is_required(make_signer, write):
    ca, key = make_ca(), ec_key()
    ca_file = write("ca.pem", ca.pem)
    good = {
        (): SIGNER_USAGE,
        (CODE_SIGNING,): CODE_SIGNING,
        (CODE_SIGNING, SIGNER_USAGE): SIGNER_USAGE,
    }
    for usages, usage in good.items():
        policy = load_trust([ca_file], usages=usages)
        for extended in (usage, None, ANY_USAGE, CLIENT_AUTH, "2.25.1"):
            leaf = ca.issue("leaf", key, extended=extended)
            signer = make_signer(key, leaf)
            if extended == usage:
                policy.check_time(policy.evaluate(signed(signer)), NOW)
            else:
                with pytest.raises(PolicyError, match="extendedKeyUsage") as raised:
                    policy.evaluate(signed(signer))
                assert (usages or (SIGNER_USAGE,))[0] in raised.value.message
                assert "signer_usages" in raised.value.message
            # What is pinned needs none, be it a certificate or its key.
            for pinned in (write("leaf.pem", leaf.pem), signer.key_id):
                policy = load_trust([pinned], usages=usages)
                policy.check_time(policy.evaluate(signed(signer)), NOW)
                policy = load_trust([ca_file], usages=usages)


def test_an_authority_in_the_middle_may_lack_the_usage_and_one_that_has_it_vouches_for_nothing(
    make_signer, write
):
    ca, middle_key, key = make_ca(), ec_key(), ec_key()
    middle = ca.issue("middle", middle_key, ca=True, usage=("key_cert_sign",))
    policy = load_trust([write("ca.pem", ca.pem)])
    good = make_signer(key, middle.issue("leaf", key), middle)
    policy.check_time(policy.evaluate(signed(good)), NOW)
    bad = make_signer(key, middle.issue("leaf", key, extended=None), middle)
    with pytest.raises(PolicyError, match="extendedKeyUsage"):
        policy.evaluate(signed(bad))


@pytest.mark.parametrize(
    ("extended", "believed"),
    [
        (None, True),
        (SIGNER_USAGE, True),
        (ANY_USAGE, True),
        (CLIENT_AUTH, False),
        ("2.25.1", False),
    ],
)
@pytest.mark.parametrize("depth", [1, 2])
def test_an_authority_in_the_middle_vouches_for_no_usage_but_those_it_was_made_for(
    extended, believed, depth, make_signer, write
):
    ca, key = make_ca(), ec_key()
    limits = {"ca": True, "usage": ("key_cert_sign",)}
    path = [ca.issue("middle", ec_key(), extended=extended, **limits)]
    if depth == 2:  # the limit is not shed by a further authority
        path.insert(0, path[0].issue("below", ec_key(), extended=SIGNER_USAGE, **limits))
    signer = make_signer(key, path[0].issue("leaf", key), *path)
    policy = load_trust([write("ca.pem", ca.pem)])
    if believed:
        policy.check_time(policy.evaluate(signed(signer)), NOW)
    else:
        with pytest.raises(PolicyError, match=r"no valid path.*an issuer has other usages"):
            policy.evaluate(signed(signer))
        # What a user names is believed as it is.
        policy = load_trust([write("middle.pem", path[-1].pem)])
        policy.check_time(policy.evaluate(signed(signer)), NOW)


def expired(ca, key):
    return ca.issue("Sally", key, start=-10 * DAY, end=-5 * DAY)


@pytest.mark.parametrize(
    "captured",
    [NOW, NOW - 4 * DAY, NOW - 11 * DAY, 0, (1 << 64) - 1],
    ids=["now", "days ago", "before", "the epoch", "the end"],
)
def test_a_certificate_must_be_valid_at_the_capture_time(captured, make_signer, write):
    ca, key = make_ca(start=-20 * DAY), ec_key()
    signer = make_signer(key, expired(ca, key), allow_expired=True)
    path = write("ca.pem", ca.pem)
    policy = load_trust([path])
    verified = policy.evaluate(signed(signer))
    policy.check_time(verified, NOW - 7 * DAY)  # expired by now, valid then
    with pytest.raises(PolicyError, match="no trusted signer was valid"):
        policy.check_time(verified, captured)
    load_trust([path], allow_expired=True).check_time(verified, captured)
    load_trust([path], at=NOW - 7 * DAY).check_time(verified, captured)


def test_an_authority_that_was_expired_at_the_capture_time_vouches_for_nothing(make_signer, write):
    ca, key = make_ca(start=-10 * DAY, end=-5 * DAY), ec_key()
    signer = make_signer(key, ca.issue("Sally", key, start=-9 * DAY))
    policy = load_trust([write("ca.pem", ca.pem)])
    verified = policy.evaluate(signed(signer))
    policy.check_time(verified, NOW - 7 * DAY)
    with pytest.raises(PolicyError, match="no valid path"):
        policy.check_time(verified, NOW - 2 * DAY)


def test_a_path_that_was_never_valid_is_refused_even_if_expiry_is_overlooked(make_signer, write):
    ca, key = make_ca(start=-10 * DAY, end=-5 * DAY), ec_key()
    signer = make_signer(key, ca.issue("Sally", key, start=-2 * DAY))
    with pytest.raises(PolicyError, match="no valid path"):
        load_trust([write("ca.pem", ca.pem)], allow_expired=True).evaluate(signed(signer))


def test_a_pinned_certificate_counts_in_its_time(make_signer, write):
    key = ec_key()
    cert = make_cert("Sally", key, start=-10 * DAY, end=-5 * DAY)
    path = write("leaf.pem", cert.pem)
    for signer in (make_signer(key), make_signer(key, cert, allow_expired=True)):
        policy = load_trust([path])
        verified = policy.evaluate(signed(signer))
        assert verified.trusted[0].name == "CN=Sally"
        policy.check_time(verified, NOW - 7 * DAY)
        with pytest.raises(PolicyError, match="CN=Sally expired on"):
            policy.check_time(verified, NOW)
        load_trust([path], allow_expired=True).check_time(verified, NOW)


def test_a_key_pinned_raw_and_as_certificate_has_no_expiry(make_signer, write):
    key = ec_key()
    cert = make_cert("Sally", key, start=-10 * DAY, end=-5 * DAY)
    signer = make_signer(key)
    policy = load_trust([write("leaf.pem", cert.pem), signer.key_id])
    policy.check_time(policy.evaluate(signed(signer)), NOW)


def test_one_trusted_signer_that_was_valid_suffices(make_signer, write):
    old, new = ec_key(), ed_key()
    cert = make_cert("Sally", old, start=-10 * DAY, end=-5 * DAY)
    first, second = make_signer(old), make_signer(new)
    policy = load_trust([write("leaf.pem", cert.pem), second.key_id])
    policy.check_time(policy.evaluate(signed(first, second)), NOW)


def test_check_time_without_a_trusted_signer_is_refused_unless_none_is_asked_for(signer):
    verified = TrustPolicy(names_only=True).evaluate(signed(signer))
    with pytest.raises(PolicyError, match="there is none"):
        TrustPolicy().check_time(verified, NOW)
    TrustPolicy(names_only=True).check_time(verified, NOW)
    TrustPolicy(allow_unsigned=True).check_time(verified, NOW)


def test_the_name_of_a_pinned_signer_does_not_come_from_the_file(make_signer):
    key = ec_key()
    raw = make_signer(key)
    # Anybody can issue a certificate for somebody else's public key and put it beside the signature.
    flattering = make_ca("Mallory").issue("The President", key)
    envelope = change(signed(raw), public_key=b"", certificates=(flattering.der,))
    verified = load_trust([raw.key_id]).evaluate(envelope)
    assert "President" not in verified.trusted[0].name


def test_a_certificate_of_another_key_cannot_be_put_beside_a_signature(make_signer):
    signer = make_signer(ec_key())
    envelope = change(signed(signer), public_key=b"", certificates=(make_cert("x", ec_key()).der,))
    with pytest.raises(FileError, match="names another key"):
        load_trust([signer.key_id]).evaluate(envelope)


def test_untrusted_names_are_fit_for_a_terminal(make_signer):
    key = ec_key()
    signer = make_signer(key, make_cert("a\x1b]0;b\x07\u202e", key))
    with pytest.raises(PolicyError) as caught:
        TrustPolicy().evaluate(signed(signer))
    assert caught.value.message.isprintable()
