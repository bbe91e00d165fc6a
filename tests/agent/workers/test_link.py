"""The bulk connection on the real broker: what it says when it cannot, and that it goes on when it can again."""

import gc
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest
from tests.fakes.nats_broker import RunningBroker, free_port, running_broker
from tests.fakes.tuf_repository import TufRepository
from tests.fakes.wants_server import WantsServer

from covey_agent.core.jobs import BrokerAddress
from covey_agent.workers.connection import LinkSettings
from covey_agent.workers.errors import NetworkError
from covey_agent.workers.link import BulkLink
from covey_agent.workers.patience import PatienceSettings
from covey_contract.codec import digest_of
from covey_contract.ids import Digest
from covey_contract.limits import CHUNK_BYTES
from covey_contract.messages import WantMetadata

pytestmark = pytest.mark.broker

DATA = b"chunk" * CHUNK_BYTES
QUICK = PatienceSettings(first_wait_s=0.05, least_wait_s=0.05, most_wait_s=0.2, patience_s=0.5)
SETTINGS = LinkSettings(metadata=QUICK, chunks=QUICK, connect=QUICK, connect_timeout_s=2.0)
TOUGH = PatienceSettings(first_wait_s=0.1, least_wait_s=0.1, most_wait_s=0.5, patience_s=20.0)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RunningBroker]:
    with running_broker(tmp_path, devices=["pi-1", "pi-2"]) as made:
        yield made


@pytest.fixture
def server(broker: RunningBroker) -> Iterator[WantsServer]:
    with WantsServer(broker, TufRepository(), {digest_of(DATA): DATA}) as made:
        yield made


def address(broker: RunningBroker, device: str = "pi-1") -> BrokerAddress:
    files = broker.identity(device)
    return BrokerAddress("127.0.0.1", broker.port, str(files.ca), str(files.certificate), str(files.key), device)


def test_a_file_that_the_server_lacks_is_an_answer(broker: RunningBroker, server: WantsServer) -> None:
    with BulkLink(address(broker), settings=SETTINGS) as link:
        assert link.fetch_part("metadata/7.root.json", 0).parts == 0
        assert link.fetch_part("metadata/1.root.json", 0).data == server.repository.anchor


def test_a_server_that_does_not_answer_is_asked_again_ever_more_slowly_and_then_left(broker: RunningBroker, server: WantsServer) -> None:
    server.silent = True
    with BulkLink(address(broker), settings=SETTINGS) as link, pytest.raises(NetworkError, match=r"no answer.*timestamp"):
        link.fetch_part("metadata/timestamp.json", 0)
    asked = [want for want in server.wants if isinstance(want, WantMetadata)]
    assert 3 <= len(asked) <= 6  # at 0, 0.05, 0.15, 0.35, 0.55 s and a little jitter; a fixed timer would have asked ten times
    assert len({want.id for want in asked}) == 1


def test_a_closed_port_is_a_network_error(broker: RunningBroker) -> None:
    nowhere = msgspec.structs.replace(address(broker), port=free_port())
    with BulkLink(nowhere, settings=SETTINGS) as link, pytest.raises(NetworkError, match="refused"):
        link.fetch_part("metadata/timestamp.json", 0)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_broker_of_another_fleet_is_not_believed(broker: RunningBroker, tmp_path: Path) -> None:
    with running_broker(tmp_path / "other") as other:
        mixed = msgspec.structs.replace(address(broker), ca_file=str(other.gateway_files().ca))
        with BulkLink(mixed, settings=SETTINGS) as link, pytest.raises(NetworkError, match="CERTIFICATE_VERIFY_FAILED"):
            link.fetch_part("metadata/timestamp.json", 0)
    gc.collect()  # paho leaves the socket of a failed handshake to the garbage collector


def test_a_revoked_device_is_told_that_it_may_be(broker: RunningBroker) -> None:
    mine = address(broker)
    broker.allow("pi-2")
    with BulkLink(mine, settings=SETTINGS) as link, pytest.raises(NetworkError, match=r"revoked|authori[sz]ed"):
        link.fetch_part("metadata/timestamp.json", 0)


def test_another_devices_answers_are_out_of_reach(broker: RunningBroker, server: WantsServer) -> None:
    impostor = msgspec.structs.replace(address(broker, "pi-2"), device="pi-1")
    with BulkLink(impostor, settings=SETTINGS) as link, pytest.raises(NetworkError, match=r"does not grant .*pi-1/down/metadata"):
        link.fetch_part("metadata/timestamp.json", 0)
    assert server.wants == []


def test_a_fetch_goes_on_after_the_broker_was_away(broker: RunningBroker, server: WantsServer) -> None:
    server.chunk_pause_s = 0.02
    got: set[int] = set()
    everything = len(DATA) // CHUNK_BYTES
    restarted = threading.Event()

    def restart() -> None:
        broker.process.stop()
        time.sleep(0.2)
        broker.process.start()
        restarted.set()

    with ExitStack() as stack:
        link = stack.enter_context(BulkLink(address(broker), settings=LinkSettings(metadata=TOUGH, chunks=TOUGH, connect=TOUGH)))
        for chunk in link.chunks(Digest(digest_of(DATA)), group=0, missing=lambda: sum(1 << i for i in range(everything) if i not in got)):
            got.add(chunk.index)
            if len(got) == 2:
                threading.Thread(target=restart).start()
    assert got == set(range(everything))
    assert restarted.wait(10)
