"""Our ClientApp: what a gateway tells of its labelled samples, and what it does not.

A round is answered with statistics, in the clear or as a member of a secure sum (`edge.member`); weights are the matter
of `edge.trainer`. The policy of the site is enforced here for updates as `edge.uplink` does for samples: with `share =
"samples"` the answer is empty, since the centre counts the uploaded samples itself.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from common import cohort
from common.contribution import Labels, Request, pack_reply, unpack_request
from common.errors import RefusedError
from common.flower import Context, Message, RecordDict
from common.packing import Packed, pack
from edge.learner import ClientAppCallable
from edge.member import Member, enough


class Source(Protocol):
    """Where a client's labelled embeddings come from: a gateway's exemplars, or a file (`common.partition`)."""

    def label(self, labels: Mapping[bytes, Mapping[str, str]]) -> int: ...

    def labelled(self, scenario: str, backbone: str) -> tuple[list[bytes], NDArray[np.float32], list[str]]: ...


@dataclass(frozen=True, slots=True)
class Policy:
    """What a site lets its gateway tell; where the centre asks for less, that holds."""

    shares_updates: bool = False
    bytes_max: int = 0
    """Of the statistics of a scenario; 0: no bound."""
    class_samples_min: int = 0
    """A class with fewer samples is not told of."""
    masked_only: bool = False
    """No statistics of this gateway by themselves, only in sums."""
    cohort_min: int = 5
    """A sum over fewer gateways is refused."""


def make_client_app(
    source: Source,
    policy: Policy,
    own: int,
    draw: Callable[[int], bytes] = secrets.token_bytes,
    respond: ClientAppCallable | None = None,
) -> ClientAppCallable:
    """A Flower ClientApp whose `train` takes the labels it is given and answers with statistics.

    Args:
        own: the node id of this gateway.
        draw: random bytes for the secrets of sums.
        respond: answers what is not of a secure sum (`edge.trainer.Trainer`); by default statistics only.
    """
    from flwr.clientapp import ClientApp

    app = ClientApp()
    member = Member(own, source, cohort_min=policy.cohort_min, class_samples_min=policy.class_samples_min, draw=draw)

    @app.train()  # type: ignore[untyped-decorator]
    def train(message: Message, context: Context) -> Message:
        return respond(message, context) if respond else answer(message, source, policy)

    @app.evaluate()  # type: ignore[untyped-decorator]
    def evaluate(message: Message, context: Context) -> Message:
        if respond is None:
            raise RefusedError("this client evaluates nothing")
        return respond(message, context)

    @app.train("keys")  # type: ignore[untyped-decorator]
    def keys(message: Message, context: Context) -> Message:
        del context
        if not policy.shares_updates:
            raise RefusedError("this site shares no updates")
        given = member.keys(cohort.read_step(message.content, cohort.KeysAsked))
        return Message(content=cohort.pack_step(given), reply_to=message)

    @app.train("shares")  # type: ignore[untyped-decorator]
    def shares(message: Message, context: Context) -> Message:
        del context
        given = member.shares(cohort.read_step(message.content, cohort.SharesAsked))
        return Message(content=cohort.pack_step(given), reply_to=message)

    @app.train("masked")  # type: ignore[untyped-decorator]
    def masked(message: Message, context: Context) -> Message:
        del context
        asked = cohort.read_step(message.content, cohort.MaskedAsked)
        apply_labels(source, {name: _by_id(given) for name, given in asked.labels.items()})
        projections = {name: cohort.read_projection(message.content, name) for name in asked.scenarios}
        content = RecordDict()
        cohort.put_vector(content, member.masked(asked, projections))
        return Message(content=content, reply_to=message)

    @app.train("reveal")  # type: ignore[untyped-decorator]
    def reveal(message: Message, context: Context) -> Message:
        del context
        given = member.reveal(cohort.read_step(message.content, cohort.RevealAsked))
        return Message(content=cohort.pack_step(given), reply_to=message)

    called: ClientAppCallable = app
    return called


def answer(message: Message, source: Source, policy: Policy) -> Message:
    """A client's reply to a round, whatever carried the request: statistics, or nothing where the site says so.

    Raises:
        WireError: the request cannot be read.
    """
    request = unpack_request(message.content)
    if not policy.shares_updates:
        return Message(content=pack_reply({}), reply_to=message)
    apply_labels(source, {name: _by_id(given) for name, given in request.labels.items()})
    if policy.masked_only:
        return Message(content=pack_reply({}), reply_to=message)
    bounds = [bound for bound in (policy.bytes_max, request.bytes_max) if bound]
    class_samples_min = max(policy.class_samples_min, request.class_samples_min)
    parts, lost = contribute(source, request, min(bounds, default=0), class_samples_min)
    return Message(content=pack_reply(parts, lost), reply_to=message)


def apply_labels(source: Source, labels: Labels) -> None:
    """Remember what people said about our samples at the centre."""
    by_sample: dict[bytes, dict[str, str]] = {}
    for scenario, given in labels.items():
        for name, label in given.items():
            by_sample.setdefault(name, {})[scenario] = label
    source.label(by_sample)


def contribute(
    source: Source, request: Request, bytes_max: int, class_samples_min: int = 0
) -> tuple[dict[str, tuple[Packed, Sequence[bytes]]], dict[str, float]]:
    """Per scenario: statistics of our labelled samples on the round's backbone, which samples they count, and the share
    of their variance that the bound on bytes left to the diagonal."""
    parts: dict[str, tuple[Packed, Sequence[bytes]]] = {}
    lost: dict[str, float] = {}
    for scenario, classes in request.scenarios.items():
        names, embeddings, labels = source.labelled(scenario, request.backbone)
        known = [row for row, label in enumerate(labels) if label in classes]
        rows = [known[place] for place in enough([labels[row] for row in known], class_samples_min)]
        if rows:
            packed, lost[scenario] = pack(classes, embeddings[np.array(rows)], [labels[row] for row in rows], bytes_max)
            parts[scenario] = packed, [names[row] for row in rows]
    return parts, lost


def _by_id(given: Mapping[str, str]) -> dict[bytes, str]:
    return {bytes.fromhex(name): label for name, label in given.items()}
