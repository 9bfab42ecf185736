"""Is this machine fit for a run? Each check says what it saw and, where something is wrong, what to do about it.

Nothing is changed, and nothing is started: the data are opened, places are written to for a moment, and the
SuperLink is asked for its runs.
"""

import http.client
import json
import os
import platform
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryFile
from typing import Literal

import torch
from cryptography import x509
from packaging.requirements import Requirement

import client.store
from client.app import store_root
from fedmutual.config import RunConfig
from fedmutual.data import check as read_all
from fedmutual.data import num_classes, sample_shape
from fedmutual.device import pick_device
from fedmutual.errors import UserError
from fedmutual.networks import build
from fedmutual.run_folder import run_folder
from fedmutual.saved_networks import KEPT_CHECKPOINTS
from server.flower import CLOCK_AHEAD, CLOCK_BEHIND, ENVIRONMENT, Connection, read_connection
from simulations.deployment.loopback import executable

SOON = timedelta(days=30)
"""A certificate with less than this left should be replaced now."""

PATIENCE = 10.0
"""Seconds to wait for a connection."""


@dataclass(frozen=True)
class Finding:
    """What one check saw; `remedy` says what to do about a warning or about something wrong."""

    check: str
    verdict: Literal["ok", "warning", "wrong"]
    seen: str
    remedy: str = ""

    def row(self) -> dict[str, str]:
        """As a row of the table, and of `--json`, where `mend` is the key that scripts know."""
        return {"check": self.check, "verdict": self.verdict, "seen": self.seen, "mend": self.remedy}


Check = Callable[[], Iterable[Finding]]


def checks(config: RunConfig, name: str | None) -> list[Check]:
    """The checks of this machine, for a run with these settings.

    Unless None, `name` is a connection in Flower's config.toml, which is checked too.

    Raises:
        UserError: there is no such connection.
    """
    here: list[Check] = [python, packages, partial(gpu, config), environment, partial(data, config)]
    if name is None:
        return [*here, partial(disk, config)]
    connection = read_connection(name)
    return [*here, partial(disks, config), partial(authority, connection), partial(superlink, connection)]


# Software and hardware


def python() -> Iterable[Finding]:
    wanted = metadata.metadata("fedmutual")["Requires-Python"]
    fits = Requirement(f"python{wanted}").specifier.contains(platform.python_version())
    yield Finding(
        "python",
        "ok" if fits else "wrong",
        f"{platform.python_version()} at {sys.executable}",
        "" if fits else f"make the environment with Python {wanted}",
    )


def packages() -> Iterable[Finding]:
    """Flower, and Ray as Flower pins it, and PyTorch by name; all others in one line."""
    wanted = [Requirement(text) for text in metadata.requires("fedmutual") or []]
    wanted = [requirement for requirement in wanted if not requirement.marker or requirement.marker.evaluate()]
    flower = [Requirement(text) for text in _requires("flwr")]
    wanted += [r for r in flower if r.name == "ray" and r.marker and r.marker.evaluate({"extra": "simulation"})]
    others = 0
    for requirement in wanted:
        finding = _package(requirement)
        if finding.verdict == "wrong" or requirement.name in ("flwr", "ray", "torch"):
            yield finding
        else:
            others += 1
    yield Finding("other packages", "ok", f"all {others} fit")


def _requires(package: str) -> list[str]:
    with suppress(metadata.PackageNotFoundError):
        return metadata.requires(package) or []
    return []


def _package(requirement: Requirement) -> Finding:
    remedy = f"pip install '{requirement.name}{requirement.specifier}'"
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Finding(requirement.name, "wrong", "not installed", remedy)
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding(requirement.name, "wrong", f"{version}, and not {requirement.specifier}", remedy)
    return Finding(requirement.name, "ok", version)


def gpu(config: RunConfig) -> Iterable[Finding]:
    try:
        device = pick_device(config.compute)
    except UserError as error:
        yield Finding("gpu", "wrong", str(error), "check the driver with nvidia-smi, or set device = auto")
        return
    if device.type == "cuda":
        _, total = torch.cuda.mem_get_info()
        yield Finding("gpu", "ok", f"{torch.cuda.get_device_name()}, {_size(total)}")
    elif config.compute.device == "auto" and Path("/dev/nvidia0").exists():
        remedy = "install a PyTorch that fits the driver, or set device = cpu"
        yield Finding("gpu", "warning", "there is one, and torch cannot use it", remedy)
    else:
        yield Finding("gpu", "ok", f"not used: {os.cpu_count()} CPU cores train")


def environment() -> Iterable[Finding]:
    unset = [f"{name}={value}" for name, value in ENVIRONMENT.items() if os.environ.get(name) != value]
    seen = f"not set: {' '.join(unset)}" if unset else "set as the services need it"
    remedy = "set them wherever a service of Flower starts"
    yield Finding("environment", "warning" if unset else "ok", seen, remedy if unset else "")


# Data and disk


def data(config: RunConfig) -> Iterable[Finding]:
    if config.data.source in ("npz", "folder") and not config.data.path:
        seen = "no data-path: right at a server, which has no data"
        yield Finding("data", "warning", seen, "at a client add -s data-path=/path/to/them")
        return
    try:
        checked = read_all(config.data, config.seed)
        held = len(checked.source.held_out(0))
    except UserError as error:
        reason, _, remedy = str(error).rpartition(": ")
        yield Finding("data", "wrong", reason or str(error), remedy)
        return
    shape, counts = " x ".join(map(str, checked.source.shape)), checked.counts
    held_out = f", {held} held out" if held else ""
    whose = config.data.path or config.data.source
    many = f"{len(counts)} classes of {min(counts)} to " if len(counts) > 1 else ""
    yield Finding("data", "ok", f"{whose}: {many}{max(counts)} samples of {shape} to train on{held_out}")
    for notice in checked.notices:
        yield Finding("data", "warning", notice, "see that this is meant")


def disk(config: RunConfig) -> Iterable[Finding]:
    """Room for a simulation, whose run folder holds the clients' states too."""
    place = Path(config.federation.out or "runs")
    return _room({"run folder": (place, lambda: _checkpoints(config) + _states(config))})


def disks(config: RunConfig) -> Iterable[Finding]:
    """Room for a client's store, and for the run folder at the server."""
    places = {
        "store": (store_root(config), lambda: _states(config) // num_classes(config.data)),
        "run folder": (run_folder(config).parent, lambda: _checkpoints(config)),
    }
    return _room(places)


def _room(places: dict[str, tuple[Path, Callable[[], int]]]) -> Iterable[Finding]:
    for check, (path, need) in places.items():
        folder = path.expanduser().absolute()
        folder = next(place for place in (folder, *folder.parents) if place.exists())
        try:
            with TemporaryFile(dir=folder) as file:
                file.write(b"written")
                file.flush()
            free, needed = shutil.disk_usage(folder).free, need()
        except OSError as error:
            remedy = f"make it writable for this user, or choose another with {'store' if check == 'store' else 'out'}"
            yield Finding(check, "wrong", f"{path} cannot be written: {error.strerror}", remedy)
        except UserError as error:
            yield Finding(check, "warning", f"how much room is needed is not known: {error}", "give the run's settings")
        else:
            seen = f"{path}: {_size(free)} free, {_size(needed)} needed"
            enough = free > needed
            remedy = "" if enough else f"free {_size(needed - free)}, or choose another disk"
            yield Finding(check, "ok" if enough else "wrong", seen, remedy)


def _network_bytes(config: RunConfig) -> int:
    with torch.device("meta"):  # shapes only: a large network costs nothing
        network = build(config, sample_shape(config.data), 0)
    return sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())


def _states(config: RunConfig) -> int:
    """Bytes of all clients' states: network, average and Adam's two moments, as often as a store keeps them, and one
    more while it is written."""
    copies = 4 if config.optimiser.name == "adam" else 2
    kept = client.store.KEPT + config.federation.checkpoint_every + 1
    return _network_bytes(config) * num_classes(config.data) * copies * kept


def _checkpoints(config: RunConfig) -> int:
    """Bytes of the server's checkpoints: the newest, the best, and the one that is being written; where only some
    classes take part in a round none is best, and the newest may lie in files of which half is needed."""
    copies = KEPT_CHECKPOINTS + 2 if config.federation.participation == 1 else 2 * KEPT_CHECKPOINTS + 1
    return _network_bytes(config) * num_classes(config.data) * copies


def _size(count: int) -> str:
    """A number of bytes with its unit: 1.5 MB."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB" if size < 1000 else f"{size:,.0f} TB"


# The connection


def authority(connection: Connection) -> Iterable[Finding]:
    """The certificates that this machine trusts to vouch for the SuperLink."""
    if connection.insecure or _is_local(connection):
        return
    if not connection.root_certificates:
        yield Finding("authority", "ok", "no root-certificates: the public ones decide")
        return
    path = Path(connection.root_certificates)
    try:
        certificates = x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        yield Finding("authority", "wrong", f"{path} cannot be read: {error.strerror}", "copy the ca.crt there")
    except ValueError:
        yield Finding("authority", "wrong", f"{path} holds no certificate", "copy the ca.crt there")
    else:
        for certificate in certificates:
            yield _dates("authority", certificate)


def superlink(connection: Connection) -> Iterable[Finding]:
    """The SuperLink's certificate, its clock, and its answer."""
    if _is_local(connection):
        yield Finding("superlink", "ok", "a simulation on this machine: Flower starts it itself")
        return
    host, port = _address(connection)
    trusted = True
    try:
        if connection.insecure:
            remedy = "give the SuperLink certificates, and this connection root-certificates instead of insecure"
            seen = "none: anyone between the two machines can read and change what is sent"
            yield Finding("tls", "warning", seen, remedy)
        else:
            findings = list(_tls(connection, host, port))
            trusted = all(finding.verdict != "wrong" for finding in findings)
            yield from findings
        yield _clock(connection, host, port)
    except ssl.SSLError:
        remedy = "start the SuperLink with its certificates, or check the port in the address"
        yield Finding("superlink", "wrong", f"{host}:{port} does not speak TLS", remedy)
        return
    except (OSError, http.client.HTTPException) as error:
        remedy = "start the SuperLink, open its port to this machine, or correct the connection's address"
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        yield Finding("superlink", "wrong", f"{host}:{port} does not answer: {said}", remedy)
        return
    if trusted:
        yield _runs(connection)


def _is_local(connection: Connection) -> bool:
    return not connection.address or connection.address.startswith(":")


def _address(connection: Connection) -> tuple[str, int]:
    host, _, port = str(connection.address).rpartition(":")
    if not port.isdigit():
        return str(connection.address), 443
    return host.strip("[]"), int(port)


def _tls(connection: Connection, host: str, port: int) -> Iterable[Finding]:
    """The certificate's dates, then whether this machine trusts it for this host."""
    anybody = _unchecked()
    with socket.create_connection((host, port), PATIENCE) as plain, anybody.wrap_socket(plain) as wrapped:
        certificate = x509.load_der_x509_certificate(wrapped.getpeercert(binary_form=True) or b"")
        version = wrapped.version()
    yield _dates("certificate", certificate)
    try:
        context = ssl.create_default_context(cafile=connection.root_certificates)
        with socket.create_connection((host, port), PATIENCE) as plain:
            context.wrap_socket(plain, server_hostname=host).close()
    except ssl.SSLCertVerificationError as error:
        yield Finding("tls", "wrong", error.verify_message, _trust_remedy(error, certificate, host))
    except (ssl.SSLError, FileNotFoundError):  # of the root certificates, which `authority` reports
        yield Finding("tls", "wrong", "root-certificates cannot be used", "copy the ca.crt there")
    else:
        yield Finding("tls", "ok", f"{version}, and the certificate is trusted for {host}")


def _unchecked() -> ssl.SSLContext:
    """For a look at what a server presents, whichever it is; nothing is sent to it."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _trust_remedy(error: ssl.SSLCertVerificationError, certificate: x509.Certificate, host: str) -> str:
    said = error.verify_message.lower()
    if "mismatch" in said:
        return f"it is for {', '.join(_names(certificate))}: address it so, or make one with --host {host}"
    if "expired" in said or "not yet valid" in said:
        return "see authority and certificate, and this machine's clock"
    return "root-certificates must be the ca.crt that came with the SuperLink's server.crt"


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ["no host"]
    return [str(name.value) for name in names]


def _dates(check: str, certificate: x509.Certificate) -> Finding:
    """Is it valid today, and for how long?"""
    now, begins, ends = datetime.now(UTC), certificate.not_valid_before_utc, certificate.not_valid_after_utc
    renew = "make new ones with fedmutual credentials in a new folder, and hand them out"
    if now < begins:
        seen = f"not valid before {begins:%Y-%m-%d %H:%M} UTC, and it is {now:%Y-%m-%d %H:%M}"
        return Finding(check, "wrong", seen, "set this machine's clock, or wait")
    if now > ends:
        return Finding(check, "wrong", f"expired on {ends:%Y-%m-%d}, {(now - ends).days} days ago", renew)
    left = ends - now
    return Finding(
        check,
        "warning" if left < SOON else "ok",
        f"{left.days} days left, until {ends:%Y-%m-%d}",
        renew if left < SOON else "",
    )


def _clock(connection: Connection, host: str, port: int) -> Finding:
    """This machine's clock against the SuperLink's, which refuses messages of a node whose time is not its own."""
    if connection.insecure:
        asked = http.client.HTTPConnection(host, port, timeout=PATIENCE)
    else:
        asked = http.client.HTTPSConnection(host, port, timeout=PATIENCE, context=_unchecked())
    asked.connect()
    began = time.time()
    asked.request("HEAD", "/")
    date = asked.getresponse().getheader("Date")
    asked.close()
    if not date:
        return Finding("clock", "warning", "the SuperLink does not report its time", "compare the clocks by hand")
    # A header has whole seconds: half of one is what it hides on average.
    ahead = (began + time.time()) / 2 - parsedate_to_datetime(date).timestamp() - 0.5
    words = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the SuperLink's"
    if -CLOCK_BEHIND < ahead < CLOCK_AHEAD:
        return Finding("clock", "ok", words)
    remedy = f"set it: the SuperLink refuses a SuperNode {CLOCK_AHEAD} s ahead of it or {CLOCK_BEHIND} s behind"
    return Finding("clock", "wrong", words, remedy)


def _runs(connection: Connection) -> Finding:
    """Does the SuperLink understand this Flower?"""
    command = [executable("flwr"), "list", connection.name, "--format", "json"]
    done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True)
    try:
        runs = json.loads(done.stdout[done.stdout.index("{") :])["runs"]
    except (ValueError, KeyError):
        said = " ".join((done.stderr or done.stdout).split())
        remedy = "install the SuperLink's version of Flower, or ask who keeps its port (/v1/control) closed"
        return Finding("superlink", "wrong", f"flwr list: {said[-200:]}", remedy)
    active = sum(not run["status"].startswith("finished") for run in runs)
    return Finding("superlink", "ok", f"{connection.address} answers: {len(runs)} runs, {active} of them not finished")
