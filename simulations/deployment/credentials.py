"""Credentials of a deployed federation: who the SuperLink is, and which SuperNodes may join it.

A certificate authority signs the SuperLink's TLS certificate. Each client proves itself with an elliptic-curve
key pair, whose public half is registered at the SuperLink; `flower-supernode` reads it in OpenSSH's format.
"""

import os
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedmutual.errors import UserError

VALID = timedelta(days=825)
"""The longest life of a server certificate that all common TLS clients accept."""

CLOCKS_APART = timedelta(hours=1)
"""Certificates begin this long ago, so that a client whose clock is behind trusts them already."""

LOOPBACK = ("localhost", "127.0.0.1")
"""Always in the certificate: the SuperLink's own processes reach it there, also when it listens on all addresses."""

_Key = ec.EllipticCurvePrivateKey


def write_credentials(folder: Path, clients: int, hosts: list[str]) -> list[tuple[str, str]]:
    """Write everything to a new folder of mode 0700, private keys with mode 0600; (file, where it goes) of each.

    `hosts` are the names and addresses under which clients reach the SuperLink.

    Raises:
        UserError: the folder holds something, cannot be written, or a host is not a name or an address.
    """
    sans = [_alternative_name(host) for host in dict.fromkeys([*hosts, *LOOPBACK])]
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(f"{folder} is not empty, and keys are never overwritten: name a new folder")
        folder.chmod(0o700)
        authority, server = _new_key(), _new_key()
        _write(folder / "ca.crt", _authority_certificate(authority).public_bytes(Encoding.PEM), 0o644)
        _write(folder / "ca.key", _pem(authority), 0o600)
        _write(folder / "server.crt", _server_certificate(server, sans, authority).public_bytes(Encoding.PEM), 0o644)
        _write(folder / "server.key", _pem(server), 0o600)
        for y in range(clients):
            _write_key_pair(folder / f"client-{y}", f"client-{y}")
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from None
    places = [
        ("ca.crt", "SuperLink, every client, and wherever `flwr` is typed"),
        ("server.crt, server.key", "SuperLink"),
        ("ca.key", "nowhere: keep it offline; it signs the next server certificate"),
    ]
    return places + [
        (f"client-{y}, client-{y}.pub", f"the private key to client {y} only; `flwr supernode register` the .pub")
        for y in range(clients)
    ]


def _alternative_name(host: str) -> x509.GeneralName:
    with suppress(ValueError):  # what is no address may be a name
        return x509.IPAddress(ip_address(host))
    labels = host.split(".")
    if not all(label.replace("-", "").isalnum() and label.isascii() for label in labels):
        raise UserError(f"--host {host!r} is neither a name nor an address: such as fed.example.org or 10.0.0.7")
    return x509.DNSName(host)


def _new_key() -> _Key:
    return ec.generate_private_key(ec.SECP384R1())


def _builder(subject: str, issuer: str, key: _Key) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCKS_APART)
        .not_valid_after(now + VALID)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _authority_certificate(key: _Key) -> x509.Certificate:
    return (
        _builder("fedmutual CA", "fedmutual CA", key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .sign(key, hashes.SHA384())
    )


def _server_certificate(key: _Key, sans: list[x509.GeneralName], authority: _Key) -> x509.Certificate:
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
    return (
        _builder("fedmutual SuperLink", "fedmutual CA", key)
        .add_extension(x509.SubjectAlternativeName(sans), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(issuer, critical=False)
        .sign(authority, hashes.SHA384())
    )


def _usage(**granted: bool) -> x509.KeyUsage:
    uses = ["digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"]
    uses += ["key_cert_sign", "crl_sign", "encipher_only", "decipher_only"]
    return x509.KeyUsage(**{use: granted.get(use, False) for use in uses})


def _pem(key: _Key) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write_key_pair(path: Path, comment: str) -> None:
    """A private key at `path` and its public half beside it with the suffix .pub, as ssh-keygen writes them."""
    key = _new_key()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    _write(path, private, 0o600)
    _write(path.with_name(f"{path.name}.pub"), public + f" {comment}\n".encode(), 0o644)


def _write(path: Path, content: bytes, mode: int) -> None:
    """A new file that never has a wider mode than `mode`, and never replaces another."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
