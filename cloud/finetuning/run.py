"""From labelled pictures to a signed release on a new backbone, or to the reason why not.

Tune; snap onto the coarsest steps from the running backbone that keep what the heads say; bring everything that the
centre can see onto the new one; learn the map for what it cannot see; then a training run like any other, with the gate
asking the running heads on the running backbone and the new ones on the snapped file itself. Backbone and heads are one
release. What the gate refuses is forgotten. Cut short anywhere, the same command goes on.

A backbone of another architecture takes the same way, but that nothing of it is tuned or snapped: it travels whole.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from cloud.finetuning.examples import Example, Picture, hold_back
from cloud.finetuning.tuning import Recipe, Tuned, Tuning
from cloud.learning.clocks import UNLABELLED, Progress, silent
from cloud.learning.curvature import input_moments
from cloud.learning.datasets import Catalogue, Dataset
from cloud.learning.quantise import embed_all
from cloud.learning.snapping import coarsest, keeps
from cloud.learning.training import Outcome, Trainer
from cloud.registry import Registry, delta_of
from cloud.store import FAILED, REFUSED, RELEASED, Run, Store
from common.backbone import Backbone
from common.clock import Clock
from common.errors import HeadframeError, OperatorError
from common.files import write_atomically
from common.ids import layer_hash
from common.manifest import Layer
from common.pictures import decode_picture
from common.statistics import Statistics
from common.weights import are_alike

log = logging.getLogger(__name__)

UNDER_WAY: Final = "fine-tuning"
"""Status of a run; the service takes up rounds again after a crash, not these: the command does."""
SOLVED_MAX: Final = 1_000  # pictures that the heads for snapping are solved from
JUDGED_MAX: Final = 260  # pictures on which a snapped backbone must say the same
MOMENTS: Final = 64
GROWN_MAX: Final = 0.5  # of the file: what changed no more than that grew out of the running one


@dataclass(frozen=True, slots=True)
class _Origin:
    """A backbone, still to be made, and what is known of it."""

    key: str
    tune: Callable[[], Tuned]
    found: Mapping[str, object]
    akin: bool = True
    """Whether it is the running one with other numbers"""
    licence: str = ""
    """By default that of the running one"""
    seen: Sequence[Example] = ()
    """Pictures that say how its layers are used"""
    judged: Sequence[Example] = ()
    """… and on which the snapped one must say the same"""
    taught: Sequence[bytes] = ()
    """Ids of what it was trained on, where that is known"""


class Finetuner:
    """Fine-tunes the backbone that runs.

    Args:
        folder: for checkpoints.
    """

    def __init__(
        self, store: Store, catalogue: Catalogue, registry: Registry, trainer: Trainer, clock: Clock, folder: Path
    ) -> None:
        self._store, self._catalogue, self._registry, self._trainer = store, catalogue, registry, trainer
        self._clock, self._folder = clock, folder

    def run(self, recipe: Recipe, author: str, progress: Progress = silent) -> Outcome:
        """Tune, judge, publish; the run is recorded either way.

        Raises:
            OperatorError: there is no release yet, no two classes, a backbone that cannot be trained, or a picture of a
                dataset that is gone.
        """
        self.check_active()
        train, held = hold_back(self.examples())
        tuning = Tuning(self._registry.backbone()[1], train, recipe, self._folder)
        outcome = self._release(
            _Origin(
                tuning.key,
                partial(tuning.run, partial(progress, "epochs")),
                {"parameters": asdict(recipe), "held_back": sorted({example.site for example in held})},
                seen=train,
                judged=held or train,
                taught=[example.id for example in train],
            ),
            author,
            progress,
        )
        tuning.forget()
        return outcome

    def take(
        self,
        data: bytes,
        author: str,
        progress: Progress = silent,
        curve: Sequence[float] = (),
        parameters: object = "trained elsewhere",
    ) -> Outcome:
        """Judge and publish a backbone that was trained elsewhere: the running one's file with other numbers.

        Args:
            curve: mean losses, and
            parameters: how it was trained, for the record.

        Raises:
            OperatorError: as `run`, or it differs in more than its numbers.
        """
        self.check_active()
        _check_same_graph(self._registry.backbone()[1].read_bytes(), data)
        examples = self.examples()
        found: dict[str, object] = {"parameters": parameters, "held_back": []}
        origin = _Origin(layer_hash(data), lambda: Tuned(data, tuple(curve)), found, seen=examples, judged=examples)
        return self._release(origin, author, progress)

    def replace(self, data: bytes, author: str, licence: str, progress: Progress = silent) -> Outcome:
        """Judge and publish a backbone of another architecture, with every head solved anew on it.

        Everything at the centre is embedded again. Of what stays at sites the old statistics are carried over as far as
        a map can, until the gateways have counted their samples again.

        Args:
            data: the layer, see `cloud.learning.adoption`.

        Raises:
            OperatorError: as `run`.
        """
        self.check_active()
        found: dict[str, object] = {"parameters": "adopted", "held_back": []}
        origin = _Origin(layer_hash(data), lambda: Tuned(data, ()), found, akin=False, licence=licence)
        return self._release(origin, author, progress)

    def check_active(self) -> None:
        """Raises:
        OperatorError: there is no release yet.
        """
        if self._registry.active() is None:
            raise OperatorError("there is no release whose backbone to fine-tune", "First `headframe cloud train`.")

    def _release(self, origin: _Origin, author: str, progress: Progress) -> Outcome:
        """Everything that a fine-tune leads to, as a recorded run."""
        base, path = self._registry.backbone()
        record: dict[str, object] = {
            "author": author,
            "kind": "fine-tune",
            "labels": self._store.label_count(),
            "parent": base.hash,
            "pictures": len(origin.taught),
            **origin.found,
        }
        run = Run(f"tune-{origin.key[:12]}", self._clock.wall_ns(), None, UNDER_WAY, record)
        self._store.update_run(run)
        try:
            layer = (
                self._snap(base, path, origin, record) if origin.akin else self._keep_whole(base, path, origin, record)
            )
            self._note(layer, base, origin, record)
            clocks = self._trainer.clocks
            clocks.bring(layer.hash, self._registry.layer_path(layer.hash), progress, unlabelled=UNLABELLED)
            clocks.learn(base.hash, layer.hash, akin=origin.akin)
            outcome = self._trainer.run(f"fine-tune {run.run_id}", layer)
            if not outcome.release_id:
                clocks.forget(layer.hash)
        except HeadframeError as error:
            self._end(run, FAILED, record | {"error": str(error)})
            raise
        outcome = replace(outcome, record=record | outcome.record)
        self._end(run, RELEASED if outcome.release_id else REFUSED, outcome.record)
        return outcome

    def _note(self, layer: Layer, base: Layer, origin: _Origin, record: Mapping[str, object]) -> None:
        """Where the backbone comes from."""
        licences = (str(r.record.get("licence", "")) for r in self._store.layers() if r.layer == base.hash)
        self._registry.note(
            layer,
            "backbone",
            parent=base.hash if origin.akin else "",
            samples=origin.taught,
            data_version=origin.key,
            parameters=record["parameters"],
            evaluation={name: record[name] for name in ("curve", "step_fraction", "delta_bytes")},
            licence=origin.licence or next(licences, "") or "not stated",
        )

    def _end(self, run: Run, status: str, record: dict[str, object]) -> None:
        self._store.update_run(replace(run, status=status, record=record, finished_ns=self._clock.wall_ns()))

    def examples(self) -> list[Example]:
        """Every labelled picture at the centre that is learnt from: no gold, no near-duplicates, nobody unlearned."""
        found: list[Example] = []
        backbone, _ = self._registry.backbone()
        for scenario, classes in self._trainer.scenarios().items():
            look = self._trainer.gathering.curator.look(scenario, classes, backbone.hash, judge=False)
            for dataset in look.datasets:
                found += [
                    Example(dataset.ids[row], scenario, dataset.labels[row], dataset.sites[row], _of(dataset, row))
                    for row in np.flatnonzero(~dataset.is_gold).tolist()
                ]
            samples = zip(look.samples.sample_ids, look.samples.labels, look.samples.sites, strict=True)
            found += [Example(name, scenario, label, site, partial(self._read, name)) for name, label, site in samples]
        return sorted(found, key=lambda example: (example.scenario, example.id))

    def _read(self, sample_id: bytes) -> Picture:
        picture = decode_picture(self._store.jpeg(sample_id))
        if picture is None:
            raise OperatorError(
                f"the picture of sample {sample_id.hex()} does not decode", "Take its label back: the console does."
            )
        return picture

    def _snap(self, base: Layer, path: Path, origin: _Origin, record: dict[str, object]) -> Layer:
        """Tune, and move onto the coarsest steps that pass: the layer that is judged and signed, with its delta."""
        tuned = origin.tune()
        target = self._folder / "target.onnx"
        write_atomically(target, tuned.data)
        network = Backbone.open(target)
        moments = input_moments(tuned.data, (network.tensor(e.read()) for e in _spread(origin.seen, MOMENTS)))
        snapped = coarsest(path.read_bytes(), tuned.data, self._keeps(network, origin.seen, origin.judged), moments)
        target.unlink()
        if not snapped.fraction:
            log.warning("no steps keep what the heads say: the weights travel exactly as they were trained")
        delta = snapped.delta(path.read_bytes())
        layer = self._registry.put(snapped.data)
        self._registry.put_delta(base, layer, delta)
        record |= {
            "backbone": layer.hash,
            "curve": list(tuned.curve),
            "step_fraction": snapped.fraction,
            "delta_bytes": len(delta),
            "bytes": layer.size_bytes,
        }
        return layer

    def _keep_whole(self, base: Layer, path: Path, origin: _Origin, record: dict[str, object]) -> Layer:
        """The layer as it is; with a delta where it has something in common with the running one, as a lift has."""
        data = origin.tune().data
        layer = self._registry.put(data)
        delta = delta_of(path.read_bytes(), data)
        if len(delta) < GROWN_MAX * len(data):
            self._registry.put_delta(base, layer, delta)
        record |= {
            "backbone": layer.hash,
            "curve": [],
            "step_fraction": 0.0,
            "delta_bytes": min(len(delta), layer.size_bytes),
            "bytes": layer.size_bytes,
        }
        return layer

    def _keeps(self, tuned: Backbone, train: Sequence[Example], judged: Sequence[Example]) -> Callable[[bytes], bool]:
        """Whether heads of every scenario say on a snapped backbone what they say on the tuned one."""
        verdicts = []
        for scenario in sorted({example.scenario for example in train}):
            own = _spread([example for example in train if example.scenario == scenario], SOLVED_MAX)
            asked = _spread([example for example in judged if example.scenario == scenario], JUDGED_MAX)
            labels = [example.label for example in own]
            if len(set(labels)) < 2 or not asked:
                continue
            statistics = Statistics.of(sorted(set(labels)), embed_all(tuned, [e.read() for e in own]), labels)
            head = self._trainer.rules.solve_shared(statistics)
            wanted = head.probabilities(embed_all(tuned, [e.read() for e in asked]))
            verdicts.append((head, asked, wanted))

        def passes(snapped: bytes) -> bool:
            path = self._folder / "snapped.onnx"
            write_atomically(path, snapped)
            backbone = Backbone.open(path)
            path.unlink()
            return all(
                keeps(head, embed_all(backbone, [e.read() for e in asked]), wanted) for head, asked, wanted in verdicts
            )

        return passes


def _of(dataset: Dataset, row: int) -> Callable[[], Picture]:
    return lambda: dataset.picture(row)


def _spread(examples: Sequence[Example], most: int) -> list[Example]:
    """At most so many, from all over."""
    return list(examples[:: max(1, -(-len(examples) // most))])


def _check_same_graph(base: bytes, data: bytes) -> None:
    """The two files must be the same but for the numbers of their weights: a delta needs that, and so do gateways."""
    if not are_alike(base, data):
        raise OperatorError(
            "this is another model than the running backbone, not the same with other numbers",
            "Train the running layer itself (docs/learning.md), or replace it: `headframe cloud backbone`.",
        )
