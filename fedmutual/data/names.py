"""Names of classes as text that can be shown, whatever their folders or labels are called."""

import unicodedata
from collections import Counter
from collections.abc import Sequence

from fedmutual.errors import UserError
from fedmutual.text import visible


def as_name(stored: str | bytes) -> str:
    """The name of a class: bytes are UTF-8, or else Latin-1; alike letters in two spellings become one."""
    text = _decoded(stored) if isinstance(stored, bytes) else stored
    whole = text.encode("utf-8", "backslashreplace").decode()  # half a surrogate pair is no character
    return visible(unicodedata.normalize("NFC", whole))


def _decoded(stored: bytes) -> str:
    try:
        return stored.decode()
    except UnicodeDecodeError:
        return stored.decode("latin-1")


def check_names(names: Sequence[str], where: str) -> None:
    """Raises `UserError` where a class has no name that can be seen, or two have the same."""
    if not all(name.strip() for name in names):
        raise UserError(f"{where} has a class whose name is empty: give its samples, or its folder, a name")
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise UserError(f"{where} has {count} classes that read {name}, in other bytes: rename or join them")
