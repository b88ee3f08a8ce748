"""What a client answers to a train message: statistics, a head's weights, or what the app says that its operator named.

One rule for a gateway, a SuperNode and a node of Flower's simulation. Weights leave under the same policy as
statistics. A backbone is trained by another app (`cloud.finetuning.site_app:app`, or any ClientApp of Flower's): it
needs torch, which gateways do not have, so who has none says why.
"""

import importlib
import logging
from functools import partial

import numpy as np

from common.contribution import is_request
from common.errors import ConfigError, RefusedError, WireError
from common.flower import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from common.training import HeadTask, proximal_of, read_task
from edge.compressing import compressing
from edge.contributor import Policy, Source, answer
from edge.learner import ClientAppCallable
from edge.member import enough
from edge.softmax import Softmax, train

log = logging.getLogger(__name__)

NO_APP = "this client names no app that trains backbones"


def load_app(reference: str) -> ClientAppCallable:
    """A ClientApp by its name, `module:attribute` as in Flower's own declarations.

    Raises:
        ConfigError: there is none, or it needs what is not installed.
    """
    module, _, attribute = reference.partition(":")
    try:
        app: ClientAppCallable = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"the client app {reference!r} cannot be loaded: {error}",
            "Name it as module:attribute, and install what it needs (the adapter's: pip install 'headframe[cloud]').",
        ) from error
    if not callable(app):
        raise ConfigError(f"{reference!r} is no ClientApp", "Name it as module:attribute.")
    return app


class Trainer:
    """Answers train messages.

    Args:
        source: labelled embeddings of this client.
        named: the app for what we do not train ourselves; None, and why.
    """

    def __init__(
        self, source: Source, policy: Policy, named: ClientAppCallable | None = None, why_none: str = NO_APP
    ) -> None:
        self._source, self._policy, self._named, self._why_none = source, policy, named, why_none

    @classmethod
    def of(cls, source: Source, policy: Policy, reference: str) -> "Trainer":
        """With an app by its name; one that cannot be loaded is logged, and said to who asks for it."""
        try:
            return cls(source, policy, load_app(reference) if reference else None)
        except ConfigError as error:
            log.error("%s", error)
            return cls(source, policy, None, str(error))

    @property
    def trains(self) -> bool:
        """Whether weights of a backbone can be asked of this client."""
        return self._named is not None and self._policy.shares_updates and not self._policy.masked_only

    def __call__(self, message: Message, context: Context) -> Message:
        """A reply.

        Raises:
            WireError: the message cannot be read.
            RefusedError: the site does not share this.
        """
        if is_request(message.content):
            return answer(message, self._source, self._policy)
        if not self._policy.shares_updates or self._policy.masked_only:
            raise RefusedError("this site shares no weight updates")
        task = read_task(message.content)
        call = partial(self._train_head, task) if isinstance(task, HeadTask) else self._call_named
        mods = [compressing(task.compression)] if task and task.compression else []
        return mods[0](message, context, call) if mods else call(message, context)

    def _call_named(self, message: Message, context: Context) -> Message:
        if self._named is None:
            raise RefusedError(f"no weights from here: {self._why_none}")
        return self._named(message, context)

    def _train_head(self, task: HeadTask, message: Message, context: Context) -> Message:
        del context
        if message.metadata.message_type != "train":
            raise RefusedError("a head is trained here, nothing else")
        _, embeddings, labels = self._source.labelled(task.scenario, task.backbone)
        known = [row for row, label in enumerate(labels) if label in task.classes]
        rows = [known[place] for place in enough([labels[row] for row in known], self._policy.class_samples_min)]
        if not rows:
            raise RefusedError(f"no labelled samples of {task.scenario} on backbone {task.backbone[:12]} here")
        head, loss = train(
            _given(message.content, (len(task.classes), embeddings.shape[1])),
            embeddings[np.array(rows)],
            [task.classes.index(labels[row]) for row in rows],
            steps=task.steps,
            rate=task.rate_used,
            mu=proximal_of(message.content),
        )
        arrays = ArrayRecord({"weight": Array(head.weight), "bias": Array(head.bias)})
        metrics = MetricRecord({"num-examples": len(rows), "loss": loss})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


def _given(content: RecordDict, shape: tuple[int, int]) -> Softmax:
    """The head that came.

    Raises:
        WireError: none came, or one of other classes or another backbone.
    """
    records = list(content.array_records.values())
    found = {name: array.numpy() for name, array in records[0].items()} if len(records) == 1 else {}
    if {name: array.shape for name, array in found.items()} != {"weight": shape, "bias": shape[:1]}:
        raise WireError(f"a head of shape {shape} was to come; the run's dimension is the backbone's")
    return Softmax(found["weight"], found["bias"])
