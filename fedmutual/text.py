"""Text that can be shown: on a line of a terminal, and in a page."""

import unicodedata

_BREAKS = ("Cc", "Zl", "Zp")
"""Unicode's categories of control characters, which may steer a terminal, and of breaks of lines."""

_TURNS = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that turn the direction of what follows them."""


def visible(text: str) -> str:
    """`text` with what would break a line, or steer a terminal, as its escape: a newline becomes \\n."""
    return "".join(_escaped(char) for char in text)


def _escaped(char: str) -> str:
    hidden = unicodedata.category(char) in _BREAKS or char in _TURNS
    return char.encode("unicode_escape").decode() if hidden else char
