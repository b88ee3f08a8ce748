"""`headframe cloud …`: the operations team's commands. Those that change what runs talk to the store directly."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from cloud import keys_cli
from cloud.datasets_cli import add_dataset_commands
from cloud.enrolment_cli import add_enrolment
from cloud.finetuning.cli import backbone, finetune, lift
from cloud.learning_cli import add_learning_commands
from cloud.opening import ConfigOption, JsonOption, open_service
from cloud.partition_cli import partition
from cloud.releases_cli import add_release_commands
from cloud.rollout.cli import app as rollout_app
from cloud.settings import CloudSettings
from common.errors import OperatorError
from common.ids import check_name
from common.settings import load_settings
from common.settings_table import print_keys

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="The central service: samples, labels, learning, releases, console.",
)
config_app = typer.Typer(no_args_is_help=True, help="The configuration file cloud.toml.")
labels_app = typer.Typer(no_args_is_help=True, help="Labels in and out, as CSV or COCO.")
dataset_app = typer.Typer(no_args_is_help=True, help="Labelled pictures that the group already has.")
detector_app = typer.Typer(no_args_is_help=True, help="Detectors of your own, beside the backbone.")
app.add_typer(keys_cli.app, name="keys")
app.add_typer(detector_app, name="detector")
app.add_typer(config_app, name="config")
app.add_typer(rollout_app, name="rollout")
app.add_typer(labels_app, name="labels")
app.add_typer(dataset_app, name="dataset")
add_dataset_commands(dataset_app)
add_learning_commands(app)
add_release_commands(app)
add_enrolment(app)
app.command()(finetune)
app.command()(backbone)
app.command()(lift)
app.command()(partition)

FormatOption = Annotated[str, typer.Option("--format", help="csv or coco; by default from the file's ending.")]


@app.command()
def run(config: ConfigOption) -> None:
    """Run the centre until SIGTERM."""
    from cloud.app import run_centre

    run_centre(load_settings(CloudSettings, config))


@app.command()
def ingest(
    config: ConfigOption,
    shards: Annotated[str, typer.Option(help="Shards of the fleet that it takes, of 0-255.")] = "0-255",
) -> None:
    """Run an ingest worker beside the centre until SIGTERM; several share the fleet, with PostgreSQL."""
    from cloud.settings import parse_shards
    from cloud.worker import run_worker

    run_worker(load_settings(CloudSettings, config), parse_shards(shards))


@app.command()
def releases(config: ConfigOption, as_json: JsonOption = False) -> None:
    """List the releases, and which scenarios each left as they were."""
    with open_service(config) as service:
        rows = service.store.releases()
        if as_json:
            typer.echo(json.dumps([{"release_id": r.release_id, "status": r.status, "gate": r.gate} for r in rows]))
            return
        table = Table("release", "status", "not renewed")
        for row in rows:
            table.add_row(row.release_id, row.status, ", ".join(row.gate.get("held_back", ())))
        Console().print(table)


@app.command()
def gaps(config: ConfigOption, as_json: JsonOption = False) -> None:
    """Prove that nothing is missing: every number that a spool gave, and where it is. Ends with 1 when one is lost."""
    import msgspec

    from cloud.store import Store

    settings = load_settings(CloudSettings, config)
    store = Store.open(settings.database_url, settings.data_dir / "blobs")
    try:
        found = store.gaps()
    finally:
        store.close()
    missing = sum(gap.missing for gap in found)
    if as_json:
        typer.echo(json.dumps({"missing": missing, "epochs": msgspec.to_builtins(found)}))
    else:
        names = ("gateway", "epoch", "head", "stored", "let go", "waiting", "missing", "clashes", "went back")
        table = Table(*names)
        for gap in found:
            table.add_row(*(str(value) for value in msgspec.to_builtins(gap).values()))
        Console().print(table)
        typer.echo(f"{missing} samples are missing" if missing else "nothing is missing")
    if missing:
        raise typer.Exit(1)


@app.command("roll-back")
def roll_back(
    config: ConfigOption,
    release: Annotated[str, typer.Argument(help="Release whose layers run again.")],
    author: Annotated[str, typer.Option(help="Who says so; kept in the audit log.")] = "headframe cloud roll-back",
) -> None:
    """Publish an earlier release again, under a new number; a running centre takes it up by itself."""
    with open_service(config) as service:
        name = service.registry.roll_back(release, f"rolled back to {release} by {author}")
        service.store.audit(author, "roll back", {"to": release, "release_id": name}, service.clock.wall_ns())
        service.rollouts.replace_all(name, author, f"rolled back to {release}")
    typer.echo(f"released {name}, which is {release} again")


@app.command()
def quantise(
    config: ConfigOption,
    folder: Annotated[list[Path], typer.Argument(help="Folders of labelled pictures that are datasets already.")],
    split: Annotated[str | None, typer.Option(help="Only rows of the manifests with this split.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make an int8 variant of the backbone; the next release carries it if no head drifts on it."""
    from cloud.learning.variants import make_variant

    with open_service(config) as service, Progress(transient=True) as progress:
        task = progress.add_task("quantising", total=None)
        made = make_variant(
            service.registry,
            service.catalogue,
            folder,
            split,
            lambda done, total: progress.update(task, completed=done, total=total),
        )
    if as_json:
        typer.echo(json.dumps(made.summary()))
        return
    typer.echo(
        f"variant {made.layer.hash[:12]}: {made.layer.size_bytes} bytes, {made.speedup:.1f} times as fast here, cosine "
        f"{made.cosine:.4f} over {made.gold} gold pictures; `headframe cloud train` decides whether it goes out"
    )
    succession = made.succession
    if succession.base:
        way = f"scales kept, steps of {succession.step}" if succession.step else f"from scratch: {succession.why}"
        typer.echo(f"as a delta from variant {succession.base.hash[:12]}: {len(succession.delta)} bytes ({way})")


@detector_app.command("add")
def add_detector(
    config: ConfigOption,
    file: Annotated[Path, typer.Argument(help="ONNX model: one picture in, boxes out.")],
    name: Annotated[str, typer.Option(help="Name of the detector; the same name replaces it.")],
    decoder: Annotated[str, typer.Option(help="What its outputs mean: yolox, yolov8 or ssd.")],
    classes: Annotated[Path, typer.Option(help="Text file with one class name per line, in the model's order.")],
    score: Annotated[float, typer.Option(help="A box of at least this score is found.")] = 0.35,
    overlap: Annotated[float, typer.Option(help="Of two boxes of a class that overlap more, one goes.")] = 0.5,
    scenario: Annotated[str, typer.Option(help="Scenario whose head it is compared with.")] = "",
    alarm: Annotated[list[str] | None, typer.Option(help="Class that raises an event; by default every one.")] = None,
    input_px: Annotated[int, typer.Option(help="Side of the square input, where the model leaves it open.")] = 0,
    mean: Annotated[list[float] | None, typer.Option(help="Subtracted from pixels 0..255; once or thrice.")] = None,
    scale: Annotated[list[float] | None, typer.Option(help="Divided by then; once or thrice.")] = None,
    letterbox: Annotated[str, typer.Option(help="corner, centre or stretch; by default the decoder's own.")] = "",
    bgr: Annotated[bool, typer.Option("--bgr", help="It was trained on blue, green, red.")] = False,
    licence: Annotated[str, typer.Option(help="Its licence, for the lineage of releases.")] = "not stated",
) -> None:
    """Run your own detector beside the backbone; with a release active, it is published again with it."""
    from cloud.learning.adoption import DetectorForm, adopt_detector
    from common.manifest import DetectorLayer

    check_name("detector", name)
    try:
        data, names = file.read_bytes(), tuple(line for line in classes.read_text("utf-8").splitlines() if line.strip())
    except OSError as error:
        raise OperatorError(
            f"cannot read {error.filename}: {error.strerror}", "Give an ONNX and a text file."
        ) from error
    unknown = set(alarm or ()) - set(names)
    if unknown:
        raise OperatorError(f"{', '.join(sorted(unknown))}: no class of {classes}", "Give names from that file.")
    form = DetectorForm(decoder, tuple(line.strip() for line in names), score, overlap, letterbox, bgr)
    made = adopt_detector(data, form, input_px=input_px, mean=mean or (0.0,), scale=scale or (1.0,))
    with open_service(config) as service:
        if scenario and scenario not in service.trainer.scenarios():
            raise OperatorError(f"there is no scenario {scenario!r}", "Name one with a dataset or labels, or none.")
        layer = service.registry.put(made)
        service.registry.note(layer, "detector", origin=str(file.name), licence=licence)
        others = tuple(item for item in service.registry.detectors() if item.name != name)
        chosen = (*others, DetectorLayer(name, layer, scenario, tuple(alarm or ())))
        release = service.registry.set_detectors(chosen, f"detector {name}")
        service.store.audit("headframe cloud detector add", "add detector", {"name": name}, service.clock.wall_ns())
    typer.echo(f"detector {name} {layer.hash[:12]}: {len(names)} classes, {layer.size_bytes} bytes; {_in(release)}")


@detector_app.command("remove")
def remove_detector(config: ConfigOption, name: Annotated[str, typer.Argument(help="Name of the detector.")]) -> None:
    """Let a detector go; with a release active, it is published again without it."""
    with open_service(config) as service:
        kept = tuple(item for item in service.registry.detectors() if item.name != name)
        if len(kept) == len(service.registry.detectors()):
            raise OperatorError(f"there is no detector {name!r}", "`headframe cloud detector list` names them.")
        release = service.registry.set_detectors(kept, f"without detector {name}")
        service.store.audit(
            "headframe cloud detector remove", "remove detector", {"name": name}, service.clock.wall_ns()
        )
    typer.echo(f"detector {name} removed; {_in(release)}")


@detector_app.command("list")
def list_detectors(config: ConfigOption) -> None:
    """The detectors that releases carry."""
    with open_service(config) as service:
        for item in service.registry.detectors():
            alarms = ", ".join(item.alarms) or "every class"
            typer.echo(
                f"{item.name} {item.layer.hash[:12]}: alarms {alarms}; compared with {item.scenario or 'nothing'}"
            )


def _in(release: str) -> str:
    return f"released {release}" if release else "it goes with the next release"


@app.command("export-runs")
def export_runs(
    config: ConfigOption,
    tool: Annotated[str, typer.Argument(help="mlflow or tensorboard.")],
    to: Annotated[str, typer.Argument(help="URI of the MLflow store, or folder of the event files.")],
    as_json: JsonOption = False,
) -> None:
    """Give the records of runs that have ended to MLflow or TensorBoard; what is there already stays as it is."""
    from cloud.tracking import export_to_mlflow, export_to_tensorboard

    if tool not in ("mlflow", "tensorboard"):
        raise OperatorError(f"{tool!r} is none of the tools", "There are mlflow and tensorboard.")
    with open_service(config) as service:
        runs = service.store.runs(limit=None)
        exported = export_to_mlflow(runs, to) if tool == "mlflow" else export_to_tensorboard(runs, Path(to))
        typer.echo(json.dumps({"exported": exported}) if as_json else f"{len(exported)} runs exported to {to}")


@config_app.command()
def check(config: ConfigOption) -> None:
    """Say whether the file is right; name every wrong key."""
    load_settings(CloudSettings, config)
    typer.echo(f"{config} is right")


@config_app.command()
def keys(
    as_json: JsonOption = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
) -> None:
    """List every key with its default and meaning."""
    print_keys(CloudSettings, as_json=as_json, as_markdown=as_markdown)


@dataset_app.command()
def add(
    config: ConfigOption,
    folder: Annotated[Path, typer.Argument(help="Folder with manifest.csv, or one folder per class.")],
    scenario: Annotated[str, typer.Option(help="Scenario that the classes belong to.")],
    name: Annotated[str, typer.Option(help="Name of the dataset; the same name replaces it.")] = "base",
    split: Annotated[str | None, typer.Option(help="Only rows of the manifest with this split.")] = None,
) -> None:
    """Embed a folder of labelled pictures and keep the arrays."""
    from cloud.learning.datasets import read_folder
    from common.backbone import Backbone

    items = read_folder(folder, split)
    with open_service(config) as service, Progress(transient=True) as progress:
        _, path = service.registry.backbone()
        task = progress.add_task("embedding", total=len(items))
        dataset = service.catalogue.add(
            name, scenario, items, Backbone.open(path), lambda done: progress.update(task, completed=done)
        )
    typer.echo(
        f"dataset {name}: {len(items)} pictures, {int(dataset.is_gold.sum())} of them gold, "
        f"classes {', '.join(dataset.classes)}"
    )


@labels_app.command("export")
def export_labels(
    config: ConfigOption, file: Path, scenario: Annotated[str, typer.Option()], format_: FormatOption = ""
) -> None:
    """Write the current labels of a scenario."""
    from cloud import labels

    with open_service(config) as service:
        writer = labels.export_coco if _format(file, format_) == "coco" else labels.export_csv
        count = writer(service.store, scenario, file)
    typer.echo(f"wrote {count} labels to {file}")


@labels_app.command("import")
def import_labels(
    config: ConfigOption,
    file: Path,
    scenario: Annotated[str, typer.Option()],
    author: Annotated[str, typer.Option()] = "import",
    format_: FormatOption = "",
) -> None:
    """Read labels; a wrong row is named and nothing is imported."""
    from cloud import labels

    with open_service(config) as service:
        reader = labels.import_coco if _format(file, format_) == "coco" else labels.import_csv
        count = reader(service.store, scenario, file, author, service.clock.wall_ns())
    typer.echo(f"imported {count} labels from {file}")


def _format(file: Path, given: str) -> str:
    found = given or ("coco" if file.suffix.lower() == ".json" else "csv")
    if found not in ("csv", "coco"):
        raise OperatorError(f"{found!r} is no label format", "Use --format csv or --format coco.")
    return found
