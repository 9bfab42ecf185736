"""Every random generator is derived from (seed, class, round, purpose).

So neither the order of the clients, nor the number of processes, nor a restart changes what is drawn.
"""

import hashlib

import torch


def derive(seed: int, *parts: int | str) -> int:
    """A 63-bit seed that depends on every part: the first 8 bytes of SHA-256 over their text."""
    text = "/".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator on `device`, seeded by `derive(seed, *parts)`."""
    return torch.Generator(device).manual_seed(derive(seed, *parts))
