"""What a release changes, and how changes are put together: parts of manifests, without their bytes. Pure.

A manifest is taken apart into parts: one per scenario, the detectors, and the backbone with its variants. A change says
what parts become; applied to any release of the same backbone it makes another one, so two scenarios can be on their
way at once, and one of them can be taken back alone. Another backbone carries every head away: it is a change of
everything, and no head ever stands on a foreign one.
"""

from typing import Final

import msgspec

from cloud.rollout.state import EVERYTHING
from common.ids import layer_hash
from common.manifest import DetectorLayer, Manifest, Scenario, Variant, encode_manifest

DETECTORS: Final = "detectors"
VARIANTS: Final = "variants"
SCENARIO: Final = "scenario:"

Content = Scenario | tuple[DetectorLayer, ...] | tuple[Variant, ...] | None
"""Of a part; None: a scenario that is not there."""


def parts_of(manifest: Manifest) -> dict[str, Content]:
    """All parts but the backbone."""
    found: dict[str, Content] = {f"{SCENARIO}{item.name}": item for item in manifest.scenarios}
    return {**found, DETECTORS: manifest.detectors, VARIANTS: manifest.variants}


def changed_parts(before: Manifest, after: Manifest) -> tuple[str, ...]:
    """What differs between two releases; `*` when the backbone does."""
    if before.backbone != after.backbone:
        return (EVERYTHING,)
    old, new = parts_of(before), parts_of(after)
    return tuple(sorted(part for part in {*old, *new} if old.get(part) != new.get(part)))


def new_classes(before: Manifest, after: Manifest) -> tuple[str, ...]:
    """`scenario/class` of what the release before could not name."""
    known = {item.name: item.classes for item in before.scenarios}
    return tuple(
        f"{item.name}/{label}"
        for item in after.scenarios
        for label in item.classes
        if label not in known.get(item.name, ())
    )


def with_parts(base: Manifest, source: Manifest, parts: tuple[str, ...]) -> Manifest:
    """The base with these parts as the source has them; number, times and note are the base's."""
    if EVERYTHING in parts:
        return msgspec.structs.replace(
            base,
            backbone=source.backbone,
            scenarios=source.scenarios,
            detectors=source.detectors,
            variants=source.variants,
        )
    if base.backbone != source.backbone:
        return base  # parts of another backbone do not fit: nothing of them is taken
    contents = parts_of(base)
    for part in parts:
        contents[part] = parts_of(source).get(part)
    scenarios = tuple(item for item in contents.values() if isinstance(item, Scenario))
    variants = source.variants if VARIANTS in parts else base.variants
    if any(part.startswith(SCENARIO) for part in parts) and variants != source.variants:
        variants = tuple(item for item in variants if item in source.variants)  # judged with these heads only
    detectors = source.detectors if DETECTORS in parts else base.detectors
    return msgspec.structs.replace(base, scenarios=scenarios, detectors=detectors, variants=variants)


def has_parts(manifest: Manifest, source: Manifest, parts: tuple[str, ...]) -> bool:
    """Whether a release has these parts as the source has them."""
    if EVERYTHING in parts:
        return content_key(manifest) == content_key(source)
    if manifest.backbone != source.backbone:
        return False
    mine, theirs = parts_of(manifest), parts_of(source)
    return all(mine.get(part) == theirs.get(part) for part in parts if part != VARIANTS)


def content_key(manifest: Manifest) -> str:
    """The same for releases that are made of the same layers, whatever their number, time and note."""
    plain = msgspec.structs.replace(manifest, sequence=0, created_at_ns=0, expires_at_ns=0, note="")
    ordered = msgspec.structs.replace(plain, scenarios=tuple(sorted(plain.scenarios, key=lambda item: item.name)))
    return layer_hash(encode_manifest(ordered))
