"""The ClientApp that `flwr run` names: the gateway's own contributor over a file of labelled embeddings.

Which file: `data` in the node config (a SuperNode's own: `flower-supernode --node-config 'data="/srv/mine.npz"'`), or
in the run config a folder in which the node's partition is `<partition-id>.npz` (Flower's simulation engine numbers
its nodes so).
"""

from pathlib import Path

from flwr.clientapp import ClientApp

from common.errors import ConfigError
from common.flower import Context, Message
from edge.contributor import Policy, answer
from edge.partition import Partition

app = ClientApp()  # Flower finds it by reading this line's text: it must carry no type annotation


@app.train()  # type: ignore[untyped-decorator]
def train(message: Message, context: Context) -> Message:
    """Answer a round from the node's file."""
    return answer(message, Partition.open(partition_file(context)), Policy(shares_updates=True))


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
