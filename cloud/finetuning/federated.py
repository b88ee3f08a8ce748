"""What the centre needs to have a backbone trained where the pictures are; the sites' part is `site_app`.

What travels is scale and shift of every batch-norm, 170 KB for the default backbone, folded by any strategy for weight
updates (`cloud.federation.strategies`). The result is a layer for `cloud.finetuning.run`, as if trained elsewhere.
"""

from cloud.finetuning.graph import Depth, Network
from cloud.finetuning.tuning import Recipe
from common.errors import WireError
from common.flower import Array, ArrayRecord
from common.training import AdapterTask


def task_of(backbone: str, recipe: Recipe, compression: str = "", before: int = 0) -> AdapterTask:
    """What sites are told.

    Args:
        backbone: hash of the layer that runs.
        before: rounds that are over.
    """
    return AdapterTask(
        backbone=backbone,
        depth=recipe.depth.value,
        rounds=recipe.epochs,
        before=before,
        batch=recipe.batch,
        rate=recipe.rate,
        distillation=recipe.distillation,
        seed=recipe.seed,
        compression=compression,
    )


def recipe_of(task: AdapterTask) -> Recipe:
    """How a site trains: a round is an epoch.

    Raises:
        WireError: a depth that is not known here.
    """
    try:
        depth = Depth(task.depth)
    except ValueError as error:
        raise WireError(f"there is no depth {task.depth!r}") from error
    return Recipe(depth, task.rounds, task.batch, task.rate, task.distillation, seed=task.seed)


def adapter_arrays(layer: bytes, recipe: Recipe) -> ArrayRecord:
    """What a strategy begins with: the trained weights of the running backbone."""
    return to_record(Network(layer, recipe.depth))


def layer_with(layer: bytes, recipe: Recipe, arrays: ArrayRecord) -> bytes:
    """The backbone's file with what the rounds came to.

    Raises:
        WireError: arrays of another backbone or depth.
    """
    network = Network(layer, recipe.depth)
    take_record(network, arrays)
    return network.layer()


def to_record(network: Network) -> ArrayRecord:
    """The trained weights as Flower carries them."""
    return ArrayRecord({name: Array(value) for name, value in network.values().items()})


def take_record(network: Network, arrays: ArrayRecord) -> None:
    """Set the trained weights.

    Raises:
        WireError: they are of another backbone or depth.
    """
    network.take({name: array.numpy() for name, array in arrays.items()})
