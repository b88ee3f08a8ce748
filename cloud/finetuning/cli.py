"""`headframe cloud finetune`, `backbone` and `lift`: what all heads stand on."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress, TaskID

from cloud.opening import WHY, ConfigOption, open_service
from common.errors import OperatorError
from common.manifest import Layer

if TYPE_CHECKING:
    from cloud.finetuning.rounds import Averaging
    from cloud.finetuning.run import Finetuner
    from cloud.finetuning.tuning import Recipe
    from cloud.learning.training import Outcome
    from cloud.service import Service

DEPTHS = ("adapter", "block", "full")

Show = Callable[[str, int, int], None]


def finetune(
    config: ConfigOption,
    depth: Annotated[
        str,
        typer.Option(help="What is trained: adapter (scale and shift of every batch-norm), block (the last), full."),
    ] = "adapter",
    epochs: Annotated[int, typer.Option(min=1, max=1000, help="Of 25 batches each; a checkpoint follows each.")] = 8,
    batch: Annotated[int, typer.Option(min=2, max=512, help="Pictures in a batch.")] = 16,
    rate: Annotated[float, typer.Option(min=0, help="Of learning; 0: what the depth bears.")] = 0.0,
    distillation: Annotated[
        float, typer.Option(min=0, help="How strongly embeddings are held near those of the running backbone.")
    ] = 0.1,
    seed: Annotated[int, typer.Option(help="Same seed, same data, same machine: same backbone.")] = 0,
    weights: Annotated[
        Path | None, typer.Option(help="Train nothing: the running layer's file with other numbers, trained elsewhere.")
    ] = None,
    federated: Annotated[
        bool, typer.Option("--federated", help="Train at the gateways that name an app for it; an epoch is a round.")
    ] = False,
    strategy: Annotated[str, typer.Option(help="How their updates are averaged: docs/federation.md.")] = "fedavg",
    strategy_args: Annotated[str, typer.Option(help="JSON of what the strategy takes beside.")] = "",
    compression: Annotated[str, typer.Option(help="Of updates: int8, int4 or topk; by default none.")] = "",
    sites_min: Annotated[int, typer.Option(min=1, help="So many gateways must be there.")] = 2,
    deadline_s: Annotated[float, typer.Option(min=1, help="Of a round.")] = 1800.0,
    author: Annotated[str, typer.Option(help="Who says so; kept in the audit log.")] = "headframe cloud finetune",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Fine-tune the backbone on all labelled pictures, solve every head anew on it, and release both as one.

    Killed, the same command goes on from the last epoch. The gate decides, as for heads.
    """
    if depth not in DEPTHS:
        raise OperatorError(f"there is no depth {depth!r}", f"There are {', '.join(DEPTHS)}.")
    if weights and federated:
        raise OperatorError("--weights trains nothing, --federated does", "Give one of them.")
    from cloud.finetuning.graph import Depth
    from cloud.finetuning.tuning import Recipe

    recipe = Recipe(Depth(depth), epochs, batch, rate, distillation, seed=seed)
    averaging = None
    if federated:
        from cloud.finetuning.rounds import Averaging

        averaging = Averaging(strategy, strategy_args, compression, sites_min, deadline_s)
        averaging.check()
    with open_service(config) as service:
        with _finetuning(service) as (finetuner, show):
            if averaging:
                outcome = _federate(service, finetuner, recipe, averaging, author, show)
            elif weights:
                outcome = finetuner.take(_read(weights), author, show)
            else:
                outcome = finetuner.run(recipe, author, show)
        made = {"release_id": outcome.release_id, "backbone": outcome.record["backbone"]}
        service.store.audit(author, "fine-tune", made, service.clock.wall_ns())
    if as_json:
        typer.echo(json.dumps(outcome.record | {"release_id": outcome.release_id}, default=str))
    elif outcome.release_id:
        typer.echo(
            f"released {outcome.release_id} on backbone {str(outcome.record['backbone'])[:12]}: "
            f"{outcome.record['delta_bytes']} bytes down instead of {outcome.record['bytes']}"
        )
        if not outcome.record["step_fraction"]:
            typer.echo("its weights travel as they are, in no steps (docs/learning.md)", err=True)
    if not outcome.release_id:
        typer.echo(f"the gate refused the candidate; {WHY}", err=True)
        raise typer.Exit(1)


def _federate(
    service: "Service",
    finetuner: "Finetuner",
    recipe: "Recipe",
    averaging: "Averaging",
    author: str,
    show: Show,
) -> "Outcome":
    """Train at the sites, beside the running centre, and take what comes of it."""
    from cloud.broker import broker_of
    from cloud.federation.caller import Caller
    from cloud.finetuning.rounds import FederatedTuning

    finetuner.check_active()
    tuning = FederatedTuning(service.registry.backbone()[1].read_bytes(), recipe, averaging, _folder(service))
    caller = Caller(
        broker_of(service.settings),
        "headframe-finetune",
        service.store,
        service.guard,
        service.clock,
        lambda state: state.trains,
    )
    expected = [state.gateway_id for state in service.store.states() if state.online and state.trains]
    tuned = tuning.run(caller, expected, lambda done, total: show("rounds", done, total))
    parameters = asdict(recipe) | {"federated": asdict(averaging), "counters": dict(caller.grid.counters)}
    outcome = finetuner.take(tuned.data, author, show, tuned.curve, parameters)
    tuning.forget()
    return outcome


def backbone(
    config: ConfigOption,
    file: Annotated[Path, typer.Argument(help="ONNX model: one picture in, features out.")],
    output: Annotated[str, typer.Option(help="Tensor to stand heads on; by default the only output.")] = "",
    input_px: Annotated[int, typer.Option(help="Side of the square input, where the model leaves it open.")] = 0,
    mean: Annotated[
        list[float] | None, typer.Option(help="Subtracted from pixels 0..255; once, or thrice (RGB).")
    ] = None,
    scale: Annotated[list[float] | None, typer.Option(help="Divided by then; once, or thrice (RGB).")] = None,
    licence: Annotated[str, typer.Option(help="Its licence, for the lineage of releases.")] = "not stated",
    author: Annotated[str, typer.Option(help="Who says so; kept in the audit log.")] = "headframe cloud backbone",
) -> None:
    """Use your own model as the backbone; with a release out, every head is solved anew on it and the gate decides."""
    from cloud.learning.adoption import adopt_backbone

    made = adopt_backbone(_read(file), output=output, input_px=input_px, mean=mean or (0.0,), scale=scale or (1.0,))
    with open_service(config) as service:
        if service.registry.active() is None:
            _describe(service, service.registry.set_backbone(made, licence))
        else:
            _move_to(service, made, author, licence)


def lift(
    config: ConfigOption,
    width: Annotated[int, typer.Option(min=8, help="Features after the lift.")] = 1024,
    seed: Annotated[int, typer.Option(help="Of the random weights.")] = 0,
    author: Annotated[str, typer.Option(help="Who says so; kept in the audit log.")] = "headframe cloud lift",
) -> None:
    """Put random features behind the running backbone; every head is solved anew on them and the gate decides."""
    from cloud.learning.lifting import lift_backbone, place, random_signs

    with open_service(config) as service:
        layer, path = service.registry.backbone()
        datasets = [dataset for dataset in service.catalogue.datasets() if dataset.backbone == layer.hash]
        if not datasets:
            raise OperatorError("there are no pictures to place the lift by", "First `headframe cloud dataset add`.")
        origin, length = place(np.concatenate([dataset.embeddings for dataset in datasets]))
        signs = random_signs(len(origin), width, seed)
        _move_to(service, lift_backbone(path.read_bytes(), signs, origin, length), author, "as the one before")


def _move_to(service: "Service", made: bytes, author: str, licence: str) -> None:
    """Everything onto another backbone, as far as the gate lets it."""
    layer = service.registry.put(made)
    with _finetuning(service) as (finetuner, show):
        outcome = finetuner.replace(made, author, licence, show)
    now_ns = service.clock.wall_ns()
    service.store.audit(author, "replace backbone", {"release_id": outcome.release_id}, now_ns)
    _describe(service, layer)
    if not outcome.release_id:
        typer.echo(f"the gate refused it; {WHY}", err=True)
        raise typer.Exit(1)
    typer.echo(f"released {outcome.release_id}; `headframe cloud rollout list` shows how far it is")


@contextmanager
def _finetuning(service: "Service") -> Iterator[tuple["Finetuner", Show]]:
    """What fine-tunes, alone in its folder, and who is told how far it is."""
    from cloud.finetuning.run import Finetuner
    from common.files import own_folder

    folder = _folder(service)
    with own_folder(folder), Progress(console=Console(stderr=True), transient=True) as progress:
        parts = service.store, service.catalogue, service.registry, service.trainer, service.clock
        yield Finetuner(*parts, folder), _shown_by(progress)


def _folder(service: "Service") -> Path:
    """For checkpoints."""
    return service.settings.data_dir / "finetuning"


def _describe(service: "Service", layer: Layer) -> None:
    from common.backbone import Backbone

    found = Backbone.open(service.registry.layer_path(layer.hash))
    typer.echo(
        f"backbone {layer.hash[:12]}: {found.input_px} pixels, {found.dimension} features, {layer.size_bytes} bytes"
    )


def _shown_by(progress: Progress) -> Show:
    """A bar for each thing that is done."""
    tasks: dict[str, TaskID] = {}

    def show(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = progress.add_task(what, total=total)
        progress.update(tasks[what], completed=done, total=total)

    return show


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise OperatorError(f"cannot read {file}: {error.strerror}", "Give an ONNX file.") from error
