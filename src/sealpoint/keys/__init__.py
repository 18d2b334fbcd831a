"""Who can open a checkpoint (recipients, identities) and whom to believe (signers, trust).

The nouns: Recipient wraps the roots of a checkpoint into a stanza, Identity unwraps them; Signer signs statements,
TrustPolicy says whose signatures count.  One kind of recipient per module; nothing here knows of CRIU, or of sealed
files beyond stanzas and signatures.  X.509 is loaded only where a certificate turns up, and making keys is a
module of its own (`sealpoint.keys.generate`), to keep the command line quick.
"""

from sealpoint.keys.base import Identity, Recipient
from sealpoint.keys.files import permissions_warning
from sealpoint.keys.load import load_authorities, load_identity, load_recipient
from sealpoint.keys.recipient_policy import CertificatePolicy
from sealpoint.keys.scrypt import passphrase_identity, passphrase_recipient
from sealpoint.keys.signer import Signer, load_signer
from sealpoint.keys.trust import (
    TrustedKey,
    TrustPolicy,
    Verified,
    VerifiedSignature,
    load_trust,
)

__all__ = [
    "CertificatePolicy",
    "Identity",
    "Recipient",
    "Signer",
    "TrustPolicy",
    "TrustedKey",
    "Verified",
    "VerifiedSignature",
    "load_authorities",
    "load_identity",
    "load_recipient",
    "load_signer",
    "load_trust",
    "passphrase_identity",
    "passphrase_recipient",
    "permissions_warning",
]
