"""`headframe cloud lineage`, `retain`, `export`, `import`: what the registry knows, keeps, and hands over as a file."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cloud.opening import ConfigOption, JsonOption, open_service

SHORT = 12


def add_release_commands(app: typer.Typer) -> None:
    """Hang the commands into `headframe cloud`."""
    app.command()(lineage)
    app.command()(retain)
    app.command()(export)
    app.command("import")(import_)


def lineage(
    config: ConfigOption,
    name: Annotated[str, typer.Argument(help="A release, a layer's hash (8 digits or more), or a sample's id.")],
    as_json: JsonOption = False,
) -> None:
    """Which samples made this release and which release saw this sample; where a layer comes from."""
    from cloud.lineage import trace

    with open_service(config) as service:
        found = trace(service.store, name)
    if as_json:
        typer.echo(json.dumps(found))
    else:
        _print(found)


def retain(
    config: ConfigOption,
    keep: Annotated[int, typer.Option(min=1, help="Newest releases that stay whatever their status.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell.")] = False,
) -> None:
    """Remove the layers of old releases; never what is active, assigned, running somewhere, or a delta's parent."""
    from cloud.retention import retain as apply

    with open_service(config) as service:
        running = [state.release_id for state in service.store.states()]
        done = apply(service.registry, service.store, keep, running, dry=dry_run)
        if not dry_run and (done.releases or done.layers):
            for record in service.store.layers():
                if record.kind == "backbone" and record.layer in done.layers:
                    service.trainer.clocks.forget(record.layer)
            detail = {"keep": keep, "releases": list(done.releases), "layers": len(done.layers)}
            service.store.audit("headframe cloud retain", "retire releases", detail, service.clock.wall_ns())
    verb = "would remove" if dry_run else "removed"
    typer.echo(f"{verb} {len(done.layers)} layers ({done.size_bytes} bytes) of {len(done.releases)} releases")


def export(
    config: ConfigOption,
    release: Annotated[str, typer.Argument(help="Release to write.")],
    file: Annotated[Path, typer.Argument(help="File to write.")],
    gateway: Annotated[
        list[str] | None, typer.Option(help="Gateway that may install it; by default every one that has reported.")
    ] = None,
) -> None:
    """Write a release with its layers as one file, for a mine without a network."""
    from cloud.archive import export_release

    with open_service(config) as service:
        gateways = gateway or [state.gateway_id for state in service.store.states()]
        export_release(service.registry, release, file, gateways)
        detail = {"release_id": release, "gateways": gateways}
        service.store.audit("headframe cloud export", "export release", detail, service.clock.wall_ns())
    typer.echo(f"wrote {file}: {file.stat().st_size} bytes, for {', '.join(gateways) or 'another centre'}")


def import_(
    config: ConfigOption,
    file: Annotated[Path, typer.Argument(help="File of `headframe cloud export`.")],
    root: Annotated[Path, typer.Option(help="Root of trust of the centre that wrote it (its `keys root`).")],
) -> None:
    """Take a release of another centre: verify it by that centre's roles, publish it under this one's."""
    from cloud.archive import import_release

    with open_service(config) as service:
        name = import_release(service.registry, file, root, service.clock)
        service.store.audit("headframe cloud import", "import release", {"release_id": name}, service.clock.wall_ns())
    typer.echo(f"released {name}")


def _print(found: dict[str, Any]) -> None:
    for key, value in found.items():
        if key == "layers":
            table = Table("layer", "kind", "where", "parent", "data", "licence")
            for row in value:
                parent, data = str(row.get("parent", ""))[:SHORT], str(row.get("data_version", ""))
                where = str(row.get("where", row.get("scenario", "")))
                table.add_row(row["layer"][:SHORT], row["kind"], where, parent, data, str(row.get("licence", "")))
            Console().print(table)
        elif key in ("made_from", "saw"):
            typer.echo(f"{key.replace('_', ' ')}: {value['samples']} samples (--json lists them)")
        elif key.endswith("at_ns"):
            typer.echo(f"{key.removesuffix('_at_ns')}: {datetime.fromtimestamp(value / 1e9, UTC):%Y-%m-%d %H:%M} UTC")
        elif key not in ("gate", "evaluation"):
            typer.echo(f"{key}: {', '.join(value) if isinstance(value, list) else value}")
