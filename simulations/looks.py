"""What a simulated belt camera can see, and how each site looks. Numbers only; `drawing` and `belts` make pictures.

The seen sites are what the first release is trained on. The unseen ones differ in light, haze, tint, coarseness and
mounting the way real mines do, so that a head trained elsewhere falls off the cliff there.
"""

from dataclasses import dataclass
from typing import Final

NORMAL: Final = "normal"

SCENARIOS: Final[dict[str, tuple[str, ...]]] = {
    "foreign-object": (NORMAL, "anchor-rod", "wood", "large-lump"),
    "belt-surface": (NORMAL, "tear", "water"),
}

EVENTS: Final[tuple[str, ...]] = tuple(name for classes in SCENARIOS.values() for name in classes if name != NORMAL)
"""Everything that can come along on the belt, one at a time."""

SCENARIO_OF: Final[dict[str, str]] = {name: scenario for scenario, names in SCENARIOS.items() for name in names[1:]}

Colour = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Look:
    """How a site's cameras see. Lengths are for a picture 480 px wide and scale with it; colours are BGR."""

    seen: bool
    """True: the first release is trained on this site."""
    speed_px_s: float = 90.0
    """Belt speed; towards the lower edge of the picture."""
    light: float = 1.0
    """Brightness under the lamp; 1 = a coal face of mean 70."""
    lamp: tuple[float, float] = (0.5, 0.4)
    """Where the lamp hangs, as a share of width and height."""
    lamp_reach: float = 0.55
    """How far its light reaches, as a share of the width."""
    ambient: float = 0.4
    """Light away from the lamp, as a share of the light under it."""
    haze: float = 0.0
    """Share of the picture that is dust in the air, 0..1."""
    haze_colour: Colour = (125.0, 128.0, 130.0)
    tint: Colour = (1.0, 1.0, 1.0)
    saturation: float = 1.0
    """0: a camera that sees infrared and gives grey pictures."""
    noise: float = 3.0
    """Standard deviation of the sensor noise, in grey levels."""
    blur_px: float = 0.0
    """Dirty or unfocused lens: standard deviation."""
    grain: float = 1.0
    """Size of the coal pieces."""
    contrast: float = 1.0
    """Of the coal: wet coal glints, dusty coal is flat."""
    zoom: float = 1.0
    """Size of objects: how near the camera hangs."""
    grime: float = 0.35
    """Share of coal fines on every object, 0..1."""
    gaps: int = 1
    """Bare places in the load per period of the belt."""
    splices: int = 0
    """Clip joints and repairs across the belt per period: harmless, but they look like something."""
    belt_share: float = 0.74
    """Width of the belt as a share of the picture."""
    angle_deg: float = 0.0
    """How far the camera is turned about its axis."""
    taper: float = 0.1
    """Perspective: how much more of the belt's width the upper edge sees than the lower."""


SITES: Final[dict[str, Look]] = {
    "north-drift": Look(seen=True, light=1.35, lamp=(0.42, 0.35), angle_deg=2.0),
    "south-drift": Look(
        seen=True,
        light=1.15,
        lamp=(0.6, 0.5),
        tint=(0.93, 1.0, 1.06),
        grain=1.2,
        speed_px_s=105.0,
        angle_deg=-4.0,
        taper=0.18,
        noise=4.0,
    ),
    "east-panel": Look(  # dusty transfer point in warm light, coarse coal
        seen=False,
        light=1.2,
        haze=0.38,
        haze_colour=(95.0, 135.0, 175.0),
        tint=(0.7, 1.0, 1.25),
        contrast=0.8,
        noise=5.0,
        grain=2.2,
        zoom=1.12,
        speed_px_s=80.0,
        angle_deg=9.0,
        lamp=(0.3, 0.3),
        grime=0.4,
        gaps=3,
        splices=2,
        saturation=0.7,
    ),
    "west-shaft": Look(  # hung askew, under a sodium lamp, a belt with joints
        seen=False,
        light=1.05,
        ambient=0.45,
        lamp=(0.75, 0.3),
        lamp_reach=0.45,
        tint=(0.6, 0.95, 1.3),
        noise=5.0,
        grain=0.85,
        speed_px_s=110.0,
        angle_deg=-60.0,
        taper=0.2,
        belt_share=0.6,
        zoom=1.15,
        splices=4,
    ),
    "deep-seam": Look(  # infrared camera under strong floods, very coarse coal, a belt with joints
        seen=False,
        light=1.8,
        ambient=0.7,
        saturation=0.0,
        grain=2.4,
        belt_share=0.9,
        zoom=1.08,
        speed_px_s=95.0,
        angle_deg=5.0,
        noise=4.0,
        splices=4,
        gaps=2,
        grime=0.2,
    ),
}
