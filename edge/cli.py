"""`headframe edge …`: the site operator's commands."""

from pathlib import Path
from typing import Annotated

import typer

from common.settings import load_settings
from common.settings_table import print_keys
from edge.settings import EdgeSettings

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="The agent on a gateway: video in, hard samples up, better models in.",
)
config_app = typer.Typer(no_args_is_help=True, help="The configuration file edge.toml.")
app.add_typer(config_app, name="config")

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="edge.toml; deploy/examples/edge.toml is a start.")]


@app.command()
def run(config: ConfigOption) -> None:
    """Run the agent until SIGTERM."""
    from edge.app import run_agent

    run_agent(load_settings(EdgeSettings, config), config)


@config_app.command()
def check(config: ConfigOption) -> None:
    """Say whether the file is right; name every wrong key."""
    from edge.roster import plan
    from edge.threads import usable_cores

    settings = load_settings(EdgeSettings, config)
    made = plan(settings, usable_cores())
    typer.echo(
        f"{config} is right: gateway {settings.gateway_id}, {len(settings.cameras)} cameras in {max(1, made.workers)}"
        f" processes, {made.memory_bytes // 1_000_000} MB at most"
    )
    if made.sentence:
        typer.echo(made.sentence)


@config_app.command()
def keys(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
) -> None:
    """List every key with its default and meaning."""
    print_keys(EdgeSettings, as_json=as_json, as_markdown=as_markdown)
