"""What the doctor says of real packages, places, certificates and servers that are well, and of ones that are not."""

import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from fedmutual.config import RunConfig
from fedmutual.errors import UserError
from fedmutual.networks import build
from server.flower import Connection, read_connection
from simulations.deployment import doctor
from simulations.deployment.doctor import authority, superlink

DAY = timedelta(days=1)
COMMAND = [sys.executable, "-c", "from simulations.cli.app import main; main()", "doctor"]


def result(findings):
    """{check: finding}."""
    return {finding.check: finding for finding in findings}


def certify(folder, begins=-DAY, ends=365 * DAY, host="localhost"):
    """A certificate that vouches for itself, `begins` and `ends` from now, and its key: (crt, key)."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now + begins, now + ends)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir(exist_ok=True)
    (folder / "crt").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / "key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return folder / "crt", folder / "key"


@pytest.fixture
def serve(monkeypatch, tmp_path):
    """(crt, key, seconds its clock is ahead) -> the connection to a TLS server that has them."""
    servers = []
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))

    def start(crt, key, ahead=0.0, trusted=None):
        class Answer(BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.send_response(404)
                self.end_headers()

            def date_time_string(self, timestamp=None):
                return super().date_time_string(time.time() + ahead)

            def log_message(self, *arguments): ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        server.handle_error = lambda *arguments: None  # who does not trust a certificate hangs up
        if crt:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(crt, key)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        address = f'address = "localhost:{server.server_port}"\nroot-certificates = "{trusted or crt}"\n'
        (tmp_path / "config.toml").write_text(f"[superlink.fed]\n{address}")
        return read_connection("fed")

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("begins", "ends", "verdict", "says"),
    [
        (-DAY, 100 * DAY + timedelta(hours=1), "ok", "100 days left"),
        (-DAY, 9 * DAY + timedelta(hours=1), "warning", "9 days left"),
        (-30 * DAY, -3 * DAY, "wrong", "3 days ago"),
        (2 * DAY, 30 * DAY, "wrong", "not valid before"),
    ],
)
def test_dates_of_certificates(serve, tmp_path, begins, ends, verdict, says):
    crt, key = certify(tmp_path / "a", begins, ends)
    connection = serve(crt, key)
    seen = result([*authority(connection), *superlink(connection)])
    for check in ("authority", "certificate"):
        assert seen[check].verdict == verdict
        assert says in seen[check].seen
        assert bool(seen[check].remedy) == (verdict != "ok")
    assert (seen["tls"].verdict == "wrong") == (verdict == "wrong")


def test_a_certificate_for_another_host_is_told_with_the_hosts_that_it_is_for(serve, tmp_path):
    tls = result(superlink(serve(*certify(tmp_path / "a", host="fed.example.org"))))["tls"]
    assert tls.verdict == "wrong"
    assert "mismatch" in tls.seen
    assert "it is for fed.example.org" in tls.remedy
    assert "--host localhost" in tls.remedy


def test_a_certificate_of_another_authority_is_told(serve, tmp_path):
    other, _ = certify(tmp_path / "b")
    tls = result(superlink(serve(*certify(tmp_path / "a"), trusted=other)))["tls"]
    assert tls.verdict == "wrong"
    assert "ca.crt" in tls.remedy


@pytest.mark.parametrize(
    ("ahead", "verdict", "says"),
    [(0, "ok", ""), (200, "ok", "behind"), (400, "wrong", "s behind"), (-60, "wrong", "s ahead")],
)
def test_clocks_are_compared_as_the_superlink_does(serve, tmp_path, ahead, verdict, says):
    """It refuses what is signed more than 5 s in its future or 305 s in its past."""
    clock = result(superlink(serve(*certify(tmp_path / "a"), ahead)))["clock"]
    assert (clock.verdict, bool(clock.remedy)) == (verdict, verdict == "wrong")
    assert says in clock.seen


def test_what_is_no_superlink_is_told_in_the_words_of_flower(serve, tmp_path):
    answer = result(superlink(serve(*certify(tmp_path / "a"))))
    assert (answer["tls"].verdict, answer["clock"].verdict) == ("ok", "ok")
    assert answer["superlink"].verdict == "wrong"
    assert answer["superlink"].seen.startswith("flwr list: ")


def test_a_port_without_tls_and_a_closed_one_are_told_apart(serve, tmp_path):
    (plain,) = superlink(serve(None, None, trusted=certify(tmp_path / "a")[0]))
    assert (plain.check, plain.verdict) == ("superlink", "wrong")
    assert "does not speak TLS" in plain.seen
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        address = f"localhost:{taken.getsockname()[1]}"
        (closed,) = superlink(Connection("fed", address, str(tmp_path / "a/crt")))
    assert closed.verdict == "wrong"
    assert "does not answer" in closed.seen


@pytest.mark.parametrize(("content", "says"), [(None, "cannot be read"), ("no certificate", "holds no certificate")])
def test_root_certificates_that_are_none(monkeypatch, tmp_path, content, says):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    path = tmp_path / "ca.crt"
    (tmp_path / "config.toml").write_text(f'[superlink.fed]\naddress = "a:1"\nroot-certificates = "{path}"')
    if content:
        path.write_text(content)
    (finding,) = authority(read_connection("fed"))
    assert finding.verdict == "wrong"
    assert says in finding.seen


def test_unknown_connections_are_wrong_usage(monkeypatch, tmp_path):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"config.toml is missing: name the connection there"):
        read_connection("fed")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "config.toml").write_text('[superlink]\ndefault = "a"\n[superlink.a]\naddress = "a:1"\n')
    with pytest.raises(UserError, match=r"no connection 'fed' in .*: there are a$"):
        read_connection("fed")


@pytest.mark.parametrize(
    ("package", "version", "says"),
    [
        ("flwr", "1.40.0", ">=1.41"),
        ("ray", "2.9.0", "==2.55.1"),
        ("torch", "2.1.0", ">=2.6"),
        ("scipy", "1.0", ">=1.12"),
    ],
)
def test_an_old_package_is_told_with_the_command_that_mends_it(monkeypatch, tmp_path, package, version, says):
    information = tmp_path / f"{package}-{version}.dist-info"
    information.mkdir()
    needs = (
        'Requires-Dist: ray==2.55.1; extra == "simulation"\nProvides-Extra: simulation\n' if package == "flwr" else ""
    )
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n{needs}")
    monkeypatch.syspath_prepend(tmp_path)
    seen = result(doctor.packages())
    assert seen[package].verdict == "wrong"
    assert version in seen[package].seen
    assert says in seen[package].remedy
    assert {check for check, finding in seen.items() if finding.verdict == "wrong"} == {package}


def test_packages_of_this_environment_fit():
    assert {finding.verdict for finding in [*doctor.python(), *doctor.packages()]} == {"ok"}


def test_a_gpu_is_wanted_only_where_the_settings_say_so():
    (free,), (bound,) = doctor.gpu(RunConfig()), doctor.gpu(RunConfig().but(device="cuda"))
    assert free.verdict != "wrong"
    assert (bound.verdict == "wrong") is not torch.cuda.is_available()


def test_variables_that_the_services_need(monkeypatch):
    for name, value in doctor.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    (well,) = doctor.environment()
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    (ill,) = doctor.environment()
    assert (well.verdict, ill.verdict) == ("ok", "warning")
    assert ill.seen == "not set: FLWR_TELEMETRY_ENABLED=0"


@pytest.mark.parametrize(
    ("content", "verdict", "says"),
    [
        ({"images": np.zeros((30, 4, 4), np.uint8)}, "ok", "30 samples of 1 x 4 x 4"),
        ({"pictures": np.zeros(3)}, "wrong", "images"),
        (None, "wrong", "is missing"),
    ],
)
def test_data_are_opened(tmp_path, content, verdict, says):
    if content:
        np.savez(tmp_path / "data.npz", **content)
    settings = {"data": "npz", "data_path": str(tmp_path / "data.npz"), "imbalance": "none", "held_out": 0, "test": 0}
    (finding,) = doctor.data(RunConfig().but(**settings))
    assert finding.verdict == verdict
    assert says in f"{finding.seen} {finding.remedy}"


def test_a_store_that_cannot_be_written_is_told(tmp_path):
    seen = result(doctor.disks(RunConfig().but(store="/proc/store", out=str(tmp_path / "run"))))
    assert (seen["store"].verdict, seen["run folder"].verdict) == ("wrong", "ok")
    assert "/proc/store cannot be written" in seen["store"].seen
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_told(tmp_path):
    """A network of 400 TB, of which no byte is made."""
    huge = RunConfig().but(width=10**7, store=str(tmp_path), out=str(tmp_path / "run"))
    for finding in [*doctor.disk(huge), *doctor.disks(huge)]:
        assert finding.verdict == "wrong"
        assert finding.remedy.startswith("free ")


def test_room_is_counted_in_what_a_run_writes(small):
    """No more than it says, and not far from it."""
    from tests.support.federation import federate

    config = small(rounds=6, checkpoint_every=2)
    federate(config)
    network = sum(tensor.nbytes for tensor in build(config, (1, 8, 8), 0).state_dict().values())
    written = {
        "store": sum(path.stat().st_size for path in Path(config.federation.store).rglob("*.safetensors")),
        "run folder": sum(path.stat().st_size for path in Path(config.federation.out).rglob("*.safetensors")),
    }
    assert network * 10 * 4 <= written["store"] <= doctor._states(config) * 1.2
    assert network * 10 <= written["run folder"] <= doctor._checkpoints(config) * 1.2


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("-s", "data=npz", "-s", "data-path=/nowhere.npz", "--json"), 1, "checks are wrong: data"),
        (("--connection", "fed"), 2, "config.toml is missing"),
    ],
)
def test_the_command_ends_with_what_it_found(tmp_path, arguments, code, says):
    environment = {**os.environ, "FLWR_HOME": str(tmp_path)}
    done = subprocess.run([*COMMAND, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == code
    assert says in done.stderr.strip().splitlines()[-1]
    rows = json.loads(done.stdout)["rows"] if code == 1 else []
    assert all(set(row) == {"check", "verdict", "seen", "mend"} for row in rows)
    assert bool(rows) == (code == 1)
