"""Keys and certificates: that they are what Flower reads, that strangers cannot read them, that none is ever lost."""

import ssl
import stat
import subprocess
import sys
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from fedmutual.errors import UserError
from simulations.deployment.credentials import write_credentials
from tests.support.wire import bytes_of, is_a_key_that_flower_takes

PRIVATE = {"ca.key", "server.key", "client-0", "client-1"}
PUBLIC = {"ca.crt", "server.crt", "client-0.pub", "client-1.pub"}


@pytest.fixture
def folder(tmp_path):
    write_credentials(tmp_path / "keys", 2, ["fed.example.org", "10.0.0.7"])
    return tmp_path / "keys"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_private_keys_are_their_owners_alone(folder):
    assert {path.name for path in folder.iterdir()} == PRIVATE | PUBLIC
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE((folder / name).stat().st_mode) for name in PRIVATE} == {0o600}


def test_each_client_has_a_key_pair_of_its_own_that_flower_reads(folder):
    halves = set()
    for y in range(2):
        private = load_ssh_private_key((folder / f"client-{y}").read_bytes(), None)
        public = load_ssh_public_key((folder / f"client-{y}.pub").read_bytes())
        assert isinstance(public, ec.EllipticCurvePublicKey)
        assert is_a_key_that_flower_takes(public)
        assert bytes_of(private.public_key()) == bytes_of(public)
        halves.add(bytes_of(public))
    assert len(halves) == 2


def test_the_authority_vouches_for_the_server_under_its_names_and_loopback(folder):
    root = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    server = x509.load_pem_x509_certificate((folder / "server.crt").read_bytes())
    server.verify_directly_issued_by(root)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fed.example.org", "localhost"]
    assert names.get_values_for_type(x509.IPAddress) == [ip_address("10.0.0.7"), ip_address("127.0.0.1")]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.crt", folder / "server.key")  # raises where they are no pair


def test_nothing_is_ever_overwritten(folder):
    before = contents(folder)
    with pytest.raises(UserError, match="never overwritten"):
        write_credentials(folder, 2, [])
    assert contents(folder) == before


def test_a_host_that_is_none_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="neither a name nor an address"):
        write_credentials(tmp_path / "keys", 1, ["two words"])
    assert not (tmp_path / "keys").exists()


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_credentials(tmp_path / "file" / "keys", 1, [])


def test_the_command_says_what_goes_where_and_refuses_in_one_line(tmp_path):
    command = [sys.executable, "-c", "from simulations.cli.app import main; main()", "credentials", tmp_path / "keys"]
    first = subprocess.run([*command, "--clients", "2"], capture_output=True, text=True)
    assert first.returncode == 0
    assert all(name in first.stdout for name in PRIVATE | PUBLIC)
    again = subprocess.run([*command, "--clients", "2"], capture_output=True, text=True)
    assert (again.returncode, again.stdout, again.stderr.count("\n")) == (2, "", 1)
