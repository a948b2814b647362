"""No message holds itself, however deep: what parses it needs no more stack than the contract is deep."""

from __future__ import annotations

import pytest
from google.protobuf.descriptor import Descriptor

from preceptor.wire import methods

_REQUESTS = {method.request.DESCRIPTOR.full_name: method.request.DESCRIPTOR for method in methods()}


@pytest.mark.parametrize("request_type", _REQUESTS.values(), ids=_REQUESTS.keys())
def test_no_message_holds_itself(request_type: Descriptor) -> None:
    def follow(message: Descriptor, holders: tuple[str, ...]) -> None:
        assert message.full_name not in holders, " → ".join((*holders, message.full_name))
        for field in message.fields:
            if field.message_type is not None:
                follow(field.message_type, (*holders, message.full_name))

    follow(request_type, ())
