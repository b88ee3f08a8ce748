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

    run_agent(load_settings(EdgeSettings, config))


@app.command("import")
def import_(
    config: ConfigOption, file: Annotated[Path, typer.Argument(help="File of `headframe cloud export`.")]
) -> None:
    """Take a release that was carried here by hand: it is verified, then handed to the agent, running or not."""
    import time

    from common.manifest import release_id
    from edge.agent import TRUST, read_root
    from edge.inbox import put_in

    settings = load_settings(EdgeSettings, config)
    root = read_root(settings.release_root)
    trust = settings.data_dir / TRUST
    manifest = put_in(file, settings.data_dir, trust, root, settings.gateway_id, settings.site_id, time.time_ns())
    typer.echo(f"{release_id(manifest)} is right; the agent takes it from here")


@config_app.command()
def check(config: ConfigOption) -> None:
    """Say whether the file is right; name every wrong key."""
    settings = load_settings(EdgeSettings, config)
    typer.echo(f"{config} is right: gateway {settings.gateway_id}, {len(settings.cameras)} cameras")


@config_app.command()
def keys(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
) -> None:
    """List every key with its default and meaning."""
    print_keys(EdgeSettings, as_json=as_json, as_markdown=as_markdown)
