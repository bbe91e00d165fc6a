"""Why a connection did not come about, in words that say where to look: network, clock, wrong server, certificate.

None of these changes anything on the device: each is a reason to wait and try again.
"""

import socket
import ssl
import time
from enum import IntEnum


class _Code(IntEnum):
    """OpenSSL's X509_V_ERR_..."""

    NOT_YET_VALID = 9
    EXPIRED = 10
    OTHER_HOST = 62
    OTHER_ADDRESS = 64


_ALERTS = {  # what the broker said before it closed, in OpenSSL's words
    "certificate expired": "certificate: the broker says that this device's certificate has expired",
    "certificate revoked": "certificate: this device's certificate was revoked",
    "bad certificate": "certificate: the broker does not accept this device's certificate; was the device revoked?",
    "unknown ca": "certificate: the broker does not know this device's CA; is it the right fleet?",
    "certificate unknown": "certificate: the broker does not accept this device's certificate; was the device revoked?",
    "certificate required": "certificate: the broker did not get this device's certificate",
}


def explain(error: BaseException | None, *, host: str, port: int) -> str:
    """A failed attempt to connect, in words."""
    where = f"{host}:{port}"
    if isinstance(error, ssl.SSLCertVerificationError):
        return _explain_certificate(error, host=host, where=where)
    if isinstance(error, ssl.SSLError):
        return explain_alert(str(error)) or f"wrong server: {where} does not speak TLS as the broker does ({error.reason or error})"
    if isinstance(error, socket.gaierror):
        return f"network: the name {host} cannot be resolved"
    if isinstance(error, ConnectionRefusedError):
        return f"network: nobody listens at {where}"
    return f"network: no answer from {where}" + (f": {error}" if error else "")


def _explain_certificate(error: ssl.SSLCertVerificationError, *, host: str, where: str) -> str:
    match error.verify_code:
        case _Code.NOT_YET_VALID:
            return f"clock: {_today()} on this machine, before the certificate of {where} begins"
        case _Code.EXPIRED:
            return f"clock: {_today()} on this machine, after the certificate of {where} ended; or the server did not renew it"
        case _Code.OTHER_HOST | _Code.OTHER_ADDRESS:
            return f"wrong server: the certificate at {where} is not for {host}"
        case _:
            return f"wrong server: the certificate at {where} is not of this fleet's CA ({error.verify_message})"


def explain_alert(text: str) -> str:
    """The broker's TLS alert in an error's text, in words; empty if there is none."""
    plain = text.lower().replace("_", " ")
    return next((words for alert, words in _ALERTS.items() if f"alert {alert}" in plain), "")


def _today() -> str:
    return time.strftime("it is %Y-%m-%d %H:%M", time.gmtime())
