"""Spoiled messages, by structure and at random: no crash, bounded memory, each refused with a reason.

`HEADFRAME_EXAMPLES=10000` makes hypothesis try as many; `headframe bench fuzz` spoils 100,000 messages for either side.
"""

import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloud.service import Service
from cloud.settings import CloudSettings
from common import codec, topics
from common.errors import HeadframeError, WireError
from common.manifest import decode_manifest, encode_manifest
from common.messages import CameraState, Fetch, State
from common.mqtt import Broker
from simulations.bench._messages import UP, made_event, made_sample, made_state
from simulations.bench._mutations import mutate
from simulations.bench._tiny import tiny_backbone, tiny_head, tiny_manifest
from simulations.bench.fuzz import fuzz_centre, fuzz_deltas, fuzz_gateway

EXAMPLES = int(os.environ.get("HEADFRAME_EXAMPLES", "150"))
MEMORY_MB_MAX = 200
GATEWAY = "north-1"


@pytest.mark.parametrize("side", [fuzz_centre, fuzz_gateway, fuzz_deltas])
def test_spoiled_messages_are_refused_with_a_reason_and_the_next_right_one_is_taken(side: object) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201  to replay
    figures = side(400, seed)  # type: ignore[operator]
    assert figures["crashes"] == 0, figures["failures"]
    assert figures["unexplained"] == 0
    assert figures["refused"] > 200
    assert figures["works_after"]
    assert figures["extra_mb"] < MEMORY_MB_MAX


def test_most_mutations_still_look_like_messages() -> None:
    rng = random.Random(1)
    payload = codec.encode(made_sample(1))
    trees = 0
    for _ in range(500):
        spoiled = mutate(payload, rng)
        try:
            trees += isinstance(msgspec.msgpack.decode(spoiled), dict)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
    assert trees > 250


@pytest.fixture(scope="module")
def centre(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder: Path = tmp_path_factory.mktemp("centre")
    made = Service(CloudSettings.model_validate({"data_dir": folder, "broker": {"embedded": False}}), Broker())
    yield made
    made.store.close()


ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=30)
    | st.binary(max_size=60),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(kind=st.sampled_from(sorted(UP)), field=st.integers(0, 40), value=ANY, seed=st.integers(0, 2**16))
def test_any_value_in_any_field_is_stored_or_refused_and_what_is_kept_can_be_read(
    centre: Service, kind: str, field: int, value: object, seed: int
) -> None:
    tree = msgspec.msgpack.decode(codec.encode(UP[kind](seed % 7)))
    names = sorted(tree["m"])
    tree["m"][names[field % len(names)]] = value
    centre._on_message(topics.up(GATEWAY, kind), msgspec.msgpack.encode(tree))
    centre.reported.flush()
    centre.store.states()
    centre.events.latest(10)


@settings(max_examples=EXAMPLES)
@given(data=st.binary(max_size=400))
def test_any_bytes_are_a_message_or_a_reason(data: bytes) -> None:
    for decode in (codec.decode, decode_manifest):
        try:
            decode(data)
        except HeadframeError as error:
            assert str(error)


NOT_A_NUMBER = float("nan")


@pytest.mark.parametrize(
    "state",
    [
        msgspec.structs.replace(made_state(1), cameras=(CameraState(camera_id="b", state="live", fps=NOT_A_NUMBER),)),
        msgspec.structs.replace(made_state(1), release_id="x" * 5000),
        msgspec.structs.replace(made_state(1), chosen={f"k{n}": n for n in range(60_000)}),
        msgspec.structs.replace(made_state(1), site_id="../x"),
    ],
    ids=["NaN", "long text", "too many parts", "bad site"],
)
def test_a_state_that_could_not_be_shown_is_not_kept(centre: Service, state: State) -> None:
    before = centre.guard.attempts.counts()
    centre._on_message(topics.up(GATEWAY, "state"), codec.encode(state))
    assert sum(centre.guard.attempts.counts().values()) == sum(before.values()) + 1
    centre.reported.flush()
    assert state not in centre.store.states()


def test_an_event_with_a_number_that_is_none_is_not_kept(centre: Service) -> None:
    told = centre.events.told
    for changes in ({"peak": NOT_A_NUMBER}, {"camera_id": "a/b"}, {"jpeg": b"GIF89a"}, {"label": "x" * 5000}):
        centre._on_message(topics.up(GATEWAY, "event"), codec.encode(msgspec.structs.replace(made_event(1), **changes)))
    assert centre.events.told == told


@pytest.mark.parametrize("layer", ["A" * 5000, "../release.key", "", "\x00", "b" * 64])
@pytest.mark.parametrize("offset", [0, -1, 2**63 - 1, -(2**63)])
def test_a_layer_that_is_none_is_not_held(centre: Service, layer: str, offset: int) -> None:
    part = centre.registry.part(Fetch(layer=layer, offset=offset, length=2**63 - 1, bases=(layer,) * 20))
    assert (part.total_bytes, part.data) == (0, b"")


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "*", "A" * 64, "b" * 63, ""])
def test_a_signed_manifest_cannot_name_a_file_of_its_choice(name: str) -> None:
    backbone = tiny_backbone()
    manifest = tiny_manifest(1, backbone, tiny_head(backbone), 0)
    spoiled = msgspec.structs.replace(manifest, backbone=msgspec.structs.replace(manifest.backbone, hash=name))
    with pytest.raises(WireError, match="names a layer"):
        decode_manifest(encode_manifest(spoiled))
    assert decode_manifest(encode_manifest(manifest)) == manifest


def test_lengths_that_promise_more_than_they_hold_cost_nothing() -> None:
    for header in (b"\xc6", b"\xdb", b"\xdd", b"\xdf"):
        with pytest.raises(WireError):
            codec.decode(b"\x82\xa1v\x01\xa1m" + header + struct.pack(">I", 2**32 - 1))
