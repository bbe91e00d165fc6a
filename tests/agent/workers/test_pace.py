"""How much is asked for at once, the owner's cap, and metered links."""

from pathlib import Path

import pytest

from covey_agent.core.jobs import LinkRules, MeteredPolicy
from covey_agent.core.links import parse_link_rules
from covey_agent.errors import UsageError
from covey_agent.workers.errors import NetworkError
from covey_agent.workers.metered import check_link, default_interface, find_meter
from covey_agent.workers.pace import QUEUE_S, ChunkWindow, Pace
from covey_contract.limits import CHUNK_BYTES, GROUP_CHUNKS

ROUTES = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t0000A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0
{}\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0
wwan0\t00000000\t0101A8C0\t0003\t0\t0\t700\t00000000\t0\t0\t0
"""


def settle(window: ChunkWindow, *, bytes_per_s: float, rounds: int = 12, round_trip_s: float = 0.0) -> int:
    """The size after some windows over a link of this speed."""
    for _ in range(rounds):
        size = window.size * CHUNK_BYTES
        window.arrived(size, round_trip_s + size / bytes_per_s)
    return window.size


@pytest.mark.parametrize(("mbit", "size"), [(0.1, 1), (1.0, 1), (10.0, 9), (20.0, 16), (1000.0, 16)])
def test_no_more_is_asked_for_than_half_a_second_of_the_link(mbit: float, size: int) -> None:
    rate = mbit * 1e6 / 8
    found = settle(ChunkWindow(), bytes_per_s=rate)
    assert found == size
    assert found == 1 or found * CHUNK_BYTES / rate <= QUEUE_S


def test_a_link_that_turns_slow_is_noticed_at_once_and_one_that_turns_fast_within_a_group() -> None:
    window = ChunkWindow(GROUP_CHUNKS)
    assert settle(window, bytes_per_s=125_000.0, rounds=4) == 1
    assert settle(window, bytes_per_s=1e8, rounds=5) == GROUP_CHUNKS


@pytest.mark.parametrize(("round_trip_s", "size"), [(0.002, 16), (0.2, 2), (None, 2)])
def test_the_first_window_follows_the_first_answers(round_trip_s: float | None, size: int) -> None:
    assert ChunkWindow.after(round_trip_s).size == size


def test_the_window_takes_the_first_that_are_missing() -> None:
    assert ChunkWindow(2).cut(0b1011_0000) == 0b0011_0000
    assert ChunkWindow(16).cut(0b1) == 1


def test_the_cap_holds_on_average() -> None:
    now, waited = [0.0], [0.0]

    def pause(seconds: float) -> None:
        now[0] += seconds
        waited[0] += seconds

    pace = Pace(50_000.0, clock=lambda: now[0], pause=pause)
    for _ in range(100):
        now[0] += 0.01  # the link itself is fast
        pace.take(CHUNK_BYTES)
    assert 100 * CHUNK_BYTES / now[0] <= 50_000 * 1.01
    assert waited[0] > 0
    unbounded = Pace(0.0, clock=lambda: now[0], pause=lambda _: pytest.fail("there is no cap"))
    unbounded.take(10**9)


def rules(policy: MeteredPolicy = MeteredPolicy.WAIT, *, metered: str = "auto", small: int = 1000) -> LinkRules:
    """An owner's rules."""
    return LinkRules(metered=metered, policy=policy, small_bytes=small, interfaces=["wwan*", "ppp*"])


def test_the_default_route_with_the_lowest_metric_is_the_way_out() -> None:
    assert default_interface(ROUTES.format("eth0")) == "eth0"
    assert default_interface("Iface\n") == ""


@pytest.mark.parametrize(
    ("given", "interface", "size", "waits"),
    [
        (rules(), "eth0", 10**9, False),
        (rules(), "ppp0", 1, True),
        (rules(metered="no"), "ppp0", 1, False),
        (rules(metered="yes"), "eth0", 1, True),
        (rules(MeteredPolicy.ALLOW, metered="yes"), "ppp0", 10**9, False),
        (rules(MeteredPolicy.SMALL), "ppp0", 1000, False),
        (rules(MeteredPolicy.SMALL), "ppp0", 1001, True),
        (rules(MeteredPolicy.SMALL), "eth0", 1001, False),
    ],
)
def test_what_may_come_over_which_link(tmp_path: Path, given: LinkRules, interface: str, size: int, waits: bool) -> None:
    routes = tmp_path / "route"
    routes.write_text(ROUTES.format(interface))
    if waits:
        with pytest.raises(NetworkError, match=f"{size} bytes wait for another link"):
            check_link(given, size, routes=routes)
    else:
        check_link(given, size, routes=routes)
    assert find_meter(rules(metered="no"), routes=routes) == ""


@pytest.mark.parametrize(("metered", "policy"), [("perhaps", "wait"), ("auto", "never")])
def test_words_that_mean_nothing_are_refused(metered: str, policy: str) -> None:
    with pytest.raises(UsageError, match="must be"):
        parse_link_rules(max_kbit_per_s=0, metered=metered, policy=policy, small_mb=1, interfaces="")
