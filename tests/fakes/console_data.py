"""A believable small fleet, for the console's tests and screenshots: written through the models, no clock, no chance.

Five participants (three devices, two partners), two releases, a rollout that completed and one that was halted at its canary,
a private run of eight rounds with references, its ledger, readings and alerts.
"""

import hashlib
import math
from datetime import datetime, timedelta

import msgspec
from sqlmodel import Session

from covey_contract.messages import DeploymentState, PrivacyPlan
from covey_server.access.models import Role
from covey_server.access.service import create_user
from covey_server.audit.models import AuditEvent
from covey_server.clock import to_millis
from covey_server.devices.models import Device, DevicePresence, Invitation, QuarantineEntry
from covey_server.federation.models import (
    Contribution,
    ContributionState,
    ParticipantState,
    Round,
    Run,
    RunParticipant,
    RunState,
    Task,
)
from covey_server.privacy.service import append_charge, append_void
from covey_server.releases.models import Release, ReleaseState, Variant
from covey_server.rollouts.models import Rollout, RolloutDevice, RolloutDeviceState, RolloutState
from covey_server.telemetry.models import ReadingRow, ReadingStream
from covey_server.triggers.models import Alert, Severity

PASSWORD = "correct horse battery"
DEVICES = ("pi-kitchen", "pi-lab", "jetson-dock")
PARTNERS = ("clinic-north", "clinic-south")
RUN, COMPLETED, HALTED = "run-7f3a", "ro-digits-1", "ro-digits-2"
XSS = '<img src=x onerror="alert(1)"><script>alert(2)</script>'
_LABELS = [str(digit) for digit in range(10)]
_ACCURACY = (0.101, 0.452, 0.634, 0.718, 0.765, 0.793, 0.812, 0.824, 0.831)
_PLAN = PrivacyPlan(level="record", noise_multiplier=1.1, clipping_norm=1.0, sample_rate=0.05, steps=20, delta=1e-4)


def digest_of(name: str) -> str:
    """A digest that is the same each time."""
    return hashlib.sha256(name.encode()).hexdigest()


def fill(session: Session, *, now: datetime) -> None:
    """Write the whole fleet but users; `now` is the moment at which somebody looks at it."""
    _add_devices(session, now)
    session.flush()
    _add_releases(session, now)
    session.flush()
    _add_rollouts(session, now)
    _add_run(session, now)
    session.flush()
    _add_rounds(session, now)
    _add_readings(session, now)
    _add_happenings(session, now)


def add_users(session: Session, *, now: datetime) -> None:
    """An operator and a viewer, both with PASSWORD; slow, as password hashing must be."""
    create_user(session, "olga", password=PASSWORD, role=Role.OPERATOR, actor="system", now=now)
    create_user(session, "viktor", password=PASSWORD, role=Role.VIEWER, actor="system", now=now)


def add_alert(session: Session, what: str, *, now: datetime) -> None:
    """One more open alert."""
    session.add(Alert(at=now, severity=Severity.WARNING, what=what, detail="told by a test"))


def _add_devices(session: Session, now: datetime) -> None:
    for place, name in enumerate((*DEVICES, *PARTNERS)):
        is_device = name in DEVICES
        is_away = name == "pi-lab"
        seen = now - (timedelta(hours=3) if is_away else timedelta(seconds=4 + place))
        session.add(
            Device(
                id=name,
                profile="device" if is_device else "partner",
                labels={"site": ("berlin", "lyon", "oslo", "north", "south")[place], **({"note": XSS} if name == "jetson-dock" else {})},
                enrolled_at=now - timedelta(days=12 - place),
                certificate_serial=digest_of(name)[:32],
                certificate_expires_at=now + timedelta(days=353 + place),
                supernode_id=str(7203511 + place),
                presence=DevicePresence.OFFLINE if is_away else DevicePresence.ONLINE,
                presence_at=seen,
                boot="b1",
                last_seen_at=seen,
                agent_version="0.1.0",
                reported_generation=41 + place,
                reported=_reported(name, now) if is_device else {},
                serving_model="digits" if is_device else "",
                serving_version=1 if is_device else 0,
                serving_variant=("onnx-int8", "tflite-int8", "onnx-int8")[place] if is_device else "",
                active_slot="A" if is_device else "",
                deployment_state=_deployment(name)[0].value if is_device else "idle",
            )
        )
    session.add(
        Invitation(
            id="inv-1",
            device_id="pi-garage",
            secret_hash=digest_of("secret"),
            created_by="user:olga",
            expires_at=now + timedelta(hours=20),
        )
    )


def _deployment(name: str) -> tuple[DeploymentState, int, str]:
    if name == "jetson-dock":
        return DeploymentState.ROLLED_BACK, 2, "the runtime child died with signal 11 while it served the 3rd request of probation"
    return DeploymentState.COMMITTED, 1, ""


def _reported(name: str, now: datetime) -> dict[str, object]:
    state, version, reason = _deployment(name)
    variant = "tflite-int8" if name == "pi-lab" else "onnx-int8"
    slots = [
        {"slot": "A", "model": "digits", "version": 1, "manifest": digest_of("m1"), "variant": variant, "artifact": digest_of(variant)}
    ]
    return {
        "generation": 41,
        "agent_version": "0.1.0",
        "profile": "device",
        "at": to_millis(now),
        "desired_generation": version,
        "active_slot": "A",
        "serving": True,
        "slots": [*slots, {"slot": "B"}],
        "policy_hash": digest_of("policy"),
        "deployment": {
            "deployment": f"dep-{version}-{name}",
            "model": "digits",
            "version": version,
            "state": state.value,
            "reason": reason,
            "variant": variant,
            "variant_reason": "smallest that this device's runtimes can run",
            "started_at": to_millis(now - timedelta(minutes=31)),
            "changed_at": to_millis(now - timedelta(minutes=22)),
            "chunks_done": 3,
            "chunks_total": 3,
            "bytes_received": 171_233,
            "rollback_ms": 412.0 if reason else None,
        },
        "capabilities": {
            "arch": "aarch64",
            "cpu_count": 4,
            "memory": 4 * 1024**3,
            "cpu_flags": ["asimd", "asimddp", "fphp", "crc32", "aes"],
            "runtimes": {"litert": "2.1.0"} if name == "pi-lab" else {"onnxruntime": "1.23.0", "litert": "2.1.0"},
            "python": "3.11.9",
            "system": "Linux 6.6",
        },
    }


def _add_releases(session: Session, now: datetime) -> None:
    lineage = {
        "source": "run",
        "run": RUN,
        "rounds": 8,
        "participants": 5,
        "epsilon": {name: 1.9 + 0.2 * place for place, name in enumerate((*DEVICES, *PARTNERS))},
        "delta": 1e-4,
    }
    for version, age in ((1, timedelta(hours=20)), (2, timedelta(minutes=40))):
        release = Release(
            model="digits",
            version=version,
            state=ReleaseState.PUBLISHED,
            source="run",
            run_id=RUN,
            manifest_digest=digest_of(f"m{version}"),
            labels=_LABELS,
            lineage=lineage,
            created_by="user:olga",
            created_at=now - age,
            published_at=now - age + timedelta(minutes=2),
        )
        session.add(release)
        session.flush()
        for name, length, accuracy, latency in (
            ("onnx-float32", 431_200, 0.831, 0.31),
            ("onnx-int8", 112_840, 0.829, 0.14),
            ("tflite-float32", 428_900, 0.831, 0.36),
            ("tflite-int8", 109_300, 0.826, 0.17),
            ("onnx-int4", 61_040, 0.781, 0.19),
        ):
            is_refused = name == "onnx-int4"
            session.add(
                Variant(
                    release_id=release.id or 0,
                    name=name,
                    precision=name.split("-")[1],
                    runtime="onnxruntime" if name.startswith("onnx") else "litert",
                    min_runtime_version="1.23" if name.startswith("onnx") else "2.1",
                    artifact=digest_of(name),
                    length=length,
                    accepted=not is_refused,
                    reason="loses 5.0 points of accuracy, 1.0 are allowed" if is_refused else "",
                    accuracy=accuracy,
                    accuracy_drop=0.831 - accuracy,
                    relative_error=0.01,
                    latency_ms=latency,
                    size_ratio=431_200 / length,
                )
            )


def _add_rollouts(session: Session, now: datetime) -> None:
    phases = [{"name": "canary", "count": 1, "max_failures": 0}, {"name": "rest", "percent": 100, "max_failures": 1}]
    for ident, release, state, reason, age in (
        (COMPLETED, 1, RolloutState.COMPLETED, "", timedelta(hours=19)),
        (HALTED, 2, RolloutState.HALTED, "canary: 1 of 1 devices failed, none may (jetson-dock rolled back)", timedelta(minutes=32)),
    ):
        is_done = state is RolloutState.COMPLETED
        session.add(
            Rollout(
                id=ident,
                release_id=release,
                name=f"digits v{release} to the fleet",
                state=state,
                reason=reason,
                selector={"labels": {"tier": "edge"}},
                phases=phases,
                current_phase=1 if is_done else 0,
                probation_s=60,
                created_by="user:olga",
                created_at=now - age,
                started_at=now - age,
                finished_at=now - age + timedelta(minutes=14) if is_done else None,
            )
        )
        session.flush()
        for name in DEVICES:
            is_canary = name == "jetson-dock"
            done, failed = RolloutDeviceState.SUCCEEDED, RolloutDeviceState.FAILED
            part = done if is_done else failed if is_canary else RolloutDeviceState.SKIPPED
            is_sent = part is not RolloutDeviceState.SKIPPED
            session.add(
                RolloutDevice(
                    rollout_id=ident,
                    device_id=name,
                    phase=0 if is_canary else 1,
                    deployment_id=f"dep-{release}-{name}",
                    state=part,
                    deployment_state="committed" if is_done else "rolled_back" if is_canary else "",
                    reason=_deployment(name)[2] if part is failed else "",
                    variant=("tflite-int8" if name == "pi-lab" else "onnx-int8") if is_sent else "",
                    variant_reason="smallest that this device's runtimes can run" if is_sent else "",
                    chunks_done=2 if is_sent else 0,
                    chunks_total=2 if is_sent else 0,
                    bytes_received=112_840 if is_sent else 0,
                    rollback_ms=412.0 if part is failed else None,
                    sent_at=now - age if is_sent else None,
                    heard_at=now - age + timedelta(minutes=6) if is_sent else None,
                    finished_at=now - age + timedelta(minutes=7) if is_sent else None,
                )
            )


def _add_run(session: Session, now: datetime) -> None:
    task = Task(
        name="digits", digest=digest_of("task"), purpose="digit-recognition", dataset="digits", labels=_LABELS, created_by="user:olga"
    )
    session.add(task)
    session.flush()
    session.add(
        Run(
            id=RUN,
            task_id=task.id or 0,
            model="digits",
            state=RunState.COMPLETED,
            rounds_total=8,
            rounds_done=8,
            plan=msgspec.to_builtins(_PLAN),
            hyperparameters={"learning_rate": 0.25, "batch": 64},
            predicted_epsilon=2.98,
            references={
                "federated": [0.1, 0.71, 0.82, 0.865, 0.888, 0.901, 0.91, 0.917, 0.921],
                "central": [0.1, 0.84, 0.9, 0.921, 0.932, 0.94, 0.944, 0.947, 0.95],
            },
            created_by="user:olga",
            created_at=now - timedelta(hours=21),
            started_at=now - timedelta(hours=21),
            finished_at=now - timedelta(hours=20, minutes=30),
        )
    )
    session.flush()
    for name in (*DEVICES, *PARTNERS):
        is_refused = name == "pi-lab"
        session.add(
            RunParticipant(
                run_id=RUN,
                device_id=name,
                command_id=f"cmd-{name}",
                state=ParticipantState.REFUSED if is_refused else ParticipantState.ACCEPTED,
                reason="the policy allows training between 22:00 and 06:00 only" if is_refused else "",
                invited_at=now - timedelta(hours=21),
                replied_at=now - timedelta(hours=21) + timedelta(seconds=9),
            )
        )


def _add_rounds(session: Session, now: datetime) -> None:
    for number, accuracy in enumerate(_ACCURACY):
        began = now - timedelta(hours=21) + timedelta(minutes=3 * number)
        asked = [name for name in (*DEVICES, *PARTNERS) if name != "pi-lab"] if number else []
        refused = {"clinic-south"} if number > 5 else set()
        session.add(
            Round(
                run_id=RUN,
                number=number,
                started_at=began,
                finished_at=began + timedelta(seconds=41 + number),
                sampled=len(asked),
                contributors=len(asked) - len(refused & set(asked)),
                accuracy=accuracy,
                loss=-math.log(accuracy),
            )
        )
        session.flush()
        for name in asked:
            _add_contribution(session, name, number, began, is_refused=name in refused)


def _add_contribution(session: Session, name: str, number: int, at: datetime, *, is_refused: bool) -> None:
    state = ContributionState.REFUSED if is_refused else ContributionState.RECEIVED
    reason = "this round would bring epsilon to 2.611, 2.500 allowed at delta 0.0001" if is_refused else ""
    session.add(Contribution(run_id=RUN, round=number, device_id=name, state=state, reason=reason, seconds=12.0, at=at))
    charge = append_charge(session, device=name, dataset="digits", run=RUN, round_number=number, plan=_PLAN, at=at)
    if is_refused:
        append_void(session, charge, reason=reason, at=at)


def _add_readings(session: Session, now: datetime) -> None:
    for place, name in enumerate(DEVICES):
        end = now - (timedelta(hours=3) if name == "pi-lab" else timedelta(seconds=5))
        for sequence in range(180):
            at = end - timedelta(seconds=20 * (179 - sequence))
            wave = math.sin(sequence / 14 + place)
            session.add(_reading(name, 2 * sequence, at, "infer", _infer_values(sequence, wave)))
            session.add(_reading(name, 2 * sequence + 1, at, "system", _system_values(wave)))
        session.add(
            ReadingStream(
                device_id=name,
                epoch=f"e{place}",
                upto=359,
                stored=360,
                duplicates=4 * place,
                lost={"metric": 12} if name == "pi-lab" else {},
                updated_at=end,
            )
        )
    steps = ("fetching", "verifying", "staged", "activating", "probation", "rolling_back", "rolled_back")
    for place, state in enumerate(steps):
        values: dict[str, object] = {
            "deployment": "dep-2-jetson-dock",
            "model": "digits",
            "version": 2,
            "state": state,
            "variant": "onnx-int8",
        }
        session.add(_reading("jetson-dock", 1000 + place, now - timedelta(minutes=30 - place), "deployment", values))
    for name in PARTNERS:
        values = {"run": RUN, "round": 8, "loss": 0.41, "epsilon": 2.36, "budget": 2.5 if name == "clinic-south" else 8.0}
        session.add(_reading(name, 1, now - timedelta(hours=20), "training", values))


def _infer_values(sequence: int, wave: float) -> dict[str, object]:
    return {
        "requests": 40 + int(9 * wave),
        "inputs": 160 + int(36 * wave),
        "errors": 1 if sequence % 61 == 60 else 0,
        "p50_ms": 1.9 + 0.3 * wave,
        "p95_ms": 3.4 + 0.8 * wave + (4 if sequence % 47 == 0 else 0),
        "mean_confidence": 0.9 + 0.04 * wave,
        **{f"class_{label}": 12 + (sequence * (place + 3)) % 9 for place, label in enumerate(_LABELS)},
    }


def _system_values(wave: float) -> dict[str, object]:
    return {
        "cpu_percent": 21 + 8 * wave,
        "memory_bytes": int((1.1 + 0.1 * wave) * 1024**3),
        "rss_bytes": int((71 + wave) * 1024**2),
        "temperature_c": 52 + 3 * wave,
    }


def _reading(device: str, sequence: int, at: datetime, kind: str, values: dict[str, object]) -> ReadingRow:
    return ReadingRow(device_id=device, epoch="e", sequence=sequence, at=at, received_at=at, kind=kind, values=values)


def _add_happenings(session: Session, now: datetime) -> None:
    session.add(
        QuarantineEntry(
            device_id="jetson-dock", digest=digest_of("onnx-int8-2"), reason=_deployment("jetson-dock")[2], at=now - timedelta(minutes=22)
        )
    )
    session.add(
        Alert(
            at=now - timedelta(hours=20),
            severity=Severity.INFO,
            what="run_completed",
            detail="digits reached 83.1 % with 4 of 5 participants",
            subject=RUN,
            acknowledged_at=now - timedelta(hours=19),
            acknowledged_by="user:olga",
        )
    )
    session.add(
        Alert(
            at=now - timedelta(minutes=22),
            severity=Severity.CRITICAL,
            what="rollout_halted",
            detail="digits v2 to the fleet was halted: canary, 1 of 1 devices failed, none may",
            subject=HALTED,
        )
    )
    session.add(
        Alert(
            at=now - timedelta(minutes=22),
            severity=Severity.WARNING,
            what="device_rolled_back",
            detail="the runtime child died with signal 11; digits v1 serves again after 412 ms",
            device_id="jetson-dock",
            subject=HALTED,
        )
    )
    for age, actor, action, subject, detail in (
        (timedelta(days=12), "user:olga", "device.invited", "pi-kitchen", {"profile": "device"}),
        (timedelta(days=12), "device:pi-kitchen", "device.enrolled", "pi-kitchen", {}),
        (timedelta(hours=21), "user:olga", "run.started", RUN, {"rounds": 8, "predicted_epsilon": 2.98}),
        (timedelta(hours=20), "user:olga", "release.published", "digits:1", {"variants": 4}),
        (timedelta(hours=19), "user:olga", "rollout.started", COMPLETED, {"release": "digits:1"}),
        (timedelta(minutes=32), "user:olga", "rollout.started", HALTED, {"release": "digits:2"}),
        (timedelta(minutes=22), "system", "rollout.halted", HALTED, {"reason": "canary: 1 of 1 devices failed"}),
    ):
        session.add(AuditEvent(at=now - age, actor=actor, action=action, subject=subject, detail=detail))
