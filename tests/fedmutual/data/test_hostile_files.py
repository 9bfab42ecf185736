"""Files that were made to harm, or by a program that went wrong: refused in a line, before memory is taken for them."""

import io
import os
import struct
import unicodedata
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedmutual.config import RunConfig
from fedmutual.data import check
from fedmutual.errors import UserError
from fedmutual.settings import parse_assignments
from fedmutual.text import visible


def look(path: Path, **changes) -> list[str]:
    """The names of the classes of a folder or an archive that was read through."""
    kind = "npz" if path.suffix == ".npz" else "folder"
    settings = {"data": kind, "data-path": str(path), "held-out": 0, "test": 0, **changes}
    return check(RunConfig.of(settings).data, 0).source.names


def refusal(path: Path, **changes) -> str:
    with pytest.raises(UserError) as refused:
        look(path, **changes)
    said = str(refused.value)
    assert "\n" not in said
    return said


def png(width: int, height: int) -> bytes:
    """A grey PNG that claims to be so large, and holds a single row."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for value in (40, 90):
            Image.new("L", (8, 8), value).save(tmp_path / name / f"{value}.png")
    return tmp_path


@pytest.mark.parametrize("side", [9_460, 12_000, 30_000, 2**31 - 1])
def test_an_image_that_unpacks_to_too_much_is_refused_by_its_head(folder, side, recwarn):
    (folder / "b" / "x.png").write_bytes(png(side, side))
    for settings in ({}, {"size": 8}):
        said = refusal(folder, **settings)
        assert "class b:" in said
        assert "x.png has more than 89 million pixels: make it smaller" in said or side == 2**31 - 1
    assert not recwarn.list


def test_what_is_no_file_is_never_waited_for(folder):
    os.mkfifo(folder / "b" / "x.png")
    assert "is a pipe or a device, not a file" in refusal(folder)
    (folder / "b" / "x.png").unlink()
    (folder / "b" / "x.png").symlink_to("/dev/zero")
    assert "is a pipe or a device, not a file" in refusal(folder)


def test_no_format_is_read_that_starts_another_program(folder, monkeypatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *arguments: pytest.fail("Ghostscript was started"))
    (folder / "b" / "x.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    assert "x.png is not a whole image" in refusal(folder)


def member(shape: tuple[int, ...], content: bytes = b"") -> bytes:
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return head.getvalue() + content


@pytest.mark.parametrize(
    ("images", "labels", "says"),
    [
        ((10**9, 2000), (10**9,), "images is shorter than its header says"),
        ((4, 2), (10**12,), "labels is shorter than its header says"),
        ((-4, 2), (-4,), "is shorter than its header says"),
        ((4, 1), (4,), "images is longer than its header says"),
        ((4, 30_000, 30_000), (4,), "is shorter than its header says"),
    ],
)
def test_an_archive_is_not_believed_beyond_its_bytes(tmp_path, images, labels, says):
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", member(images, bytes(8)))
        archive.writestr("labels.npy", member(labels, bytes(4)))
    assert says in refusal(tmp_path / "x.npz")


def test_images_of_an_archive_have_the_same_bound(tmp_path, monkeypatch):
    np.savez(tmp_path / "x.npz", images=np.zeros((2, 40, 50), np.uint8))
    monkeypatch.setattr("fedmutual.data.npz.MOST_PIXELS", 1999)
    assert "make them smaller" in refusal(tmp_path / "x.npz", classes=1)
    monkeypatch.setattr("fedmutual.data.npz.MOST_PIXELS", 2000)
    assert look(tmp_path / "x.npz", classes=1)


def test_an_archive_beyond_the_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    np.savez(tmp_path / "x.npz", images=np.zeros((2, 40, 50), np.uint8), labels=np.arange(2))
    monkeypatch.setattr(os, "sysconf", lambda name: 60)
    assert "unpacks to 0.0 GB, and this machine has 0.0 GB of memory" in refusal(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("\x1b[31mred", "\\x1b[31mred"),
        ("b\nc", "b\\nc"),
        ("a\tb", "a\\tb"),
        ("a\x00b", "a\\x00b"),
        ("a\u202eb", "a\\u202eb"),
        ("x\u2028y", "x\\u2028y"),
        ("a\ud800b", "a\\ud800b"),
        ("Mélanome 肺炎 <b>[/]", "Mélanome 肺炎 <b>[/]"),
    ],
)
def test_no_name_steers_a_terminal_or_breaks_a_line(tmp_path, label, name):
    np.savez(tmp_path / "x.npz", images=np.zeros((4, 3, 3), np.uint8), labels=np.array([label, "plain"] * 2))
    assert set(look(tmp_path / "x.npz")) == {name, "plain"}
    assert visible(name) == name
    if not {"\x00", "/", "\ud800"} & set(label):
        for place in (label, "plain"):
            (tmp_path / "data" / place).mkdir(parents=True)
            Image.new("L", (3, 3)).save(tmp_path / "data" / place / "0.png")
        assert set(look(tmp_path / "data")) == {name, "plain"}


def test_two_classes_that_read_alike_are_refused(folder):
    for bytes_ in (b"caf\xe9", "café".encode()):
        place = os.fsencode(folder) + b"/" + bytes_
        os.mkdir(place)
        Image.new("L", (8, 8)).save(os.fsdecode(place + b"/0.png"))
    assert "has 2 classes that read café, in other bytes" in refusal(folder)
    np.savez(folder / "x.npz", images=np.zeros((2, 3, 3), np.uint8), labels=np.array([b"caf\xe9", "café".encode()]))
    assert "has 2 classes that read café, in other bytes" in refusal(folder / "x.npz")


@pytest.mark.parametrize("label", ["", " "])
def test_a_class_without_a_name_is_refused(tmp_path, label):
    np.savez(tmp_path / "x.npz", images=np.zeros((2, 3, 3), np.uint8), labels=np.array([label, "b"]))
    assert "has a class whose name is empty" in refusal(tmp_path / "x.npz")


def test_parts_in_two_spellings_of_unicode_are_one_class(tmp_path):
    for part, form in (("train", "NFC"), ("test", "NFD")):
        for name in ("café", "b"):
            place = tmp_path / part / unicodedata.normalize(form, name)
            place.mkdir(parents=True)
            Image.new("L", (3, 3)).save(place / "0.png")
    settings = RunConfig.of({"data": "folder", "data-path": str(tmp_path), "held-out": 0, "test": 0})
    source = check(settings.data, 0).source
    assert source.names == ["b", "café"]
    assert [len(source.test(y)) for y in range(2)] == [1, 1]


@pytest.mark.parametrize("text", ["/" + "a" * 5000, "C:\\Users\\me\\cells", "~nobody-here/cells", "-s", "a\nb"])
def test_any_text_may_stand_where_a_path_is_meant(tmp_path, monkeypatch, command_line, text):
    monkeypatch.chdir(tmp_path)
    for arguments in (["-s", "data=folder", "-s", f"data-path={text}"], ["-s", "data=npz", "-s", f"data-path={text}"]):
        code, printed, error = command_line("simulate", "smoke", *arguments, "--out", tmp_path / "run")
        assert (code, printed, len(error.splitlines())) == (2, "", 1)
        assert "is missing" in error
    for command in ("simulate", "inspect"):
        code, printed, error = command_line(command, "--", text)
        assert (code, printed, len(error.splitlines())) == (2, "", 1)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "name", ["a b", "q'u\"o", "[x] [", "100%s", "a,b", "#h", "{seed}", "$HOME", "é", "a=b", "\x1b[31mr", "n\nl"]
)
def test_data_are_read_wherever_they_lie(tmp_path, command_line, name):
    place = tmp_path / name
    place.mkdir()
    np.savez(place / "x.npz", images=np.zeros((6, 3, 3), np.uint8), labels=np.arange(6) % 2)
    code, printed, error = command_line("inspect", place / "x.npz")
    assert code == 0, error
    assert "\x1b" not in printed
    settings = parse_assignments(["data=npz", f"data-path={place / 'x.npz'}", "held-out=0", "test=0"])
    assert check(RunConfig.of(settings).data, 0).source.counts == [3, 3]
