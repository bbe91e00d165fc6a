"""Ids are refused wherever they could become a path, a wildcard or another topic level."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey_contract.errors import InvalidIdError
from covey_contract.ids import mqtt_client_id, parse_device_id, parse_digest, parse_name

BAD_DEVICE_IDS = ["", "a/b", "+", "#", "..", ".", "a b", "A", "pi_1", "ä", "a\n", "\x00", "-" * 65, "a" * 65, "$sys", "a.b"]


@pytest.mark.parametrize("value", BAD_DEVICE_IDS)
def test_bad_device_ids_are_refused(value: str) -> None:
    with pytest.raises(InvalidIdError, match="device id must match"):
        parse_device_id(value)


@pytest.mark.parametrize("value", ["a", "pi-1", "0", "a" * 64, "partner-hospital-7"])
def test_good_device_ids_are_taken(value: str) -> None:
    assert parse_device_id(value) == value


@pytest.mark.parametrize("value", ["", "0" * 63, "0" * 65, "G" * 64, "A" * 64, "0" * 64 + "\n"])
def test_bad_digests_are_refused(value: str) -> None:
    with pytest.raises(InvalidIdError):
        parse_digest(value)


@pytest.mark.parametrize("value", ["", "_a", "-a", "a/b", "..", "A", "a" * 65])
def test_bad_names_are_refused(value: str) -> None:
    with pytest.raises(InvalidIdError):
        parse_name(value)


@given(st.text())
def test_an_accepted_device_id_is_safe_everywhere(value: str) -> None:
    try:
        parse_device_id(value)
    except InvalidIdError:
        return
    assert 1 <= len(value) <= 64
    assert set(value) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_a_client_id_is_the_same_again_and_cannot_be_guessed_without_the_key() -> None:
    mine = mqtt_client_id("pi-1", b"key")
    assert mine == mqtt_client_id("pi-1", b"key")
    assert mine.startswith("pi-1:")
    assert len({mine, mqtt_client_id("pi-1", b"other key"), mqtt_client_id("pi-1", b"key", "bulk")}) == 3
