"""The text that an operator gives to a device: `covey1.<base64url JSON>`.

It holds where to enrol, the fingerprint of the fleet's CA (so that the first contact needs no other trust), the one-time
secret, and the device's id.
"""

import base64
import json

from covey_contract.ids import DeviceId
from covey_server.errors import InvalidInputError

PREFIX = "covey1."


def make_token(device: DeviceId, *, url: str, fingerprint: str, secret: str) -> str:
    """The token's text; it contains the secret, so it is shown once and never stored."""
    body = json.dumps({"url": url, "fp": fingerprint, "t": secret, "id": device}, separators=(",", ":"))
    return PREFIX + base64.urlsafe_b64encode(body.encode()).rstrip(b"=").decode()


def read_token(text: str) -> dict[str, str]:
    """What is inside a token's text, for tests and tools; the agent has a reader of its own. Raises InvalidInputError."""
    try:
        body = text.removeprefix(PREFIX).encode("ascii")
        fields = json.loads(base64.urlsafe_b64decode(body + b"=" * (-len(body) % 4)))
    except ValueError as exc:
        raise InvalidInputError(f"expected an invitation token that begins with {PREFIX}") from exc
    if not text.startswith(PREFIX) or not isinstance(fields, dict) or set(fields) != {"url", "fp", "t", "id"}:
        raise InvalidInputError(f"expected an invitation token that begins with {PREFIX}")
    return {name: str(value) for name, value in fields.items()}
