"""`covey token`: create, list, revoke.

`create --work-dir` writes to the database of a work folder directly: the first token of a server, when there is none yet to
ask the API with. Whoever may write that file may do everything anyway.
"""

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import typer

from covey_server.access import service
from covey_server.access.models import Role
from covey_server.cli.http import connect
from covey_server.cli.output import JsonOption, say, show_json, show_table
from covey_server.clock import utc_now
from covey_server.db import Database
from covey_server.settings import load_settings

app = typer.Typer(help="API tokens.", no_args_is_help=True)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Who holds it; the audit record names it token:NAME.", metavar="NAME")],
    role: Annotated[Role, typer.Option(help="What it may do.")] = Role.VIEWER,
    expires_in_days: Annotated[
        float | None, typer.Option(min=0.01, max=3650, help="Days until it ends. Default: until it is revoked.")
    ] = None,
    work_dir: Annotated[Path | None, typer.Option("--work-dir", help="Write to this work folder's database, without the API.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make an API token. It is printed this once."""
    if work_dir is not None:
        made = _create_locally(work_dir, name, role, expires_in_days)
    else:
        body = {"name": name, "role": role.value, "expires_in_days": expires_in_days}
        with connect() as api:
            made = api.post("/tokens", body, headers={"Idempotency-Key": uuid4().hex})
    if as_json:
        show_json(made)
        return
    typer.echo(made["token"])
    say(f"{made['role']} token {made['name']} ({made['id']}); it is not shown again")


@app.command("list")
def list_tokens(as_json: JsonOption = False) -> None:
    """List API tokens, without their secrets."""
    with connect() as api:
        tokens = api.get_all("/tokens")
    if as_json:
        show_json(tokens)
        return
    fields = ["id", "name", "role", "created_at", "expires_at", "revoked_at", "last_used_at"]
    show_table("Tokens", fields, [[token[field] for field in fields] for token in tokens])


@app.command()
def revoke(
    token_id: Annotated[str, typer.Argument(help="Id of the token, from `covey token list`.", metavar="TOKEN_ID")],
    as_json: JsonOption = False,
) -> None:
    """End a token at once."""
    with connect() as api:
        gone = api.delete(f"/tokens/{token_id}")
    if as_json:
        show_json(gone)
    else:
        say(f"token {gone['name']} ({gone['id']}) is revoked")


def _create_locally(work_dir: Path, name: str, role: Role, expires_in_days: float | None) -> dict[str, Any]:
    database = Database(load_settings(work_dir).resolved_database_url)
    try:
        with database.begin() as session:
            expires_in = timedelta(days=expires_in_days) if expires_in_days else None
            token, text = service.create_token(session, name, role=role, actor="system", now=utc_now(), expires_in=expires_in)
            return {**token.model_dump(mode="json", exclude={"secret_hash"}), "token": text}
    finally:
        database.close()
