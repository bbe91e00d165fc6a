"""The certificate for life, with a fake server and fake children but the real files: in time, once, and never without a working one."""

import os
import shutil
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.fakes.agent.edge import Authority
from tests.fakes.agent.outside import DEVICE, START, Life, World

from covey_agent.adapters import renewal_files
from covey_agent.core.jobs import RenewalFailed, RenewalInstalled, RenewalRefused, RenewalRequested, RenewJob, Verified
from covey_agent.identity import Current, load_identity
from covey_agent.inbox import BrokerConnected
from covey_agent.settings import IdentitySettings, Settings
from covey_agent.workers.renew import run
from covey_contract.codec import decode, digest_of, encode
from covey_contract.ids import mqtt_client_id
from covey_contract.messages import Outcome, Renewal, RenewalAnswer, RotateCertificate

DAY = 86400.0


class Fleet:
    """A world with a real identity, and the authority that made it."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.authority = Authority("fleet CA")
        self.world = World(folder, settings=Settings(identity=IdentitySettings(**settings)))  # type: ignore[arg-type]  # a test's own names
        self.world.clock.time = datetime.now(UTC)
        self.folder = self.world.identity.folder
        self.folder.mkdir()
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (self.folder / "device.key").write_bytes(pem)
        (self.folder / "device.crt").write_text(self.authority.sign(DEVICE, key.public_key(), days=30))  # 90 days, of which 60 are over
        (self.folder / "ca.crt").write_text(self.authority.pem())
        (self.folder / "identity.json").write_bytes(msgspec.json.encode(self.world.identity.file))

    def sign(self, csr: str, *, days: int = 300) -> str:
        key = x509.load_pem_x509_csr(csr.encode()).public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        return self.authority.sign(DEVICE, key, days=days)

    def boot(self, *, connect: bool = True) -> Life:
        life = self.world.boot()
        if connect:
            self.connect(life)
        return life

    def connect(self, life: Life, attempt: int = 1) -> None:
        """As paho would: by what counts in this attempt."""
        life.broker.is_connected = True
        life.post(BrokerConnected(self.world.identity.address(attempt).cert_file))
        life.settle()
        life.advance(2)

    def wait(self, life: Life) -> None:
        """Until the agent tries again."""
        for _ in range(300):
            if life.running("renew"):
                return
            life.advance(100, step_s=100)
        raise AssertionError("no renewal within 8 hours")

    def work(self, life: Life) -> None:
        """The renew child does its job, for real."""
        child = life.child("renew")
        assert isinstance(child.job, RenewJob)
        child.says(run(child.job))
        life.settle()

    def asked(self, life: Life) -> str:
        """The request that was sent last."""
        return decode(life.broker.take("up/renew")[-1], Renewal).csr

    def answer(self, life: Life, csr: str, *, days: int = 300) -> None:
        life.receive("down/certificate", encode(RenewalAnswer(request=digest_of(csr.encode()), certificate=self.sign(csr, days=days))))

    def serial(self) -> str:
        validity = self.world.identity.validity()
        assert validity is not None
        return validity.serial


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


def renew(fleet: Fleet, life: Life) -> None:
    """From due to installed."""
    fleet.work(life)
    fleet.answer(life, fleet.asked(life))
    fleet.work(life)


def test_a_third_of_its_life_before_the_end_the_next_one_is_asked_for_and_used(fleet: Fleet) -> None:
    old = fleet.serial()
    session = fleet.world.identity.address(1).session_file
    before = mqtt_client_id(DEVICE, Path(session).read_bytes())
    life = fleet.boot()
    renew(fleet, life)
    assert life.broker.renewals == 1
    assert fleet.serial() != old
    assert fleet.world.identity.broker.cert_file.endswith("identity/device.crt")  # children use what has connected
    fleet.connect(life)
    assert fleet.world.identity.current.proven
    assert life.reported().certificate == fleet.serial()
    assert life.reported().boot
    assert fleet.world.identity.broker.cert_file.endswith("keys/1/device.crt")
    assert mqtt_client_id(DEVICE, Path(fleet.world.identity.address(1).session_file).read_bytes()) == before
    life.advance(DAY, step_s=7200)
    assert life.running("renew") == []


def test_long_before_the_end_nothing_is_asked(fleet: Fleet) -> None:
    life = fleet.boot()
    renew(fleet, life)  # 360 days, of which 300 are left
    fleet.connect(life)
    life.advance(150 * DAY, step_s=DAY)
    started = [child for child in life.children.started if child.program == "renew"]
    assert all(child.gone for child in started)
    life.advance(60 * DAY, step_s=DAY)
    assert len([child for child in life.children.started if child.program == "renew"]) > len(started)


def test_without_an_answer_the_same_request_is_sent_again_later_and_later(fleet: Fleet) -> None:
    life = fleet.boot()
    fleet.work(life)
    life.advance(DAY, step_s=300)
    sent = [decode(payload, Renewal).csr for payload in life.broker.take("up/renew")]
    assert len(set(sent)) == 1
    assert 5 < len(sent) < 20
    again = fleet.boot()  # kill -9: the pending key is on the disk
    fleet.work(again)
    assert fleet.asked(again) == sent[0]


def test_what_the_child_cannot_do_now_is_tried_again_and_told(fleet: Fleet) -> None:
    life = fleet.boot()
    life.speak("renew", RenewalFailed(reason="disk full"))
    assert life.running("renew") == []
    fleet.wait(life)
    life.child("renew").ends("died by SIGKILL")
    life.settle()
    fleet.wait(life)
    renew(fleet, life)
    fleet.connect(life)
    assert fleet.world.identity.current.proven
    batches = {batch.first: batch for batch in life.batches()}  # sent again and again, because nobody acknowledges here
    alarms = [reading.values["what"] for batch in batches.values() for reading in batch.readings if reading.kind == "alarm"]
    assert alarms.count("renewal_failed") == 1


@pytest.mark.parametrize("wrong", ["another key", "another name", "another authority", "no certificate"])
def test_a_certificate_that_is_not_for_the_pending_key_is_not_installed(fleet: Fleet, wrong: str) -> None:
    life, old = fleet.boot(), fleet.serial()
    fleet.work(life)
    csr = fleet.asked(life)
    key = x509.load_pem_x509_csr(csr.encode()).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = {
        "another key": fleet.authority.sign(DEVICE, other),
        "another name": fleet.authority.sign("cam-2", key),
        "another authority": Authority("fleet CA").sign(DEVICE, key),
        "no certificate": "hello",
    }[wrong]
    life.receive("down/certificate", encode(RenewalAnswer(request=digest_of(csr.encode()), certificate=pem)))
    fleet.work(life)
    assert fleet.serial() == old
    assert life.broker.renewals == 0
    fleet.wait(life)
    renew(fleet, life)  # with a fresh key
    assert fleet.serial() != old


def test_a_new_certificate_that_never_connects_is_given_up_and_the_old_one_stays(fleet: Fleet) -> None:
    life, old = fleet.boot(), fleet.serial()
    renew(fleet, life)
    for _ in range(3):
        fleet.connect(life, attempt=2)
        life.advance(400, step_s=100)
    assert fleet.serial() == old
    assert fleet.world.identity.current.proven
    fleet.wait(life)  # and once more from the beginning


def test_an_unproven_certificate_is_tried_in_turn_with_the_old_one(fleet: Fleet) -> None:
    life = fleet.boot()
    renew(fleet, life)
    files = [fleet.world.identity.address(attempt).cert_file.removeprefix(str(fleet.folder)) for attempt in (1, 2, 3, 4)]
    assert files == ["/keys/1/device.crt", "/device.crt"] * 2
    again = fleet.boot(connect=False)  # kill -9 in the middle of the trial
    fleet.connect(again)
    assert fleet.world.identity.current.proven


def test_an_operators_order_renews_now_and_is_answered_when_it_is_done(fleet: Fleet) -> None:
    life = fleet.boot()
    renew(fleet, life)
    fleet.connect(life)
    life.replies()
    command = RotateCertificate(id="c1", device=DEVICE, expires_at=life.clock.now_ms() + 86_400_000)
    life.order(command)
    life.speak("verify", Verified())
    assert life.replies() == []
    renew(fleet, life)
    again = fleet.boot(connect=False)  # the answer is owed across a restart
    fleet.connect(again)
    assert {(reply.id, reply.outcome) for reply in again.replies()} == {("c1", Outcome.DONE)}
    assert fleet.world.identity.current.generation == 2


def test_an_order_that_cannot_be_carried_out_is_answered_so(fleet: Fleet) -> None:
    life = fleet.boot()
    renew(fleet, life)
    fleet.connect(life)
    life.order(RotateCertificate(id="c1", device=DEVICE, expires_at=life.clock.now_ms() + 86_400_000))
    life.speak("verify", Verified())
    fleet.work(life)
    csr = fleet.asked(life)
    life.receive("down/certificate", encode(RenewalAnswer(request=digest_of(csr.encode()), reason="too many", retry_after_s=3600)))
    replies = {reply.id: reply for reply in life.replies()}
    assert (replies["c1"].outcome, replies["c1"].reason) == (Outcome.FAILED, "the server refused: too many")


def test_expired_while_away_it_serves_on_and_asks_by_its_old_key(fleet: Fleet) -> None:
    fleet.world.clock.time += timedelta(days=31)
    life = fleet.boot(connect=False)
    assert life.child("renew").job == RenewJob(
        step="online", identity_dir=str(fleet.folder), device=DEVICE, url=fleet.world.identity.file.url
    )
    life.speak("renew", RenewalFailed(reason="cannot reach the server"))
    for _ in range(5):
        fleet.wait(life)
        life.speak("renew", RenewalRefused(reason="ask for an invitation"))
        life.advance(80 * DAY, step_s=8 * DAY)
        for child in life.running("renew"):
            child.says(RenewalFailed(reason="cannot reach the server"))
    assert any(alarm["what"] == "certificate_expires" for alarm in _alarms(life))


def _alarms(life: Life) -> list[dict[str, object]]:
    life.connect()
    life.advance(10)
    found: list[dict[str, object]] = []
    for batch in life.batches():
        found += [dict(reading.values) for reading in batch.readings if reading.kind == "alarm"]
    return found


def test_expired_while_away_it_waits_for_a_person_if_its_owner_says_so(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, on_expiry="wait")
    fleet.world.clock.time += timedelta(days=31)
    life = fleet.boot(connect=False)
    life.advance(10 * DAY, step_s=DAY)
    assert life.running("renew") == []
    assert any(alarm["what"] == "certificate_expires" for alarm in _alarms(life))


def test_a_clock_that_jumps_loses_nothing(fleet: Fleet) -> None:
    life = fleet.boot()
    renew(fleet, life)
    fleet.connect(life)
    serial = fleet.serial()
    for jump in (datetime(1970, 1, 1, tzinfo=UTC), datetime(2038, 2, 1, tzinfo=UTC), START):
        fleet.world.clock.time = jump
        life.advance(7200, step_s=600)
        assert fleet.serial() == serial
        assert load_identity(fleet.world.state_dir).is_complete(1)
    for child in life.running("renew"):
        child.says(RenewalFailed(reason="the server's certificate is not valid yet"))
    life.settle()


def test_old_layouts_and_lost_pointers_are_read(fleet: Fleet) -> None:
    identity = load_identity(fleet.world.state_dir)
    assert identity.current.generation == 0
    life = fleet.boot()
    renew(fleet, life)
    fleet.connect(life)
    pointer = fleet.folder / "current.json"
    good = pointer.read_bytes()
    for content in (b"", b"{", b'{"generation": 9, "previous": 0}', b'{"generation": 9, "previous": 8}', b'"x"'):
        pointer.write_bytes(content)
        assert identity.current.generation == 0
        assert Path(identity.broker.cert_file).exists()
    pointer.write_bytes(good)
    assert identity.current.generation == 1


def test_a_stale_answer_changes_nothing(fleet: Fleet) -> None:
    life = fleet.boot()
    fleet.work(life)
    csr = fleet.asked(life)
    life.receive("down/certificate", encode(RenewalAnswer(request="0" * 64, certificate=fleet.sign(csr))))
    life.receive("down/certificate", b"nonsense")
    assert life.running("renew") == []
    fleet.answer(life, csr)
    fleet.work(life)
    fleet.connect(life)
    fleet.answer(life, csr)
    assert life.running("renew") == []
    assert fleet.world.identity.current.generation == 1


def test_the_renew_child_says_what_it_cannot_do(fleet: Fleet) -> None:
    job = RenewJob(step="install", identity_dir=str(fleet.folder), device=DEVICE, certificate="x")
    assert run(job) == RenewalRefused(reason="the certificate cannot be used: no key waits for it")
    assert isinstance(run(RenewJob(step="request", identity_dir=str(fleet.folder / "none"), device=DEVICE)), RenewalFailed)
    assert isinstance(run(RenewJob(step="request", identity_dir=str(fleet.folder), device=DEVICE)), RenewalRequested)
    assert isinstance(run(RenewJob(step="online", identity_dir=str(fleet.folder), device=DEVICE, url="https://127.0.0.1:1")), RenewalFailed)
    assert not isinstance(run(RenewJob(step="online", identity_dir=str(fleet.folder), device=DEVICE, url="")), RenewalInstalled)


class PowerCutError(BaseException):
    """The end of everything, at a chosen step of the file system."""


@contextmanager
def power_cut(at: int, *, after: bool) -> Iterator[list[int]]:
    """Let the `at`-th step that changes a disk be the last, done or not done."""
    steps = [0]
    places = [(os, "fsync"), (os, "open"), (Path, "rename"), (Path, "unlink"), (Path, "mkdir"), (Path, "rmdir")]
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in places:
            real = getattr(owner, name)

            def step(*args: object, real: Callable[..., object] = real, **more: object) -> object:
                steps[0] += 1
                if steps[0] == at and not after:
                    raise PowerCutError
                result = real(*args, **more)
                if steps[0] == at:
                    raise PowerCutError
                return result

            patch.setattr(owner, name, step)
        yield steps


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_power_cut_at_any_step_of_a_renewal_leaves_a_working_identity(fleet: Fleet, after: bool) -> None:
    identity, folder = fleet.world.identity, fleet.folder
    clean = folder.with_name("clean")
    shutil.copytree(folder, clean)

    def renew_once() -> None:
        asked = run(RenewJob(step="request", identity_dir=str(folder), device=DEVICE))
        assert isinstance(asked, RenewalRequested)
        installed = run(RenewJob(step="install", identity_dir=str(folder), device=DEVICE, certificate=fleet.sign(asked.csr)))
        assert isinstance(installed, RenewalInstalled)
        renewal_files.point_to(identity, Current(installed.generation, 0, proven=True))
        renewal_files.forget_old(identity)

    def check() -> None:
        for address in (identity.broker, identity.address(1), identity.address(2)):
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(address.cert_file, address.key_file)
            assert Path(address.session_file).read_bytes() == (clean / "device.key").read_bytes()

    at, done = 0, False
    while not done:
        at += 1
        shutil.rmtree(folder)
        shutil.copytree(clean, folder)
        with power_cut(at, after=after):
            try:
                renew_once()
                done = True
            except PowerCutError:
                pass
        check()
        renew_once()  # the next boot goes on from whatever is there
        check()
        assert identity.current.proven
    assert at > 20, "fewer steps than a renewal has: the harness sees too little"
