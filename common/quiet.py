"""Data must not leave: switches off the telemetry and update check of Flower, before anything imports it."""

import os


def silence_flower() -> None:
    """Set the environment that Flower reads at import; child processes inherit it."""
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
