"""The bytes of every message stay what released trainers and gateways speak."""

from __future__ import annotations

import json

import pytest
from google.protobuf.message import Message

from preceptor.v1 import run_pb2, selection_pb2, weights_pb2
from tests.contract.golden import FIELDS_PATH, MESSAGES_PATH, encoded, full_messages, listing

GOLDEN: dict[str, str] = json.loads(MESSAGES_PATH.read_text())
FULL = full_messages()


def test_every_message_has_golden_bytes() -> None:
    assert sorted(GOLDEN) == sorted(FULL)


@pytest.mark.parametrize("name", sorted(FULL))
def test_a_full_message_serialises_to_its_golden_bytes(name: str) -> None:
    assert encoded(FULL[name]) == GOLDEN[name]


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_golden_bytes_parse_to_the_full_message(name: str) -> None:
    message = type(FULL[name]).FromString(bytes.fromhex(GOLDEN[name]))

    assert message == FULL[name]


@pytest.mark.parametrize("name", sorted(FULL))
def test_full_messages_leave_no_field_unset(name: str) -> None:
    message = FULL[name]
    inactive = {
        field.name
        for oneof in message.DESCRIPTOR.oneofs
        for field in oneof.fields
        if field.name != message.WhichOneof(oneof.name)
    }

    assert {field.name for field, _ in message.ListFields()} == set(message.DESCRIPTOR.fields_by_name) - inactive


@pytest.mark.parametrize(
    ("message", "by_hand"),
    [
        (selection_pb2.Chunk(offset=300, data=b"ab"), "08 ac02  12 02 6162"),
        (selection_pb2.Credit(bytes=1), "08 01"),
        (selection_pb2.SelectRequest(open=selection_pb2.SelectOpen(run_id="r")), "0a 03 0a 01 72"),
        (selection_pb2.SelectOpen(observed_learner_version=0), "10 00"),
        (run_pb2.FloatList(values=[0.5]), "0a 08 000000000000e03f"),
        (run_pb2.ModelSpec(config={"k": run_pb2.ConfigValue(bool_value=True)}), "12 07 0a 01 6b 12 02 18 01"),
        (weights_pb2.PushHeader(role=weights_pb2.WEIGHTS_ROLE_REFERENCE, rewind=True), "10 02 28 01"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Message) else "",
)
def test_bytes_worked_out_by_hand_agree(message: Message, by_hand: str) -> None:
    assert message.SerializeToString(deterministic=True) == bytes.fromhex(by_hand)


def test_names_numbers_and_types_are_those_listed() -> None:
    assert listing() == FIELDS_PATH.read_text()
