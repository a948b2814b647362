"""The contract as committed bytes and a committed listing; `python -m tests.contract.golden --write` renews both.

`messages.json` holds, for every message, its bytes with all fields set: once per choice of its `oneof`. `fields.txt`
lists every field, enum value and rpc. A difference in either is a change that old trainers or gateways would notice.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, FileDescriptor, OneofDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from preceptor.v1 import ledger_pb2, memory_bank_pb2, run_pb2, selection_pb2, weights_pb2

FILES: tuple[FileDescriptor, ...] = (
    run_pb2.DESCRIPTOR,
    selection_pb2.DESCRIPTOR,
    weights_pb2.DESCRIPTOR,
    ledger_pb2.DESCRIPTOR,
    memory_bank_pb2.DESCRIPTOR,
)
MESSAGES_PATH = Path(__file__).with_name("messages.json")
FIELDS_PATH = Path(__file__).with_name("fields.txt")

_TYPE_NAMES = {
    getattr(FieldDescriptor, name): name.removeprefix("TYPE_").lower()
    for name in vars(FieldDescriptor)
    if name.startswith("TYPE_")
}


def full_messages() -> dict[str, Message]:
    """Returns every message with all fields set, by full name, and by `/choice` where it has a `oneof`."""
    return {
        message.full_name + (f"/{choice.name}" if choice else ""): _full(message, choice)
        for file in FILES
        for message in file.message_types_by_name.values()
        for choice in (_choices(message) or [None])
    }


def encoded(message: Message) -> str:
    """Returns the bytes of `message` in hexadecimal, map entries in key order."""
    return message.SerializeToString(deterministic=True).hex()


def listing() -> str:
    """Returns one line per field, enum value and rpc of the contract."""
    return "".join(f"{line}\n" for file in FILES for line in _lines(file))


def _oneof(message: Descriptor) -> OneofDescriptor | None:
    found = [oneof for oneof in message.oneofs if not _is_optional(oneof)]
    if len(found) > 1:
        raise ValueError(f"{message.full_name} has {len(found)} oneofs; teach this file to combine them")
    return found[0] if found else None


def _is_optional(oneof: OneofDescriptor) -> bool:
    """Whether `oneof` is how the compiler writes down a single `optional` field."""
    return oneof.name == f"_{oneof.fields[0].name}"


def _choices(message: Descriptor) -> list[FieldDescriptor | None]:
    oneof = _oneof(message)
    return list(oneof.fields) if oneof else []


def _full(message: Descriptor, choice: FieldDescriptor | None) -> Message:
    oneof = _oneof(message)
    full = GetMessageClass(message)()
    for field in message.fields:
        if oneof is None or field.containing_oneof is not oneof or field is choice:
            _set(full, message, field)
    return full


def _set(full: Message, message: Descriptor, field: FieldDescriptor) -> None:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        key, value = (kind.fields_by_name[name] for name in ("key", "value"))
        if value.message_type is None:
            getattr(full, field.name)[_value(key)] = _value(value)
        else:
            getattr(full, field.name)[_value(key)].CopyFrom(_inner(value.message_type))
    elif kind is not None and _is_repeated(message, field):
        getattr(full, field.name).add().CopyFrom(_inner(kind))
    elif kind is not None:
        getattr(full, field.name).CopyFrom(_inner(kind))
    elif _is_repeated(message, field):
        getattr(full, field.name).extend([_value(field), _value(field)])
    else:
        setattr(full, field.name, _value(field))


def _inner(message: Descriptor) -> Message:
    return _full(message, (_choices(message) or [None])[0])


def _is_repeated(message: Descriptor, field: FieldDescriptor) -> bool:
    # The descriptor's own word for it changed between protobuf 5 and 7; the descriptor's message did not.
    proto = DescriptorProto()
    message.CopyToProto(proto)
    return proto.field[field.index].label == FieldDescriptorProto.LABEL_REPEATED


def _value(field: FieldDescriptor) -> bool | int | float | str | bytes:
    """A value that tells fields of one message apart and is never the type's default."""
    if field.enum_type is not None:
        return max(field.enum_type.values_by_number)
    match field.type:
        case FieldDescriptor.TYPE_BOOL:
            return True
        case FieldDescriptor.TYPE_INT64 | FieldDescriptor.TYPE_INT32:
            return 1000 + field.number
        case FieldDescriptor.TYPE_DOUBLE:
            return field.number + 0.5
        case FieldDescriptor.TYPE_STRING:
            return f"text {field.number} é"
        case FieldDescriptor.TYPE_BYTES:
            return bytes([0, field.number, 255])
    raise ValueError(f"{field.full_name} has type {_TYPE_NAMES[field.type]}; give it a value here")


def _lines(file: FileDescriptor) -> Iterator[str]:
    for enum in file.enum_types_by_name.values():
        yield from _enum_lines(enum)
    for message in file.message_types_by_name.values():
        yield f"message {message.full_name}"
        for field in sorted(message.fields, key=lambda field: field.number):
            yield f"  {field.number} {field.name}: {_type(message, field)}"
    for service in file.services_by_name.values():
        yield f"service {service.full_name}"
        for method in service.methods:
            request = "stream " * method.client_streaming + method.input_type.name
            response = "stream " * method.server_streaming + method.output_type.name
            yield f"  {method.name}({request}) returns ({response})"


def _enum_lines(enum: EnumDescriptor) -> Iterator[str]:
    yield f"enum {enum.full_name}"
    for value in sorted(enum.values, key=lambda value: value.number):
        yield f"  {value.number} {value.name}"


def _type(message: Descriptor, field: FieldDescriptor) -> str:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        key, value = (_type(kind, kind.fields_by_name[name]) for name in ("key", "value"))
        return f"map of {key} to {value}"
    named = kind or field.enum_type
    name = named.full_name if named else _TYPE_NAMES[field.type]
    oneof = field.containing_oneof
    if _is_repeated(message, field):
        return f"repeated {name}"
    if oneof:
        return f"optional {name}" if _is_optional(oneof) else f"{name}, one of {oneof.name}"
    return name


def main() -> None:
    """Writes both files, or says how to."""
    if sys.argv[1:] != ["--write"]:
        raise SystemExit("usage: python -m tests.contract.golden --write")
    golden = {name: encoded(message) for name, message in full_messages().items()}
    MESSAGES_PATH.write_text(json.dumps(golden, indent=2) + "\n")
    FIELDS_PATH.write_text(listing())


if __name__ == "__main__":
    main()
