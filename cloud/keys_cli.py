"""`headframe cloud keys …`: who may sign what. Each command says what it did and what is left to do."""

import json
import os
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from cloud.opening import ConfigOption, open_service
from cloud.settings import CloudSettings
from cloud.trust import Keys, Repository, ceremony
from common.clock import SystemClock
from common.errors import OperatorError
from common.files import READABLE, write_atomically
from common.settings import load_settings

app = typer.Typer(
    no_args_is_help=True, help="Who may sign what: root of trust, roles, and the ceremony for offline keys."
)

FolderOption = Annotated[
    list[Path] | None, typer.Option("--folder", help="Folder of offline keys (a stick); may be given several times.")
]
AskOption = Annotated[bool, typer.Option("--ask-passphrase", help="Ask for the passphrase of the keys in the folders.")]
PASSPHRASE = "HEADFRAME_PASSPHRASE"  # noqa: S105 — the variable's name
SOON_S = 60 * 24 * 3600


@app.command()
def init(config: ConfigOption, folder: FolderOption = None, ask_passphrase: AskOption = False) -> None:
    """Make all keys: those of root and targets into the folders in turn, the online ones beside the database."""
    folders = folder or []
    for place in folders:
        if not place.is_dir():
            raise OperatorError(f"there is no folder {place}", "Put the stick in, and give the folder it shows.")
    repository = _open(config, folders, _passphrase(ask=ask_passphrase, twice=True))
    repository.create(folders)
    for place in folders:
        typer.echo(f"{place}: {', '.join(sorted(path.name for path in place.glob('*.key.pem')))}")
    typer.echo(_verdict(repository))
    typer.echo("write the root of trust for gateways: headframe cloud keys root")


@app.command()
def root(config: ConfigOption, file: Annotated[Path, typer.Argument(help="Where to write it.")]) -> None:
    """Write the root of trust: the `release_root` of every gateway."""
    repository = _open(config)
    if not repository.exists:
        repository.create([])  # as the centre itself would at its first start
    write_atomically(file, repository.root(), READABLE)
    typer.echo(f"{file}: root of trust, version {repository.root_version()}; {_verdict(repository)}")


@app.command()
def status(config: ConfigOption, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Every role with its keys, how many of them are on this machine, and what expires when."""
    repository = _existing(config)
    rows, waits = repository.status(), [role for role in ("root", "targets") if repository.staged(role)]
    if as_json:
        known = {"development": repository.is_development, "waiting": waits, "roles": [asdict(row) for row in rows]}
        typer.echo(json.dumps(known))
        return
    table = Table("role", "version", "expires", "signs with", "of these here")
    now_s = SystemClock().wall_ns() // 10**9
    for row in rows:
        expires = f"{datetime.fromtimestamp(row.expires_at_s, UTC):%Y-%m-%d}"
        soon = "" if row.expires_at_s - now_s > SOON_S else " (soon)"
        table.add_row(row.role, str(row.version), expires + soon, f"{row.threshold} of {row.keys}", str(row.here))
    Console().print(table)
    typer.echo(_verdict(repository))
    if waits:
        typer.echo(f"waits for signatures: {', '.join(waits)}; see `headframe cloud keys stage`")


@app.command()
def rotate(
    config: ConfigOption,
    role: Annotated[str, typer.Argument(help="root, targets, snapshot, timestamp, assignments, scenario-…")],
    folder: FolderOption = None,
    ask_passphrase: AskOption = False,
) -> None:
    """Give a role new keys; what the old ones sign is refused by every gateway that hears of it."""
    repository = _existing(config, folder or [], _passphrase(ask=ask_passphrase))
    _say(repository.rotate(role, folder or []), f"{role} has new keys")


@app.command()
def renew(config: ConfigOption, folder: FolderOption = None, ask_passphrase: AskOption = False) -> None:
    """Sign root and targets again with the same keys, for another term, before they expire."""
    repository = _existing(config, folder or [], _passphrase(ask=ask_passphrase))
    _say(repository.renew(), "root and targets are renewed")


@app.command()
def stage(config: ConfigOption, file: Annotated[Path, typer.Argument(help="Where to write it.")]) -> None:
    """Write what waits for offline keys into one file, to be carried to the machine that signs."""
    for line in ceremony.describe(ceremony.stage(_existing(config), file)):
        typer.echo(line)
    typer.echo(f"wrote {file}: sign it with `headframe cloud keys sign`")


@app.command()
def sign(
    file: Annotated[Path, typer.Argument(help="File of `keys stage`; the signatures are added to it.")],
    folder: Annotated[list[Path], typer.Option("--folder", help="Folder with the keys; may be given several times.")],
    ask_passphrase: AskOption = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Sign a staged file; needs no network and no cloud.toml."""
    for line in ceremony.describe(ceremony.load(file)):
        typer.echo(line)
    if not yes and not typer.confirm("Sign this?"):
        raise typer.Exit(1)
    for role, (have, need) in ceremony.sign(file, Keys(folder, _passphrase(ask=ask_passphrase))).items():
        typer.echo(f"{role}: {have} of {need} signatures")


@app.command("import")
def import_(config: ConfigOption, file: Annotated[Path, typer.Argument(help="The signed file.")]) -> None:
    """Bring signatures back; when enough have come, it is in force and staged releases become active."""
    signed = ceremony.load(file).read()
    with open_service(config) as service:
        done = service.repository.adopt(signed)
        released = service.registry.activate_signed()
    _say(done, "the signed metadata is in force")
    for name in released:
        typer.echo(f"released {name}")


def _open(config: Path, folders: list[Path] | None = None, passphrase: str = "") -> Repository:
    place = load_settings(CloudSettings, config).data_dir / "trust"
    return Repository(place / "metadata", Keys([place / "keys", *(folders or [])], passphrase), SystemClock())


def _existing(config: Path, folders: list[Path] | None = None, passphrase: str = "") -> Repository:
    found = _open(config, folders, passphrase)
    if not found.exists:
        raise OperatorError("there are no keys yet", "`headframe cloud keys init`, or the centre's first start.")
    return found


def _verdict(repository: Repository) -> str:
    if repository.is_development:
        return "DEVELOPMENT keys: this machine alone can sign what gateways trust (`keys rotate root --folder …`)"
    return "this machine alone cannot sign what gateways accept as root"


def _say(done: bool, what: str) -> None:
    typer.echo(what if done else "it waits for offline keys: `headframe cloud keys stage`")


def _passphrase(*, ask: bool, twice: bool = False) -> str:
    if PASSPHRASE in os.environ:
        return os.environ[PASSPHRASE]
    return str(typer.prompt("Passphrase", hide_input=True, confirmation_prompt=twice)) if ask else ""
