"""Names of classes as text that can be shown, whatever their folders or labels are called."""

import unicodedata
from collections import Counter
from collections.abc import Sequence

from fedmutual.errors import UserError

_CONTROLS = ("Cc", "Zl", "Zp", "Cs")
"""Unicode's categories of what no terminal or page should be sent: control characters, breaks and lone surrogates."""

_TURNS = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that turn the direction of what follows them."""


def visible(text: str) -> str:
    """`text` with what would break a line, or steer a terminal, as its escape: a newline becomes \\n."""
    return "".join(_escaped(char) for char in text)


def _escaped(char: str) -> str:
    hidden = unicodedata.category(char) in _CONTROLS or char in _TURNS
    return char.encode("unicode_escape").decode() if hidden else char


def as_name(stored: str | bytes) -> str:
    """The name of a class: bytes are UTF-8, or else Latin-1; alike letters in two spellings become one."""
    if isinstance(stored, bytes):
        try:
            stored = stored.decode()
        except UnicodeDecodeError:
            stored = stored.decode("latin-1")
    return visible(unicodedata.normalize("NFC", stored))


def check_names(names: Sequence[str], where: str) -> None:
    """Raises `UserError` where a class has no name that can be seen, or two have the same."""
    if not all(name.strip() for name in names):
        raise UserError(f"{where} has a class whose name is empty: give its samples, or its folder, a name")
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise UserError(f"{where} has {count} classes that read {name}, in other bytes: rename or join them")
