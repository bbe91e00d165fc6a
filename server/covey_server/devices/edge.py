"""The edge listener's part for devices: the CA certificate, enrolment, renewal by an old key. Nobody here has an account yet.

Enrolment is the one place where a stranger may make the server work, so the rate per address and the size of the body are
bounded before anything is parsed.
"""

import base64
import json
import logging
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field, ValidationError
from starlette.concurrency import run_in_threadpool

from covey_server.access.throttle import RateLimit
from covey_server.api_deps import ApiInput, Problem, parts_of
from covey_server.devices import certificates, service
from covey_server.devices.certificates import broker_rights
from covey_server.errors import InvalidInputError, TooLargeError, UnavailableError
from covey_server.parts import Parts

logger = logging.getLogger(__name__)

router = APIRouter(prefix="/edge/v1", tags=["edge"])
MAX_ENROL_BYTES = 65_536
T = TypeVar("T", bound=BaseModel)
_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "content": {"application/problem+json": {}}} for status in (401, 403, 409, 413, 422, 429)
}


class Enrolment(ApiInput):
    """What a device sends with its invitation."""

    token: str = Field(min_length=1, max_length=200, description="the secret inside the invitation token")
    device: str = Field(max_length=200)
    csr: str = Field(max_length=16_384, description="PEM certificate request with CN = the device id")
    supernode_public_key: str = Field("", max_length=1000, description="OpenSSH text, EC P-384; empty: it will never train")
    profile: str = Field("device", max_length=16)
    agent_version: str = Field("", max_length=64)


class ProvenRenewal(ApiInput):
    """What a device sends whose certificate has expired, or cannot be renewed over MQTT."""

    device: str = Field(max_length=200)
    serial: str = Field(max_length=64, pattern="^[0-9a-f]+$", description="of the certificate whose key signs")
    csr: str = Field(max_length=16_384, description="PEM certificate request with CN = the device id, for a fresh key")
    signature: str = Field(max_length=2000, description="base64; over `covey renewal`, NUL, device, NUL, CSR, by the old key, SHA-256")


class RenewedView(BaseModel):
    """The new certificate."""

    certificate: str = Field(description="PEM")


class BrokerAddress(BaseModel):
    """Where the MQTT broker listens for TLS."""

    host: str
    port: int


class EnrolledView(BaseModel):
    """All that a device needs to connect."""

    device: str
    certificate: str = Field(description="PEM")
    ca: str = Field(description="PEM")
    tuf_root: str = Field(description="base64 of the root metadata from which it verifies releases")
    mqtt: BrokerAddress
    fleet_api: str = Field(description="host:port for the Flower SuperNode")


@router.get("/ca.pem", response_class=Response, summary="The fleet's CA certificate")
def ca_certificate(request: Request) -> Response:
    """The certificate whose fingerprint the invitation token holds."""
    return Response(parts_of(request).authority.ca_pem(), media_type="application/x-pem-file")


@router.post(
    "/enroll",
    response_model=EnrolledView,
    summary="Enrol a device",
    responses=_RESPONSES,
    openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": Enrolment.model_json_schema()}}}},
)
async def enrol(request: Request) -> EnrolledView:
    """Exchange a one-time invitation and a certificate request for a certificate. The broker knows the device when this answers."""
    parts = parts_of(request)
    _limit_of(request).take(request.client.host if request.client else "", now=parts.clock())
    body = _parse(await _read_body(request), Enrolment)
    return await run_in_threadpool(_enrol, parts, body)


@router.post("/renew", response_model=RenewedView, summary="Renew a device's certificate by its old key", responses=_RESPONSES)
async def renew(request: Request) -> RenewedView:
    """For a device that the broker does not let in any more: its certificate has expired, but was never revoked."""
    parts = parts_of(request)
    _limit_of(request).take(request.client.host if request.client else "", now=parts.clock())
    body = _parse(await _read_body(request), ProvenRenewal)
    return await run_in_threadpool(_renew, parts, body)


def _renew(parts: Parts, body: ProvenRenewal) -> RenewedView:
    with parts.db.begin() as session:
        certificate = certificates.renew_by_proof(
            session,
            body.device,
            serial=body.serial,
            csr=body.csr,
            signature=body.signature,
            authority=parts.authority,
            pki=parts.settings.pki,
            now=parts.clock(),
        )
    _let_in(parts, body.device)
    return RenewedView(certificate=certificate.pem)


def _let_in(parts: Parts, device: str) -> None:
    try:
        parts.permissions.apply(broker_rights(parts.db))
    except UnavailableError as exc:  # the device has its certificate; the worker applies the table again, and the device retries
        logger.error("%s has a certificate, but the broker does not know it yet: %s", device, exc)  # noqa: TRY400 - the message says it all


def _enrol(parts: Parts, body: Enrolment) -> EnrolledView:
    root = parts.repository.newest_root()  # before the invitation is used up: what can fail fails first
    with parts.db.begin() as session:
        enrolled = service.enrol_device(
            session,
            token=body.token,
            device=body.device,
            csr=body.csr,
            supernode_public_key=body.supernode_public_key,
            profile=body.profile,
            agent_version=body.agent_version,
            authority=parts.authority,
            now=parts.clock(),
        )
    _let_in(parts, enrolled.device.id)
    settings = parts.settings
    return EnrolledView(
        device=enrolled.device.id,
        certificate=enrolled.certificate,
        ca=parts.authority.ca_pem(),
        tuf_root=base64.b64encode(root).decode(),
        mqtt=BrokerAddress(host=settings.broker.public_host, port=settings.broker.port),
        fleet_api=f"{settings.edge.public_host}:{settings.edge.port}",
    )


async def _read_body(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_ENROL_BYTES:
            raise TooLargeError(f"an enrolment may have {MAX_ENROL_BYTES} bytes")
    return bytes(body)


def _parse(body: bytes, kind: type[T]) -> T:
    try:
        return kind.model_validate(json.loads(body))
    except ValidationError as exc:
        faults = "; ".join(f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in exc.errors())
        raise InvalidInputError(f"the request is not valid: {faults}") from exc
    except (ValueError, RecursionError) as exc:
        raise InvalidInputError("expected the request as a JSON object") from exc


def _limit_of(request: Request) -> RateLimit:
    """One limit per application, made when it is first needed."""
    limit = getattr(request.app.state, "enrol_limit", None)
    if not isinstance(limit, RateLimit):
        limit = request.app.state.enrol_limit = RateLimit(burst=60, per_second=10)
    return limit
