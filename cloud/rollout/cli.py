"""`headframe cloud rollout …`: how far a release is, and the orders that people give. Works beside a running centre."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cloud.opening import open_service

if TYPE_CHECKING:
    from cloud.rollout.service import Rollouts

app = typer.Typer(no_args_is_help=True, help="Releases on their way to the fleet.")

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="cloud.toml of the centre.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
AuthorOption = Annotated[str, typer.Option(help="Who says so; kept in the ledger.")]
WhyOption = Annotated[str, typer.Option(help="Why; kept in the ledger.")]
RolloutArgument = Annotated[str, typer.Argument(help="Rollout, as `list` names it.")]

PERSON = "headframe cloud rollout"


@app.command()
def start(
    config: ConfigOption,
    release: Annotated[str, typer.Argument(help="Release that is to go out, e.g. one that was aborted.")],
    author: AuthorOption = PERSON,
    why: WhyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Send a release on its way, by the plan in the table rollout of cloud.toml."""
    with _open(config) as rollouts:
        name = rollouts.launch(release, author, why)
    _say(as_json, {"rollout_id": name}, f"rollout {name}" if name else f"{release} is active at once: no fleet yet")


@app.command("list")
def list_rollouts(config: ConfigOption, as_json: JsonOption = False) -> None:
    """Every rollout, newest first."""
    with _open(config) as rollouts:
        rows = rollouts.list()
    if as_json:
        typer.echo(json.dumps(rows))
        return
    table = Table("rollout", "release", "changes", "phase", "wave", "healthy", "failed", "why")
    for row in rows:
        table.add_row(
            row["rollout_id"],
            row["release_id"],
            ", ".join(row["parts"]),
            row["phase"],
            f"{row['wave'] + 1} of {len(row['waves'])}",
            f"{row['outcomes']['healthy']} of {row['told']} told",
            str(sum(row["outcomes"][name] for name in ("failed", "refused", "silent"))),
            row["why"],
        )
    Console().print(table)


@app.command()
def show(config: ConfigOption, rollout: RolloutArgument, as_json: JsonOption = False) -> None:
    """One rollout: its waves, gates, the gateways that failed and why, and its ledger."""
    with _open(config) as rollouts:
        row = rollouts.show(rollout)
    if as_json:
        typer.echo(json.dumps(row))
        return
    _print(row)


@app.command()
def pause(
    config: ConfigOption,
    rollout: RolloutArgument,
    author: AuthorOption = PERSON,
    why: WhyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Tell no further gateway until it is resumed."""
    _order("pause", config, rollout, author, why, as_json=as_json)


@app.command()
def resume(
    config: ConfigOption,
    rollout: RolloutArgument,
    author: AuthorOption = PERSON,
    why: WhyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Go on with one that is paused."""
    _order("resume", config, rollout, author, why, as_json=as_json)


@app.command()
def abort(
    config: ConfigOption,
    rollout: RolloutArgument,
    author: AuthorOption = PERSON,
    why: WhyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Stop one that is under way: every gateway goes back to what it ran."""
    _order("abort", config, rollout, author, why, as_json=as_json)


@app.command()
def rollback(
    config: ConfigOption,
    rollout: RolloutArgument,
    author: AuthorOption = PERSON,
    why: WhyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Take back what a rollout brought, also after it has completed; other scenarios stay as they are."""
    _order("rollback", config, rollout, author, why, as_json=as_json)


def _order(kind: str, config: Path, rollout: str, author: str, why: str, *, as_json: bool) -> None:
    with _open(config) as rollouts:
        rollouts.order(kind, rollout, author, why)
        phase = next(row["phase"] for row in rollouts.list() if row["rollout_id"] == rollout)
    _say(as_json, {"rollout_id": rollout, "phase": phase}, f"rollout {rollout} is {phase}")


def _say(as_json: bool, values: dict[str, Any], sentence: str) -> None:
    typer.echo(json.dumps(values) if as_json else sentence)


def _print(row: dict[str, Any]) -> None:
    console = Console()
    console.print(f"[b]{row['rollout_id']}[/b] of {row['release_id']}: {row['phase']} {row['why']}")
    console.print(f"changes {', '.join(row['parts'])}; wave {row['wave'] + 1} of {row['waves']}; {row['outcomes']}")
    gates = Table("gate", "figure", "limit", "over", "closed at 100 %")
    for gate in row["gates"]:
        share = f"{100 * gate['evidence']:.0f} %"
        gates.add_row(
            f"{gate['gate']} {gate['about']}".rstrip(),
            f"{gate['figure']:.3f}",
            f"{gate['limit']:.3f}",
            str(gate["count"]),
            share,
        )
    console.print(gates)
    for item in row["failed"]:
        console.print(f"{item['gateway_id']}: {item['outcome']}, {item['reason']}")
    for line in row["ledger"]:
        at = datetime.fromtimestamp(line["at_ns"] / 1e9, UTC).isoformat(timespec="seconds")
        console.print(f"{at} {line['kind']} by {line['actor']} {line['why']}")


@contextmanager
def _open(config: Path) -> Iterator["Rollouts"]:
    """The rollouts without threads and network, on the centre's own store."""
    with open_service(config) as service:
        yield service.rollouts
