"""The ClientApp of a site that has torch: it trains the adapter on its own pictures, which stay there.

Named where a client is told what it trains: `app = "cloud.finetuning.site_app:app"` in a gateway's `[training]`, or in
the config of a SuperNode. The node config says where things are:

- `layers`: folder of backbones, each file named by its hash (a gateway's releases, the centre's `layers`).
- `pictures`: folder with `manifest.csv` or one folder per class. In Flower's simulation engine:
  `<data>/<partition-id>`.
- `labelled`: a gateway's exemplars, of which those are used that have a picture and a label.
- `threads`: of torch; a gateway has cameras to look at.

A round is an epoch of the recipe that the task names. Each client's softmax head stays with it, in its context: sites
see different classes, and heads are solved anew afterwards. The optimiser begins anew with each round, as the weights
do.
"""

import dataclasses
import hashlib
from functools import partial
from pathlib import Path

import torch
from flwr.clientapp import ClientApp

from cloud.finetuning.examples import Example, Picture
from cloud.finetuning.federated import recipe_of, take_record, to_record
from cloud.finetuning.tuning import State, Tuning
from cloud.learning.datasets import Item, read_folder
from common.errors import OperatorError, RefusedError
from common.flower import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from common.ids import layer_hash
from common.labelled import labelled_pictures, picture_of
from common.pictures import decode_picture, read_picture
from common.training import AdapterTask, proximal_of, read_task, round_of

HEAD = "headframe.softmax"
"""Key in the context's state of the head that stays here."""

_kept: dict[str, State] = {}
"""The tuning of the last round, by its key: the teacher has looked at every picture. At most one."""

app = ClientApp()


@app.train()  # type: ignore[untyped-decorator]
def train(message: Message, context: Context) -> Message:
    """One epoch from the weights that came.

    Raises:
        RefusedError: another task than an adapter.
        OperatorError: the backbone is not here, or there are no two classes to tell apart.
    """
    task = read_task(message.content)
    if not isinstance(task, AdapterTask):
        raise RefusedError("this app trains adapters, nothing else")
    if threads := int(context.node_config.get("threads", 0)):
        torch.set_num_threads(threads)
    examples = examples_of(context)
    tuning = Tuning(_layer(context, task.backbone), examples, recipe_of(task))
    state = _begin(tuning, context)
    (arrays,) = message.content.array_records.values()
    take_record(state.network, arrays)
    loss = tuning.epoch(task.before + round_of(message.content) - 1, state, proximal_of(message.content))
    head = {name: Array(value.detach().cpu().numpy()) for name, value in state.head.state_dict().items()}
    context.state[HEAD] = ArrayRecord(head)
    metrics = MetricRecord({"num-examples": len(examples), "loss": loss})
    return Message(RecordDict({"arrays": to_record(state.network), "metrics": metrics}), reply_to=message)


def examples_of(context: Context) -> list[Example]:
    """The labelled pictures of this node, in the same order each time.

    Raises:
        OperatorError: the config names none, or a folder that is none.
    """
    config, site = context.node_config, str(context.node_config.get("site", context.node_id))
    found: list[Example] = []
    if folder := config.get("pictures") or _numbered(context):
        found += [_example(item, site) for item in read_folder(Path(str(folder)))]
    if (file := config.get("labelled")) and Path(str(file)).is_file():
        path = Path(str(file))
        found += [
            Example(name, scenario, label, site, partial(_decode, path, name))
            for name, scenario, label in labelled_pictures(path)
        ]
    if not found:
        raise OperatorError(
            "this node has no labelled pictures", "Name a folder as `pictures`, or label at the gateway's page."
        )
    return sorted(found, key=lambda example: (example.scenario, example.id))


def _numbered(context: Context) -> str:
    """The node's own folder of pictures in Flower's simulation engine; empty elsewhere."""
    number, folder = context.node_config.get("partition-id"), context.run_config.get("data")
    return f"{folder}/{number}" if folder and number is not None else ""


def _example(item: Item, site: str) -> Example:
    name = hashlib.blake2b(str(item.path).encode(), digest_size=16).digest()
    return Example(name, "pictures", item.label, site, partial(read_picture, item.path))


def _decode(file: Path, name: bytes) -> Picture:
    picture = decode_picture(picture_of(file, name))
    if picture is None:
        raise OperatorError(f"the picture of sample {name.hex()} does not decode", "Take its label back.")
    return picture


def _layer(context: Context, backbone: str) -> Path:
    """The backbone's file.

    Raises:
        OperatorError: it is not here.
    """
    folder = context.node_config.get("layers") or context.run_config.get("layers", "")
    path = Path(str(folder)) / backbone
    if not path.is_file() or layer_hash(path.read_bytes()) != backbone:
        raise OperatorError(
            f"backbone {backbone[:12]} is not in {folder or 'any folder'}",
            "A gateway has it with its release; elsewhere copy it there from the centre's layers.",
        )
    return path


def _begin(tuning: Tuning, context: Context) -> State:
    """The state of this round: the head as the last one left it, and an optimiser that remembers nothing."""
    if tuning.key not in _kept:
        _kept.clear()
        _kept[tuning.key] = tuning.begin()
    state = _kept[tuning.key]
    before = context.state[HEAD] if HEAD in context.state else ArrayRecord()
    blank = {name: torch.zeros_like(value) for name, value in state.head.state_dict().items()}
    taken = {name: torch.from_numpy(array.numpy().copy()) for name, array in before.items()}
    fits = {n: v.shape for n, v in taken.items()} == {n: v.shape for n, v in blank.items()}
    state.head.load_state_dict(taken if fits else blank)
    return dataclasses.replace(state, optimiser=tuning.optimiser(state.network, state.head))
