"""The benchmark of protections measures the product's own round: here on generated pictures."""

import json
from pathlib import Path

import numpy as np
import pytest

from simulations.bench import privacy
from simulations.bench._sites import Pictures

CLASSES = ("normal", "tear", "wood")


def pictures(count: int = 600, dimension: int = 24) -> Pictures:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, count)
    x = (rng.normal(size=(count, dimension)) + 3.0 * np.eye(3, dimension)[truth]).astype(np.float32)
    labels = np.array([CLASSES[k] for k in truth])
    return Pictures("generated", CLASSES, x, labels, labels.copy(), np.ones(count, np.int64))


def test_protections_cost_what_they_should_and_hide_what_they_should() -> None:
    pytest.importorskip("dp_accounting")
    forms = (privacy.Masked(512), privacy.Masked(4, 8.0))
    found = privacy.measure(pictures(), 0, forms)
    none, wide, noised = found["none"], found["masked, 512 directions"], found["masked, ε = 8"]
    assert none[0] > 90
    assert abs(none[0] - wide[0]) < 2, "all 24 directions: the same statistics but for rounding"
    assert none[4] > 0.9, "a site's own statistics give its pictures away"
    assert noised[4] < none[4] - 0.2
    assert noised[0] > 60
    rare = found["classes of 6 or more"]
    assert rare[2] <= none[2]


def test_the_figures_name_every_protection(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dp_accounting")
    monkeypatch.setattr(privacy, "find_folders", lambda: [Path("generated")])
    monkeypatch.setattr(privacy, "embed_folder", lambda folder: pictures(300))
    figures = privacy.bench_privacy(quick=True)
    json.dumps(figures, allow_nan=False)
    names = {form.name for form in privacy.QUICK_FORMS} | {f"classes of {privacy.RARE} or more"}
    assert set(figures["points_lost"]) == names
    assert set(figures["membership_auroc"]) == names | {"none"}
    assert figures["epsilon"] == {form.name: 8.0 for form in privacy.QUICK_FORMS if form.epsilon}
