"""The training loop: from a backbone and labelled pictures to the same backbone with other numbers.

The softmax head that pulls at the embedding is thrown away: heads are solved anew afterwards, in closed form. The
embedding is held near the running backbone's (distillation), so that what nobody shows it now is not lost. Everything
random follows from seed and epoch, and a checkpoint after every epoch holds all state: a run that was killed goes on
and ends with the same bytes, on the same kind of machine.
"""

import hashlib
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from cloud.finetuning.examples import Example, Picture, draw
from cloud.finetuning.graph import Depth, Network
from common.backbone import Backbone
from common.errors import OperatorError
from common.files import write_atomically
from common.ids import layer_hash

STEPS: Final = 25
"""Batches of an epoch: pictures are drawn class by class, so there is no pass over all of them."""
CACHE_BYTES: Final = 256 * 2**20
"""Of pictures kept in memory, resized; others are read again each time."""
HEAD_RATE: Final = 10.0  # times the backbone's: it begins from nothing
JITTER: Final = 0.2  # of brightness and contrast: sites differ in light first of all
SCALE_MIN: Final = 1e-3  # of a feature that hardly moves

Progress = Callable[[int, int], None]
"""(epochs done, epochs in all)"""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a fine-tune trains."""

    depth: Depth = Depth.ADAPTER
    epochs: int = 8
    batch: int = 16
    rate: float = 0.0
    """Of Adam; 0 is the depth's own."""
    distillation: float = 0.1
    """Weight of the distance to the running backbone's embedding."""
    input_px: int = 0
    """Side of the training pictures; 0 is the backbone's own, and anything else costs accuracy (docs/log.md)."""
    seed: int = 0

    @property
    def rate_used(self) -> float:
        """Numbers that scale a whole channel bear larger steps than single weights; chosen, not searched for."""
        return self.rate or {Depth.ADAPTER: 2e-3, Depth.BLOCK: 5e-4, Depth.FULL: 2e-4}[self.depth]


@dataclass(frozen=True, slots=True)
class Tuned:
    """What came of it."""

    data: bytes
    """The layer's file."""
    curve: tuple[float, ...]
    """Mean loss of each epoch."""
    classes: tuple[tuple[str, str], ...] = ()
    head: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
    """Weights (classes, d) and bias of the softmax head on raw embeddings; for those who compare."""


@dataclass(frozen=True, slots=True)
class State:
    """What changes from batch to batch."""

    network: Network
    head: torch.nn.Linear
    optimiser: torch.optim.Optimizer
    teacher: torch.Tensor
    """Embeddings (n, d) of all pictures by the running backbone"""
    centre: torch.Tensor
    scale: torch.Tensor
    """(d,) of the teacher's embeddings: the head sees standardised ones"""

    def standardise(self, embeddings: torch.Tensor) -> torch.Tensor:
        """As the head takes them (n, d)."""
        return (embeddings - self.centre) / self.scale

    def parts(self) -> tuple[tuple[str, Any], ...]:
        """What a checkpoint holds."""
        return ("network", self.network), ("head", self.head), ("optimiser", self.optimiser)

    def raw_head(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Weights (classes, d) and bias on raw embeddings."""
        weight = self.head.weight.detach() / self.scale
        bias = self.head.bias.detach() - weight @ self.centre
        return weight.cpu().numpy(), bias.cpu().numpy()


class Tuning:
    """One fine-tune of a backbone.

    Args:
        path: the backbone's layer.
        examples: to train on, at least two classes of a scenario.
        checkpoints: folder of what is kept between epochs; None keeps nothing.

    Raises:
        OperatorError: nothing to tell apart, or the backbone cannot be trained (`graph.Network`).
    """

    def __init__(
        self, path: Path, examples: Sequence[Example], recipe: Recipe, checkpoints: Path | None = None
    ) -> None:
        self._recipe, self._examples = recipe, list(examples)
        self._base, self._backbone = path.read_bytes(), Backbone.open(path)
        self._classes = tuple(sorted({example.target for example in examples}))
        if len(self._classes) < 2:
            raise OperatorError(
                f"{len(examples)} pictures of {len(self._classes)} class are nothing to fine-tune on",
                "Label more uploaded samples, or add a dataset with `headframe cloud dataset add`.",
            )
        self.key = self._key()
        self._file = checkpoints / f"{self.key}.checkpoint" if checkpoints else None
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._side_px = recipe.input_px or self._backbone.input_px
        self._cache: dict[int, Picture] = {}

    def run(self, progress: Progress = lambda _done, _total: None) -> Tuned:
        """Train to the end, from the last checkpoint where there is one."""
        deterministic, torch.backends.cudnn.deterministic = torch.backends.cudnn.deterministic, True
        state = self.begin()
        curve = self._resume(state)
        progress(len(curve), self._recipe.epochs)
        for epoch in range(len(curve), self._recipe.epochs):
            curve.append(self.epoch(epoch, state))
            self._keep(state, curve)
            progress(epoch + 1, self._recipe.epochs)
        torch.backends.cudnn.deterministic = deterministic
        return Tuned(state.network.layer(), tuple(curve), self._classes, state.raw_head())

    def begin(self) -> State:
        """The running backbone, and a head that knows nothing."""
        recipe = self._recipe
        network = Network(self._base, recipe.depth).to(self._device)
        teacher = self._teach(network)
        head = torch.nn.Linear(teacher.shape[1], len(self._classes)).to(self._device)
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
        centre, scale = teacher.mean(0), teacher.std(0).clamp_min(SCALE_MIN)
        return State(network, head, self.optimiser(network, head), teacher, centre, scale)

    def optimiser(self, network: Network, head: torch.nn.Linear) -> torch.optim.Optimizer:
        """One that remembers nothing."""
        return torch.optim.Adam([{"params": list(part.parameters())} for part in (network, head)])

    def forget(self) -> None:
        """Remove the checkpoint: the run is over."""
        if self._file:
            self._file.unlink(missing_ok=True)

    def epoch(self, number: int, state: State, mu: float = 0.0) -> float:
        """Train one epoch, of which everything random follows from seed and number; returns its mean loss.

        Args:
            mu: of FedProx's proximal term: how hard to hold on to the weights that it begins with.
        """
        recipe, rng = self._recipe, np.random.default_rng((self._recipe.seed, number))
        given = [weight.detach().clone() for weight in state.network.weights] if mu else []
        rows = draw(self._examples, STEPS * recipe.batch, rng).reshape(STEPS, recipe.batch)
        losses = []
        for step, batch in enumerate(rows):
            share = min((number * STEPS + step) / (recipe.epochs * STEPS), 1.0)
            rate = recipe.rate_used * (1 + math.cos(math.pi * share)) / 2
            for group, factor in zip(state.optimiser.param_groups, (1.0, HEAD_RATE), strict=True):
                group["lr"] = rate * factor
            images = np.concatenate([self._tensor(_vary(self._picture(row), rng)) for row in batch])
            z = state.standardise(state.network(torch.from_numpy(images).to(self._device)))
            held = (z - state.standardise(state.teacher[batch])).square().mean()
            loss = self._cross_entropy(state.head(z), batch) + recipe.distillation * held
            for weight, before in zip(state.network.weights, given, strict=False):
                loss = loss + mu / 2 * (weight - before).square().sum()
            state.optimiser.zero_grad()
            loss.backward()
            state.optimiser.step()
            losses.append(float(loss.detach()))
        return float(np.mean(losses))

    def _cross_entropy(self, logits: torch.Tensor, batch: NDArray[np.integer]) -> torch.Tensor:
        """Of each picture over the classes of its own scenario: another one's label may be true of it as well."""
        targets = [self._examples[row].target for row in batch]
        other = [[name[0] != target[0] for name in self._classes] for target in targets]
        truth = torch.tensor([self._classes.index(target) for target in targets], device=self._device)
        masked = logits.masked_fill(torch.tensor(other, device=self._device), -torch.inf)
        return torch.nn.functional.cross_entropy(masked, truth)

    def _teach(self, network: Network) -> torch.Tensor:
        """Embeddings (n, d) of all pictures by the running backbone; by ONNX Runtime, where it can, much faster."""
        if self._side_px == self._backbone.input_px:
            embedded = [self._backbone.embed(self._picture(row)) for row in range(len(self._examples))]
            return torch.from_numpy(np.stack(embedded)).to(self._device)
        found = []
        with torch.no_grad():
            for start in range(0, len(self._examples), self._recipe.batch):
                rows = range(start, min(start + self._recipe.batch, len(self._examples)))
                images = np.concatenate([self._tensor(self._picture(row)) for row in rows])
                found.append(network(torch.from_numpy(images).to(self._device)))
        return torch.cat(found)

    def _picture(self, row: int) -> Picture:
        """uint8 (px, px, 3) BGR"""
        found = self._cache.get(row)
        if found is None:
            found = self._backbone.fit(self._examples[row].read(), self._side_px)
            if (len(self._cache) + 1) * found.nbytes <= CACHE_BYTES:
                self._cache[row] = found
        return found

    def _tensor(self, picture: Picture) -> NDArray[np.float32]:
        return self._backbone.tensor(picture, self._side_px)

    def _key(self) -> str:
        """Names the run: the same backbone, recipe and labels make the same one."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(repr((layer_hash(self._base), asdict(self._recipe), torch.__version__)).encode())
        for example in self._examples:
            digest.update(example.id + repr((example.target, example.site)).encode())
        return digest.hexdigest()

    def _keep(self, state: State, curve: list[float]) -> None:
        if self._file is None:
            return
        buffer = io.BytesIO()
        torch.save({"curve": curve} | {name: part.state_dict() for name, part in state.parts()}, buffer)
        write_atomically(self._file, buffer.getvalue())

    def _resume(self, state: State) -> list[float]:
        """The curve so far; empty at the beginning."""
        if self._file is None or not self._file.is_file():
            return []
        kept: dict[str, Any] = torch.load(self._file, map_location=self._device, weights_only=True)
        for name, part in state.parts():
            part.load_state_dict(kept[name])
        return list(kept["curve"])


def _vary(picture: Picture, rng: np.random.Generator) -> Picture:
    """The picture as it might have been: mirrored, in other light."""
    if rng.random() < 0.5:
        picture = picture[:, ::-1]
    contrast, brightness = 1 + rng.uniform(-JITTER, JITTER), 128 * rng.uniform(-JITTER, JITTER)
    varied = (picture.astype(np.float32) - 128) * contrast + 128 + brightness
    return np.ascontiguousarray(varied.clip(0, 255).astype(np.uint8))
