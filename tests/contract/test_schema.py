"""The committed JSON Schemas are those of the code."""

import msgspec
import pytest

from covey_contract.schema import WIRE_TYPES, file_of, schema_text


@pytest.mark.parametrize("kind", WIRE_TYPES, ids=lambda kind: kind.__name__)
def test_schemas_are_current(kind: type[msgspec.Struct]) -> None:
    assert file_of(kind).read_text("utf-8") == schema_text(kind), "run: python -m covey_contract.schema"
