"""Where a layer comes from, and where a sample went: the same facts read in both directions.

A layer's record is written when it is made (`note_*`) and never changed. What is asked is a release, a layer or a
sample; the answer is plain values, for people and for other programs.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from cloud.store import LayerRecord, Release, Store
from common import AGENT_VERSION
from common.errors import OperatorError
from common.ids import SAMPLE_ID_BYTES
from common.manifest import SHARED, Manifest, decode_manifest

PREFIX_MIN: Final = 8
"""Digits that name a layer."""
LISTED_MAX: Final = 1000
"""Sample ids in an answer; their number is always told."""


def note_layer(
    store: Store,
    layer: str,
    kind: str,
    at_ns: int,
    *,
    scenario: str = "",
    parent: str = "",
    samples: Iterable[bytes] = (),
    **record: object,
) -> None:
    """Record where a layer comes from.

    Args:
        samples: ids of the samples that went into it.
        record: data_version, datasets, parameters, evaluation, licence: what is known.
    """
    name = store.put_sample_set(samples)
    store.put_layer(LayerRecord(layer, kind, scenario, parent, name, {"code": AGENT_VERSION, **record}, at_ns))


def trace(store: Store, name: str) -> dict[str, Any]:
    """What is known of a release, a layer (or the first digits of it), or a sample.

    Raises:
        OperatorError: there is nothing of this name.
    """
    release = store.release(name)
    if release:
        return _of_release(store, release)
    if len(name) == 2 * SAMPLE_ID_BYTES and _is_hex(name):
        found = _of_sample(store, bytes.fromhex(name))
        if found:
            return found
    if len(name) >= PREFIX_MIN and _is_hex(name):
        return _of_layer(store, name)
    raise OperatorError(
        f"there is no release, layer or sample {name!r}",
        "Give a release of `headframe cloud releases`, a layer's hash (8 digits or more), or a sample's id.",
    )


def _of_release(store: Store, release: Release) -> dict[str, Any]:
    manifest, records = decode_manifest(release.manifest), {item.layer: item for item in store.layers()}
    rows = [_row(layer, kind, where, records.get(layer)) for layer, kind, where in _layers(manifest)]
    sets = {item.samples for layer, _, _ in _layers(manifest) if (item := records.get(layer)) and item.samples}
    made_from = sorted({name for group in sets for name in store.sample_set(group)})
    saw = store.seen_by(release.release_id)
    return {
        "release": release.release_id,
        "sequence": release.sequence,
        "status": release.status,
        "base": release.base,
        "note": manifest.note,
        "created_at_ns": release.created_at_ns,
        "gate": release.gate,
        "layers": rows,
        "made_from": _ids(made_from),
        "saw": _ids(saw),
    }


def _of_layer(store: Store, prefix: str) -> dict[str, Any]:
    records = {item.layer: item for item in store.layers()}
    releases = [(release.release_id, decode_manifest(release.manifest)) for release in store.releases()]
    known = set(records) | {layer for _, manifest in releases for layer, _, _ in _layers(manifest)}
    found = sorted(layer for layer in known if layer.startswith(prefix))
    if len(found) != 1:
        raise OperatorError(f"{len(found)} layers begin with {prefix!r}", "Give more digits, or another name.")
    layer = found[0]
    kinds = {(kind, where) for _, manifest in releases for name, kind, where in _layers(manifest) if name == layer}
    kind, where = next(iter(sorted(kinds)), ("", ""))
    record = records.get(layer)
    ancestors, at = [], record
    while at and at.parent and at.parent not in ancestors:
        ancestors.append(at.parent)
        at = records.get(at.parent)
    return _row(layer, kind, where, record) | {
        "ancestors": ancestors,
        "children": sorted(item.layer for item in records.values() if item.parent == layer),
        "releases": [name for name, manifest in releases if layer in {item for item, _, _ in _layers(manifest)}],
        "made_from": _ids(store.sample_set(record.samples) if record and record.samples else []),
    }


def _of_sample(store: Store, sample_id: bytes) -> dict[str, Any] | None:
    sample, sets = store.sample(sample_id), set(store.sets_with(sample_id))
    if sample is None and not sets:
        return None
    layers = [item for item in store.layers() if item.samples in sets]
    names = {item.layer for item in layers}
    releases = [
        release.release_id
        for release in store.releases()
        if names & {layer for layer, _, _ in _layers(decode_manifest(release.manifest))}
    ]
    seen = {
        "seen_by": sample.release_id if sample else "",
        "gateway": sample.gateway_id if sample else "",
        "site": sample.site_id if sample else "",
        "camera": sample.camera_id if sample else "",
        "labels": dict(sample.labels) if sample else {},
    }
    rows = [{"layer": item.layer, "kind": item.kind, "scenario": item.scenario} for item in layers]
    return {"sample": sample_id.hex(), **seen, "layers": rows, "releases": releases}


def _layers(manifest: Manifest) -> list[tuple[str, str, str]]:
    """(hash, kind, where it is used) of every layer."""
    heads = [
        (layer.hash, "head", item.name if site == SHARED else f"{item.name} at {site}")
        for item in manifest.scenarios
        for site, layer in item.heads.items()
    ]
    return [
        (manifest.backbone.hash, "backbone", ""),
        *heads,
        *((item.layer.hash, "variant", item.precision) for item in manifest.variants),
        *((item.layer.hash, "detector", item.name) for item in manifest.detectors),
        *([(manifest.golden.hash, "golden", "")] if manifest.golden else []),
    ]


def _row(layer: str, kind: str, where: str, record: LayerRecord | None) -> dict[str, Any]:
    known: Mapping[str, Any] = record.record if record else {}
    return {
        "layer": layer,
        "kind": kind or (record.kind if record else ""),
        "where": where or (record.scenario if record else ""),
        "parent": record.parent if record else "",
        "made_at_ns": record.at_ns if record else 0,
        **known,
    }


def _ids(names: list[bytes]) -> dict[str, Any]:
    return {"samples": len(names), "ids": [name.hex() for name in names[:LISTED_MAX]]}


def _is_hex(name: str) -> bool:
    return all(letter in "0123456789abcdef" for letter in name)
