"""`headframe`: one command per user, and the loop on one machine. Each role's commands load only when they are used."""

import importlib
from pathlib import Path
from typing import Annotated, Any

import click
import typer
from typer.main import get_command

ROLES = {
    "edge": ("edge.cli", "The agent on a gateway."),
    "cloud": ("cloud.cli", "The central service."),
    "sim": ("simulations.fleet.cli", "Thousands of virtual sites."),
}


class LazyGroup(typer.core.TyperGroup):
    """Adds the roles' command groups, importing a role only when it is named: an edge box has no torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *ROLES]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in ROLES:
            return super().get_command(ctx, name)
        module, _ = ROLES[name]
        role: Any = importlib.import_module(module)
        command: click.Command = get_command(role.app)
        command.name = name
        return command


app = typer.Typer(
    cls=LazyGroup, no_args_is_help=True, help="Hoists hard samples from mine sites, lowers better models."
)


@app.command()
def demo(
    data: Annotated[Path | None, typer.Option(help="Folder of real pictures in the layout of belt-defects.")] = None,
    video: Annotated[list[Path] | None, typer.Option(help="Video files to run instead of the generated clips.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the run and its report.")] = Path("runs/demo"),
    kill: Annotated[bool, typer.Option(help="kill -9 an edge agent and the centre in mid-run.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the generated clips.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
) -> None:
    """Run the whole loop on this machine: broker, centre, four gateways, and a report at the end."""
    from simulations.demo import run_demo

    raise typer.Exit(run_demo(data=data, videos=video or [], out=out, kill=kill, seed=seed, as_json=as_json))


@app.command()
def doctor(
    config: Annotated[Path | None, typer.Option("--config", "-c", help="edge.toml of the box.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check a box before it is trusted, and say in words what to mend."""
    from edge.doctor import doctor_command

    doctor_command(config, json=as_json)


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help="Which one; a wrong name lists them all.")],
    quick: Annotated[bool, typer.Option(help="The same code on less work, within 50 s.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure a figure beside its comparator, in this run."""
    from simulations.bench import run_bench

    run_bench(name, quick=quick, as_json=as_json)
