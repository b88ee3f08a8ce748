"""`headframe cloud partition`: what a SuperNode, or a node of a simulation, needs to take part in `flwr run`."""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.progress import track

from common.errors import OperatorError


def partition(
    folder: Annotated[Path, typer.Argument(help="Folder with manifest.csv, or one folder per class.")],
    out: Annotated[Path, typer.Argument(help="The file; with --by-site a folder for 0.npz, 1.npz …")],
    scenario: Annotated[str, typer.Option(help="Scenario that the classes belong to.")],
    backbone: Annotated[Path | None, typer.Option(help="ONNX file of the backbone: what embeddings stand on.")] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="cloud.toml, at the centre: the backbone that runs.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Only rows of the manifest with this split.")] = None,
    by_site: Annotated[bool, typer.Option("--by-site", help="A file for each site of the manifest.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Embed labelled pictures and write them as the file that Flower's nodes answer rounds from."""
    from cloud.learning.datasets import order_classes, picture_id, read_folder
    from common.backbone import Backbone
    from common.ids import check_name
    from common.partition import Partition
    from common.pictures import read_picture

    check_name("scenario", scenario)
    path = _backbone(backbone, config)
    items = read_folder(folder, split)
    network = Backbone.open(path)
    ids = [picture_id(item.path.read_bytes()) for item in items]
    rows = [
        network.embed(read_picture(item.path))
        for item in track(items, "embedding", console=Console(stderr=True), transient=True)
    ]
    sites = sorted({item.site for item in items}) if by_site else [""]
    for number, site in enumerate(sites):
        own = [row for row, item in enumerate(items) if item.site == site or not by_site]
        found = Partition(
            tuple(ids[row] for row in own),
            np.stack([rows[row] for row in own]),
            tuple(items[row].label for row in own),
            scenario,
            network.hash,
        )
        found.save(out / f"{number}.npz" if by_site else out)
    classes = order_classes(item.label for item in items)
    told = {"pictures": len(items), "nodes": len(sites), "classes": ",".join(classes), "backbone": network.hash}
    told["dimension"] = network.dimension
    if as_json:
        typer.echo(json.dumps(told))
    else:
        typer.echo(
            f"{len(items)} pictures for {len(sites)} nodes in {out}; for `flwr run`: "
            f'classes="{told["classes"]}" backbone="{network.hash}" dimension={network.dimension}'
        )


def _backbone(file: Path | None, config: Path | None) -> Path:
    """Where the backbone lies.

    Raises:
        OperatorError: neither is given, both, or there is no such file.
    """
    from cloud.opening import open_service

    if file is None and config is not None:
        with open_service(config) as service:
            return service.registry.backbone()[1]
    if file is None or config is not None:
        raise OperatorError("which backbone?", "Give --backbone FILE, or at the centre --config cloud.toml.")
    if not file.is_file():
        raise OperatorError(f"there is no backbone {file}", "Take one from the layers folder of the centre.")
    return file
