"""The `covey` command: one sub-command a capability, one exit code a kind of failure."""

import importlib
import sys
from typing import Annotated

import typer
from sqlalchemy.exc import OperationalError

from covey_server import __version__
from covey_server.cli import server
from covey_server.cli.output import CommandError, ExitCode, complain
from covey_server.errors import CoveyServerError

app = typer.Typer(
    name="covey",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="One control plane for models at the edge: federated training, quantized releases, rollouts, a privacy ledger.",
    epilog="Exit codes: 0 ok, 1 failed, 2 wrong usage, 3 not found, 4 refused, 5 server not reachable.",
)

# name of the sub-command -> module below covey_server.cli that holds its `app`
_SUB_COMMANDS = {
    "device": "devices",
    "agent": "agents",
    "release": "releases",
    "rollout": "rollouts",
    "task": "tasks",
    "run": "runs",
    "ledger": "ledger",
    "readings": "telemetry",
    "alert": "alerts",
    "audit": "audit",
    "token": "tokens",
    "keys": "keys",
}


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"covey {__version__}")
        raise typer.Exit


@app.callback()
def root(
    _version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_show_version)] = False,
) -> None:
    """Options of the command as a whole."""


def build() -> typer.Typer:
    """The whole command."""
    server.register(app)
    for name, module in _SUB_COMMANDS.items():
        app.add_typer(importlib.import_module(f"covey_server.cli.{module}").app, name=name)
    return app


def main() -> None:
    """Run a command; errors that we raise on purpose are told in a line, never as a traceback."""
    try:
        build()(standalone_mode=True)
    except CommandError as error:
        complain(str(error))
        sys.exit(error.code)
    except CoveyServerError as error:
        complain(str(error))
        sys.exit(ExitCode.FAILED)
    except OSError as error:  # a folder that cannot be made, a file that cannot be read
        complain(str(error))
        sys.exit(ExitCode.FAILED)
    except OperationalError as error:
        complain(f"the database cannot be used: {error.orig}")
        sys.exit(ExitCode.FAILED)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
