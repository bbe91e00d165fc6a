"""Commands that run the server or work on its folder: init, up, api, worker, demo, config, db."""

import json
import signal
import time
import tomllib
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from covey_server import migrate
from covey_server.cli.output import CommandError, ExitCode, JsonOption, say, show_json, show_table
from covey_server.db import Database
from covey_server.errors import InvalidInputError
from covey_server.settings import CONFIG_FILE, Settings, default_work_dir, load_settings

WorkDir = Annotated[Path | None, typer.Option("--work-dir", help="The server's work folder. Default: COVEY_HOME, else the current folder.")]


def register(app: typer.Typer) -> None:
    """Add these commands to the root command."""
    app.command()(init)
    app.command()(up)
    app.command()(api)
    app.command()(worker)
    app.command()(demo)
    config = typer.Typer(help="The server's settings.", no_args_is_help=True)
    config.command("show")(config_show)
    app.add_typer(config, name="config")
    database = typer.Typer(help="The database's schema.", no_args_is_help=True)
    database.command("upgrade")(db_upgrade)
    database.command("status")(db_status)
    app.add_typer(database, name="db")


def init(work_dir: WorkDir = None, as_json: JsonOption = False) -> None:
    """Make a new server in the work folder: keys, certificates, database, the first user and token."""
    from covey_server.initialise import initialise  # noqa: PLC0415 - loads the whole server

    settings = _settings(work_dir)
    first = initialise(settings)
    if as_json:
        show_json({"work_dir": str(settings.path()), "user": first.user, "password": first.password, "created": first.created})
        return
    if not first.created:
        say(f"{settings.path()} holds a server already; nothing was changed")
        return
    say(f"A new fleet in {settings.path()}")
    say(f"  console login   {first.user} / {first.password}")
    say(f"                  (also in {settings.path('admin.password')}: delete that file when you have it)")
    say(f"  API token       in {settings.path('admin.token')}")
    say("  next            covey up")


def up(work_dir: WorkDir = None) -> None:
    """Run everything on this machine: broker, API and console, worker, Flower SuperLink. Ctrl-C stops it."""
    from covey_server.initialise import initialise  # noqa: PLC0415 - loads the whole server
    from covey_server.observability.logs import configure_logs  # noqa: PLC0415
    from covey_server.programs import check_ports, process_specs  # noqa: PLC0415
    from covey_server.supervisor import Supervisor  # noqa: PLC0415

    settings = _settings(work_dir)
    configure_logs(settings.log, program="up")
    check_ports(settings)
    first = initialise(settings)
    stop = _stop_on_signals()
    supervisor = Supervisor(
        process_specs(settings),
        settings.path("logs"),
        on_change=lambda name, what: say(f"  {name:<10} {what}"),
        is_wanted=lambda: not stop,
    )
    try:
        supervisor.start()
        if stop:
            return
        say(f"\nConsole  {settings.public_url}")
        if first.created:
            say(f"Login    {first.user} / {first.password}   (also in {settings.path('admin.password')})")
        say(f"Logs     {settings.path('logs')}\nCtrl-C stops everything.")
        while not stop:
            supervisor.poll()
            time.sleep(0.5)
    finally:
        supervisor.stop()


def api(work_dir: WorkDir = None) -> None:
    """Run the API, the console and the edge listener alone."""
    from covey_server.programs import run_api  # noqa: PLC0415 - loads the whole server

    run_api(_settings(work_dir))


def worker(work_dir: WorkDir = None) -> None:
    """Run the worker alone: MQTT gateway, outbox, rollouts, runs, builds."""
    from covey_server.programs import run_worker  # noqa: PLC0415 - loads the whole server

    run_worker(_settings(work_dir))


def demo(
    devices: Annotated[int, typer.Option(min=1, max=8, help="How many devices.")] = 3,
    partners: Annotated[int, typer.Option(min=1, max=8, help="How many data-holding partners.")] = 2,
    rounds: Annotated[int, typer.Option(min=2, max=50, help="How many federated rounds.")] = 8,
    seed: Annotated[int, typer.Option(help="Seed of the data split and the untrained model; privacy noise is never seeded.")] = 7,
    workdir: Annotated[Path | None, typer.Option(help="Where to put everything. Default: a new temporary folder.")] = None,
    exit_: Annotated[bool, typer.Option("--exit", help="End when the story is told; exit code 0 only if every step held.")] = False,
    report: Annotated[Path | None, typer.Option(help="Where to write report.json. Default: in the work folder.")] = None,
) -> None:
    """The main job in front of you: train with privacy, quantize, ship, serve, break things, watch them roll back."""
    from covey_server.demo.stage import DemoOptions  # noqa: PLC0415 - loads the whole server
    from covey_server.demo.story import run_demo  # noqa: PLC0415

    options = DemoOptions(devices=devices, partners=partners, rounds=rounds, seed=seed, work_dir=workdir, stay=not exit_, report=report)
    raise typer.Exit(run_demo(options))


def config_show(work_dir: WorkDir = None, as_json: JsonOption = False) -> None:
    """Every setting with its value, meaning and where the value comes from."""
    settings = _settings(work_dir)
    rows = list(_describe(settings))
    if as_json:
        show_json([{"setting": name, "value": value, "from": source, "meaning": meaning} for name, value, source, meaning in rows])
    else:
        show_table(f"Settings of {settings.path()}", ["setting", "value", "from", "meaning"], rows)


def db_upgrade(work_dir: WorkDir = None) -> None:
    """Bring the database to the newest schema."""
    database = Database(_settings(work_dir).resolved_database_url)
    migrate.upgrade(database)
    say(f"{database.url} has schema {migrate.newest_revision()}")


def db_status(work_dir: WorkDir = None, as_json: JsonOption = False) -> None:
    """Whether the database has the newest schema (exit code 1 if not)."""
    database = Database(_settings(work_dir).resolved_database_url)
    current = migrate.is_current(database)
    if as_json:
        show_json({"current": current, "newest": migrate.newest_revision()})
    else:
        say("the schema is current" if current else "the schema is old: run `covey db upgrade`")
    raise typer.Exit(ExitCode.OK if current else ExitCode.FAILED)


def _settings(work_dir: Path | None) -> Settings:
    folder = work_dir or default_work_dir()
    if folder.exists() and not folder.is_dir():
        raise CommandError(f"expected a folder, {folder} is a file", ExitCode.USAGE)
    try:
        return load_settings(folder)
    except InvalidInputError as exc:
        raise CommandError(str(exc), ExitCode.USAGE) from exc


def _describe(settings: Settings) -> Any:
    file = settings.path(CONFIG_FILE)
    written: dict[str, Any] = tomllib.loads(file.read_text("utf-8")) if file.exists() else {}
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        if not isinstance(value, BaseModel):
            source = "--work-dir" if name == "work_dir" else _source(value, field.default, name in written)
            yield name, str(value), source, field.description or ""
            continue
        for key, sub in type(value).model_fields.items():
            part = getattr(value, key)
            in_file = (sub.alias or key) in written.get(name, {})
            yield f"{name}.{sub.alias or key}", json.dumps(part), _source(part, sub.default, in_file), sub.description or ""


def _source(value: Any, default: Any, in_file: bool) -> str:
    if in_file:
        return CONFIG_FILE
    return "default" if value == default else "environment"


def _stop_on_signals() -> list[int]:
    received: list[int] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        received.append(number)

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    return received
