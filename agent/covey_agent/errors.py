"""What can go wrong in the agent, each with the exit code that its command ends with.

| code | meaning |
|---|---|
| 0 | done |
| 1 | a bug: an error that nobody expected |
| 2 | wrong usage: unknown option, bad settings, bad token text |
| 3 | the machine is not as needed: not enrolled, enrolled already, no such file, no right to write |
| 4 | the server refused: token used or expired, fingerprint of the fleet's CA does not match |
| 5 | the server cannot be reached: may be tried again |
| 6 | another agent runs on this state directory |
| 7 | the agent does not run (`status --require-running`) |
| 8 | this device was decommissioned: it does not start again |
| 9 | the doctor found a problem |
| 10 | of `run` alone: its parent, the launcher, is to start it anew |
"""


class CoveyAgentError(Exception):
    """Base of everything that the agent raises on purpose; its text is fit for an operator."""

    exit_code = 1


class UsageError(CoveyAgentError):
    """What the operator wrote cannot be meant: a bad token text, an unknown setting, a value out of range."""

    exit_code = 2


class StateError(CoveyAgentError):
    """The state directory is not as this command needs it."""

    exit_code = 3


class RefusedByServerError(CoveyAgentError):
    """The server, or whoever answers in its place, refused or is not the one the token names."""

    exit_code = 4


class UnreachableError(CoveyAgentError):
    """Nobody answered; trying again later may help."""

    exit_code = 5


class AlreadyRunningError(CoveyAgentError):
    """A second agent on one state directory."""

    exit_code = 6


class DecommissionedError(CoveyAgentError):
    """The fleet has retired this device."""

    exit_code = 8


class StoreError(CoveyAgentError):
    """The local database cannot be read or written."""

    exit_code = 3
