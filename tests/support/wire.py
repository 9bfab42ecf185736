"""What crossed the wire: every object that a SuperLink was sent, in both directions, kept by its own database."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, Message
from flwr.supercore.inflatable.inflatable_object import get_object_head_values_from_object_content
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.primitives.asymmetric import public_key_to_bytes as bytes_of
from flwr.supercore.primitives.asymmetric import uses_nist_ec_curve as is_a_key_that_flower_takes

__all__ = ["bytes_of", "captured", "is_a_key_that_flower_takes", "record", "scalars"]

SERVER = 1
"""Flower's id of the SuperLink itself, on whose behalf the server of a run sends."""


def record(database: Path) -> None:
    """Have a SuperLink's database keep a copy of every object that is stored in it from now on."""
    with closing(sqlite3.connect(database)) as connection:
        connection.executescript("""
            CREATE TABLE wire_objects (id TEXT PRIMARY KEY, content BLOB);
            CREATE TRIGGER keep_objects AFTER UPDATE OF content ON objects WHEN new.is_available
                BEGIN INSERT OR IGNORE INTO wire_objects VALUES (new.object_id, new.content); END;
        """)


def captured(database: Path) -> tuple[list[Message], int]:
    """(all messages that were sent, number of objects that belong to none of them)."""
    with closing(sqlite3.connect(database)) as connection:
        contents = dict(connection.execute("SELECT id, content FROM wire_objects"))
    heads = {key: get_object_head_values_from_object_content(content) for key, content in contents.items()}
    roots = [key for key, (kind, _, _) in heads.items() if kind == "Message"]
    reached: set[str] = set()
    queue = list(roots)
    while queue:
        reached.add(key := queue.pop())
        queue += heads[key][1]
    messages = [inflate_object_from_contents(root, contents, keep_object_contents=True) for root in roots]
    return messages, len(contents.keys() - reached)


def scalars(message: Message) -> Iterator[tuple[str, Any]]:
    """(name, value) of everything in a message that is no array; a list gives several."""
    if message.has_error():
        yield "error", message.error.reason
        return
    for name, result in message.content.items():
        yield "record", name
        for key, value in result.items():
            yield "key", key
            if not isinstance(result, ArrayRecord):
                yield from ((key, part) for part in (value if isinstance(value, list) else [value]))
