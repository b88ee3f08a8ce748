"""`headframe cloud dataset …`: versions of what the centre learns from, and labels that a person must decide about."""

import json
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cloud.opening import ConfigOption, JsonOption, open_service
from common.errors import OperatorError

if TYPE_CHECKING:
    from cloud.service import Service

ScenarioOption = Annotated[str, typer.Option(help="Scenario; may be left out where there is only one.")]
SHORT = 12
LISTED = 20


def add_dataset_commands(app: typer.Typer) -> None:
    """Hang the commands into `headframe cloud dataset`."""
    app.command("list")(list_)
    app.command()(show)
    app.command()(diff)
    app.command()(conflicts)
    app.command()(decide)


def list_(config: ConfigOption, scenario: ScenarioOption = "", as_json: JsonOption = False) -> None:
    """Versions of what was learnt from, newest first."""
    with open_service(config) as service:
        found = service.store.versions(scenario or None)
    if as_json:
        rows = [{"scenario": v.scenario, "version": v.number, "hash": v.hash, **v.summary["counts"]} for v in found]
        typer.echo(json.dumps({"versions": rows}))
        return
    table = Table(
        "scenario", "version", "hash", "made", "learnt", "folded", "gold", "near gold", "in doubt", "conflicts"
    )
    for version in found:
        roles = version.summary["counts"]
        names = ("learnt", "folded", "gold", "near_gold", "gold_in_doubt")
        cells = [str(roles[name]) for name in names]
        made = f"{datetime.fromtimestamp(version.at_ns / 1e9, UTC):%Y-%m-%d %H:%M}"
        table.add_row(
            version.scenario, str(version.number), version.hash[:SHORT], made, *cells, str(len(version.conflicts))
        )
    Console().print(table)


def show(
    config: ConfigOption,
    version: Annotated[int, typer.Argument(help="Number of the version; 0: the newest.")] = 0,
    scenario: ScenarioOption = "",
    as_json: JsonOption = False,
) -> None:
    """A version: pictures by site and class, the folding rule, and the layers that were made from it."""
    from cloud.curation.versions import balance, counts, encode_version

    with open_service(config) as service:
        name = _scenario(service, scenario)
        found, number = _version(service, name, version)
        hash_, _ = encode_version(found)
        layers = [
            item.layer
            for item in service.store.layers()
            if (item.record.get("dataset_version") or {}).get("hash") == hash_
        ]
    answer: dict[str, Any] = {
        "scenario": name,
        "version": number,
        "hash": hash_,
        "backbone": found.backbone,
        "folding": found.folding,
        "counts": counts(found),
        "balance": balance(found),
        "contributions": dict(found.contributions),
        "layers": layers,
    }
    if as_json:
        typer.echo(json.dumps(answer))
        return
    typer.echo(f"{name}, version {number}, {hash_[:SHORT]}: {_told(answer['counts'])}")
    typer.echo(f"{len(found.contributions)} gateways' own statistics; {len(layers)} layers were made from it")
    classes = sorted({label for by_label in answer["balance"].values() for label in by_label})
    table = Table("site or scene", *classes, title="learnt from (+ folded, gold)")
    for owner, by_label in answer["balance"].items():
        table.add_row(owner, *(_cell(by_label.get(label)) for label in classes))
    Console().print(table)


def diff(
    config: ConfigOption,
    before: Annotated[int, typer.Argument(help="Number of the earlier version.")],
    after: Annotated[int, typer.Argument(help="Number of the later version; 0: the newest.")] = 0,
    scenario: ScenarioOption = "",
    as_json: JsonOption = False,
) -> None:
    """What changed from one version to another: pictures, labels, roles, statistics of gateways."""
    from cloud.curation.versions import compare_versions

    with open_service(config) as service:
        name = _scenario(service, scenario)
        old, _ = _version(service, name, before)
        new, number = _version(service, name, after)
    found = compare_versions(old, new)
    changed = {
        "relabelled": [[member[0].hex(), member[1], was, now] for member, was, now in found.relabelled],
        "moved": [[member[0].hex(), member[1], was, now] for member, was, now in found.moved],
    }
    if as_json:
        members = {key: [[name.hex(), source] for name, source in getattr(found, key)] for key in ("added", "removed")}
        rest = {
            "gold_added": found.gold_added,
            "contributions": found.contributions,
            "rule_changed": found.rule_changed,
        }
        typer.echo(json.dumps({"before": before, "after": number, **members, **changed, **rest}))
        return
    typer.echo(
        f"version {before} → {number}: {len(found.added)} pictures more, {len(found.removed)} gone, "
        f"{len(found.relabelled)} relabelled, {len(found.moved)} with another role, {found.gold_added} more gold, "
        f"statistics of {len(found.contributions)} gateways" + (", another folding rule" if found.rule_changed else "")
    )
    for what, rows in changed.items():
        for row in rows[:LISTED]:
            typer.echo(f"  {what} {row[0]} {row[1] or 'uploaded'}: {row[2]} → {row[3]}")
    for (was, now), number in Counter((was, now) for _, was, now in found.moved).items():
        typer.echo(f"  {number} {was} → {now}")


def conflicts(config: ConfigOption, scenario: ScenarioOption = "", as_json: JsonOption = False) -> None:
    """Labels that contradict each other or what all else says, looked for now; ends with 1 when there are any."""
    with open_service(config) as service:
        name = _scenario(service, scenario)
        found = service.trainer.conflicts(name)
    if as_json:
        typer.echo(json.dumps({"scenario": name, "conflicts": found}))
    else:
        table = Table("why", "picture", "site", "source", "label", "suggested", "strength")
        for conflict in found[:LISTED]:
            for picture in conflict["pictures"]:
                gold = " (gold)" if picture["gold"] else ""
                source = picture["source"] or "uploaded"
                cells = (picture["id"], picture["site"], source + gold, picture["label"])
                table.add_row(conflict["kind"], *cells, conflict["suggested"], f"{conflict['strength']:.2f}")
        Console(width=160).print(table)
        typer.echo(f"{len(found)} conflicts" + (f", {LISTED} shown" if len(found) > LISTED else ""))
    if found:
        raise typer.Exit(1)


def decide(
    config: ConfigOption,
    picture: Annotated[str, typer.Argument(help="Id of a sample or of a picture of a dataset.")],
    label: Annotated[str, typer.Argument(help="Its right label; the one that it has lets it stand.")],
    scenario: ScenarioOption = "",
    author: Annotated[str, typer.Option(help="Who says so; kept in the audit log.")] = "headframe cloud dataset decide",
) -> None:
    """Decide about a label in conflict; it counts from the next version on."""
    with open_service(config) as service:
        name = _scenario(service, scenario)
        try:
            found = bytes.fromhex(picture)
        except ValueError as error:
            raise OperatorError(f"{picture!r} is no id", "`headframe cloud dataset conflicts` lists them.") from error
        service.trainer.decide(name, [(found, label)], author)
    typer.echo(f"{picture} is {label}")


def _scenario(service: "Service", given: str) -> str:
    known = sorted(service.trainer.scenarios())
    if given in known:
        return given
    if given or len(known) != 1:
        raise OperatorError(
            f"there is no scenario {given!r}", f"Give --scenario, one of: {', '.join(known) or 'none'}."
        )
    return known[0]


def _version(service: "Service", scenario: str, number: int) -> tuple[Any, int]:
    """A version and its number.

    Raises:
        OperatorError: there is none of this number.
    """
    from cloud.curation.versions import decode_version

    newest = service.store.versions(scenario, limit=1)
    wanted = number or (newest[0].number if newest else 0)
    found = service.store.version_content(scenario, wanted)
    if found is None:
        raise OperatorError(
            f"{scenario} has no dataset version {wanted or ''}".rstrip(), "`headframe cloud dataset list` names them."
        )
    return decode_version(found[1], found[0]), wanted


def _told(counts: dict[str, int]) -> str:
    words = [f"{number} {name.replace('_', ' ')}" for name, number in counts.items() if number]
    return ", ".join(words)


def _cell(cell: dict[str, int] | None) -> str:
    if not cell:
        return "–"
    rest = [f"+{cell['folded']}"] * bool(cell["folded"]) + [f"{cell['gold']} gold"] * bool(cell["gold"])
    return f"{cell['learnt']}" + (f" ({', '.join(rest)})" if rest else "")
