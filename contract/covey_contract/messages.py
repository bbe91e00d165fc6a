"""Messages on the wire, one frozen Struct each.

Small messages are JSON, so that an operator can read them with any MQTT tool; bulk ones (readings, chunks, metadata parts)
are MessagePack. What a device must obey (`Desired`, `Command`) travels inside `Signed` and forbids unknown fields; what a
server only records (`ReadingBatch`, `Reported`) ignores them, so that a newer agent can talk to an older server.
Times are integer milliseconds since 1970 UTC; digests are lower-case hex sha256; sizes are bytes.
`codec.py` turns them into bytes and back.
"""

from enum import Enum
from typing import Annotated

from msgspec import Meta, Struct, field

from covey_contract import ids, limits

_END = r"(?!\n)"  # "$" in Python also matches before a trailing newline
DeviceIdField = Annotated[str, Meta(pattern=ids.DEVICE_ID_PATTERN + _END)]
NameField = Annotated[str, Meta(pattern=ids.NAME_PATTERN + _END)]
DigestField = Annotated[str, Meta(pattern=ids.DIGEST_PATTERN + _END)]
IdField = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+$" + _END)]
ReasonField = Annotated[str, Meta(max_length=limits.MAX_REASON_CHARS)]
Millis = Annotated[int, Meta(ge=0, le=limits.MAX_MILLIS)]
Count = Annotated[int, Meta(ge=0, le=limits.MAX_COUNT)]
Scalar = int | float | str


class Presence(Enum):
    """Whether a device is connected."""

    ONLINE = "online"
    OFFLINE = "offline"


class Profile(Enum):
    """What an agent is there for."""

    DEVICE = "device"  # deploys and infers, and may join rounds
    PARTNER = "partner"  # holds data and joins rounds; deploys nothing


class DeploymentState(Enum):
    """Where a device is in the delivery of one release."""

    IDLE = "idle"  # nothing to do
    FETCHING = "fetching"  # metadata verified, chunks arriving
    VERIFYING = "verifying"  # digest, needs and golden inputs are being checked in a child process
    STAGED = "staged"  # complete in the free slot
    ACTIVATING = "activating"  # the new slot's worker is starting
    PROBATION = "probation"  # the new slot serves and must prove itself
    COMMITTED = "committed"  # the new slot stays
    ROLLING_BACK = "rolling_back"  # returning to the old slot
    ROLLED_BACK = "rolled_back"  # the old slot serves; the new digest is quarantined
    REFUSED = "refused"  # not attempted: quarantined, no variant fits, or the order did not verify


class Outcome(Enum):
    """A device's answer to one command."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    DONE = "done"
    FAILED = "failed"


class Priority(Enum):
    """Which readings survive when the buffer is full: the lowest number is dropped last."""

    RESULT = 0
    ALARM = 1
    METRIC = 2
    SAMPLE = 3


class Status(Struct, frozen=True, tag="status"):
    """Presence; the broker publishes the offline one as the device's last will."""

    presence: Presence
    boot: IdField  # of the agent process that speaks
    at: Millis


class Capabilities(Struct, frozen=True):
    """What a device can run, probed in a child process."""

    arch: str = ""  # as uname -m
    cpu_flags: list[str] = field(default_factory=list)
    cpu_count: Count = 0
    memory: Count = 0  # total bytes
    runtimes: dict[str, str] = field(default_factory=dict)  # runtime name -> version
    providers: dict[str, list[str]] = field(default_factory=dict)  # runtime name -> execution providers that work, default first
    python: str = ""
    system: str = ""


class SlotReport(Struct, frozen=True):
    """What one of a device's two slots holds."""

    slot: str  # "A" or "B"
    model: str = ""
    version: Count = 0
    manifest: str = ""  # digest of the release manifest
    variant: str = ""
    artifact: str = ""  # digest of the artifact; empty for an empty slot


class Quarantined(Struct, frozen=True):
    """A digest that failed here and will not be tried again until an operator releases it."""

    digest: DigestField
    reason: ReasonField
    at: Millis


class DeploymentReport(Struct, frozen=True):
    """The latest deployment on a device and how it stands."""

    deployment: IdField
    model: str
    version: Count
    state: DeploymentState
    reason: ReasonField = ""
    variant: str = ""
    variant_reason: ReasonField = ""  # why this variant was chosen
    started_at: Millis = 0
    changed_at: Millis = 0
    chunks_done: Count = 0
    chunks_total: Count = 0
    bytes_received: Count = 0
    rollback_ms: float | None = None  # from the evidence to the old model serving


class Reported(Struct, frozen=True, tag="reported"):
    """A device's full state. The highest generation wins; the server never merges edges."""

    generation: Count
    agent_version: str
    profile: Profile
    at: Millis
    desired_generation: Count = 0  # the highest desired generation acted upon
    active_slot: str = ""  # "A", "B" or "" when nothing serves
    serving: bool = False
    slots: list[SlotReport] = field(default_factory=list)
    deployment: DeploymentReport | None = None
    quarantine: list[Quarantined] = field(default_factory=list)
    capabilities: Capabilities = field(default_factory=Capabilities)
    policy_hash: str = ""
    training: str = ""  # the run that the trainer is working for, if any
    boot: str = ""  # of the agent process that speaks
    certificate: str = ""  # serial of the certificate by which it is connected, lower-case hex


class Reading(Struct, frozen=True, array_like=True):
    """One telemetry record; its sequence number is its place in the batch."""

    at: Millis
    kind: NameField  # infer, system, deployment, alarm, training, ...
    values: Annotated[dict[str, Scalar], Meta(max_length=limits.MAX_VALUES_PER_READING)]
    priority: Priority = Priority.METRIC


class ReadingBatch(Struct, frozen=True, tag="readings"):
    """Consecutive readings of one epoch. Delivered at least once, stored exactly once.

    Sequences begin at 1 and may jump when an agent restarts. The epoch changes only when a device loses its buffer or an older one
    was put in its place (see `Ack.forked`); (device, epoch, sequence) names a reading for ever. `lost` counts, for this epoch, the
    readings that were dropped because the buffer was full, by priority.
    """

    epoch: IdField
    first: Count  # sequence of readings[0]
    readings: Annotated[list[Reading], Meta(max_length=limits.MAX_READINGS_PER_BATCH)]
    sequences: list[Count] | None = None  # when not consecutive: the sequence of each reading
    lost: dict[str, Count] = field(default_factory=dict)  # priority name -> how many so far


class Ack(Struct, frozen=True, tag="ack", omit_defaults=True):
    """Readings of `epoch` up to and including `upto` are committed; the device may delete them.

    `forked`: the number after `upto` names another reading already, so the device's state was restored from a copy, or two machines
    have it. It goes on under a new epoch, with everything after `upto`; nothing is lost.
    """

    epoch: IdField
    upto: Count
    forked: bool = False


class WantChunks(Struct, frozen=True, tag="want_chunks", forbid_unknown_fields=True):
    """Ask for the chunks of one group that a device lacks."""

    digest: DigestField
    group: Count
    missing: Annotated[int, Meta(ge=1, lt=1 << limits.GROUP_CHUNKS)]  # bit i set: chunk i of the group is wanted


class WantMetadata(Struct, frozen=True, tag="want_metadata", forbid_unknown_fields=True):
    """Ask for one TUF metadata file (`metadata/...`), target (`targets/...`), delta offer (`deltas/<base>/<target>`) or download offer
    (`downloads/<digest>`)."""

    id: IdField
    name: Annotated[str, Meta(min_length=1, max_length=256, pattern=r"^(metadata|targets|deltas|downloads)/[A-Za-z0-9._/-]+$" + _END)]
    part: Count = 0


class MetadataPart(Struct, frozen=True, tag="metadata", forbid_unknown_fields=True):
    """One part of the answer to WantMetadata; `parts` = 0 says that there is no such file."""

    id: IdField
    part: Count
    parts: Count
    data: bytes = b""


class DeltaState(Enum):
    """Whether there is a delta between two artifacts."""

    READY = "ready"
    MAKING = "making"  # ask again in a few seconds
    NONE = "none"  # there is none, and there will be none: fetch the whole artifact


class DeltaOffer(Struct, frozen=True, tag="delta_offer", forbid_unknown_fields=True):
    """The answer to a want of `deltas/<base>/<target>`: a BSDIFF40 patch, fetched in chunks like any artifact.

    It is not signed and need not be: the signed manifest says what the result's digest must be, and a result without it is thrown away.
    """

    state: DeltaState
    digest: str = ""  # of the patch
    length: Count = 0
    chunks: list[DigestField] = field(default_factory=list)  # of each CHUNK_BYTES of the patch, in order


class DownloadOffer(Struct, frozen=True, tag="download_offer", forbid_unknown_fields=True):
    """The answer to a want of `downloads/<digest>`: where the same bytes can be had by HTTPS range requests.

    It is not signed and need not be: every chunk's digest is in the signed manifest.
    """

    url: Annotated[str, Meta(max_length=2000)] = ""  # https; empty: nowhere
    first: bool = False  # take this way first; otherwise only when MQTT brings nothing
    fleet_ca: bool = True  # the host shows a certificate of the fleet's CA; otherwise one of a public authority


class Chunk(Struct, frozen=True, array_like=True):
    """One artifact chunk, on its group's topic."""

    index: Count  # within the artifact
    data: bytes


class Signed(Struct, frozen=True, tag="signed", forbid_unknown_fields=True):
    """Exact bytes and an Ed25519 signature over them by the online key that the TUF target `director.json` names."""

    payload: bytes  # JSON of Desired or a Command
    keyid: DigestField  # sha256 of the raw public key
    signature: bytes


class ReleaseRef(Struct, frozen=True, forbid_unknown_fields=True):
    """A release by the TUF target that holds its manifest."""

    model: NameField
    version: Annotated[int, Meta(ge=1)]
    manifest: DigestField  # sha256 of the manifest, which is TUF target releases/<model>/<version>.json


class Desired(Struct, frozen=True, tag="desired", forbid_unknown_fields=True):
    """What one device shall run. Retained; the highest generation wins."""

    device: DeviceIdField
    generation: Annotated[int, Meta(ge=1)]
    issued_at: Millis
    release: ReleaseRef | None = None  # None: keep what runs
    deployment: str = ""  # id of this attempt: one deployment is carried out at most once
    probation_s: Annotated[float, Meta(gt=0, le=7 * 86400)] = 600.0
    released_from_quarantine: list[DigestField] = field(default_factory=list)


class PrivacyPlan(Struct, frozen=True, forbid_unknown_fields=True):
    """The mechanism of one round at one participant, for accounting and for the trainer."""

    level: NameField  # "record": Opacus DP-SGD at the participant; "none": no guarantee
    noise_multiplier: Annotated[float, Meta(ge=0)]
    clipping_norm: Annotated[float, Meta(ge=0)]
    sample_rate: Annotated[float, Meta(ge=0, le=1)]  # Poisson, per step
    steps: Count  # per round
    delta: Annotated[float, Meta(ge=0, lt=1)]


class InviteToRun(Struct, frozen=True, tag="invite_to_run", forbid_unknown_fields=True):
    """Invite a participant to the rounds of a run. It answers accepted or refused, under its own policy."""

    id: IdField
    device: DeviceIdField
    expires_at: Millis
    run: IdField
    task: NameField
    task_digest: DigestField  # of the task's code bundle
    purpose: NameField
    dataset: NameField
    rounds: Count
    plan: PrivacyPlan
    fleet_api: Annotated[str, Meta(max_length=200)]  # host:port of the Flower fleet edge
    hyperparameters: dict[str, Scalar] = field(default_factory=dict)


class StopRun(Struct, frozen=True, tag="stop_run", forbid_unknown_fields=True):
    """The run has ended; the trainer may stop."""

    id: IdField
    device: DeviceIdField
    expires_at: Millis
    run: IdField


class ReleaseQuarantine(Struct, frozen=True, tag="release_quarantine", forbid_unknown_fields=True):
    """An operator gives a quarantined digest another chance."""

    id: IdField
    device: DeviceIdField
    expires_at: Millis
    digest: DigestField


class RotateCertificate(Struct, frozen=True, tag="rotate_certificate", forbid_unknown_fields=True):
    """Renew the certificate now, with a fresh key. Done: the device is connected by the new one."""

    id: IdField
    device: DeviceIdField
    expires_at: Millis


class Decommission(Struct, frozen=True, tag="decommission", forbid_unknown_fields=True):
    """Leave the fleet: stop for good, and wipe what the device's own policy lets go. Done: it will not come back."""

    id: IdField
    device: DeviceIdField
    expires_at: Millis
    wipe: bool = False


class UpgradeAgent(Struct, frozen=True, tag="upgrade_agent", forbid_unknown_fields=True):
    """Put another version of the agent on trial: the wheel is TUF target agents/covey-<version>-py3-none-any.whl.

    Done: it is installed beside the present one and is being started. That it stays is told by the reported `agent_version`, that
    it was given up by an alarm `agent-upgrade`.
    """

    id: IdField
    device: DeviceIdField
    expires_at: Millis
    version: Annotated[str, Meta(pattern=ids.AGENT_VERSION_PATTERN + _END)]
    digest: DigestField  # of the wheel
    again: bool = False  # even if this version failed there before


Command = InviteToRun | StopRun | ReleaseQuarantine | RotateCertificate | Decommission | UpgradeAgent


class Renewal(Struct, frozen=True, tag="renewal", forbid_unknown_fields=True):
    """Ask for a certificate for a fresh key. The topic says for whom; asking again with the same key gives the same answer."""

    csr: Annotated[str, Meta(min_length=1, max_length=limits.MAX_CSR_CHARS)]  # PEM


class RenewalAnswer(Struct, frozen=True, tag="renewal_answer", forbid_unknown_fields=True):
    """The certificate, or why there is none."""

    request: DigestField  # sha256 of the request's text
    certificate: Annotated[str, Meta(max_length=limits.MAX_CSR_CHARS)] = ""  # PEM; empty: refused
    reason: ReasonField = ""
    retry_after_s: Count = 0


class Reply(Struct, frozen=True, tag="reply"):
    """A device's answer to the command with this id; resent until acknowledged by a newer command or by expiry."""

    id: IdField
    outcome: Outcome
    at: Millis
    reason: ReasonField = ""
    values: dict[str, Scalar] = field(default_factory=dict)
