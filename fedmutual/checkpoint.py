"""Atomic files that know when they are damaged: safetensors with JSON beside the tensors, never pickle.

A file is written from the tensors' own memory: the library's writer would make a copy of all of them first.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

T = TypeVar("T")


class CheckpointError(RuntimeError):
    """A file that is missing, cut short or altered; says which."""


class Unwritable(RuntimeError):
    """The system refused to write a file, which is then as it was; `reason` is its word on why."""

    def __init__(self, path: Path, error: OSError):
        self.reason = error.strerror or str(error)
        super().__init__(f"{path} cannot be written: {self.reason}: what was saved before it is whole")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError of what writes `path` into `Unwritable`."""
    try:
        yield
    except OSError as error:
        raise Unwritable(path, error) from error


def write_atomic(path: Path, *content: bytes | memoryview) -> None:
    """Put `content`, one piece after the other, at `path`: a kill or a full disk leaves the old file or the new one.

    Raises:
        Unwritable: the disk is full, or the place forbidden.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                file.writelines(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def digest_of(tensors: dict[str, Tensor], meta: str) -> str:
    """SHA-256 over the meta text and every tensor's name, dtype, shape and bytes, in the order of names.

    The tensors are contiguous and on the CPU.
    """
    digest = hashlib.sha256(meta.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


_TYPES = {
    **{torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.bool: "BOOL"},
    **{torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8"},
}
"""How safetensors calls the types."""


def _head(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """What a file of the format safetensors begins with: the length of a JSON text, and that text, padded to eights.

    The tensors follow without gaps, in the order that they have here.
    """
    entries: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        entries[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def save(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write tensors and JSON-able `meta` as one file, atomically, with a digest that `load` checks."""
    text = json.dumps(meta, sort_keys=True)
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"meta": text, "sha256": digest_of(stored, text)}
    aligned = {name: stored[name] for name in sorted(stored, key=lambda name: (-stored[name].element_size(), name))}
    write_atomic(path, _head(aligned, header), *map(_bytes, aligned.values()))


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, on the CPU, and the meta that `save` wrote.

    Raises:
        CheckpointError: no such file, or its content is not what was written.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    if "meta" not in header or header.get("sha256") != digest_of(tensors, header["meta"]):
        raise CheckpointError(f"{path} is damaged: its content does not match its checksum")
    return tensors, json.loads(header["meta"])


def read_meta(path: Path) -> dict[str, Any]:
    """The meta that `save` wrote, without a look at the tensors: whether they are whole is not known.

    Raises:
        CheckpointError: no such file, or one that is cut short.
    """
    try:
        with safe_open(path, framework="pt") as file:
            meta: dict[str, Any] = json.loads((file.metadata() or {})["meta"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    return meta


def load_newest(paths: list[Path]) -> tuple[Path, dict[str, Tensor], dict[str, Any]] | None:
    """The last of `paths`, oldest first, that is whole; None when none is."""
    return newest_whole(paths, lambda path: (path, *load(path)))


def newest_whole(paths: list[Path], read: Callable[[Path], T]) -> T | None:
    """What `read` makes of the last of `paths`, oldest first, that it finds whole; the log names those that are not."""
    for path in reversed(paths):
        try:
            return read(path)
        except CheckpointError as error:
            logging.getLogger(__name__).warning("%s; the one before it is used", error)
    return None
