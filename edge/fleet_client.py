"""The ClientApp that `flwr run` names: what a gateway answers, over a file of labelled embeddings.

What a node has is in its node config (`flower-supernode --node-config 'data="/srv/north.npz"'`): `data`, its file; and
where it trains backbones, `app` and what that app asks for (`edge.trainer`). Flower's simulation engine numbers its
nodes: there `data` in the run config is a folder in which the node's own is `<partition-id>.npz`, and `app` is the run
config's.
"""

from pathlib import Path

import numpy as np
from flwr.clientapp import ClientApp

from common.contribution import is_request
from common.errors import ConfigError
from common.flower import Context, Message
from common.partition import Partition
from common.training import HeadTask, read_task
from edge.contributor import Policy
from edge.trainer import Trainer

NOTHING = Partition((), np.zeros((0, 0), np.float32), (), "", "")
app = ClientApp()  # Flower finds it by reading this line's text: it must carry no type annotation


@app.train()  # type: ignore[untyped-decorator]
@app.evaluate()  # type: ignore[untyped-decorator]
def respond(message: Message, context: Context) -> Message:
    """Answer a round from the node's file, or by the app that it names."""
    named = str(context.node_config.get("app") or context.run_config.get("app", ""))
    of_embeddings = is_request(message.content) or isinstance(read_task(message.content), HeadTask)
    source = Partition.open(partition_file(context)) if of_embeddings else NOTHING
    return Trainer.of(source, Policy(shares_updates=True), named)(message, context)


def partition_file(context: Context) -> Path:
    """Where a node's labelled embeddings lie.

    Raises:
        ConfigError: neither config says so.
    """
    if own := context.node_config.get("data"):
        return Path(str(own))
    folder, number = context.run_config.get("data"), context.node_config.get("partition-id")
    if not folder or number is None:
        raise ConfigError(
            "this node does not know where its labelled embeddings are",
            "Start it with --node-config 'data=\"/path/to/site.npz\"', or give the run --run-config 'data=\"folder\"'.",
        )
    return Path(str(folder)) / f"{number}.npz"
