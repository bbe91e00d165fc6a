"""What other capabilities and programs may call of rollouts: operators' acts, devices' reports, the worker's tick, desired states."""

from covey_server.rollouts.acts import (
    cancel_rollout,
    count_devices,
    create_rollout,
    get_rollout,
    list_rollout_devices,
    list_rollouts,
    pause_rollout,
    resume_rollout,
    start_rollout,
)
from covey_server.rollouts.desired import get_desired, republish_desired
from covey_server.rollouts.progress import advance_rollout, note_report, tick_rollouts
from covey_server.rollouts.quarantine import release_quarantine

__all__ = [
    "advance_rollout",
    "cancel_rollout",
    "count_devices",
    "create_rollout",
    "get_desired",
    "get_rollout",
    "list_rollout_devices",
    "list_rollouts",
    "note_report",
    "pause_rollout",
    "release_quarantine",
    "republish_desired",
    "resume_rollout",
    "start_rollout",
    "tick_rollouts",
]
