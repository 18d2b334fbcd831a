"""Signers that are trusted for a part of all checkpoints."""

from __future__ import annotations

import ipaddress
import re

import pytest
from cryptography import x509

from sealpoint.errors import IdentityError, PolicyError
from sealpoint.format.statement import KINDS
from sealpoint.keys import load_signer, load_trust
from sealpoint.keys.scope import Claim, Scope, TrustTable, parse_table
from tests.keys.keys_helpers import DAY, NOW, ec_key, ed_key, make_ca, pem, public_pem, signed

MINE = Claim("billing", "full", NOW - 60)


def table(**values) -> TrustTable:
    return parse_table(values, lambda name: name)


@pytest.fixture
def signer(write):
    """A signer of raw keys, with its public key as a file."""
    key = ed_key()
    return load_signer(write("signer.key", pem(key))), write("signer.pub", public_pem(key))


def judged(policy, *signers, claim=MINE, at=NOW - 60) -> None:
    verified = policy.evaluate(signed(*signers))
    policy.check_time(verified, at)
    policy.check_scope(verified, claim, at)


@pytest.mark.parametrize(
    ("limits", "claim", "problem"),
    [
        ({}, MINE, None),
        ({"workloads": "billing"}, MINE, None),
        ({"workloads": ["shop", "billing"]}, MINE, None),
        ({"workloads": "bill*"}, MINE, None),
        ({"workloads": "billing*"}, MINE, None),
        ({"workloads": "*"}, MINE, None),
        ({"workloads": "bill"}, MINE, "workload"),
        ({"workloads": "Billing"}, MINE, "workload"),
        ({"workloads": "billing-*"}, MINE, "workload"),
        ({"workloads": "shop"}, MINE, "'billing'"),
        ({"workloads": "bill*"}, MINE._replace(workload=""), "without a workload"),
        ({"workloads": "*"}, MINE._replace(workload=""), None),
        ({"kinds": "full"}, MINE, None),
        ({"kinds": ["derived", "merged"]}, MINE, "kind 'full'"),
        *[({"kinds": k}, MINE._replace(kind=k), None) for k in KINDS],
        *[({"kinds": k}, MINE._replace(kind="other"), "kind 'other'") for k in KINDS],
        ({"max_age": "30m"}, MINE, None),
        ({"max_age": "30s"}, MINE, "after the capture"),
        ({"max_age": "1h"}, MINE._replace(captured=NOW - 4000), "after the capture"),
        ({"max_age": "1h"}, MINE._replace(captured=NOW + 200), None),  # as clocks may differ
        ({"max_age": "1h"}, MINE._replace(captured=NOW + 4000), "ahead of now"),
        ({"max_age": "1h"}, MINE._replace(captured=(1 << 64) - 1), "ahead of now"),
        ({"workloads": "billing"}, MINE._replace(captured=NOW + 4000), None),
        ({"workloads": "billing", "kinds": "merged"}, MINE, "kind"),
        ({"workloads": "shop", "kinds": "full"}, MINE, "workload"),
        ({"workloads": "billing", "kinds": "full", "max_age": "1h"}, MINE, None),
    ],
)
def test_each_limit_of_a_table_has_to_hold(signer, limits, claim, problem):
    key, public = signer
    policy = load_trust([table(key=public, **limits)])
    assert policy.names_somebody
    if problem is None:
        judged(policy, key, claim=claim)
        return
    with pytest.raises(PolicyError, match="no signer is trusted for this checkpoint") as raised:
        judged(policy, key, claim=claim)
    assert problem in raised.value.message
    assert "policy check" in raised.value.hint
    # Whoever is believed whatever was signed is not asked.
    judged(policy._replace(allow_unsigned=True), key, claim=claim)
    judged(policy._replace(names_only=True), key, claim=claim)
    # Expiry is another matter.
    with pytest.raises(PolicyError, match="for this checkpoint"):
        judged(policy._replace(allow_expired=True), key, claim=claim)


def test_one_grant_is_enough_and_one_signer(signer, write):
    key, public = signer
    other = load_signer(write("other.key", pem(ed_key())))
    limited = table(key=public, workloads="shop")
    for policy in (
        load_trust([public, limited]),
        load_trust([limited, table(key=public, workloads="billing")]),
        load_trust([limited, other.key_id]),
    ):
        judged(policy, key, other)
    with pytest.raises(PolicyError, match="for this checkpoint"):
        judged(load_trust([limited, table(key=other.key_id, kinds="merged")]), key, other)
    # Who is not named does not count, whatever another may sign.
    with pytest.raises(PolicyError, match="no trusted signer signed"):
        judged(load_trust([limited]), other)


NAMES = (
    x509.DNSName("node1.example.org"),
    x509.UniformResourceIdentifier("spiffe://example.org/billing"),
    x509.RFC822Name("sally@example.org"),
    x509.IPAddress(ipaddress.ip_address("192.0.2.7")),
)


@pytest.mark.parametrize(
    ("limits", "believed"),
    [
        ({"subjects": "CN=node1,O=Example"}, True),
        ({"subjects": "CN=node*"}, True),
        ({"subjects": ["CN=x", "CN=node1,*"]}, True),
        ({"subjects": "CN=node1"}, False),
        ({"subjects": "O=Example,CN=node1"}, False),
        ({"subjects": "cn=node1,o=example"}, False),
        ({"names": "dns:node1.example.org"}, True),
        ({"names": "dns:node*"}, True),
        ({"names": "uri:spiffe://example.org/*"}, True),
        ({"names": "email:sally@example.org"}, True),
        ({"names": "ip:192.0.2.7"}, True),
        ({"names": "dns:example.org"}, False),
        ({"names": "uri:node1.example.org"}, False),
        ({"names": "email:node1*"}, False),
        ({"subjects": "CN=node*", "names": "dns:node1.example.org"}, True),
        ({"subjects": "CN=node*", "names": "dns:node2.example.org"}, False),
        ({"subjects": "CN=other", "names": "dns:node1.example.org"}, False),
    ],
)
def test_subjects_and_alternative_names_limit_an_authority(make_signer, write, limits, believed):
    ca, key = make_ca(), ec_key()
    leaf = ca.issue("", key, subject="CN=node1,O=Example", alternatives=NAMES)
    policy = load_trust([table(authority=write("ca.pem", ca.pem), **limits)])
    if believed:
        judged(policy, make_signer(key, leaf))
        return
    with pytest.raises(PolicyError, match=r"subject|alternative names"):
        judged(policy, make_signer(key, leaf))


def test_a_certificate_without_names_has_none_that_is_wanted(make_signer, write):
    ca, key = make_ca(), ec_key()
    policy = load_trust([table(authority=write("ca.pem", ca.pem), names="dns:*")])
    with pytest.raises(PolicyError, match="alternative names"):
        judged(policy, make_signer(key, ca.issue("node1", key)))


def test_a_long_subject_is_compared_whole(make_signer, write):
    """What is shown of a subject is cut; what is compared is not."""
    ca, key = make_ca(), ec_key()
    units = ",".join(["OU=" + "x" * 60] * 3)
    policy = load_trust([table(authority=write("ca.pem", ca.pem), subjects=f"CN=node1,{units}")])
    judged(policy, make_signer(key, ca.issue("", key, subject=f"CN=node1,{units}")))
    with pytest.raises(PolicyError, match="subject"):
        judged(policy, make_signer(key, ca.issue("", key, subject=f"CN=node1,{units},O=y")))


def test_a_limited_authority_needs_the_usage_and_the_time_as_well(make_signer, write):
    ca, key = make_ca(start=-20 * DAY), ec_key()
    policy = load_trust([table(authority=write("ca.pem", ca.pem), workloads="billing")])
    with pytest.raises(PolicyError, match="extendedKeyUsage"):
        judged(policy, make_signer(key, ca.issue("x", key, extended=None)))
    leaf = ca.issue("x", key, start=-9 * DAY, end=-5 * DAY)
    old = make_signer(key, leaf, allow_expired=True)
    judged(policy, old, at=NOW - 6 * DAY)
    with pytest.raises(PolicyError, match="expired"):
        judged(policy, old, at=NOW - 4 * DAY)


def test_a_grant_for_another_workload_lends_no_validity_to_one_that_expired(make_signer, write):
    key = ec_key()
    leaf = make_ca().issue("x", key, start=-9 * DAY, end=-5 * DAY)
    signer = make_signer(key, leaf, allow_expired=True)
    expired = write("x.pem", leaf.pem)
    policy = load_trust([expired, table(key=signer.key_id, workloads="shop")])
    judged(policy, signer, at=NOW - 6 * DAY)
    with pytest.raises(PolicyError, match="for this checkpoint"):
        judged(policy, signer, at=NOW - DAY)
    judged(policy, signer, at=NOW - DAY, claim=MINE._replace(workload="shop"))


def test_reasons_name_each_grant(signer, write):
    key, public = signer
    other = load_signer(write("other.key", pem(ed_key())))
    policy = load_trust([table(key=public, workloads="shop"), public])
    verified = policy._replace(names_only=True).evaluate(signed(key, other))
    full, limited, nobody = policy.reasons(verified, MINE, NOW)
    assert full.believed
    assert not limited.believed
    assert "trusted for workloads shop" in limited.text
    assert (nobody.believed, nobody.grant, nobody.key_id) == (False, "", other.key_id)


AGES = (5, "5", "d", "0d", "-1d", "1y", "1 d", "1.5h", "", True, ["1d"], "9" * 10 + "d")


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({}, "either key or authority"),
        ({"key": "a", "authority": "b"}, "either key or authority"),
        ({"key": []}, "either key or authority"),
        ({"key": "a", "workload": "x"}, "no such setting in a table: workload"),
        ({"key": "a", "workloads": []}, "workloads is empty"),
        ({"key": "a", "workloads": ""}, "none of them empty"),
        ({"key": "a", "workloads": [1]}, "workloads must be a string"),
        ({"key": "a", "workloads": "a*b"}, "at the end"),
        ({"key": "a", "workloads": "**"}, "at the end"),
        ({"key": "a", "kinds": "whole"}, "'whole' is none of full"),
        ({"key": "a", "kinds": "*"}, "'*' is none of full"),
        ({"key": "a", "subjects": "CN=x"}, "limit an authority"),
        ({"key": "a", "names": "dns:x"}, "limit an authority"),
        ({"authority": "a", "names": "node1"}, "does not begin with dns:"),
        ({"authority": "a", "names": "dns:"}, "does not begin with dns:"),
        *[({"key": "a", "max_age": age}, "max_age must be a number and its unit") for age in AGES],
    ],
)
def test_a_table_with_mistakes_says_so(values, problem):
    with pytest.raises(ValueError, match=re.escape(problem)):
        table(**values)


def test_a_table_is_written_as_it_is_read():
    full = table(
        authority=["a", "b"],
        workloads="w*",
        kinds=["full"],
        subjects="CN=x",
        names="dns:x",
        max_age="2w",
    )
    assert full.scope == Scope(("w*",), ("full",), ("CN=x",), ("dns:x",), 14 * DAY)
    for one in (full, table(key="a")):
        assert parse_table(one.to_settings(), lambda name: name) == one


def test_authorities_are_no_keys_of_a_table(write):
    path = write("ca.pem", make_ca().pem)
    with pytest.raises(IdentityError, match="holds authorities, not a signer"):
        load_trust([table(key=path)])
    key = write("signer.pub", public_pem(ed_key()))
    with pytest.raises(IdentityError, match="authorities"):
        load_trust([table(authority=key)])


def test_two_tables_of_one_authority_keep_their_names(make_signer, write):
    """A certificate that one table lets in by its subject gains nothing by the workloads of another."""
    ca, key = make_ca(), ec_key()
    authority = write("ca.pem", ca.pem)
    policy = load_trust(
        [
            table(authority=authority, subjects="CN=node1", workloads="shop"),
            table(authority=authority, subjects="CN=node2", workloads="billing"),
        ]
    )
    judged(policy, make_signer(key, ca.issue("node2", key)))
    with pytest.raises(PolicyError, match="for this checkpoint"):
        judged(policy, make_signer(key, ca.issue("node1", key)))
