"""The certificate for life: looks at its age, asks for the next one in time, tries it, and keeps the old one until it works.

    due -> child makes key and request -> up/renew -> down/certificate -> child checks and installs -> connect by it -> proven
                                                                                              \\-> the old one, in turn -> given up

- Due is when a third of the life is left, with jitter, or when an operator says so. A step that fails is tried again, later and later.
- Renewing never touches what works: local service does not depend on a certificate at all, and the old one connects until the end.
- Expired while away: by policy, the child proves to the server's HTTPS edge that it has the old key; or it waits for a person.
- An alarm when few days are left, whatever the reason.
"""

import logging
from enum import Enum

import msgspec

from covey_agent.adapters import renewal_files
from covey_agent.core.backoff import Backoff
from covey_agent.core.certificates import DAY_MS, Validity
from covey_agent.core.jobs import ChildEvent, RenewalFailed, RenewalInstalled, RenewalRefused, RenewalRequested, RenewJob
from covey_agent.daemon.deployments import Audience
from covey_agent.daemon.kit import Kit
from covey_agent.daemon.replies import Replies
from covey_agent.errors import StateError
from covey_agent.identity import Current
from covey_agent.ports import Child
from covey_contract.codec import decode, digest_of, encode
from covey_contract.errors import ContractError
from covey_contract.messages import Outcome, Renewal, RenewalAnswer, RotateCertificate
from covey_contract.topics import Channel

logger = logging.getLogger(__name__)
KEY = "rotation"  # the command that waits for the end of a renewal
CHILD_TIMEOUT_S = 120.0
MAX_RETRY_S = 6 * 3600.0
MAX_FALLBACKS = 3  # connections by the old certificate after which a new one that never connects is given up
SETTLE_S = 1.0


class Phase(Enum):
    """Where a renewal is."""

    IDLE = "idle"
    WORKING = "working"  # a child is at it
    ASKED = "asked"  # the server has the request
    TRYING = "trying"  # the new certificate is installed and has not connected yet


class Rotation(msgspec.Struct, frozen=True):
    """A RotateCertificate that was accepted."""

    command: str
    expires_at: int


class Renewals:
    """One renewal at a time. `serial` is of the certificate by which the agent is connected."""

    def __init__(self, kit: Kit, *, replies: Replies, audience: Audience) -> None:
        self._kit = kit
        self._replies = replies
        self._audience = audience
        self._phase = Phase.IDLE
        self._csr = ""
        self._failures = 0
        self._fallbacks = 0
        self._connected = False
        self._answered = False
        self._forced = False
        self._alarmed_at: int | None = None
        self._chance = kit.random()
        settings = kit.settings.identity
        self._retry = Backoff(first_s=settings.retry_first_s, max_s=max(MAX_RETRY_S, settings.retry_first_s))
        stored = kit.store.load(KEY)
        self._rotation = msgspec.json.decode(stored, type=Rotation) if stored else None
        self.serial = ""

    @property
    def phase(self) -> Phase:
        """Where the present renewal is."""
        return self._phase

    def begin(self) -> None:
        """The agent starts: go on with what was begun before."""
        if not self._kit.identity.current.proven:
            self._phase = Phase.TRYING
        self._check()

    def rotate(self, command: RotateCertificate) -> None:
        """An operator wants a fresh key now. Answered when the new certificate has connected, or cannot be had."""
        self._rotation = Rotation(command.id, command.expires_at)
        self._kit.store.save({KEY: msgspec.json.encode(self._rotation)})
        self.force()

    def force(self) -> None:
        """Renew now, whatever the age."""
        self._forced = True
        self._failures = 0
        self._check()

    def connected(self, certificate: str) -> None:
        """A connection began, by this certificate file."""
        self._connected = True
        validity = self._kit.identity.validity()
        current = self._kit.identity.current
        is_newest = not certificate or certificate == str(self._kit.identity.keys(current.generation) / "device.crt")
        self.serial = validity.serial if validity and is_newest else ""
        if self._phase is Phase.TRYING:
            self._tried(current, is_newest=is_newest)
        elif self._phase is Phase.ASKED:
            self._send()
        self._kit.timers.set("renewal-check", SETTLE_S, self._check)

    def disconnected(self) -> None:
        """What was asked is asked again with the next connection."""
        self._connected = False

    def answer_came(self, payload: bytes) -> None:
        """The server's answer on `down/certificate`."""
        try:
            answer = decode(payload, RenewalAnswer)
        except ContractError as exc:
            logger.warning("an answer to a renewal was refused: %s", exc)
            return
        if self._phase is not Phase.ASKED or answer.request != digest_of(self._csr.encode("utf-8")):
            logger.debug("an answer to an older renewal: ignored")
            return
        self._kit.timers.cancel("renewal-answer")
        if answer.certificate:
            self._start("install", certificate=answer.certificate)
            return
        if not answer.retry_after_s:
            renewal_files.discard_pending(self._kit.identity.folder)  # a fresh key next time
        self._fail(f"the server refused: {answer.reason}", at_least_s=float(answer.retry_after_s))

    def child_spoke(self, child: Child, event: ChildEvent) -> None:
        """What the child has done."""
        self._answered = True
        match event:
            case RenewalRequested():
                self._csr, self._phase = event.csr, Phase.ASKED
                self._send()
            case RenewalInstalled():
                logger.info("certificate %d is installed and is tried", event.generation)
                self._phase, self._fallbacks = Phase.TRYING, 0
                self._kit.broker.renew()
            case RenewalRefused() | RenewalFailed():
                if isinstance(event, RenewalRefused):
                    renewal_files.discard_pending(self._kit.identity.folder)
                self._fail(event.reason)
            case _:
                logger.warning("a renew child sent an unexpected %s", type(event).__name__)

    def child_ended(self, child: Child, reason: str, *, clean: bool) -> None:
        """Without a word: try again."""
        if not self._answered:
            self._fail(f"the renew child {reason}")

    def _check(self) -> None:
        """Is it time? Asked again and again, because a wall clock may jump and a device may sleep."""
        self._kit.timers.set("renewal-check", self._kit.settings.identity.check_interval_s, self._check)
        validity = self._kit.identity.validity()
        if validity is None:
            logger.error("the certificate is unreadable: %s", self._kit.identity.folder)
            return
        now = self._kit.clock.now_ms()
        self._alarm_if_late(validity, now)
        if self._phase is not Phase.IDLE or self._kit.timers.is_set("renewal-retry"):
            return
        is_expired = now >= validity.not_after
        if is_expired and not self._connected:
            if self._kit.settings.identity.on_expiry == "re-enrol":
                self._start("online")
        elif self._connected and (self._forced or now >= validity.renew_at(self._chance)):
            self._start("request")

    def _start(self, step: str, *, certificate: str = "") -> None:
        identity = self._kit.identity
        logger.info("renewal: %s", step)
        self._phase, self._answered = Phase.WORKING, False
        job = RenewJob(
            step=step, identity_dir=str(identity.folder), device=identity.file.device, url=identity.file.url, certificate=certificate
        )
        self._kit.nursery.start(self, "renew", job, deadline_s=CHILD_TIMEOUT_S)

    def _send(self) -> None:
        """Ask, and ask again until there is an answer: the server may be away, or older than this message."""
        if self._connected:
            self._kit.broker.publish(self._kit.topic(Channel.RENEW), encode(Renewal(csr=self._csr)))
        self._failures += 1
        self._kit.timers.set("renewal-answer", self._retry.delay_s(self._failures, self._kit.random), self._send)

    def _tried(self, current: Current, *, is_newest: bool) -> None:
        """Connected while a new certificate is on trial."""
        if is_newest:
            self._settle(Current(current.generation, current.previous, proven=True))
            renewal_files.forget_old(self._kit.identity)
            logger.info("renewed: connected by certificate %d", current.generation)
            self._failures, self._forced = 0, False
            self._reply(Outcome.DONE, "")
            self._audience.state_changed()
            return
        self._fallbacks += 1
        if self._fallbacks < MAX_FALLBACKS:
            self._kit.timers.set("renewal-try", self._retry.delay_s(self._fallbacks, self._kit.random), self._try_again)
            return
        self._settle(Current(current.previous, current.previous, proven=True))
        self._fail("the broker does not accept the new certificate; the old one stays")

    def _try_again(self) -> None:
        if self._phase is Phase.TRYING:
            self._kit.broker.renew()

    def _settle(self, current: Current) -> None:
        self._phase = Phase.IDLE
        try:
            renewal_files.point_to(self._kit.identity, current)
        except StateError as exc:  # a full disk: the trial goes on with the next connection
            logger.warning("%s", exc)
            self._phase = Phase.TRYING

    def _fail(self, reason: str, *, at_least_s: float = 0.0) -> None:
        self._phase = Phase.IDLE
        self._failures += 1
        delay = max(at_least_s, self._retry.delay_s(self._failures, self._kit.random))
        logger.warning("the certificate was not renewed, next try in %.0f s: %s", delay, reason)
        if self._failures == 1 or self._rotation is not None:
            self._audience.alarm_raised("renewal_failed", reason)
        self._reply(Outcome.FAILED, reason)
        self._kit.timers.set("renewal-retry", delay, self._check)

    def _reply(self, outcome: Outcome, reason: str) -> None:
        rotation, self._rotation = self._rotation, None
        if rotation is not None:
            self._replies.give(rotation.command, outcome, expires_at=rotation.expires_at, reason=reason)
            self._kit.store.save({KEY: None}, durable=False)

    def _alarm_if_late(self, validity: Validity, now: int) -> None:
        days = validity.days_left(now)
        if days >= self._kit.settings.identity.alarm_days or (self._alarmed_at is not None and now - self._alarmed_at < DAY_MS):
            return
        self._alarmed_at = now
        what = "the certificate has expired" if days <= 0 else f"the certificate expires in {days:.1f} days"
        self._audience.alarm_raised("certificate_expires", f"{what} and was not renewed")
