"""A real registry for tests: docker-registry of Debian, open, with passwords over TLS, or with tokens.

The token server is the tests' own, for no package has one: it makes what docker-registry checks by its signature.
"""

from __future__ import annotations

import base64
import ctypes
import datetime as dt
import http.server
import json
import os
import subprocess
import threading
import time
import urllib.parse

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

from tests.store.bucket_servers import ROOT, Server

REGISTRY = ROOT / ".services" / "registry" / "usr" / "bin" / "docker-registry"
USER, PASSWORD = "alice", "a-password-that-nothing-may-print"
CONFIG = """\
version: 0.1
log: {{level: warn, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {files}}}, delete: {{enabled: {delete}}}}}
http: {{addr: "127.0.0.1:0", secret: any{tls}}}
{auth}
"""


def need_registry():
    """Skips, or fails where CI says that it must be there."""
    if not REGISTRY.exists():
        say = pytest.fail if os.environ.get("SEALPOINT_REQUIRE_SERVICES") == "1" else pytest.skip
        say("no registry here: scripts/get-services makes it (make test-services)")


class Registry(Server):
    """address: host and port."""

    def __init__(self, directory, *, auth="", tls="", delete=True):
        need_registry()
        directory.mkdir(parents=True, exist_ok=True)
        self.files = directory / "files"
        text = CONFIG.format(files=self.files, auth=auth, tls=tls, delete=str(delete).lower())
        config = directory / "config.yml"
        arguments = ["env", "REGISTRY_HTTP_ADDR=127.0.0.1:PORT", str(REGISTRY), "serve"]
        config.write_text(text)
        super().__init__([*arguments, str(config)], directory / "registry.log")
        self.address = f"127.0.0.1:{self.port}"

    def log(self):
        return (self.files.parent / "registry.log").read_text()


def make_authority(directory):
    """ca.crt; tls.crt and tls.key of 127.0.0.1, by that authority.  Returns the latter key and certificate."""
    ca_key, ca = _certificate("test authority", None)
    key, certificate = _certificate("127.0.0.1", (ca_key, ca))
    directory.mkdir(parents=True, exist_ok=True)
    pem = serialization.Encoding.PEM
    (directory / "ca.crt").write_bytes(ca.public_bytes(pem))
    (directory / "tls.crt").write_bytes(certificate.public_bytes(pem))
    (directory / "tls.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return key, certificate


def _certificate(name, issuer):
    import ipaddress

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[1].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        # Python 3.13 asks for both identifiers, and for the usage of an authority's key.
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(
                (issuer[0] if issuer else key).public_key()
            ),
            critical=False,
        )
        .add_extension(_usage(authority=issuer is None), critical=True)
    )
    if issuer:
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
    return key, builder.sign(issuer[0] if issuer else key, hashes.SHA256())


def _usage(*, authority):
    names = "content_commitment key_encipherment data_encipherment key_agreement encipher_only decipher_only"
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        **dict.fromkeys(names.split(), False),
    )


def with_passwords(directory):
    """A registry with TLS by an authority of its own and one user."""
    make_authority(directory)
    # The registry takes bcrypt only, which Debian's own C library of passwords has.
    crypt = ctypes.CDLL("libcrypt.so.1").crypt
    crypt.restype = ctypes.c_char_p
    hashed = crypt(PASSWORD.encode(), b"$2a$04$abcdefghijklmnopqrstuu").decode()
    assert len(hashed) == 60
    (directory / "htpasswd").write_text(f"{USER}:{hashed}\n")
    return Registry(
        directory,
        tls=f", tls: {{certificate: {directory}/tls.crt, key: {directory}/tls.key}}",
        auth=f"auth: {{htpasswd: {{realm: test, path: {directory}/htpasswd}}}}",
    )


class TokenServer:
    """Gives a user who knows the password a token for what is asked for, and nobody else anything."""

    def __init__(self, key, certificate, seconds=300):
        self.seen = []
        self.seconds = seconds
        chain = base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))
                server.seen.append(query.get("scope", ""))
                expected = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
                if self.headers.get("Authorization") != f"Basic {expected}":
                    self.send_error(401)
                    return
                body = json.dumps(
                    {"token": server.token(key, chain, query), "expires_in": server.seconds}
                ).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.realm = f"http://127.0.0.1:{self.http.server_address[1]}/token"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def token(self, key, chain, query):
        kind, name, actions = query["scope"].split(":")
        now = int(time.time())
        access = [{"type": kind, "name": name, "actions": actions.split(",")}]
        claims = {"iss": "tests", "sub": USER, "aud": query["service"], "exp": now + self.seconds}
        claims |= {"nbf": now - 10, "iat": now, "jti": "1", "access": access}
        parts = [{"typ": "JWT", "alg": "ES256", "x5c": [chain]}, claims]
        signed = b".".join(_base64url(json.dumps(part).encode()) for part in parts)
        r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(hashes.SHA256())))
        return (signed + b"." + _base64url(r.to_bytes(32) + s.to_bytes(32))).decode()

    def close(self):
        self.http.shutdown()
        self.http.server_close()


def _base64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def with_tokens(directory, seconds=300):
    """(registry, token server)"""
    key, certificate = make_authority(directory)
    tokens = TokenServer(key, certificate, seconds)
    auth = f'{{realm: "{tokens.realm}", service: tests, issuer: tests, rootcertbundle: {directory}/ca.crt}}'
    return Registry(directory, auth=f"auth: {{token: {auth}}}"), tokens


def log_in(directory, address, user=USER, password=PASSWORD):
    """A config.json as `docker login` leaves it."""
    directory.mkdir(exist_ok=True)
    encoded = base64.b64encode(f"{user}:{password}".encode()).decode()
    config = directory / "config.json"
    config.write_text(json.dumps({"auths": {address: {"auth": encoded}}}))
    config.chmod(0o600)
    return directory


def skopeo(*arguments, check=True):
    return subprocess.run(
        ["skopeo", "--override-os", "linux", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=check,
        timeout=120,
    )
