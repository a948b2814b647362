"""Malformed from valid: seeded mutations of bytes, of messages and of conversations.

The same generator state gives the same mutation, so a case is named by its seed and its number.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

INTEGERS = (
    0,
    1,
    -1,
    2,
    7,
    127,
    128,
    255,
    4096,
    2**16,
    2**31 - 1,
    2**31,
    -(2**31),
    2**32 - 1,
    2**53,
    2**63 - 1,
    -(2**63),
)
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-300, 1e300, float("inf"), float("-inf"), float("nan"))
TEXTS = (
    *("", "-", "a", "A", "a" * 63, "a" * 64, "../../etc/passwd", "a/b", "\0", "é", "a\n", "*", "x" * 5000),
    *("sha256:" + "0" * 64, "uniform", "top_k", "learnability", "{}", "%s%n", "http://localhost/"),
)
_LONGEST = 256 * 1024


def case_random(surface: str, seed: int, number: int) -> random.Random:
    """The generator of one case."""
    return random.Random(f"{surface}/{seed}/{number}")


def mutated_bytes(rng: random.Random, data: bytes, times: int | None = None) -> bytes:
    """`data` with one to four changes."""
    changed = bytearray(data)
    for _ in range(times or rng.randint(1, 4)):
        rng.choice(_BYTE_CHANGES)(rng, changed)
    return bytes(changed[:_LONGEST])


def _at(rng: random.Random, data: bytearray) -> int:
    # Headers stand in front: half of the changes hit the first 256 bytes.
    end = min(len(data), 256) if rng.random() < 0.5 else len(data)
    return rng.randrange(end) if end else 0


def _flip(rng: random.Random, data: bytearray) -> None:
    if data:
        data[_at(rng, data)] ^= 1 << rng.randrange(8)


def _overwrite(rng: random.Random, data: bytearray) -> None:
    if data:
        data[_at(rng, data)] = rng.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF, rng.randrange(256)))


def _word(rng: random.Random, data: bytearray) -> None:
    size = rng.choice((2, 4, 8))
    if len(data) >= size:
        at = min(_at(rng, data) // size * size, len(data) - size)
        data[at : at + size] = (rng.choice(INTEGERS) % (1 << 8 * size)).to_bytes(size, rng.choice(("little", "big")))


def _cut(rng: random.Random, data: bytearray) -> None:
    del data[_at(rng, data) :]


def _remove(rng: random.Random, data: bytearray) -> None:
    at = _at(rng, data)
    del data[at : at + rng.randint(1, 16)]


def _insert(rng: random.Random, data: bytearray) -> None:
    at = _at(rng, data)
    data[at:at] = rng.choice((rng.randbytes(rng.randint(1, 16)), b"\x0b" * rng.randint(1, 300), b"\xff" * 11, bytes(8)))


def _repeat(rng: random.Random, data: bytearray) -> None:
    at, to = _at(rng, data), _at(rng, data)
    data[to:to] = data[at : at + rng.randint(1, 64)]


_BYTE_CHANGES: tuple[Callable[[random.Random, bytearray], None], ...] = (
    *(_flip, _flip, _overwrite, _overwrite, _word, _word, _cut, _remove, _insert, _repeat),
)


def mutated_message(rng: random.Random, message: Message) -> bytes:
    """The encoding of `message` with a field changed, or with its bytes changed."""
    if rng.random() < 0.4:
        return mutated_bytes(rng, message.SerializeToString())
    changed = type(message).FromString(message.SerializeToString())
    for _ in range(rng.randint(1, 2)):
        _change_field(rng, changed)
    return changed.SerializeToString()


def _change_field(rng: random.Random, message: Message) -> None:
    fields: list[Any] = list(message.DESCRIPTOR.fields)
    present: list[Any] = [field for field, _ in message.ListFields()]
    if not fields:
        return
    field = rng.choice(present if present and rng.random() < 0.8 else fields)
    name = field.name
    if rng.random() < 0.1:
        message.ClearField(name)
    elif _is_repeated(getattr(message, name)):
        _change_repeated(rng, message, field)
    elif field.message_type is not None:
        inner = getattr(message, name)
        inner.SetInParent()
        _change_field(rng, inner)
    else:
        setattr(message, name, _value(rng, field, getattr(message, name)))


def _is_repeated(held: object) -> bool:
    return hasattr(held, "__len__") and not isinstance(held, str | bytes)


def _change_repeated(rng: random.Random, message: Message, field: FieldDescriptor) -> None:
    held = getattr(message, field.name)
    if field.message_type is None:
        held.extend([_value(rng, field, None)] * rng.choice((1, 2, 70, 3000)))
    elif not field.message_type.GetOptions().map_entry:
        _change_field(rng, held.add())
    else:
        key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
        for _ in range(rng.choice((1, 2, 70))):
            at = _value(rng, key, None)
            if value.message_type is not None:
                _change_field(rng, held[at])
            else:
                held[at] = _value(rng, value, None)


def _value(rng: random.Random, field: FieldDescriptor, now: object) -> object:
    kind = field.cpp_type
    if kind in (field.CPPTYPE_INT64, field.CPPTYPE_INT32, field.CPPTYPE_ENUM):
        near = now + rng.choice((-1, 1)) if isinstance(now, int) else 0
        wanted = near if rng.random() < 0.3 else rng.choice(INTEGERS)
        bits = 63 if kind == field.CPPTYPE_INT64 else 31
        return max(-(1 << bits), min(wanted, (1 << bits) - 1))
    if kind in (field.CPPTYPE_DOUBLE, field.CPPTYPE_FLOAT):
        return rng.choice(FLOATS)
    if kind == field.CPPTYPE_BOOL:
        return rng.random() < 0.5
    if field.type == field.TYPE_STRING:
        return rng.choice(TEXTS)
    held = now if isinstance(now, bytes) else b""
    return rng.choice(
        (b"", held[:-1], held + b"!", mutated_bytes(rng, held), rng.randbytes(rng.choice((1, 31, 33, 5000))))
    )


def mutated_conversation(rng: random.Random, messages: Sequence[Message], strangers: Sequence[Message]) -> list[bytes]:
    """`messages` as bytes, with one to three of them changed, lost, repeated, moved, or replaced by a stranger's."""
    sent = [message.SerializeToString() for message in messages]
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(sent)) if sent else 0
        change = rng.random()
        if not sent or change < 0.1:
            sent.insert(at, rng.choice(strangers).SerializeToString())
        elif change < 0.6:
            message = messages[rng.randrange(len(messages))] if rng.random() < 0.1 else _parsed(messages, sent[at])
            sent[at] = mutated_message(rng, message) if message is not None else mutated_bytes(rng, sent[at])
        elif change < 0.7:
            del sent[at]
        elif change < 0.8:
            sent.insert(rng.randint(0, len(sent)), sent[at])
        elif change < 0.9:
            other = rng.randrange(len(sent))
            sent[at], sent[other] = sent[other], sent[at]
        else:
            sent[at] = rng.choice((b"", b"\xff" * 64, rng.choice(strangers).SerializeToString()))
    return sent


def _parsed(messages: Sequence[Message], data: bytes) -> Message | None:
    """The message that `data` is, where it is still one of the valid ones."""
    return next((message for message in messages if message.SerializeToString() == data), None)
