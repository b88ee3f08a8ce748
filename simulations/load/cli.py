"""`headframe sim load`."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table


def load(
    gateways: Annotated[int, typer.Option(help="Virtual gateways, each with a connection of its own.")] = 1000,
    samples: Annotated[int, typer.Option(help="Samples in all, given to the gateways in turn.")] = 3000,
    size: Annotated[int, typer.Option("--bytes", help="Bytes of a picture, about.")] = 20_000,
    broker: Annotated[str, typer.Option(help="HOST:PORT of the centre's broker.")] = "127.0.0.1:1883",
    rate: Annotated[float, typer.Option(help="Samples per second over the whole fleet.")] = 200.0,
    heartbeat: Annotated[float, typer.Option(help="Seconds between reports of state.")] = 10.0,
    prefix: Annotated[str, typer.Option(help="What the names of the gateways begin with.")] = "load",
    seed: Annotated[int, typer.Option(help="Seed of pictures and jitter.")] = 1,
    database: Annotated[
        Path | None, typer.Option(help="headframe.db of the centre, if it is on this machine: checks what was stored.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
) -> None:
    """Load a centre with light virtual gateways that speak the real wire."""
    from common.errors import ConfigError
    from common.mqtt import Broker
    from simulations.load.check import check_store, read_freshness
    from simulations.load.run import LoadPlan, run_load
    from simulations.mosquitto import raise_open_files

    host, colon, port = broker.rpartition(":")
    if not colon or not port.isdecimal():
        raise ConfigError(f"--broker {broker} has no port", "Write --broker host:1883.")
    plan = LoadPlan(
        gateways=gateways,
        samples=samples,
        bytes=size,
        samples_per_s=rate,
        heartbeat_s=heartbeat,
        prefix=prefix,
        seed=seed,
    )
    raise_open_files(gateways)
    with Console(file=sys.stderr).status("pictures") as status:
        figures, ledger = asyncio.run(run_load(plan, Broker(host=host, port=int(port)), status.update))
    if database:
        figures |= check_store(database, ledger) | {"fresh": read_freshness(database, prefix).fresh}
    if as_json:
        typer.echo(json.dumps(figures))
    else:
        table = Table("figure", "value")
        for name, value in figures.items():
            table.add_row(name, str(value))
        Console().print(table)
    if figures["waiting"] or figures["refused"] or figures.get("lost"):
        raise typer.Exit(1)
