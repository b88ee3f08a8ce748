"""The plan that cloud.toml describes."""

from cloud.rollout.gates import Limits
from cloud.rollout.plan import STAGES, Plan, Wave, Window, scaled
from cloud.settings import RolloutSettings, parse_window


def plan_of(settings: RolloutSettings, fleet: int) -> Plan:
    """The plan that the settings describe, for a fleet of this size."""
    waves: tuple[Wave, ...] = STAGES
    if settings.waves:
        waves = tuple(
            Wave(
                item.gateways,
                item.share,
                tuple(name for entry in item.among for name in settings.labels.get(entry, (entry,))),
            )
            for item in settings.waves
        )
    return Plan(
        waves=scaled(waves, fleet),
        healthy_frames=settings.healthy_frames,
        soak_s=settings.soak_s,
        deadline_s=settings.deadline_s,
        offline_age_max_s=settings.offline_age_max_s,
        windows=tuple(Window(*parse_window(text)) for text in settings.windows),
        site_bytes_per_s=settings.site_bytes_per_s,
        pace=settings.pace,
        limits=Limits(**settings.limits.model_dump()),
    )
