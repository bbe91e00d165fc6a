"""`python -m covey_agent.workers.renew`: one step of a renewal. Only here are keys made and certificates checked.

RenewJob "request" -> RenewalRequested · "install" -> RenewalInstalled · "online" -> RenewalInstalled, after proving possession of the old
key to the server's edge over HTTPS · or RenewalRefused | RenewalFailed
"""

import base64
import json
import ssl
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from covey_agent.adapters import renewal_files
from covey_agent.adapters.enrolment import call_edge, problem_of
from covey_agent.adapters.enrolment_keys import check_certificate, make_device_key
from covey_agent.core.jobs import RenewalFailed, RenewalInstalled, RenewalRefused, RenewalRequested, RenewJob
from covey_agent.errors import CoveyAgentError, RefusedByServerError, UnreachableError
from covey_agent.identity import Identity, IdentityFile, validity_of
from covey_agent.workers.lines import Lines

PROOF_PREFIX = b"covey renewal\0"
_LATER = (408, 425, 429)  # statuses that say: not now


def main() -> None:
    """Do the job on standard input and end."""
    lines = Lines.take_over()
    lines.emit(run(lines.read_job(RenewJob)))


def run(job: RenewJob) -> RenewalRequested | RenewalInstalled | RenewalRefused | RenewalFailed:
    """Do one step."""
    try:
        identity = _open(Path(job.identity_dir))
        match job.step:
            case "request":
                return RenewalRequested(csr=_request(identity))
            case "install":
                return RenewalInstalled(generation=_install(identity, job.certificate))
            case "online":
                return RenewalInstalled(generation=_install(identity, _ask_online(identity, job.url)))
            case _:
                raise ValueError(f"a step is request, install or online, got {job.step!r:.40}")
    except RefusedByServerError as exc:
        return RenewalRefused(reason=str(exc))
    except ValueError as exc:
        return RenewalRefused(reason=f"the certificate cannot be used: {exc}")
    except (CoveyAgentError, OSError) as exc:
        return RenewalFailed(reason=str(exc))


def _open(folder: Path) -> Identity:
    return Identity(msgspec.json.decode((folder / "identity.json").read_bytes(), type=IdentityFile), folder)


def _request(identity: Identity) -> str:
    """The request of the pending key; made now unless there is one."""
    known = renewal_files.pending_request(identity.folder)
    if known:
        return known
    renewal_files.discard_pending(identity.folder)  # an incomplete one
    make_device_key(renewal_files.new_pending(identity.folder), identity.file.device)
    renewal_files.seal_pending(identity.folder)
    return renewal_files.pending_request(identity.folder)


def _install(identity: Identity, certificate: str) -> int:
    pending = renewal_files.pending_dir(identity.folder)
    if not (pending / "device.key").exists():
        raise ValueError("no key waits for it")
    check_certificate(pending, identity.file.device, pem=certificate.encode("ascii"), ca=identity.folder / "ca.crt")
    return renewal_files.install(identity, certificate)


def _ask_online(identity: Identity, url: str) -> str:
    csr = _request(identity)
    address = identity.broker
    validity = validity_of(Path(address.cert_file))
    key = serialization.load_pem_private_key(Path(address.key_file).read_bytes(), None)
    if validity is None or not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("the old certificate or its key is unreadable")
    text = PROOF_PREFIX + identity.file.device.encode("ascii") + b"\0" + csr.encode("ascii")
    signature = key.sign(text, ec.ECDSA(hashes.SHA256()))
    body = {"device": identity.file.device, "serial": validity.serial, "csr": csr, "signature": base64.b64encode(signature).decode()}
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(address.ca_file)
    status, answer = call_edge(url, "POST", "/edge/v1/renew", context=context, body=json.dumps(body).encode())
    try:
        content = json.loads(answer)
    except ValueError:
        content = {}
    if not isinstance(content, dict):
        content = {}
    if status >= 500 or status in _LATER:
        raise UnreachableError(f"the server cannot renew now ({status}): {problem_of(content)}")
    if status != 200:
        raise RefusedByServerError(f"the server refused to renew ({status}): {problem_of(content)}")
    return str(content.get("certificate", ""))


if __name__ == "__main__":
    main()
