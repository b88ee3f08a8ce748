"""A scenario file: what the virtual fleet is like and what happens to it. `headframe sim run FILE` reads it.

Every key is a field below; files of the questions people ask are in `simulations/scenarios/`.
"""

import itertools
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from common.errors import ConfigError

SCENARIOS = Path(__file__).resolve().parents[1] / "scenarios"
SITES_MAX, ROUNDS_MAX, VARIANTS_MAX = 1_000_000, 1_000, 64
JUDGED_BYTES_MAX = 4_000_000_000
"""Quarantine holds each site's second moment: 2,000 sites in 256 dimensions are 1 GB."""


class Fleet(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One fleet, and how it lives."""

    sites: int = 1000
    rounds: int = 10
    seed: int = 1
    data: str = "generated"
    """`generated`, or a labelled folder below HEADFRAME_DATA such as belt-defects or neu-steel."""
    dimensions: int = 128
    """Embeddings are projected to their principal directions, as where the link is thin."""
    alpha: float = 0.3
    """Dirichlet: how alike the sites' class mixtures are; small is one class per site."""
    style: float = 0.5
    """Length of a site's own shift of all embeddings, in standard deviations of the data."""
    phases: int = 1
    """The classes arrive in so many steps over the rounds."""
    frames: int = 16
    """Frames a site looks at per round."""
    budget: int = 4
    """Frames of a round that it may send or have labelled."""
    choice: str = "uncertain"
    """How it chooses: `uncertain`, `novel` or `random`."""
    label_delay: int = 0
    """Rounds until a chosen frame has its label."""
    outage: float = 0.0
    """Share of rounds in which a site has no link; what it has then waits for the next one."""
    poisoned: float = 0.0
    """Share of sites that lie."""
    poison: str = "flip"
    """How: `flip` the labels, or `scale` the embeddings behind the statistics."""
    shrinkage: float = 0.3
    quarantine: bool = False
    """The centre leaves out the sites whose statistics are not to be believed (`cloud.learning.robustness`)."""
    gate: float = 0.0
    """A head that loses more than this share of a class on the gold rows is not released; 0: no gate."""
    personal: float = 0.0
    """A site's own statistics count so many times in a head of its own; 0: no personal heads."""


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
        raise ConfigError(f"{found}: {error}", "See simulations/fleet/scenario.py for the keys.") from error
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
        "sites": 1 <= fleet.sites <= SITES_MAX,
        "rounds": 1 <= fleet.rounds <= ROUNDS_MAX,
        "phases": 1 <= fleet.phases <= fleet.rounds,
        "budget": 1 <= fleet.budget <= fleet.frames <= 1024,
        "dimensions": 2 <= fleet.dimensions <= 2048,
        "choice": fleet.choice in ("uncertain", "novel", "random"),
        "poison": fleet.poison in ("flip", "scale"),
        "outage": 0 <= fleet.outage < 1,
        "poisoned": 0 <= fleet.poisoned < 1,
        "alpha": fleet.alpha > 0,
        "label_delay": 0 <= fleet.label_delay < fleet.rounds,
        "gate": 0 <= fleet.gate < 1,
        "personal": fleet.personal >= 0,
        "quarantine (sites * dimensions²)": not fleet.quarantine
        or 8 * fleet.sites * fleet.dimensions**2 <= JUDGED_BYTES_MAX,
    }
    if wrong := [key for key, holds in bounds.items() if not holds]:
        raise ConfigError(f"out of bounds: {', '.join(wrong)}", "See simulations/fleet/scenario.py for the keys.")
