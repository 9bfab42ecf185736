"""Random numbers that nobody draws again without the key: what noise that is to hide something is made of."""

import math
import os

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

KEY = 32
"""Bytes of a key."""

BITS = 52
"""Random bits of a number in (0, 1) that a normal one is made from: its tail ends at 8.2."""


class SecretStream:
    """The keystream of ChaCha20 under `key`, read as numbers: from the same key the same ones, on any device.

    Without a key it takes one of the system's cryptographic source, so that no two streams are the same.
    """

    def __init__(self, key: bytes | None = None):
        self.key = os.urandom(KEY) if key is None else key
        self.calls = 0

    def bits(self, count: int) -> NDArray[np.uint64]:
        """64 random bits each."""
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms  # which no other mode needs

        self.calls += 1
        nonce = bytes(4) + self.calls.to_bytes(12, "little")  # 4 bytes count the blocks within a call
        keystream = Cipher(algorithms.ChaCha20(self.key, nonce), mode=None).encryptor().update(bytes(8 * count))
        return np.frombuffer(keystream, np.uint64)

    def uniform(self, count: int) -> Tensor:
        """`[count]` in (0, 1), float64."""
        return torch.from_numpy(((self.bits(count) >> (64 - BITS)).astype(np.float64) + 0.5) / 2**BITS)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal, float64."""
        normal: Tensor = torch.special.ndtri(self.uniform(math.prod(shape)))
        return normal.reshape(shape)

    def seed(self) -> int:
        """Of a generator of torch's, for what the proof leaves free."""
        return int(self.bits(1)[0]) >> 1
