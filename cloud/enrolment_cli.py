"""`headframe cloud ca …`, `enroll`, `revoke`: who may connect. Opens the authority and the audit log, no service."""

import datetime as dt
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cloud.settings import CloudSettings
from common.errors import OperatorError
from common.settings import load_settings

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="cloud.toml.")]
HostOption = Annotated[list[str], typer.Option("--host", help="Name or address of the broker, as gateways know it.")]
CsrOption = Annotated[Path | None, typer.Option("--csr", help="Signing request made on the gateway: the better way.")]

ca_app = typer.Typer(no_args_is_help=True, help="The group's certificate authority, in `ca` of data_dir.")


def add_enrolment(app: typer.Typer) -> None:
    """Hang the commands into `headframe cloud`."""
    app.add_typer(ca_app, name="ca")
    app.command()(enroll)
    app.command()(revoke)


@ca_app.command("init")
def init(
    config: ConfigOption,
    host: HostOption,
    group: Annotated[str, typer.Option(help="Name of the group, in the authority's certificate.")] = "Headframe",
) -> None:
    """Make the authority, the centre's certificate, and the broker's for its hosts."""
    from cloud.authority import CENTRE_FILE, Authority

    folder = load_settings(CloudSettings, config).data_dir / "ca"
    Authority.create(folder, group, _now()).equip(host, _now())
    _audit(config, "create authority", {"hosts": host})
    where = folder.resolve()
    typer.echo(
        f"authority in {where}: keep ca.key in a safe place too, it admits everybody.\n"
        f"Your own broker takes ca.pem, crl.pem, server.pem and server.key of it (deploy/mosquitto); in cloud.toml:\n\n"
        f'[broker]\nembedded = false\nhost = "{host[0]}"\nport = 8883\nca_file = "{where / "ca.pem"}"\n'
        f'cert_file = "{where / CENTRE_FILE}"\n\nThe embedded broker takes it by itself: [broker] tls = true'
    )


@ca_app.command("server")
def server(config: ConfigOption, host: HostOption) -> None:
    """Make the centre's and the broker's certificates anew: other hosts, or the old ones end soon."""
    from cloud.authority import Authority

    folder = load_settings(CloudSettings, config).data_dir / "ca"
    Authority.open(folder).equip(host, _now())
    _audit(config, "issue broker certificate", {"hosts": host})
    typer.echo(f"new server.pem, server.key and centre.pem in {folder}; restart the broker and the centre")


@ca_app.command("list")
def list_certificates(config: ConfigOption) -> None:
    """Every certificate that was issued, and until when."""
    from cloud.authority import Authority

    table = Table("name", "valid until", "state")
    for item in Authority.open(load_settings(CloudSettings, config).data_dir / "ca").issued():
        state = "revoked" if item.revoked else "expired" if item.until < _now() else "valid"
        table.add_row(item.name, f"{item.until:%Y-%m-%d}", state)
    Console().print(table)


def enroll(
    config: ConfigOption,
    gateway: Annotated[str, typer.Argument(help="Id of the gateway; with --csr, the one in the request.")] = "",
    site: Annotated[str, typer.Option(help="Site it stands at; by default the gateway's own id.")] = "",
    csr: CsrOption = None,
    out: Annotated[Path | None, typer.Option(help="File to write; by default GATEWAY.enrolment here.")] = None,
    host: Annotated[str, typer.Option(help="Broker as the gateway knows it; by default broker.host.")] = "",
    port: Annotated[int, typer.Option(help="Its TLS port; by default broker.port.")] = 0,
    trust: Annotated[
        list[Path] | None, typer.Option(help="Another file to hand over, beside the root of trust.")
    ] = None,
) -> None:
    """Admit a gateway: writes the one file that `headframe edge enroll` takes there."""
    from cloud.authority import Authority
    from cloud.trust import Repository
    from common.certificates import CENTRE, key_pem, new_key, read_request
    from common.clock import SystemClock
    from common.enrolment import ROOT, Enrolment
    from common.ids import check_name

    settings = load_settings(CloudSettings, config)
    authority = Authority.open(settings.data_dir / "ca")
    root = Repository.open(settings.data_dir / "trust", SystemClock()).root()
    key = None if csr else new_key()
    name, public = read_request(_read(csr)) if csr else (gateway, None)
    if gateway and name != gateway:
        raise OperatorError(f"the request is of {name!r}, not of {gateway!r}", "Check which box it came from.")
    if name == CENTRE:
        raise OperatorError(f"{name} is the centre's own name", "Give the gateway another id.")
    check_name("gateway", name)
    check_name("site", site or name)
    holder = key.public_key() if key else public
    if holder is None:
        raise OperatorError("there is no key to certify", "Give a gateway id or --csr.")
    made = Enrolment(
        gateway_id=name,
        site_id=site or name,
        host=host or settings.broker.host,
        port=port or settings.broker.port,
        ca=authority.certificate_pem.decode(),
        certificate=authority.issue(name, holder, _now()).decode(),
        key=key_pem(key).decode() if key else "",
        trust={ROOT: root.decode()} | {path.name: _read(path).decode() for path in trust or ()},
    )
    path = out or Path(f"{name}.enrolment")
    made.save(path)
    _audit(config, "enroll", {"gateway": name, "site": made.site_id, "key": "here" if key else "on the gateway"})
    secret = "; it holds the private key: carry it by hand and delete it" if key else ""
    typer.echo(f"wrote {path} for {name}{secret}")


def revoke(config: ConfigOption, gateway: Annotated[str, typer.Argument(help="Gateway that may no longer.")]) -> None:
    """Refuse a gateway from now on; it comes back by enrolling it again."""
    from cloud.authority import Authority

    folder = load_settings(CloudSettings, config).data_dir / "ca"
    count = Authority.open(folder).revoke(gateway, _now())
    _audit(config, "revoke", {"gateway": gateway, "certificates": count})
    typer.echo(
        f"revoked {count} certificates of {gateway}. A running centre and its embedded broker refuse it at once; "
        f"your own broker needs {folder / 'crl.pem'} and a reload (mosquitto: SIGHUP)"
    )


def _audit(config: Path, action: str, detail: Mapping[str, Any]) -> None:
    from cloud.store import Store

    settings = load_settings(CloudSettings, config)
    database = settings.database or f"sqlite:///{settings.data_dir / 'headframe.db'}"
    store = Store.open(database, settings.data_dir / "blobs")
    try:
        store.audit("headframe cloud", action, detail, int(_now().timestamp() * 1e9))
    finally:
        store.close()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise OperatorError(f"cannot read {path}: {error.strerror}", "Give the path of a file.") from error


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
