"""The agent's settings: `agent.toml` in the state directory, then environment variables; read once, frozen, handed down.

Every setting has a default, a unit and a meaning; `covey-agent config show` prints them. An unknown key is refused, because a
misspelt one would otherwise silently mean nothing. A variable is named after its table and key: `COVEY_AGENT_READINGS_MAX_AGE_DAYS`.
Policy and data sets are in the same file and are read again whenever it changes, so that a participant can withdraw at once.
"""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from covey_agent.core.jobs import LinkRules
from covey_agent.core.links import parse_link_rules
from covey_agent.core.policy import Budget, Policy, parse_hours
from covey_agent.errors import UsageError
from covey_contract.errors import ContractError
from covey_contract.ids import parse_digest, parse_name

FILE_NAME = "agent.toml"
ENVIRONMENT_PREFIX = "COVEY_AGENT_"
DEFAULT_STATE_DIR = "/var/lib/covey-agent"


def _setting(default: Any, meaning: str, *, low: float | None = None, high: float | None = None, choices: tuple[str, ...] = ()) -> Any:
    return field(default=default, metadata={"meaning": meaning, "low": low, "high": high, "choices": choices})


@dataclass(frozen=True, slots=True)
class InferenceSettings:
    """[inference]"""

    threads: int = _setting(1, "threads of the runtime", low=1, high=256)
    memory_limit_mb: int = _setting(0, "most private memory of one infer worker, MiB; 0: no limit", low=0)
    tcp_port: int = _setting(0, "loopback port of the local API besides the Unix socket; 0: none", low=0, high=65535)
    ready_timeout_s: float = _setting(60.0, "how long a worker may take to load its model, seconds", low=1)
    silence_timeout_s: float = _setting(20.0, "a worker that says nothing for this long hangs and is killed, seconds", low=2)
    max_crashes: int = _setting(1, "deaths of the worker in probation that are evidence against the model", low=1)
    hang_timeout_s: float = _setting(30.0, "a worker whose model has had one request for this long hangs and is killed, seconds", low=1)
    proven_crashes: int = _setting(3, "deaths of a proven model's worker within one stretch that send it back to the one before", low=1)
    proven_stretch_s: float = _setting(600.0, "the stretch over which a proven model is judged, seconds", low=1)
    control_loss_s: float = _setting(
        300.0, "a connection that worked before probation and is gone for this long in it sends the model back, seconds; 0: never", low=0
    )


@dataclass(frozen=True, slots=True)
class HealthSettings:
    """[health]"""

    command: str = _setting("", "your health hook, an executable with its arguments; exit code 0: healthy; empty: none")
    interval_s: float = _setting(10.0, "how often the hook is asked, seconds", low=1)
    timeout_s: float = _setting(5.0, "how long the hook may take, seconds", low=0.1)
    failures: int = _setting(2, "failures of the hook in a row that are evidence against a model in probation", low=1)


@dataclass(frozen=True, slots=True)
class DeploySettings:
    """[deploy]"""

    measure_mb: float = _setting(
        8.0, "variants of a new model are fetched and timed here, if all of them together have at most this, MB; 0: never", low=0
    )
    reserve_mb: int = _setting(64, "free disk that a deployment must leave, MiB", low=0)
    memory_limit_mb: int = _setting(0, "most private memory of the deploy and check children, MiB; 0: no limit", low=0)
    progress_timeout_s: float = _setting(600.0, "a deploy child without news for this long is killed and tried again, seconds", low=5)
    check_timeout_s: float = _setting(300.0, "how long the golden check may take, seconds", low=5)
    agent_upgrades: str = _setting(
        "auto",
        "whether the server may order upgrades of the agent itself: yes, no, or auto (a device: yes; a partner: no)",
        choices=("auto", "yes", "no"),
    )


@dataclass(frozen=True, slots=True)
class ReadingsSettings:
    """[readings]"""

    infer_interval_s: float = _setting(5.0, "how often what the worker saw becomes a reading, seconds", low=0.2)
    system_interval_s: float = _setting(30.0, "how often the machine's health becomes a reading, seconds; 0: never", low=0)
    send_interval_s: float = _setting(2.0, "how long readings wait for company before they are sent, seconds", low=0.05)
    ack_timeout_s: float = _setting(20.0, "unacknowledged readings are sent again after this, seconds", low=1)
    flush_interval_s: float = _setting(60.0, "unsent readings are written to disk at least this often, seconds", low=0.1)
    max_mb: float = _setting(64.0, "most disk for unsent readings, MiB", low=0.01)
    max_age_days: float = _setting(30.0, "older unsent readings are dropped and counted, days", low=0.001)


@dataclass(frozen=True, slots=True)
class ReportSettings:
    """[report]"""

    interval_s: float = _setting(300.0, "the full state is reported at least this often, seconds", low=1)
    progress_interval_s: float = _setting(1.0, "progress of a download is reported at most this often, seconds", low=0.1)


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """[training]"""

    memory_limit_mb: int = _setting(0, "most private memory of the trainer, MiB; 0: no limit", low=0)
    max_restarts: int = _setting(5, "how often a trainer that died is started again for the same run", low=0)


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """[broker]"""

    host: str = _setting("", "reach the broker here, through a tunnel or gateway; empty: where enrolment said")
    port: int = _setting(0, "reach the broker at this port; 0: the one that enrolment said", low=0, high=65535)
    reconnect_spread_s: float = _setting(
        4.0, "a lost connection is tried again within this; more for thousands of devices, seconds", low=0.2
    )


@dataclass(frozen=True, slots=True)
class IdentitySettings:
    """[identity]"""

    on_expiry: str = _setting(
        "re-enrol",
        "an expired certificate: re-enrol renews it by HTTPS with its key, wait leaves it to a person",
        choices=("re-enrol", "wait"),
    )
    allow_wipe: str = _setting(
        "yes", "whether decommissioning may wipe models, readings and keys here; never the privacy ledger", choices=("yes", "no")
    )
    alarm_days: float = _setting(14.0, "an unrenewed certificate with fewer days left raises an alarm, days", low=0)
    check_interval_s: float = _setting(3600.0, "how often the certificate's age is looked at, seconds", low=0.1, high=86400)
    retry_first_s: float = _setting(60.0, "a renewal that failed is tried again after this, then twice as long each time, seconds", low=0.1)


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """[network]"""

    max_kbit_per_s: float = _setting(0.0, "most that downloads of artifacts may take of the link, kbit/s on average; 0: no cap", low=0)
    metered: str = _setting("auto", "whether the link is metered: yes, no, or auto (NetworkManager, or the interface's name)")
    metered_policy: str = _setting("allow", "what may come over a metered link: allow (all), small (see small_mb), wait (nothing)")
    small_mb: float = _setting(1.0, "what metered_policy = small lets through, MB for one artifact or delta", low=0)
    metered_interfaces: str = _setting("wwan* ppp* rmnet*", "patterns of interfaces that auto takes for metered")


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that is read once at the start."""

    broker: BrokerSettings = field(default_factory=BrokerSettings)
    inference: InferenceSettings = field(default_factory=InferenceSettings)
    deploy: DeploySettings = field(default_factory=DeploySettings)
    health: HealthSettings = field(default_factory=HealthSettings)
    readings: ReadingsSettings = field(default_factory=ReadingsSettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    report: ReportSettings = field(default_factory=ReportSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    identity: IdentitySettings = field(default_factory=IdentitySettings)

    def link_rules(self) -> LinkRules:
        """[network] as the deploy child takes it. Raises UsageError."""
        network = self.network
        return parse_link_rules(
            max_kbit_per_s=network.max_kbit_per_s,
            metered=network.metered,
            policy=network.metered_policy,
            small_mb=network.small_mb,
            interfaces=network.metered_interfaces,
        )


@dataclass(frozen=True, slots=True)
class Consent:
    """What the participant allows and has: read again whenever the file changes."""

    policy: Policy = field(default_factory=Policy)
    datasets: Mapping[str, str] = field(default_factory=dict)  # name -> path


_TABLES: dict[str, type[Any]] = {
    "broker": BrokerSettings,
    "inference": InferenceSettings,
    "deploy": DeploySettings,
    "health": HealthSettings,
    "readings": ReadingsSettings,
    "network": NetworkSettings,
    "report": ReportSettings,
    "training": TrainingSettings,
    "identity": IdentitySettings,
}
_POLICY_KEYS = {"consent", "tasks", "purposes", "hours", "unprotected", "budgets"}


def load_settings(state_dir: Path, environment: Mapping[str, str]) -> Settings:
    """Settings of a state directory. Raises UsageError that names the key."""
    content = read_toml(state_dir / FILE_NAME)
    unknown = set(content) - set(_TABLES) - {"policy", "datasets"}
    if unknown:
        raise UsageError(
            f"{FILE_NAME}: unknown table or key {', '.join(sorted(unknown))}; known are {', '.join(sorted(_TABLES))}, policy, datasets"
        )
    parse_consent(content)
    settings = Settings(**{name: _load_table(name, kind, content.get(name, {}), environment) for name, kind in _TABLES.items()})
    settings.link_rules()  # a word that means nothing is said at the start, not when the first artifact comes
    return settings


def load_consent(state_dir: Path) -> Consent:
    """Policy and data sets as they stand in the file now. Raises UsageError."""
    return parse_consent(read_toml(state_dir / FILE_NAME))


def read_toml(path: Path) -> dict[str, Any]:
    """The file's content, empty if there is none."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise UsageError(f"cannot read {path}: {exc}") from exc


def parse_consent(content: Mapping[str, Any]) -> Consent:
    """[policy] and [datasets] of a settings file. Raises UsageError."""
    table = _expect(content.get("policy", {}), dict, "policy")
    unknown = set(table) - _POLICY_KEYS
    if unknown:
        raise UsageError(
            f"{FILE_NAME}: unknown key policy.{', policy.'.join(sorted(unknown))}; known are {', '.join(sorted(_POLICY_KEYS))}"
        )
    try:
        policy = Policy(
            consent=_expect(table.get("consent", True), bool, "policy.consent"),
            tasks=tuple(parse_digest(task) for task in _expect(table.get("tasks", []), list, "policy.tasks")),
            purposes=tuple(parse_name(purpose, "purpose") for purpose in _expect(table.get("purposes", []), list, "policy.purposes")),
            hours=tuple(parse_hours(hours) for hours in _expect(table.get("hours", []), list, "policy.hours")),
            unprotected=_expect(table.get("unprotected", False), bool, "policy.unprotected"),
            budgets={
                parse_name(name, "dataset"): _parse_budget(name, value)
                for name, value in _expect(table.get("budgets", {}), dict, "policy.budgets").items()
            },
        )
        table = _expect(content.get("datasets", {}), dict, "datasets")
        datasets = {str(parse_name(name, "dataset")): str(_expect(path, str, f"datasets.{name}")) for name, path in table.items()}
    except (ContractError, ValueError, AttributeError) as exc:
        raise UsageError(f"{FILE_NAME}: {exc}") from exc
    return Consent(policy=policy, datasets=datasets)


def describe(settings: Settings, environment: Mapping[str, str]) -> list[tuple[str, object, str, str]]:
    """(name, value, meaning, variable) of every setting, for `config show`."""
    rows: list[tuple[str, object, str, str]] = []
    for table in _TABLES:
        part = getattr(settings, table)
        for item in fields(part):
            variable = _variable(table, item.name)
            source = variable + (" (set)" if variable in environment else "")
            rows.append((f"{table}.{item.name}", getattr(part, item.name), item.metadata["meaning"], source))
    return rows


def find_state_dir(argument: str | None) -> Path:
    """The state directory that a command works on: its option, the environment, the default."""
    return Path(argument or os.environ.get(f"{ENVIRONMENT_PREFIX}STATE_DIR") or DEFAULT_STATE_DIR).expanduser().absolute()


def _load_table(name: str, kind: type[Any], content: object, environment: Mapping[str, str]) -> Any:
    table = dict(_expect(content, dict, name))
    known = {item.name: item for item in fields(kind)}
    unknown = set(table) - set(known)
    if unknown:
        raise UsageError(f"{FILE_NAME}: unknown key {name}.{sorted(unknown)[0]}; known are {', '.join(known)}")
    for key, item in known.items():
        variable = _variable(name, key)
        if variable in environment:
            text = environment[variable]
            table[key] = text if isinstance(item.default, str) else _parse_number(text, variable)
    return kind(**{key: _check(f"{name}.{key}", value, known[key]) for key, value in table.items()})


def _check(name: str, value: object, item: "Field[Any]") -> int | float | str:
    kind: type = type(item.default)
    if kind is str:
        choices = item.metadata["choices"]
        if choices and value not in choices:
            raise UsageError(f"{FILE_NAME}: {name} must be one of {', '.join(choices)}, got {value!r}")
        return str(_expect(value, str, name))
    if isinstance(value, bool) or not isinstance(value, int | float) or (kind is int and not isinstance(value, int)):
        raise UsageError(f"{FILE_NAME}: {name} must be a{'n integer' if kind is int else ' number'}, got {value!r}")
    low, high = item.metadata["low"], item.metadata["high"]
    if (low is not None and value < low) or (high is not None and value > high):
        raise UsageError(
            f"{FILE_NAME}: {name} must be {'' if low is None else f'>= {low}'}{'' if high is None else f' and <= {high}'}, got {value!r}"
        )
    return value if kind is int else float(value)


def _parse_number(text: str, variable: str) -> int | float:
    try:
        return int(text) if text.lstrip("-").isdecimal() else float(text)
    except ValueError as exc:
        raise UsageError(f"{variable} must be a number, got {text!r}") from exc


def _parse_budget(name: str, value: object) -> Budget:
    table = _expect(value, dict, f"policy.budgets.{name}")
    if set(table) != {"epsilon", "delta"}:
        raise UsageError(f"{FILE_NAME}: policy.budgets.{name} must have epsilon and delta, got {', '.join(sorted(table)) or 'nothing'}")
    epsilon, delta = table["epsilon"], table["delta"]
    if not isinstance(epsilon, int | float) or isinstance(epsilon, bool) or epsilon < 0:
        raise UsageError(f"{FILE_NAME}: policy.budgets.{name}.epsilon must be a number >= 0, got {epsilon!r}")
    if not isinstance(delta, float) or not 0 < delta < 1:
        raise UsageError(f"{FILE_NAME}: policy.budgets.{name}.delta must be between 0 and 1, got {delta!r}")
    return Budget(epsilon=float(epsilon), delta=delta)


def _expect(value: object, kind: type[Any], name: str) -> Any:
    if not isinstance(value, kind):
        raise UsageError(f"{FILE_NAME}: {name} must be a {kind.__name__}, got {value!r:.60}")
    return value


def _variable(table: str, key: str) -> str:
    return f"{ENVIRONMENT_PREFIX}{table.upper()}_{key.upper()}"
