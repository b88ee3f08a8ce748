"""A gateway whose eyes are replaced: the real agent process, with made pictures at a steady rate instead of cameras.

`python -m simulations.chaos.feeder --config edge.toml --journal FILE`. Spool, uplink, link, heartbeat and shutdown are
the agent's own. It starts in a second, so it can be killed often. Each accepted sample is noted in a journal outside of
the spool's disk, which no fault touches: the witness of what was accepted. While the file `FILE.pause` exists nothing
new is made.
"""

import argparse
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from common.clock import Clock, SystemClock
from common.ids import sample_id
from common.messages import Prediction, Sample, Scores
from common.settings import load_settings
from edge.agent import Agent
from edge.app import run_agent
from edge.lookout import Lookout
from edge.settings import EdgeSettings
from simulations.load.gateway import BACKBONE, EMBEDDING
from simulations.load.pictures import Pictures

PAUSE_LOOK_S: Final = 0.2


class Feed(Lookout):
    """The lookout without a camera; what it finds is made: samples at a rate, each durable before the next."""

    def __init__(
        self, settings: EdgeSettings, clock: Clock, accept: Callable[[Sample], None], journal: Path, per_s: float
    ) -> None:
        super().__init__(settings, (), clock, accept)
        self._identity, self._time, self._take, self._per_s = settings, clock, accept, per_s
        self._made_by = settings.cameras[0].id
        self._journal = journal
        self._pause = journal.with_suffix(".pause")
        self._pictures = Pictures(20_000)
        self._ending = threading.Event()
        self._feeding = threading.Thread(target=self._run, name="feed", daemon=True)

    @property
    def alive(self) -> bool:
        return super().alive and self._feeding.is_alive()

    def start(self) -> None:
        super().start()
        self._feeding.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        self._ending.set()
        self._feeding.join(timeout_s)
        super().stop(timeout_s)

    def _run(self) -> None:
        number = self._journal.stat().st_size // 33 if self._journal.exists() else 0
        while not self._ending.is_set():
            if self._pause.exists():
                self._ending.wait(PAUSE_LOOK_S)
                continue
            number += 1
            sample = self._make(number)
            self._take(sample)  # waits while the disk is full
            if self._ending.is_set():
                return  # the agent gave it up, or it was the last
            with self._journal.open("ab", buffering=0) as journal:
                journal.write(sample.sample_id.hex().encode() + b"\n")
            self._ending.wait(1.0 / self._per_s)

    def _make(self, number: int) -> Sample:
        settings, at_ns = self._identity, self._time.wall_ns()
        jpeg = self._pictures.jpeg(number)
        width, height = self._pictures.size
        return Sample(
            sample_id=sample_id(jpeg, settings.gateway_id, self._made_by, at_ns),
            gateway_id=settings.gateway_id,
            site_id=settings.site_id,
            camera_id=self._made_by,
            captured_at_ns=at_ns,
            release_id="r1-00000000",
            backbone=BACKBONE,
            width_px=width,
            height_px=height,
            jpeg=jpeg,
            embedding=EMBEDDING,
            predictions=(Prediction("belt", ("normal", "tear"), (0.4, 0.6), 1.0),),
            scores=Scores(0.5, 0.5, 0.5, 0.0, number * 37 % 101 / 101),
            reason="novel",
            pixel_path="chaos",
        )


def main() -> None:
    """Run until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--per-s", type=float, default=2.0)
    given = parser.parse_args()

    class FedAgent(Agent):
        """The agent with a feed for eyes."""

        def _make_lookout(self) -> Feed:
            return Feed(self.settings, SystemClock(), self._accept, given.journal, given.per_s)

    os.umask(0o077)
    run_agent(load_settings(EdgeSettings, given.config), make_agent=FedAgent)


def read_journal(journal: Path) -> set[bytes]:
    """Ids of the samples that were accepted, by the witness; a line that a kill cut short is none."""
    if not journal.exists():
        return set()
    lines = journal.read_bytes().split(b"\n")
    return {bytes.fromhex(line.decode()) for line in lines if len(line) == 32}


if __name__ == "__main__":
    main()
