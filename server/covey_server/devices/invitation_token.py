"""The text that an operator gives to a device: `covey1.<base64url JSON>`.

It holds where to enrol, the fingerprint of the fleet's CA (so that the first contact needs no other trust), the one-time
secret, and the device's id.
"""

import base64
import json

from covey_contract.ids import DeviceId

PREFIX = "covey1."


def make_token(device: DeviceId, *, url: str, fingerprint: str, secret: str) -> str:
    """The token's text; it contains the secret, so it is shown once and never stored."""
    body = json.dumps({"url": url, "fp": fingerprint, "t": secret, "id": device}, separators=(",", ":"))
    return PREFIX + base64.urlsafe_b64encode(body.encode()).rstrip(b"=").decode()
