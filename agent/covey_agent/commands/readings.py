"""`covey-agent readings`: what waits on disk for the server."""

import argparse

import msgspec

from covey_agent.commands.output import say, say_json, say_table, show_time
from covey_agent.commands.state import open_state
from covey_agent.settings import find_state_dir
from covey_contract.messages import Reading


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--limit", type=int, default=20, help="how many of the newest (default 20)")


def run(options: argparse.Namespace) -> int:
    """Print the newest waiting readings, oldest first."""
    database = open_state(find_state_dir(options.state_dir))
    rows = database.query("SELECT sequence, data FROM reading ORDER BY sequence DESC LIMIT ?", (options.limit,)) if database else []
    if database:
        database.close()
    decoder = msgspec.msgpack.Decoder(Reading)
    readings = [(sequence, decoder.decode(data)) for sequence, data in reversed(rows) if isinstance(data, bytes)]
    if options.json:
        say_json(
            [
                {"sequence": sequence, "at": reading.at, "kind": reading.kind, "priority": reading.priority.name, "values": reading.values}
                for sequence, reading in readings
            ]
        )
    elif not readings:
        say("nothing waits: the server has every reading, or has yet to be sent the latest ones from memory")
    else:
        table = [(number, show_time(reading.at), reading.kind, _show(reading)) for number, reading in readings]
        say_table(table, ("sequence", "at", "kind", "values"))
    return 0


def _show(reading: Reading) -> str:
    return " ".join(f"{key}={value}" for key, value in reading.values.items())[:160]
