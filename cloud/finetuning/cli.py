"""`headframe cloud finetune`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from cloud.opening import ConfigOption, open_service
from common.errors import OperatorError

DEPTHS = ("adapter", "block", "full")


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
    author: Annotated[str, typer.Option(help="Who says so; kept in the audit log.")] = "headframe cloud finetune",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Fine-tune the backbone on all labelled pictures, solve every head anew on it, and release both as one.

    Killed, the same command goes on from the last epoch. The gate decides, as for heads.
    """
    if depth not in DEPTHS:
        raise OperatorError(f"there is no depth {depth!r}", f"There are {', '.join(DEPTHS)}.")
    from cloud.finetuning.graph import Depth
    from cloud.finetuning.run import Finetuner
    from cloud.finetuning.tuning import Recipe
    from common.files import own_folder

    recipe = Recipe(Depth(depth), epochs, batch, rate, distillation, seed=seed)
    with open_service(config) as service:
        folder = service.settings.data_dir / "finetuning"
        with own_folder(folder), Progress(console=Console(stderr=True), transient=True) as progress:
            tasks: dict[str, int] = {}

            def show(what: str, done: int, total: int) -> None:
                if what not in tasks:
                    tasks[what] = progress.add_task(what, total=total)
                progress.update(tasks[what], completed=done, total=total)  # type: ignore[arg-type]  # rich's TaskID

            parts = service.store, service.catalogue, service.registry, service.trainer, service.clock
            finetuner = Finetuner(*parts, folder)
            outcome = finetuner.take(_read(weights), author, show) if weights else finetuner.run(recipe, author, show)
        made = {"release_id": outcome.release_id, "backbone": outcome.record["backbone"]}
        service.store.audit(author, "fine-tune", made, service.clock.wall_ns())
    if as_json:
        typer.echo(json.dumps(outcome.record | {"release_id": outcome.release_id}, default=str))
    elif outcome.release_id:
        typer.echo(
            f"released {outcome.release_id} on backbone {str(outcome.record['backbone'])[:12]}: "
            f"{outcome.record['delta_bytes']} bytes down instead of {outcome.record['bytes']}"
        )
    if not outcome.release_id:
        typer.echo("the gate refused the candidate; `--json` shows every comparison", err=True)
        raise typer.Exit(1)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise OperatorError(f"cannot read {file}: {error.strerror}", "Give an ONNX file.") from error
