"""The text of an invitation token, and every way it can be wrong."""

import base64
import json
import re

import pytest

from covey_agent.adapters.enrolment import Token, parse_token
from covey_agent.errors import UsageError


def test_token_is_read_with_or_without_padding_and_spaces() -> None:
    expected = Token(url="https://fleet.example:8443", fingerprint="ab" * 32, secret="x_y-z", device="cam-1")  # type: ignore[arg-type]  # a DeviceId
    text = encode({"url": "https://fleet.example:8443/", "fp": "ab" * 32, "t": "x_y-z", "id": "cam-1"})
    assert parse_token(text) == parse_token(f"  {text.rstrip('=')}\n") == expected


def encode(content: object) -> str:
    return "covey1." + base64.urlsafe_b64encode(json.dumps(content).encode()).decode()


GOOD = {"url": "https://localhost:1", "fp": "0" * 64, "t": "x", "id": "cam-1"}


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("", "begins with covey1."),
        ("hello", "begins with covey1."),
        ("covey1." + "A" * 5000, "begins with covey1."),
        ("covey1.%%%", "damaged"),
        ("covey1.aGVsbG8", "damaged"),
        (encode([1]), "damaged"),
        (encode({"url": "https://localhost:1"}), "damaged"),
        (encode({**GOOD, "id": "a/b"}), "no valid device"),
        (encode({**GOOD, "id": ".."}), "no valid device"),
        (encode({**GOOD, "id": "+"}), "no valid device"),
        (encode({**GOOD, "url": "http://localhost:1"}), "https"),
        (encode({**GOOD, "fp": "xyz"}), "no sha256"),
    ],
)
def test_bad_token_text_is_wrong_usage(token: str, words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        parse_token(token)
