"""The only wiring: which parts the server is made of, which edges the API has, which handlers and ticks the worker runs."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from covey_contract.topics import Channel
from covey_server import __version__
from covey_server.access import api as access_api
from covey_server.api_errors import install_error_handlers
from covey_server.audit import api as audit_api
from covey_server.broker.external import permissions_of
from covey_server.clock import utc_now
from covey_server.console import mounting as console
from covey_server.db import Database
from covey_server.devices import api as devices_api
from covey_server.devices import edge as devices_edge
from covey_server.devices import handlers as devices_handlers
from covey_server.devices.authority import FileAuthority
from covey_server.federation import api as federation_api
from covey_server.federation import handlers as federation_handlers
from covey_server.federation.control import SuperLinkControl
from covey_server.federation.edge import FleetEdge
from covey_server.federation.ticks import RunKeeper
from covey_server.mqtt.gateway import Gateway
from covey_server.mqtt.link import BrokerLink, Receipt
from covey_server.mqtt.publisher import OutboxPublisher
from covey_server.mqtt.router import Router
from covey_server.observability import api as observability_api
from covey_server.parts import Parts
from covey_server.privacy import api as privacy_api
from covey_server.releases import api as releases_api
from covey_server.releases import downloads
from covey_server.releases.build import Builder
from covey_server.releases.delivery import Delivery, DeliveryLimits
from covey_server.releases.deltas import DeltaDesk, DeltaMaker
from covey_server.releases.director import FileDirector
from covey_server.releases.downloads import DownloadDesk
from covey_server.releases.handlers import want_handler
from covey_server.releases.repository import TufRepository
from covey_server.releases.store import FolderBlobStore
from covey_server.releases.uploads import BodyLimit
from covey_server.rollouts import api as rollouts_api
from covey_server.rollouts import handlers as rollouts_handlers
from covey_server.settings import Settings
from covey_server.telemetry import api as telemetry_api
from covey_server.telemetry import handlers as telemetry_handlers
from covey_server.triggers import api as triggers_api
from covey_server.worker import Worker

DESCRIPTION = """
Fleet state, releases, rollouts, federated runs and the privacy ledger of one Covey fleet.

Every call needs a bearer token (`covey token create`). Lists come in pages: pass `next` back as `cursor`. Errors are RFC 9457 problem
documents whose `detail` says what was expected, what came, and what to do. A POST with an `Idempotency-Key` acts once.
"""


def open_parts(settings: Settings) -> Parts:
    """The parts of a server whose work folder has been initialised. Raises UnavailableError for what is missing."""
    return Parts(
        settings=settings,
        db=Database(settings.resolved_database_url),
        clock=utc_now,
        authority=FileAuthority.open(settings),
        permissions=permissions_of(settings),
        blobs=FolderBlobStore(settings.path("blobs")),
        repository=TufRepository(settings),
        director=FileDirector.load(settings),
    )


def build_api(parts: Parts) -> FastAPI:
    """The API and the console, for operators."""
    # The reference at /docs is the console's: FastAPI's own loads its scripts from elsewhere, and would be blank offline.
    app = FastAPI(title="Covey", version=__version__, description=DESCRIPTION, docs_url=None, redoc_url=None)
    app.state.parts = parts
    app.add_middleware(BodyLimit, max_bytes=parts.settings.api.max_body_mb * 1_000_000)
    install_error_handlers(app)
    for edge in (
        observability_api,
        devices_api,
        releases_api,
        rollouts_api,
        telemetry_api,
        triggers_api,
        audit_api,
        access_api,
    ):
        app.include_router(edge.router)
    for edge_below in (federation_api, privacy_api):
        app.include_router(edge_below.router, prefix="/api/v1")
    app.include_router(console.router)
    console.mount(app)
    return app


def build_edge(parts: Parts) -> FastAPI:
    """What devices reach over TLS: enrolment and the Flower fleet API, nothing else."""
    fleet = FleetEdge(parts.settings)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await fleet.close()

    app = FastAPI(title="Covey edge", version=__version__, docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.parts = parts
    install_error_handlers(app)
    app.include_router(devices_edge.router)
    app.include_router(downloads.router)
    app.include_router(fleet.router())
    return app


def build_worker(parts: Parts) -> Worker:
    """MQTT in and out, delivery, and everything that happens by itself."""
    settings = parts.settings
    keys = FileAuthority.open(settings).issue_gateway_certificate(now=parts.clock())
    router = Router(parts)
    gateway = Gateway(router)
    main_link = BrokerLink(host=settings.broker.host, port=settings.broker.port, keys=keys, on_message=gateway.take)
    bulk_link = BrokerLink(
        host=settings.broker.host, port=settings.broker.port, keys=keys, on_message=lambda _message: None, subscribe=False
    )
    delivery = Delivery(
        parts.db,
        parts.blobs,
        parts.repository,
        _BulkPublisher(bulk_link),
        deltas=DeltaDesk(parts.db, parts.blobs, settings.delivery),
        downloads=DownloadDesk(parts.db, settings, parts.clock),
        bounds=DeliveryLimits.of(settings.delivery),
    )
    devices_handlers.register(router)
    rollouts_handlers.register(router)
    telemetry_handlers.register(router)
    router.register(Channel.REPLY, federation_handlers.on_reply)
    router.register(Channel.WANT, want_handler(delivery))
    keeper = RunKeeper(parts, SuperLinkControl.open(settings)) if settings.flower.enabled else None
    return Worker(
        parts=parts,
        router=router,
        gateway=gateway,
        outbox=OutboxPublisher(parts.db, main_link),
        links=(main_link, bulk_link),
        delivery=delivery,
        builder=Builder(),
        deltas=DeltaMaker(parts.db, parts.blobs, settings.delivery),
        keeper=keeper,
    )


class _BulkPublisher:
    """The bulk link as delivery sees it."""

    def __init__(self, link: BrokerLink) -> None:
        self._link = link

    def publish(self, topic: str, payload: bytes, qos: int) -> Receipt:
        """Hand over one message without waiting for the broker."""
        return self._link.send(topic, payload, qos=qos)
