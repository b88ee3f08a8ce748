"""`headframe edge …`: the site operator's commands."""

from pathlib import Path
from typing import Annotated

import typer

from common.errors import OperatorError
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


@app.command()
def enroll(
    bundle: Annotated[Path | None, typer.Argument(help="File that `headframe cloud enroll` wrote.")] = None,
    request: Annotated[bool, typer.Option("--request", help="Make the key here and a signing request.")] = False,
    gateway: Annotated[str, typer.Option(help="Id of this gateway, with --request.")] = "",
    into: Annotated[Path, typer.Option(help="Folder for key and certificates.")] = Path("/etc/headframe"),
) -> None:
    """Get this gateway's certificate: first `--request --gateway ID`, then the file that the centre answers with."""
    from common.enrolment import read_enrolment
    from edge.enrolment import describe, install_enrolment, request_enrolment, settings_lines

    if request == (bundle is not None):
        raise OperatorError("give either --request or the file of an enrolment", "See docs/security.md.")
    if bundle is None:
        path = request_enrolment(into, gateway)
        typer.echo(f"the private key stays in {into}; take {path} to the centre: headframe cloud enroll --csr")
        return
    enrolment = read_enrolment(bundle)
    identity = install_enrolment(enrolment, into)
    typer.echo(f"# enrolled as {describe(identity)}; in edge.toml:\n{settings_lines(enrolment, into)}", nl=False)


@app.command()
def renew(config: ConfigOption) -> None:
    """Get the next certificate now; a running agent does it by itself in time."""
    from common.clock import SystemClock
    from edge.enrolment import renew_now

    until = renew_now(load_settings(EdgeSettings, config), SystemClock())
    typer.echo(f"the new certificate is valid until {until}")


@app.command("import")
def import_(
    config: ConfigOption, file: Annotated[Path, typer.Argument(help="File of `headframe cloud export`.")]
) -> None:
    """Take a release that was carried here by hand: it is verified, then handed to the agent, running or not."""
    import time

    from common.manifest import release_id
    from common.metadata import read_root
    from edge.agent import TRUST
    from edge.inbox import put_in

    settings = load_settings(EdgeSettings, config)
    root = read_root(settings.release_root)
    trust = settings.data_dir / TRUST
    manifest = put_in(file, settings.data_dir, trust, root, settings.gateway_id, settings.site_id, time.time_ns())
    typer.echo(f"{release_id(manifest)} is right; the agent takes it from here")


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
