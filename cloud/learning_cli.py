"""`headframe cloud train`, `unlearn`, `round` and `runs`: what is learnt, when, and what came of it."""

import json
from datetime import UTC, datetime
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from cloud.opening import WHY, ConfigOption, JsonOption, open_service
from common.errors import OperatorError

AuthorOption = Annotated[str, typer.Option(help="Who says so; kept in the audit log.")]


def add_learning_commands(app: typer.Typer) -> None:
    """Hang them under `headframe cloud`."""
    app.command()(train)
    app.command()(unlearn)
    app.command("round")(start_round)
    app.command()(runs)


def train(config: ConfigOption, author: AuthorOption = "headframe cloud train", as_json: JsonOption = False) -> None:
    """Learn from what the centre holds, without asking gateways; the first release is made so."""
    from cloud.rounds import train_now

    with open_service(config) as service:
        outcome = train_now(service.store, service.trainer, author, "headframe cloud train", service.clock)
    if as_json:
        typer.echo(json.dumps(outcome.record, default=str))
        return
    if not outcome.release_id:
        typer.echo(f"the gate refused the candidate; {WHY}", err=True)
        raise typer.Exit(1)
    typer.echo(f"released {outcome.release_id}; `headframe cloud rollout list` shows how far it is")
    if outcome.held_back:
        typer.echo(f"{', '.join(outcome.held_back)}: what ran runs on; {WHY}", err=True)


def unlearn(
    config: ConfigOption,
    name: Annotated[str, typer.Argument(help="Site or gateway to be unlearned.")],
    author: AuthorOption = "headframe cloud unlearn",
    release: Annotated[bool, typer.Option(help="Make the release without it at once.")] = True,
    undo: Annotated[bool, typer.Option("--undo", help="Let it count again, from the next round on.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Take a site or gateway out of what was learnt, exactly; it is not asked in rounds from then on."""
    from cloud.learning import unlearning
    from cloud.rounds import train_now

    with open_service(config) as service:
        store, clock = service.store, service.clock
        if undo:
            if not store.include(name):
                raise OperatorError(f"{name!r} was not unlearned", "Nothing to undo.")
            store.audit(author, "unlearn undone", {"name": name}, clock.wall_ns())
            typer.echo(json.dumps({"name": name, "undone": True}) if as_json else f"{name} counts again")
            return
        found = unlearning.unlearn(name, store, service.registry, service.trainer, author, clock.wall_ns())
        outcome = (
            train_now(store, service.trainer, author, f"without {name}", clock) if release and found.heads else None
        )
    made, held_back = (outcome.release_id, list(outcome.held_back)) if outcome else ("", [])
    if as_json:
        typer.echo(json.dumps(found.summary() | {"release_id": made, "held_back": held_back}))
    else:
        typer.echo(
            f"unlearned {name}: {found.contributions} contributions, {found.samples} samples, heads solved anew in "
            f"{found.seconds:.2f} s; {f'released {made}' if made else 'no release'}"
        )
    if held_back:
        typer.echo(f"{', '.join(held_back)}: the heads with {name} in them run on; {WHY}", err=True)
        raise typer.Exit(1)


def start_round(
    config: ConfigOption, author: AuthorOption = "headframe cloud round", as_json: JsonOption = False
) -> None:
    """Queue a round: the centre that runs asks the gateways, learns, judges and releases."""
    from cloud.rounds import queue_round

    with open_service(config) as service:
        run_id = queue_round(service.store, author, service.clock.wall_ns())
    if as_json:
        typer.echo(json.dumps({"run_id": run_id}))
    else:
        typer.echo(f"queued {run_id}; `headframe cloud runs {run_id}` shows what came of it")


def runs(
    config: ConfigOption,
    run_id: Annotated[str, typer.Argument(help="One of them, with all that was recorded.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """List rounds and training runs, or show one with every comparison of its gate."""
    with open_service(config) as service:
        found = [service.store.run(run_id)] if run_id else service.store.runs(limit)
    if as_json:
        typer.echo(json.dumps(msgspec.to_builtins(found[0] if run_id else found)))
        return
    console = Console()
    table = Table("run", "started", "status", "release", "why")
    for run in found:
        started = datetime.fromtimestamp(run.started_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M")
        table.add_row(run.run_id, started, run.status, str(run.record.get("release_id", "")), _why(run.record))
    console.print(table)
    if run_id:
        console.print(_comparisons(found[0].record))
        contributors = _contributors(found[0].record)
        if contributors.row_count:
            console.print(contributors)


def _why(record: dict[str, object]) -> str:
    """What a person wants to know first: the error, or what held a scenario back."""
    reasons = [str(record["error"])] if record.get("error") else []
    for name, part in record.items():
        if not isinstance(part, dict) or name == "gate":
            continue
        if "unlearnable" in part:
            reasons.append(f"{name}: {part['unlearnable']}")
        elif "gate" in part and not part["gate"]["passed"]:
            worse = [found["name"] for found in part["gate"]["comparisons"] if not found["passed"]]
            reasons.append(f"{name}: worse on {', '.join(worse)}")
    return "; ".join(reasons)


def _contributors(record: dict[str, object]) -> Table:
    """Gateways that were left out, that count less than they sent, and that cost the gold set most."""
    table = Table("scenario", "gateway", "in the sum", "points that it costs", "why")
    for name, part in record.items():
        if not isinstance(part, dict) or "quarantined" not in part:
            continue
        for found in part["quarantined"]:
            gateway, cost = found.get("gateway") or found["site"], found["influence"]  # `site` until 0.1
            table.add_row(name, gateway, "no", "" if cost is None else f"{cost:.1f}", found["reason"])
        for gateway, weight in part.get("bounded", {}).items():
            table.add_row(name, gateway, f"each sample by {weight:.3g}", "", "more samples than the bound lets count")
        for found in part.get("costly", ()):
            table.add_row(name, found["gateway"], "yes", f"{found['influence']:.1f}", "gold is named better without it")
    return table


def _comparisons(record: dict[str, object]) -> Table:
    table = Table("scenario", "compared on", "samples", "running", "candidate", "change", "verdict")
    for name, part in record.items():
        if name == "gate" or not isinstance(part, dict) or "gate" not in part:
            continue
        for found in part["gate"]["comparisons"]:
            table.add_row(
                name,
                found["name"],
                str(found["samples"]),
                f"{found['running']:.3f}",
                f"{found['candidate']:.3f}",
                f"{found['low']:+.3f} to {found['high']:+.3f}",
                found["verdict"],
            )
    return table
