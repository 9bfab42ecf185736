"""Everything that a run will read, read before it starts."""

from collections.abc import Callable
from typing import NamedTuple

from fedmutual.config import Data
from fedmutual.data.fingerprint import Fingerprint
from fedmutual.data.opening import open_source
from fedmutual.data.source import Source
from fedmutual.errors import UserError


class Checked(NamedTuple):
    """What was seen: `fingerprints` by class of what it trains on, and sentences that a user should read."""

    source: Source
    fingerprints: dict[int, Fingerprint]
    notices: list[str]

    @property
    def counts(self) -> list[int]:
        return [self.fingerprints[y].size for y in sorted(self.fingerprints)]


OnRead = Callable[[int, int], None]
"""Takes how many classes are read, and how many there are."""


def check(data: Data, seed: int, on_read: OnRead = lambda done, total: None) -> Checked:
    """Read every sample of every class, test part included; of one client's own data, those.

    Raises:
        UserError: the first that cannot be used, with its class and file.
    """
    source = open_source(data, seed, keep=True)
    if source.whole:
        source.counts  # noqa: B018  (raises where there are too few)
    fingerprints = {}
    for y, name in enumerate(source.names):
        try:
            fingerprints[y] = source.look_through(y)
        except UserError as error:
            raise UserError(f"class {name}: {error}") from None
        on_read(y + 1, len(source.names))
    return Checked(source, fingerprints, source.notices)
