"""The drawn table of transitions is the one that runs."""

from scripts.deployment_states import TARGET, render

from covey_agent.core.machine import TABLE, Action, Event
from covey_contract.messages import DeploymentState


def test_the_page_is_what_the_code_says() -> None:
    assert TARGET.read_text("utf-8") == render(), "stale: run `python -m scripts.deployment_states`"


def test_every_state_event_and_action_is_used() -> None:
    assert {state for state, _ in TABLE} == set(DeploymentState)
    assert {event for _, event in TABLE} == set(Event)
    assert {action for _, actions in TABLE.values() for action in actions} == set(Action)


def test_every_state_survives_a_start() -> None:
    assert all((state, Event.BOOTED) in TABLE for state in DeploymentState)


def test_every_state_in_flight_is_left_after_too_many_starts() -> None:
    for (state, event), (target, _) in TABLE.items():
        if event is Event.BOOTED_AGAIN:
            assert target is not state
