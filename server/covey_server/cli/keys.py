"""`covey keys`: the keys and metadata that devices trust. Works on the work folder, without the API.

`make`, `inspect`, `sign` and `encrypt` need no work folder: they are for the machines of those who hold root's keys.
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from securesystemslib.signer import CryptoSigner, Signer
from sqlmodel import select

from covey_contract.codec import decode, digest_of
from covey_contract.messages import Signed
from covey_server.cli.output import CommandError, ExitCode, JsonOption, say, show_json, show_table
from covey_server.clock import utc_now
from covey_server.db import Database
from covey_server.errors import CoveyServerError
from covey_server.releases import root as roots
from covey_server.releases import signers
from covey_server.releases.director import FileDirector
from covey_server.releases.files import write_atomic
from covey_server.releases.keys import (
    LEAST_PASSPHRASE,
    ONLINE_ROLES,
    is_encrypted,
    load_private_key,
    make_key,
    offline_key_path,
    online_key_path,
    read_passphrase,
    read_secret,
    write_key,
)
from covey_server.releases.repository import TufRepository
from covey_server.rollouts.models import DesiredState
from covey_server.rollouts.restored import raise_generations
from covey_server.settings import Settings, default_work_dir, load_settings

RAISE_BY = 100_000
app = typer.Typer(help="Signing keys and release metadata. The guide to ceremonies is docs/keys.md.", no_args_is_help=True)
PassphraseOption = Annotated[
    Path | None, typer.Option(help="A file whose first line opens the key; without it you are asked.", exists=True, dir_okay=False)
]

AfterOption = Annotated[
    list[Path] | None,
    typer.Option(help="A later root than this server's, which a restored backup lacks; in order.", exists=True, dir_okay=False),
]


@app.command()
def show(as_json: JsonOption = False) -> None:
    """Show every signing key, where it is, and when what it signs expires."""
    settings = load_settings(default_work_dir())
    repository = TufRepository(settings)
    expiries, progress = repository.expiries(), roots.look_at(repository.newest_root())
    root = {"threshold": progress.thresholds["root"], "holders": progress.roles["root"]}
    keys = [_describe("root", offline_key_path(settings), expiries, settings) | root]
    keys += [_describe(role, online_key_path(settings, role), expiries, settings) for role in (*ONLINE_ROLES, "director")]
    if as_json:
        show_json(keys)
        return
    columns = ["role", "key", "file", "kept", "signs until"]
    show_table("Signing keys", columns, [(key["role"], key["public"][:16], key["file"], key["kept"], key["expires"]) for key in keys])
    holders = ", ".join(keyid[:12] for keyid in progress.roles["root"])
    say(f"Root is version {progress.version} and needs {progress.thresholds['root']} of {len(progress.roles['root'])} keys: {holders}.")
    if keys[0]["public"]:
        say("A root key lies on this server. Move it to a safe place; it is needed again only to change root.")


@app.command()
def make(
    file: Annotated[Path, typer.Argument(help="Where the private key goes; its public half goes beside it, as FILE.pub.")],
    passphrase_file: PassphraseOption = None,
    plain: Annotated[bool, typer.Option("--plain", help="Do not encrypt it.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a key for a holder of root. Nothing here knows it until a draft of root adds it."""
    public = file.with_name(f"{file.name}.pub")
    for path in (file, public):
        if path.exists():
            raise CommandError(f"{path} is there already: a key is never written over", ExitCode.REFUSED)
    passphrase = None if plain else _new_passphrase(passphrase_file)
    key = CryptoSigner(make_key(file, passphrase)).public_key
    signers.write_public(public, key)
    if as_json:
        show_json({"keyid": key.keyid, "private": str(file), "public": str(public), "encrypted": passphrase is not None})
    else:
        say(f"key {key.keyid[:12]} is made: keep {file} safe, hand over {public}")


@app.command()
def draft(
    file: Annotated[Path, typer.Argument(help="Where the draft goes.")],
    add: Annotated[list[Path] | None, typer.Option(help="A .pub file of a holder of root to add; may be given several times.")] = None,
    remove: Annotated[list[str] | None, typer.Option(help="The beginning of the id of a root key to remove; several times.")] = None,
    threshold: Annotated[int | None, typer.Option(help="How many holders must sign root from now on.", min=1)] = None,
    days: Annotated[int | None, typer.Option(help="Days until it expires; default: tuf.root_days.", min=1)] = None,
    after: AfterOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draft the next version of root, with every key that waits for it (see `rotate`). It counts once enough holders have signed it."""
    settings = load_settings(default_work_dir())
    repository = TufRepository(settings)
    before = after[-1].read_bytes() if after else repository.newest_root()
    waiting = {role: key for role in ONLINE_ROLES if (key := signers.next_key(settings, role)) is not None}
    if after:  # it names keys that may have been lost with the server that made them: back to those that are here
        waiting = {role: signers.load_signer(settings, role).public_key for role in ONLINE_ROLES} | waiting
    data = roots.draft_root(
        before,
        expires=utc_now() + timedelta(days=days or settings.tuf.root_days),
        add=[signers.public_key(signers.read_public(path)) for path in add or []],
        remove=remove or [],
        threshold=threshold,
        replace=waiting,
    )
    write_atomic(file, data)
    _show_progress(roots.look_at(data, before), as_json=as_json)
    if not as_json:
        say(f"{file} is drafted: let the holders sign it (covey keys sign {file} --key KEY), then: covey keys publish {file}")


@app.command()
def inspect(file: Annotated[Path, typer.Argument(exists=True, dir_okay=False)], as_json: JsonOption = False) -> None:
    """Show what a draft of root says, and whose signatures it lacks."""
    _show_progress(roots.look_at(file.read_bytes(), _present_root()), as_json=as_json)


@app.command()
def sign(
    file: Annotated[Path, typer.Argument(help="The draft; the signature goes into it.", exists=True, dir_okay=False)],
    key: Annotated[Path | None, typer.Option(help="A private key in a file.", exists=True, dir_okay=False)] = None,
    token: Annotated[str, typer.Option(help="Or a key on a PKCS#11 token: hsm:ID?label=TOKEN; see keys.pkcs11_module.")] = "",
    public: Annotated[Path | None, typer.Option(help="With --token: the key's .pub file.", exists=True, dir_okay=False)] = None,
    passphrase_file: PassphraseOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask whether you have read what you sign.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Sign a draft of root, after showing what it says."""
    data = file.read_bytes()
    if not as_json:
        _show_progress(roots.look_at(data, _present_root()), as_json=False)
    if not yes and not typer.confirm("Sign this root?", err=True):
        raise CommandError("not signed", ExitCode.REFUSED)
    signed = roots.sign_root(data, _holder(key, token, public, passphrase_file))
    write_atomic(file, signed)
    _show_progress(roots.look_at(signed, _present_root()), as_json=as_json)


@app.command()
def publish(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False)], after: AfterOption = None, as_json: JsonOption = False
) -> None:
    """Make a root that enough holders have signed the one that devices follow; keys that waited for it come into use."""
    earlier = [path.read_bytes() for path in after or []]
    version = TufRepository(load_settings(default_work_dir())).publish_root(file.read_bytes(), utc_now(), after=earlier)
    if as_json:
        show_json({"version": version})
    else:
        say(f"root version {version} is published; devices follow by themselves")


@app.command("renew-root")
def renew_root(
    key: Annotated[list[Path] | None, typer.Option(help="A root key; as often as root needs. Default: where `covey init` made it.")] = None,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draft, sign and publish in one step, where all the keys that are needed are at hand. Devices follow by themselves."""
    settings = load_settings(default_work_dir())
    repository, now = TufRepository(settings), utc_now()
    waiting = {role: fresh for role in ONLINE_ROLES if (fresh := signers.next_key(settings, role)) is not None}
    data = roots.draft_root(repository.newest_root(), expires=now + timedelta(days=settings.tuf.root_days), replace=waiting)
    for path in key or [offline_key_path(settings)]:
        data = roots.sign_root(data, CryptoSigner(_open_key(path, passphrase_file)))
    version = repository.publish_root(data, now)
    if as_json:
        show_json({"version": version})
    else:
        say(f"root version {version} is signed")


@app.command()
def rotate(
    roles: Annotated[list[str], typer.Argument(help=f"Any of {', '.join(ONLINE_ROLES)}.")],
    token_key: Annotated[int | None, typer.Option(help="Use a key that is on your PKCS#11 token, by its number.")] = None,
    token_label: Annotated[str, typer.Option(help="The token's label, if there are several.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Prepare another key for online roles; it counts once a root that names it is published (see `draft`)."""
    settings = load_settings(default_work_dir())
    unknown = set(roles) - set(ONLINE_ROLES)
    if unknown:
        raise CommandError(f"expected {', '.join(ONLINE_ROLES)}, got {', '.join(sorted(unknown))}", ExitCode.USAGE)
    made = {}
    for role in roles:
        if token_key is None:
            made[role] = signers.make_next(settings, role).keyid
        else:
            made[role] = signers.take_next_from_token(settings, role, number=token_key, label=token_label).keyid
    if as_json:
        show_json(made)
    else:
        say(f"new keys wait for {', '.join(made)}: covey keys draft FILE")


@app.command("rotate-director")
def rotate_director(
    finish: Annotated[bool, typer.Option("--finish", help="The key before holds no longer; after a restart of the server.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Begin signing orders by another key. Both hold until you finish, so that orders on their way are carried out."""
    settings = load_settings(default_work_dir())
    repository = TufRepository(settings)
    if finish:
        late = _signed_by_others(settings)
        if late:
            raise CommandError(f"{late} desired states are still signed by the key before: restart the server first", ExitCode.REFUSED)
        director = FileDirector.finish_rotation(settings, repository)
    else:
        director = FileDirector.rotate(settings, repository)
    if as_json:
        show_json({"keyid": director.keyid, "finished": finish})
    elif finish:
        say(f"orders are signed by {director.keyid[:12]} alone")
    else:
        say(f"orders are signed by {director.keyid[:12]} once the server is restarted; then: covey keys rotate-director --finish")


@app.command()
def encrypt(
    files: Annotated[list[Path] | None, typer.Argument(help="Key files; default: every one in the work folder.")] = None,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Encrypt key files that are not encrypted yet. For the server's own, name the passphrase in keys.passphrase_file first."""
    settings = load_settings(default_work_dir())
    paths = files or sorted(settings.path("keys").glob("*/*.pem"))
    passphrase = (read_passphrase(settings) if not files else None) or _new_passphrase(passphrase_file)
    done = []
    for path in paths:
        if not is_encrypted(path):
            write_key(path, load_private_key(path), passphrase)
            done.append(str(path))
    if as_json:
        show_json({"encrypted": done})
    else:
        say(f"{len(done)} of {len(paths)} key files were encrypted now, the others were before")


@app.command()
def recover(
    by: Annotated[int, typer.Option(help="How many versions to go on.", min=1, max=10_000_000)] = RAISE_BY,
    as_json: JsonOption = False,
) -> None:
    """After restoring an old backup: number metadata and orders above what devices have seen since, so that they follow again."""
    settings = load_settings(default_work_dir())
    database = Database(settings.resolved_database_url)
    try:
        with database.begin() as session:
            devices = raise_generations(session, by)
    finally:
        database.close()
    versions = TufRepository(settings).raise_versions(by, utc_now())
    if as_json:
        show_json(versions | {"devices": devices})
    else:
        say("metadata goes on at " + ", ".join(f"{role} {version}" for role, version in versions.items()))
        say(f"the next orders of {devices} devices go on {by} generations later; nothing was ordered now")


def _holder(key: Path | None, token: str, public: Path | None, passphrase_file: Path | None) -> Signer:
    if bool(key) == bool(token):
        raise CommandError("say where the key is: either --key FILE or --token URI", ExitCode.USAGE)
    if key:
        return CryptoSigner(_open_key(key, passphrase_file))
    settings = load_settings(default_work_dir())
    if public is None:
        raise CommandError("--token needs the key's .pub file too: --public FILE", ExitCode.USAGE)
    described = signers.read_public(public)
    return signers.open_signer(signers.TokenKey(described.keyid, described.key, token), settings)


def _open_key(path: Path, passphrase_file: Path | None) -> Any:
    if not is_encrypted(path):
        return load_private_key(path)
    if passphrase_file:
        return load_private_key(path, read_secret(passphrase_file, "--passphrase-file"))
    own = read_passphrase(load_settings(default_work_dir()))
    if own is not None:
        try:
            return load_private_key(path, own)
        except CoveyServerError:
            say(f"{path} is not opened by keys.passphrase_file")
    return load_private_key(path, typer.prompt(f"Passphrase of {path}", hide_input=True, err=True).encode("utf-8"))


def _new_passphrase(file: Path | None) -> bytes:
    if file:
        secret = read_secret(file, "--passphrase-file")
    else:
        secret = typer.prompt("New passphrase", hide_input=True, confirmation_prompt=True, err=True).encode("utf-8")
    if len(secret) < LEAST_PASSPHRASE:
        raise CommandError(f"a passphrase must have at least {LEAST_PASSPHRASE} characters, got {len(secret)}", ExitCode.USAGE)
    return secret


def _present_root() -> bytes | None:
    """The root that counts now, where there is a work folder."""
    try:
        return TufRepository(load_settings(default_work_dir())).newest_root()
    except CoveyServerError:
        return None


def _signed_by_others(settings: Settings) -> int:
    director = FileDirector.load(settings)
    database = Database(settings.resolved_database_url)
    try:
        with database.read() as session:
            return sum(decode(row.signed, Signed).keyid != director.keyid for row in session.exec(select(DesiredState)))
    finally:
        database.close()


def _show_progress(progress: roots.Progress, *, as_json: bool) -> None:
    needs = {"own": progress.own} | ({"before": progress.before} if progress.before else {})
    if as_json:
        show_json(
            {
                "version": progress.version,
                "expires": progress.expires.astimezone(UTC).isoformat(),
                "roles": progress.roles,
                "thresholds": progress.thresholds,
                "signatures": {
                    name: {"threshold": need.threshold, "signed": need.signed, "unsigned": need.unsigned, "missing": need.missing}
                    for name, need in needs.items()
                },
                "complete": progress.is_complete,
            }
        )
        return
    rows = [(role, f"{progress.thresholds[role]} of {len(keys)}", ", ".join(k[:12] for k in keys)) for role, keys in progress.roles.items()]
    title = f"Root version {progress.version}, until {progress.expires.date()}"
    show_table(title, ["role", "needs", "keys"], rows)
    names = {"own": "this root", "before": "the root before"}
    for name, need in needs.items():
        said = f"{len(need.signed)} of {need.threshold} signatures"
        say(f"for {names[name]}: {said}" + (f"; may still sign: {', '.join(k[:12] for k in need.unsigned)}" if need.missing else ""))


def _describe(role: str, path: Path, expiries: dict[str, datetime], settings: Settings) -> dict[str, Any]:
    public, kept, file = "", "", "not here"
    token = path.with_suffix(".pkcs11")
    if token.exists():
        described = signers.read_public(token)
        public, kept, file = described.keyid, "on a token", described.uri
    elif path.exists():
        kept, file = "encrypted" if is_encrypted(path) else "plain", str(path)
        try:
            key = load_private_key(path, read_passphrase(settings))
            raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
            # Each by the name that its users know it by: an order's keyid, or TUF's.
            public = digest_of(raw) if role == "director" else CryptoSigner(key).public_key.keyid
        except CoveyServerError:  # encrypted by another passphrase than the server's, as an offline key should be
            public = "sealed"
    expires = expiries.get(role)
    return {
        "role": role,
        "public": public,
        "file": file,
        "kept": kept,
        "expires": expires.astimezone(UTC).isoformat() if expires else "",
    }
