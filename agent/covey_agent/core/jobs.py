"""How the agent and its child programs talk: one JSON object a line, the job first.

The agent writes a job as the first line of a child's standard input and, where the child listens, orders after it; the child
writes events to standard output, one a line, and free text to standard error. A child that ends without a final event, ends by
a signal or misses its deadline has failed; its exit code says how. Standard input stays open for as long as the child shall
live: its end tells a child that listens to drain, and the deploy child to stop at once. Every child also dies with the thread
that started it (PR_SET_PDEATHSIG), so start children from a thread that lives as long as the agent. Nothing here imports more
than msgspec, because the idle agent imports it.

| child | job | orders to it | events from it (final ones in capitals) |
|---|---|---|---|
| workers.deploy, which becomes workers.fill | DeployJob | - | VariantChosen, FetchProgress, STAGED, DEPLOY_REFUSED, DEPLOY_FAILED |
| workers.check | CheckJob | - | CHECK_PASSED, CHECK_FAILED |
| workers.infer | InferJob | Pause, Resume, Drain | InferReady, InferWindow, Accepting after Resume; ends after Drain |
| workers.train | TrainJob | RoundDecision | TrainReady, AskRound, RoundTrained, TRAIN_ENDED |
| workers.probe | ProbeJob | - | PROBED |
| workers.verify | VerifyJob | - | VERIFIED, REJECTED, VERIFY_FAILED |
| workers.upgrade | UpgradeJob | - | UPGRADE_STAGED, REJECTED, VERIFY_FAILED |
| workers.hook | HookJob | - | HOOK_ENDED |
| workers.renew | RenewJob | - | RENEWAL_REQUESTED, RENEWAL_INSTALLED, RENEWAL_REFUSED, RENEWAL_FAILED |
"""

from enum import Enum

from msgspec import Struct, field

from covey_contract.messages import Capabilities, Count, Millis, PrivacyPlan, Scalar
from covey_contract.release import Variant


class BrokerAddress(Struct, frozen=True):
    """Where and as whom to connect; the files are PEM."""

    host: str
    port: int
    ca_file: str
    cert_file: str
    key_file: str
    device: str
    session_file: str = ""  # what client ids are made of; stays when the key is renewed. Empty: the key file


# -- deploy ------------------------------------------------------------------------------------------------------------


class MeteredPolicy(Enum):
    """What may come over a metered link."""

    ALLOW = "allow"  # everything
    SMALL = "small"  # what is small, such as a delta
    WAIT = "wait"  # nothing: artifacts wait for another link


class LinkRules(Struct, frozen=True):
    """The owner's rules for downloads."""

    max_bytes_per_s: float = 0.0  # 0: no cap
    metered: str = "auto"  # "yes", "no", or found out
    policy: MeteredPolicy = MeteredPolicy.ALLOW
    small_bytes: Count = 0
    interfaces: list[str] = field(default_factory=list)  # patterns of interfaces that count as metered


class DeployJob(Struct, frozen=True, tag="deploy_job"):
    """Verify an order, fetch the best variant and stage it in the free slot."""

    state_dir: str
    broker: BrokerAddress
    order: bytes  # the Signed envelope exactly as it came
    slot_dir: str  # of the free slot; what is there is replaced by one rename
    active_artifact: str  # path of the serving artifact, or ""
    capabilities: Capabilities
    quarantine: list[str]
    reserve_bytes: int  # free disk that must remain
    min_generation: Count = 0  # an order with a lower generation is refused
    link: LinkRules = LinkRules()
    measured: dict[str, float] = field(default_factory=dict)  # variant@provider -> ms on this device, for the model that is ordered
    trial_bytes: Count = 0  # variants that were never measured here are fetched and timed, if all of them together are no larger


class VariantsMeasured(Struct, frozen=True, tag="variants_measured"):
    """How fast this device runs the variants of a model; kept for its next release."""

    model: str
    latencies: dict[str, float]  # variant@provider -> ms


class VariantChosen(Struct, frozen=True, tag="variant_chosen"):
    """The variant this device will run, and why; `artifact` lets the agent quarantine it if the child dies."""

    variant: str
    artifact: str
    reason: str
    manifest: str


class FetchProgress(Struct, frozen=True, tag="fetch_progress"):
    """Chunks on disk so far."""

    chunks_done: Count
    chunks_total: Count
    bytes_received: Count


class Staged(Struct, frozen=True, tag="staged"):
    """The slot directory is complete and fsynced."""

    slot_dir: str
    variant: str
    artifact: str
    manifest: str
    fetched: str = ""  # how the artifact came: whole, as a delta, copied


class DeployRefused(Struct, frozen=True, tag="deploy_refused"):
    """The order must not be carried out (signature, hash, version, no variant fits, quarantined): final."""

    reason: str
    artifact: str = ""


class DeployFailed(Struct, frozen=True, tag="deploy_failed"):
    """It could not be carried out now (network, server away): may be tried again later."""

    reason: str


# -- measure -----------------------------------------------------------------------------------------------------------


class MeasureJob(Struct, frozen=True, tag="measure_job"):
    """Time one variant, with one execution provider."""

    path: str
    variant: Variant
    provider: str = ""


class Measured(Struct, frozen=True, tag="measured"):
    """The median of some runs of one sample."""

    latency_ms: float


class MeasureFailed(Struct, frozen=True, tag="measure_failed"):
    """It cannot be run here this way."""

    reason: str


# -- check -------------------------------------------------------------------------------------------------------------


class CheckJob(Struct, frozen=True, tag="check_job"):
    """Load the staged artifact and compare it with its golden outputs."""

    slot_dir: str


class CheckPassed(Struct, frozen=True, tag="check_passed"):
    """All golden outputs are within tolerance."""

    relative_error: float
    latency_ms: float


class CheckFailed(Struct, frozen=True, tag="check_failed"):
    """The artifact does not load or answers wrongly."""

    reason: str


# -- infer -------------------------------------------------------------------------------------------------------------


class InferJob(Struct, frozen=True, tag="infer_job"):
    """Serve one slot on listening sockets that the agent owns, so that connections queue while workers change."""

    slot_dir: str
    slot: str
    unix_fd: int  # inherited listening Unix socket
    tcp_fd: int = -1  # inherited listening loopback socket, -1: none
    token: str = ""  # required on TCP if set
    handover_put_fd: int = -1  # inherited: where a paused worker leaves its idle connections, -1: nowhere
    handover_take_fd: int = -1  # inherited: where the one that accepts takes them from
    threads: int = 1
    window_s: float = 1.0  # how often InferWindow is sent
    paused: bool = False  # start without accepting; Resume follows


class InferReady(Struct, frozen=True, tag="infer_ready"):
    """The model is loaded; requests are accepted unless paused."""

    load_ms: float


class InferWindow(Struct, frozen=True, tag="infer_window"):
    """What happened since the last window; sent also when nothing did, as a sign of life."""

    requests: Count
    inputs: Count  # samples; a request may carry several
    errors: Count  # the model's fault; a client's bad request is counted in `rejected`
    rejected: Count = 0
    p50_ms: float = 0.0
    p95_ms: float = 0.0
    mean_confidence: float = 0.0
    classes: dict[str, int] = field(default_factory=dict)  # label -> how often it was the answer
    nonfinite: Count = 0  # outputs that held NaN or infinity
    constant_run: Count = 0  # different inputs in a row with the very same output
    out_of_memory: Count = 0  # of the errors: the runtime found no memory
    latencies: dict[int, int] = field(default_factory=dict)  # bucket of core/latencies.py -> requests
    busy_s: float = 0.0  # how long the request that the model has now has been there
    labelled: Count = 0  # feedback received
    labelled_correct: Count = 0


class Accepting(Struct, frozen=True, tag="accepting"):
    """Requests are accepted from now on: sent once Resume has taken effect, so that the agent can measure how long a rollback took.

    Optional: without it the agent takes the next InferWindow as the sign.
    """


class Pause(Struct, frozen=True, tag="pause"):
    """Stop accepting, finish what is in flight, keep the model loaded."""


class Resume(Struct, frozen=True, tag="resume"):
    """Accept again."""


class Drain(Struct, frozen=True, tag="drain"):
    """Stop accepting, finish what is in flight, exit 0."""


# -- train -------------------------------------------------------------------------------------------------------------


class TrainJob(Struct, frozen=True, tag="train_job"):
    """Be a Flower SuperNode for one run: join, ask before each round, train, send, until the run ends."""

    state_dir: str
    broker: BrokerAddress  # for TUF metadata and the task bundle
    order: bytes  # the Signed InviteToRun exactly as it came
    fleet_api: str  # host:port
    supernode_key: str  # path, OpenSSH EC private key
    data: dict[str, str]  # dataset name -> path on this machine


class TrainReady(Struct, frozen=True, tag="train_ready"):
    """Order and task verified, connected to the fleet edge."""

    node: str


class AskRound(Struct, frozen=True, tag="ask_round"):
    """May this round be trained? The agent debits its ledger before it says yes."""

    run: str
    round: Count
    dataset: str
    plan: PrivacyPlan


class RoundDecision(Struct, frozen=True, tag="round_decision"):
    """The agent's answer to AskRound."""

    run: str
    round: Count
    allowed: bool
    reason: str
    epsilon: float  # spent so far on this dataset, this round included if allowed


class RoundTrained(Struct, frozen=True, tag="round_trained"):
    """A contribution was sent."""

    run: str
    round: Count
    values: dict[str, Scalar] = field(default_factory=dict)


class TrainEnded(Struct, frozen=True, tag="train_ended"):
    """The run is over, or could not be joined."""

    run: str
    reason: str
    ok: bool


# -- probe -------------------------------------------------------------------------------------------------------------


class ProbeJob(Struct, frozen=True, tag="probe_job"):
    """Find out what this machine can run, by loading it."""


class Probed(Struct, frozen=True, tag="probed"):
    """What was found."""

    capabilities: Capabilities
    at: Millis
    findings: dict[str, str] = field(default_factory=dict)  # runtime -> why it cannot be used here


# -- verify ------------------------------------------------------------------------------------------------------------


class VerifyJob(Struct, frozen=True, tag="verify_job"):
    """Verify one signed order through TUF, and do nothing with it: for what the agent itself acts on, e.g. StopRun."""

    state_dir: str
    broker: BrokerAddress
    order: bytes  # the Signed envelope exactly as it came


class Verified(Struct, frozen=True, tag="verified"):
    """The order is signed by the director, for this device, and has not expired."""


class Rejected(Struct, frozen=True, tag="rejected"):
    """The order must not be obeyed: final."""

    reason: str


class VerifyFailed(Struct, frozen=True, tag="verify_failed"):
    """It could not be verified now (network, server away): may be tried again."""

    reason: str


# -- upgrade -----------------------------------------------------------------------------------------------------------


class UpgradeJob(Struct, frozen=True, tag="upgrade_job"):
    """Verify an order to upgrade, fetch the wheel through TUF, install it beside the present version and switch to it."""

    state_dir: str
    broker: BrokerAddress
    order: bytes  # the Signed envelope exactly as it came


class UpgradeStaged(Struct, frozen=True, tag="upgrade_staged"):
    """The version is installed and current, on trial: the agent is to start anew."""

    version: str


# -- renew -------------------------------------------------------------------------------------------------------------


class RenewJob(Struct, frozen=True, tag="renew_job"):
    """One step of a renewal: everything that needs cryptography, and every write of a key."""

    step: str  # "request": a fresh key and its request; "install": check and install `certificate`; "online": all of it over HTTPS
    identity_dir: str
    device: str
    url: str = ""  # of the server's edge, for "online"
    certificate: str = ""  # PEM, for "install"


class RenewalRequested(Struct, frozen=True, tag="renewal_requested"):
    """The request for the pending key, PEM; the same one until a certificate for it is installed."""

    csr: str


class RenewalInstalled(Struct, frozen=True, tag="renewal_installed"):
    """The new key and certificate are complete and are what the next connection tries."""

    generation: Count


class RenewalRefused(Struct, frozen=True, tag="renewal_refused"):
    """The server will not, or what it sent is no certificate for the pending key."""

    reason: str


class RenewalFailed(Struct, frozen=True, tag="renewal_failed"):
    """It could not be done now (network, disk): may be tried again."""

    reason: str


# -- hook --------------------------------------------------------------------------------------------------------------


class HookJob(Struct, frozen=True, tag="hook_job"):
    """Run the device owner's health hook once."""

    command: list[str]
    environment: dict[str, str]  # added to the agent's own
    timeout_s: float


class HookEnded(Struct, frozen=True, tag="hook_ended"):
    """What it said."""

    healthy: bool
    reason: str = ""


ChildEvent = (
    VariantChosen
    | FetchProgress
    | Staged
    | DeployRefused
    | DeployFailed
    | CheckPassed
    | CheckFailed
    | InferReady
    | Accepting
    | InferWindow
    | TrainReady
    | AskRound
    | RoundTrained
    | TrainEnded
    | Probed
    | VariantsMeasured
    | Measured
    | MeasureFailed
    | Verified
    | Rejected
    | VerifyFailed
    | RenewalRequested
    | RenewalInstalled
    | RenewalRefused
    | RenewalFailed
    | HookEnded
    | UpgradeStaged
)
Job = DeployJob | CheckJob | InferJob | TrainJob | ProbeJob | VerifyJob | RenewJob | HookJob | UpgradeJob
Order = Pause | Resume | Drain | RoundDecision
