"""Releasing a quarantined digest: an order like every other, which changes nothing but the quarantine."""

from datetime import timedelta
from pathlib import Path

import pytest
from sqlmodel import select
from tests.server.releases.bench import make_bench
from tests.server.rollouts.test_rollouts import Fleet

from covey_contract.messages import DeploymentState as D
from covey_server.audit.models import AuditEvent
from covey_server.devices.models import QuarantineEntry
from covey_server.errors import ConflictError, InvalidInputError, NotFoundError
from covey_server.rollouts.service import release_quarantine

FIRST, SECOND = "ab" * 32, "cd" * 32


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    bench = make_bench(tmp_path)
    fleet = Fleet(bench.parts, bench.clock, bench.repository)
    fleet.add_devices("pi-1", "pi-2")
    with fleet.parts.db.begin() as session:
        for digest in (FIRST, SECOND):
            session.add(QuarantineEntry(device_id="pi-1", digest=digest, reason="killed by SIGFPE", at=fleet.clock()))
    return fleet


def release(fleet: Fleet, *digests: str, device: str = "pi-1") -> list[str]:
    with fleet.parts.db.begin() as session:
        return release_quarantine(
            session, device, digests, director=fleet.parts.director, actor="token:test", now=fleet.clock() + timedelta(seconds=1)
        )


def test_the_order_is_the_one_before_with_the_digest_in_it(fleet: Fleet) -> None:
    fleet.rollout(fleet.release(b"v1"))
    fleet.report("pi-1", D.ROLLED_BACK, reason="late")
    before = fleet.desired("pi-1")
    assert release(fleet, FIRST[:12]) == [FIRST]
    after = fleet.desired("pi-1")
    assert after.released_from_quarantine == [FIRST]
    assert after.generation == before.generation + 1
    assert (after.release, after.deployment, after.probation_s) == (before.release, before.deployment, before.probation_s)
    with fleet.parts.db.read() as session:
        event = session.exec(select(AuditEvent).where(AuditEvent.action == "quarantine.released")).one()
        assert (event.actor, event.subject, event.detail) == ("token:test", "pi-1", {"digests": [FIRST]})


def test_a_device_without_an_order_may_release_everything(fleet: Fleet) -> None:
    assert release(fleet) == [FIRST, SECOND]
    desired = fleet.desired("pi-1")
    assert (desired.release, desired.deployment, desired.released_from_quarantine) == (None, "", [FIRST, SECOND])


def test_the_next_order_releases_nothing(fleet: Fleet) -> None:
    release(fleet)
    fleet.rollout(fleet.release(b"v1"))
    assert fleet.desired("pi-1").released_from_quarantine == []


def test_what_is_not_in_quarantine_is_not_released(fleet: Fleet) -> None:
    with pytest.raises(InvalidInputError, match="has in quarantine"):
        release(fleet, "ef" * 32)
    with pytest.raises(InvalidInputError):
        release(fleet, "")
    with pytest.raises(ConflictError, match="nothing in quarantine"):
        release(fleet, device="pi-2")
    with pytest.raises(NotFoundError):
        release(fleet, device="nobody")
