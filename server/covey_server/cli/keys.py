"""`covey keys`: the keys and metadata that devices trust. Works on the work folder, without the API."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from covey_contract.codec import digest_of
from covey_server.cli.output import JsonOption, say, show_json, show_table
from covey_server.clock import utc_now
from covey_server.releases.keys import ONLINE_ROLES, load_private_key, offline_key_path, online_key_path
from covey_server.releases.repository import TufRepository
from covey_server.settings import default_work_dir, load_settings

app = typer.Typer(help="Signing keys and release metadata.", no_args_is_help=True)


@app.command()
def show(as_json: JsonOption = False) -> None:
    """Show every signing key, where it is, and when what it signs expires."""
    settings = load_settings(default_work_dir())
    expiries = TufRepository(settings).expiries()
    keys = [_describe("root", offline_key_path(settings), expiries)]
    keys += [_describe(role, online_key_path(settings, role), expiries) for role in (*ONLINE_ROLES, "director")]
    if as_json:
        show_json(keys)
        return
    columns = ["role", "key", "file", "signs until"]
    show_table("Signing keys", columns, [(key["role"], key["public"][:16], key["file"], key["expires"]) for key in keys])
    if keys[0]["public"]:
        say("The root key lies on this server. Move it to a safe place; it is needed again only for `covey keys renew-root`.")


@app.command("renew-root")
def renew_root(
    key: Annotated[Path | None, typer.Option(help="The offline root key; default: where `covey init` made it.", exists=True)] = None,
) -> None:
    """Sign root metadata again, for another full time. Devices follow by themselves."""
    settings = load_settings(default_work_dir())
    version = TufRepository(settings).renew_root(key or offline_key_path(settings), utc_now())
    say(f"root version {version} is signed")


def _describe(role: str, path: Path, expiries: dict[str, datetime]) -> dict[str, Any]:
    public = ""
    if path.exists():
        raw = load_private_key(path).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        public = digest_of(raw)
    expires = expiries.get(role)
    return {
        "role": role,
        "public": public,
        "file": str(path) if public else "not here",
        "expires": expires.astimezone(UTC).isoformat() if expires else "",
    }
