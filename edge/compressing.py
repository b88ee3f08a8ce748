"""A Flower mod that sends a client's weights as a compressed difference from the model it was given.

`ClientApp(mods=[compressing("int8")])`. What was lost is remembered in the client's context and added to the next
update. `cloud.federation.averaging` opens such updates; Flower's own strategies refuse them with a type error.
"""

from collections.abc import Callable

import numpy as np

from common.compression import SCHEMES, encode
from common.flower import COMPRESSED, Array, ArrayRecord, Context, Message

ClientAppCallable = Callable[[Message, Context], Message]
Mod = Callable[[Message, Context, ClientAppCallable], Message]
LOST = "headframe.lost"
"""Key in the context's state of what the last update lost."""


def compressing(scheme: str, kept: float = 0.1) -> Mod:
    """Make the mod.

    Args:
        scheme: `int8`, `int4` or `topk`.
        kept: share of values that `topk` keeps.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"{scheme!r} is none of {', '.join(SCHEMES)}")

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        given = {key: record for key, record in message.content.items() if isinstance(record, ArrayRecord)}
        reply = call_next(message, context)
        if reply.has_error() or message.metadata.message_type != "train":
            return reply
        for key, record in reply.content.items():
            if isinstance(record, ArrayRecord) and key in given:
                reply.content[key] = _compressed(record, given[key], context, f"{LOST}/{key}", scheme, kept)
        return reply

    return mod


def _compressed(
    record: ArrayRecord, model: ArrayRecord, context: Context, key: str, scheme: str, kept: float
) -> ArrayRecord:
    before = context.state[key] if key in context.state else ArrayRecord()
    lost, sent = ArrayRecord(), ArrayRecord()
    for name, array in record.items():
        values = array.numpy()
        if values.dtype != np.float32 or name not in model:
            sent[name] = array  # counters and such are small, and must stay exact
            continue
        difference = values - model[name].numpy()
        if name in before:
            difference = difference + before[name].numpy()
        encoded = encode(difference, scheme, kept)
        lost[name] = Array(encoded.lost)
        sent[name] = Array(dtype="float32", shape=values.shape, stype=COMPRESSED + scheme, data=encoded.data)
    context.state[key] = lost
    return sent
