"""The analytic head: its formulas against the textbook, federation against one place, ONNX against numpy."""

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest

from cloud.learning.export import export_head, read_head
from cloud.learning.heads import Form, UnlearnableError, calibrate, solve, solve_lda
from common.errors import OperatorError
from common.statistics import Statistics

CLASSES = ("normal", "tear", "hole")
SHRINKAGE = 0.1


def blobs(seed: int, n: int = 90, d: int = 16, spread: float = 1.5) -> tuple[np.ndarray, list[str]]:
    """Embeddings (n, d) around one centre per class."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(0, spread, (len(CLASSES), d))
    index = rng.integers(0, len(CLASSES), n)
    return centres[index] + rng.normal(0, 1, (n, d)), [CLASSES[i] for i in index]


def textbook(x: np.ndarray, statistics: Statistics) -> tuple[np.ndarray, np.ndarray]:
    """LDA logits and relative Mahalanobis distance with full covariances, term by term."""
    means = statistics.sums / statistics.counts[:, None]
    n, d = statistics.total, statistics.dimension
    within = statistics.moment - sum(c * np.outer(m, m) for c, m in zip(statistics.counts, means, strict=True))
    covariance = (1 - SHRINKAGE) * within / n + SHRINKAGE * np.trace(within) / n / d * np.eye(d)
    centre = means.mean(0)
    total = covariance + (means - centre).T @ (means - centre) / len(means)
    inverse, inverse_total = np.linalg.inv(covariance), np.linalg.inv(total)
    distance = np.array([[(r - m) @ inverse @ (r - m) for m in means] for r in x])
    far = np.array([(r - centre) @ inverse_total @ (r - centre) for r in x])
    return -distance / 2, distance.min(1) - far


def test_the_head_agrees_with_the_textbook_formulas_of_lda_and_relative_mahalanobis() -> None:
    x, labels = blobs(1)
    statistics = Statistics.of(CLASSES, x, labels)
    head = solve_lda(statistics, SHRINKAGE)
    logits, novelty = textbook(x, statistics)
    difference = head.logits(x) - logits
    np.testing.assert_allclose(difference - difference[:, :1], 0, atol=1e-9)  # equal up to a constant per row
    np.testing.assert_allclose(head.novelty(x), novelty, atol=1e-9)


def test_a_ridge_head_is_least_squares_with_all_classes_weighing_alike() -> None:
    """Solved by numpy from the pictures: each class as often as every other, the ridge on slopes only."""
    shares = {"normal": 4, "tear": 2, "hole": 1}
    x, labels = blobs(1, n=180)
    per_class = [np.array([r for r, label in zip(x, labels, strict=True) if label == c])[:30] for c in CLASSES]
    # one scatter for all classes is what the statistics have; so give them the same one, around means of their own
    noise = per_class[0] - per_class[0].mean(0)
    rows = np.concatenate([np.tile(noise, (shares[c], 1)) + per_class[k].mean(0) for k, c in enumerate(CLASSES)])
    named = [c for c in CLASSES for _ in range(30 * shares[c])]
    head = solve(Statistics.of(CLASSES, rows, named), SHRINKAGE, "ridge")

    weight = np.array([1 / shares[c] for c in named]) / (30 * len(CLASSES))
    centre = np.mean([part.mean(0) for part in per_class], axis=0)
    wanted = np.array([[float(label == c) - 1 / len(CLASSES) for c in CLASSES] for label in named])
    z, d = rows - centre, rows.shape[1]
    scatter = (noise.T @ noise) / 30
    between = z.T @ (weight[:, None] * z) - scatter
    ridge = SHRINKAGE * np.trace(scatter) / d * np.eye(d)
    slopes = np.linalg.solve((1 - SHRINKAGE) * scatter + ridge + between, z.T @ (weight[:, None] * wanted))
    np.testing.assert_allclose(head.logits(rows), z @ slopes, atol=1e-9)
    barely = solve(Statistics.of(CLASSES, rows, named), 1e-9, "ridge")
    fitted, *_ = np.linalg.lstsq(z * np.sqrt(weight)[:, None], wanted * np.sqrt(weight)[:, None], rcond=None)
    np.testing.assert_allclose(barely.logits(rows), z @ fitted, atol=1e-6)


def test_both_forms_have_the_same_novelty_and_neither_names_a_class_without_samples() -> None:
    x, labels = blobs(3)
    statistics = Statistics.of(CLASSES, x, labels).over((*CLASSES, "fire"))
    lda, ridge = solve(statistics, SHRINKAGE), solve(statistics, SHRINKAGE, "ridge")
    np.testing.assert_array_equal(ridge.novelty(x), lda.novelty(x))
    assert np.abs(ridge.probabilities(x) - lda.probabilities(x)).max() > 0.01
    calibrated = calibrate(ridge, x, labels)
    assert calibrated.probabilities(x)[:, 3].max() < 1e-6
    assert calibrated.temperature < 1
    right = [said == label for said, label in zip(calibrated.predict(x), labels, strict=True)]
    assert np.mean(right) > 0.9


@pytest.mark.parametrize("form", ["lda", "ridge"])
def test_a_head_of_either_form_is_what_its_file_says(form: Form) -> None:
    x, labels = blobs(3)
    head = replace(solve(Statistics.of((*CLASSES, "fire"), x, labels), SHRINKAGE, form), temperature=0.7)
    data = export_head(head, "belt", "b" * 64)
    read = read_head(data)
    assert (read.form, read.classes) == (form, head.classes)
    session = onnxruntime.InferenceSession(data)
    probabilities, novelty = session.run(None, {"embedding": x.astype(np.float32)})
    np.testing.assert_allclose(probabilities, head.probabilities(x), atol=1e-4)
    np.testing.assert_allclose(read.probabilities(x), head.probabilities(x), atol=1e-4)
    np.testing.assert_allclose(novelty, head.novelty(x), atol=1e-3)


def test_federated_in_any_partition_and_order_equals_all_data_in_one_place() -> None:
    x, labels = blobs(2)
    whole = solve_lda(Statistics.of(CLASSES, x, labels), SHRINKAGE)
    parts = [Statistics.of(CLASSES, x[i::7], labels[i::7]) for i in range(7)]
    summed = parts[3]
    for part in parts[:3] + parts[:3:-1]:
        summed = summed + part
    federated = solve_lda(summed, SHRINKAGE)
    np.testing.assert_allclose(federated.logits(x), whole.logits(x), atol=1e-9)


def test_a_class_without_samples_is_never_predicted_and_leaves_the_others_as_they_were() -> None:
    x, labels = blobs(3)
    statistics = Statistics.of(CLASSES, x, labels)
    with_new = solve_lda(statistics.over((*CLASSES, "fire")), SHRINKAGE)
    assert "fire" not in with_new.predict(x)
    np.testing.assert_allclose(with_new.logits(x)[:, :3], solve_lda(statistics, SHRINKAGE).logits(x), atol=1e-9)
    np.testing.assert_allclose(with_new.novelty(x), solve_lda(statistics, SHRINKAGE).novelty(x), atol=1e-9)


def test_one_class_alone_is_refused_with_what_to_do() -> None:
    x, _ = blobs(4)
    with pytest.raises(OperatorError, match="at least two classes"):
        solve_lda(Statistics.of(CLASSES, x, ["normal"] * len(x)), SHRINKAGE)


@pytest.mark.parametrize("seed", range(3))
def test_one_sample_of_each_class_is_refused_whatever_rounding_says(seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(2, 1280)) + 5
    with pytest.raises(UnlearnableError, match="two labelled samples that differ"):
        solve_lda(Statistics.of(CLASSES, x, ["normal", "tear"]), SHRINKAGE)
    three = np.concatenate([x, x[:1] + 0.01])
    assert solve_lda(Statistics.of(CLASSES, three, ["normal", "tear", "normal"]), SHRINKAGE).predict(x) == [
        "normal",
        "tear",
    ]


def test_unlike_samples_are_more_novel_than_those_of_trained_classes() -> None:
    x, labels = blobs(5, n=300)
    keep = [i for i, label in enumerate(labels) if label != "hole"]
    head = solve_lda(Statistics.of(CLASSES[:2], x[keep], [labels[i] for i in keep]), SHRINKAGE)
    known, novel = blobs(6, n=300)
    scores = head.novelty(known)
    is_hole = np.array([label == "hole" for label in novel])
    assert (scores[is_hole][:, None] > scores[~is_hole][None]).mean() > 0.8  # AUROC


def test_calibration_makes_overconfident_probabilities_honest() -> None:
    x, labels = blobs(7, n=60, d=40, spread=0.2)
    held, truth = blobs(8, n=400, d=40, spread=0.2)
    head = solve_lda(Statistics.of(CLASSES, x, labels), 0.01)
    calibrated = calibrate(head, held, truth)

    def log_loss(weights: object) -> float:
        p = weights.probabilities(held)  # type: ignore[attr-defined]
        return float(-np.log(p[np.arange(len(truth)), [CLASSES.index(t) for t in truth]] + 1e-300).mean())

    assert calibrated.temperature > 1
    assert log_loss(calibrated) < log_loss(head)
    assert calibrated.predict(held) == head.predict(held)


def test_a_head_without_errors_on_few_samples_is_not_certain_of_everything() -> None:
    x, labels = blobs(10, n=200, d=40, spread=2.0)
    held, truth = blobs(11, n=100, d=40, spread=2.0)
    head = solve_lda(Statistics.of((*CLASSES, "fire"), x, labels), 0.01)
    calibrated = calibrate(head, held, truth)
    assert head.predict(held) == truth
    doubts = 1 - calibrated.probabilities(held).max(axis=1)
    assert 1e-4 < float(np.median(doubts)) < 0.05, "a hundred samples without an error: about one error in a hundred"
    assert len(np.unique(doubts)) == len(doubts), "frames can be ranked by their doubts"


def test_the_onnx_file_computes_what_the_numbers_say_and_reads_back() -> None:
    x, labels = blobs(9)
    head = calibrate(solve_lda(Statistics.of((*CLASSES, "fire"), x, labels), SHRINKAGE), x, labels)
    data = export_head(head, "belt", "a" * 64)
    session = onnxruntime.InferenceSession(data)
    probabilities, novelty = session.run(None, {"embedding": x.astype(np.float32)})
    np.testing.assert_allclose(probabilities, head.probabilities(x), atol=1e-4)
    np.testing.assert_allclose(novelty, head.novelty(x), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(read_head(data).logits(x), head.logits(x), rtol=1e-4, atol=1e-3)
    assert data == export_head(head, "belt", "a" * 64), "the same head must be the same layer"
