"""A server whose database was restored from an old backup: devices know of orders that it does not.

A device carries out no order whose generation it has seen, so what this server would order next is passed over in silence until its
numbers are above again. It is told by the first device that reports, and put right by `covey keys recover`. Nothing is sent anew: what the
backup holds is old, and would take devices back to old releases.
"""

from datetime import datetime

from sqlmodel import Session, col, update

from covey_contract.ids import DeviceId
from covey_contract.messages import Reported
from covey_server.rollouts.desired import MOST_GENERATION, get_desired
from covey_server.rollouts.models import DesiredState
from covey_server.triggers.models import Severity
from covey_server.triggers.service import raise_alert

WHAT = "server_restored"
# The same words from every device: one alert for the whole fleet, not one for each report.
_DETAIL = (
    "devices have acted upon newer orders than this server remembers: its database was restored from an old backup, or is another fleet's. "
    "Run `covey keys recover`, so that they believe its metadata and orders again (docs/keys.md)"
)


def note_ahead(session: Session, device: DeviceId, reported: Reported, *, now: datetime) -> bool:
    """Raise an alert if a device has acted upon an order that was not given here; whether it has."""
    row = get_desired(session, device)
    is_ahead = (row.generation if row else 0) < reported.desired_generation <= MOST_GENERATION
    if is_ahead:
        raise_alert(session, WHAT, severity=Severity.CRITICAL, detail=_DETAIL, now=now)
    return is_ahead


def raise_generations(session: Session, by: int) -> int:
    """Let the next order of every device have a number `by` higher than it would have; how many devices that is."""
    raised = session.exec(
        update(DesiredState).where(col(DesiredState.generation) <= MOST_GENERATION).values(generation=col(DesiredState.generation) + by)
    )
    return raised.rowcount
