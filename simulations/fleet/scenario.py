"""A scenario file: what the virtual fleet is like and what happens to it. `headframe sim run FILE` reads it.

Every key is a field below (`headframe sim keys` lists them, docs/federation.md has the list); files of the questions
people ask are in `simulations/scenarios/`.
"""

import itertools
import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from common.errors import ConfigError

SCENARIOS = Path(__file__).resolve().parents[1] / "scenarios"
SITES_MAX, ROUNDS_MAX, VARIANTS_MAX = 1_000_000, 1_000, 64
JUDGED_BYTES_MAX = 4_000_000_000
"""Quarantine holds each site's second moment: 2,000 sites in 256 dimensions are 1 GB."""
PACKED_MAX: Final = 200_000
"""Site-rounds under a bound on bytes: what is lost by it is lost site by site, two milliseconds each."""
HINT: Final = "`headframe sim keys` lists every key with its meaning."


class Fleet(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One fleet, and how it lives."""

    sites: Annotated[int, Meta(description="Virtual sites.", ge=1, le=SITES_MAX)] = 1000
    rounds: Annotated[int, Meta(description="Rounds of looking, choosing and sending.", ge=1, le=ROUNDS_MAX)] = 10
    seed: Annotated[int, Meta(description="Same seed, same result.")] = 1
    data: Annotated[
        str,
        Meta(description="`generated`, or a labelled folder below HEADFRAME_DATA such as belt-defects or neu-steel."),
    ] = "generated"
    dimensions: Annotated[
        int, Meta(description="Embeddings are projected to so many principal directions of the data.", ge=2, le=2048)
    ] = 128
    alpha: Annotated[
        float,
        Meta(description="Dirichlet: how alike the sites' class mixtures are; small is one class per site.", gt=0),
    ] = 0.3
    style: Annotated[
        float, Meta(description="Length of a site's own shift of all embeddings, in standard deviations of the data.")
    ] = 0.5
    phases: Annotated[int, Meta(description="The classes arrive in so many steps over the rounds.", ge=1)] = 1
    frames: Annotated[int, Meta(description="Frames a site looks at per round.", ge=1, le=1024)] = 16
    budget: Annotated[int, Meta(description="Frames of a round that it may send or have labelled.", ge=1)] = 4
    choice: Annotated[
        Literal["uncertain", "novel", "random"], Meta(description="How it chooses: `uncertain`, `novel` or `random`.")
    ] = "uncertain"
    label_delay: Annotated[int, Meta(description="Rounds until a chosen frame has its label.", ge=0)] = 0
    outage: Annotated[
        float,
        Meta(
            description="Share of rounds in which a site has no link; what it has then waits for the next one.",
            ge=0,
            lt=1,
        ),
    ] = 0.0
    statistics_bytes_max: Annotated[
        int,
        Meta(
            description="Bytes that a site's statistics may have, as `learning.statistics_bytes_max`; 0: no bound.",
            ge=0,
        ),
    ] = 0
    poisoned: Annotated[float, Meta(description="Share of sites that lie.", ge=0, lt=1)] = 0.0
    poison: Annotated[
        Literal["flip", "scale"],
        Meta(description="How: `flip` the labels, or `scale` the embeddings behind the statistics."),
    ] = "flip"
    shrinkage: Annotated[float, Meta(description="As `learning.shrinkage` of cloud.toml.", gt=0, le=1)] = 0.3
    quarantine: Annotated[
        bool, Meta(description="The centre leaves out the sites whose statistics are not to be believed.")
    ] = False
    gate: Annotated[
        float,
        Meta(
            description="A head that loses more than this share of a class on gold rows is not released; 0: no gate.",
            ge=0,
            lt=1,
        ),
    ] = 0.0
    personal: Annotated[
        float,
        Meta(
            description="A site's own statistics count so many times in a head of its own; 0: no personal heads.", ge=0
        ),
    ] = 0.0


def list_keys() -> list[dict[str, str]]:
    """Every key of `[fleet]`: `key`, `default`, `meaning`."""
    properties = msgspec.json.schema(Fleet)["$defs"]["Fleet"]["properties"]
    return [
        {"key": name, "default": json.dumps(found["default"]), "meaning": found["description"]}
        for name, found in properties.items()
    ]


class Scenario(msgspec.Struct, frozen=True):
    """A named fleet, or several that differ in the keys of `vary`."""

    name: str
    question: str
    variants: tuple[tuple[str, Fleet], ...]


def read_scenario(path: Path, overrides: Mapping[str, Any] | None = None) -> Scenario:
    """Read a scenario file; a bare name is looked for among those that come with the project.

    Raises:
        ConfigError: no such file, an unknown key, or a value out of its bounds.
    """
    found = path if path.is_file() else SCENARIOS / f"{path.name.removesuffix('.toml')}.toml"
    if not found.is_file():
        names = ", ".join(sorted(file.stem for file in SCENARIOS.glob("*.toml")))
        raise ConfigError(f"there is no scenario {path}", f"Give a file, or one of: {names}.")
    try:
        content = tomllib.loads(found.read_text(encoding="utf-8"))
        base = {**content.get("fleet", {}), **(overrides or {})}
        variants = tuple(_variants(base, content.get("vary", {})))
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"{found}: {error}", HINT) from error
    return Scenario(str(content.get("name", found.stem)), str(content.get("question", "")), variants)


def _variants(base: Mapping[str, Any], vary: Mapping[str, list[Any]]) -> Iterator[tuple[str, Fleet]]:
    """The product of all that varies, each with a name that says in what."""
    for number, values in enumerate(itertools.product(*vary.values())):
        if number >= VARIANTS_MAX:
            raise ConfigError(f"more than {VARIANTS_MAX} variants", "Vary fewer keys at once.")
        different = dict(zip(vary, values, strict=True))
        fleet = msgspec.convert({**base, **different}, Fleet)
        _check(fleet)
        yield ", ".join(_said(key, value) for key, value in different.items()) or "all", fleet


def _said(key: str, value: object) -> str:
    """Short enough for a chart's legend: `alpha 0.3`, `quarantine`, `no quarantine`, `uncertain`."""
    if isinstance(value, bool):
        return key if value else f"no {key}"
    return value if isinstance(value, str) else f"{key} {value}"


def _check(fleet: Fleet) -> None:
    bounds = {
        "phases (at most rounds)": fleet.phases <= fleet.rounds,
        "budget (at most frames)": fleet.budget <= fleet.frames,
        "label_delay (less than rounds)": fleet.label_delay < fleet.rounds,
        "quarantine (sites * dimensions²)": not fleet.quarantine
        or 8 * fleet.sites * fleet.dimensions**2 <= JUDGED_BYTES_MAX,
        "statistics_bytes_max (sites * rounds)": not fleet.statistics_bytes_max
        or fleet.sites * fleet.rounds <= PACKED_MAX,
    }
    if wrong := [key for key, holds in bounds.items() if not holds]:
        raise ConfigError(f"out of bounds: {', '.join(wrong)}", HINT)
