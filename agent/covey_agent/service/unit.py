"""The text of the systemd unit and of the files that make its user and its folder: one template, filled in.

Decisions that are not plain from the text:
- `WatchdogSec` ends an agent whose event loop is stuck; READY comes within `heartbeat.PATIENCE_S`, and the launcher asks for more time
  while a new version is on trial.
- `Restart=always` with no start limit: nobody is there to say `reset-failed` to a device on a pole. Exit code 8 (decommissioned) is
  the one end that is final.
- `OOMPolicy=continue`: a child that the kernel ends for lack of memory is evidence against a model, not the end of the service.
- The state folder lets its group through (0710) and nothing else: applications of that group reach `run/infer.sock`, and no key.
- `MemoryDenyWriteExecute` holds for inference (ONNX Runtime and LiteRT make no code at run time). A trainer needs it off: torch makes
  code, so the unit of a participant is written without it.
- Not restricted: `/proc` (the capabilities of this machine are read from it) and `@resources` of the system calls (children get their
  limits from the agent).
"""

from dataclasses import dataclass
from string import Template

UNIT_NAME = "covey-agent.service"
USER = "covey-agent"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a service runs."""

    launcher: str  # absolute path of covey-agent-launch
    state_dir: str
    of_user: bool = False  # a unit of one user's own manager
    in_home: bool = False  # the program or its interpreter lies in somebody's home
    trains: bool = False  # a participant: torch writes code at run time


def render_unit(place: Place) -> str:
    """The unit."""
    sandbox = "" if place.of_user else _SANDBOX.substitute(state=_state(place.state_dir), home=_home(place), wx=_wx(trains=place.trains))
    owner = "" if place.of_user else _OWNER.substitute(user=USER)
    return _UNIT.substitute(
        launcher=_quote(place.launcher),
        state=_quote(place.state_dir),
        owner=owner,
        sandbox=sandbox,
        wanted_by="default.target" if place.of_user else "multi-user.target",
    )


def render_sysusers(place: Place) -> str:
    """The user, for systemd-sysusers."""
    return f'# Written by covey-agent install.\nu {USER} - "Covey agent" {_escape(place.state_dir)}\n'


def render_tmpfiles(place: Place) -> str:
    """The state folder, for systemd-tmpfiles: it must be there before the first start, since a device is enrolled into it."""
    return f"# Written by covey-agent install.\nd {_escape(place.state_dir)} 0710 {USER} {USER}\n"


def _escape(path: str) -> str:
    """A path for sysusers.d and tmpfiles.d, where `%` means something."""
    return '"' + path.replace("%", "%%").replace("\\", "\\\\").replace('"', '\\"') + '"'


def _wx(*, trains: bool) -> str:
    return "# MemoryDenyWriteExecute is off: the trainer's runtime makes code." if trains else "MemoryDenyWriteExecute=yes"


def _state(state_dir: str) -> str:
    """The one folder that it may write."""
    name = state_dir.removeprefix("/var/lib/")
    if name != state_dir and "/" not in name and _quote(name) == name:
        return f"StateDirectory={name}\nStateDirectoryMode=0710"
    return f"ReadWritePaths={_quote(state_dir)}"


def _home(place: Place) -> str:
    """Homes are hidden, unless the agent itself was installed in one."""
    return "read-only" if place.in_home else "yes"


def _quote(path: str) -> str:
    """A path as a word of ExecStart: `%` and `$` mean something there."""
    text = path.replace("%", "%%").replace("$", "$$")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' if set(text) & set(" \"'\\;") else text


_UNIT = Template(
    """\
# Written by covey-agent install; `systemctl edit covey-agent` keeps your own settings apart from it.
[Unit]
Description=Covey agent: serves models on this device and keeps them up to date
Documentation=man:systemd.service(5)
# It serves without a network and looks for the broker by itself.
After=network.target
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart=$launcher run --state-dir $state
Restart=always
RestartSec=2
RestartPreventExitStatus=8
SuccessExitStatus=8
TimeoutStartSec=120
TimeoutStopSec=30
WatchdogSec=60
KillMode=mixed
OOMPolicy=continue
TasksMax=512
StandardOutput=journal
StandardError=journal
SyslogIdentifier=covey-agent
LogRateLimitIntervalSec=30
LogRateLimitBurst=2000
${owner}${sandbox}
[Install]
WantedBy=$wanted_by
"""
)
_OWNER = Template(
    """\
User=$user
Group=$user
"""
)
_SANDBOX = Template(
    """\
$state
UMask=0077
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome=$home
PrivateTmp=yes
PrivateDevices=yes
PrivateMounts=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
LockPersonality=yes
$wx
RemoveIPC=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged
SystemCallErrorNumber=EPERM
"""
)
