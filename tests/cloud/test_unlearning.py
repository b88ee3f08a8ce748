"""Who is unlearned was never there: the same heads as without, by one subtraction, and not asked again."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import cloud.learning.ledger as ledger_module
from cloud.cli import app
from cloud.learning.datasets import Catalogue, Dataset
from cloud.learning.heads import HeadWeights, solve_shared
from cloud.learning.ledger import Ledger, Part
from cloud.learning.training import Trainer
from cloud.learning.unlearning import unlearn
from cloud.registry import Registry
from cloud.settings import LearningSettings
from cloud.store import Store
from cloud.trust import Repository
from common.clock import SystemClock
from common.errors import OperatorError
from common.messages import Sample, State
from common.packing import pack
from common.statistics import Statistics

CLASSES = ("normal", "tear")
DIMENSION = 4  # of the samples that `make_sample` makes


def rows(seed: int, count: int, dimension: int = DIMENSION) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, count)
    return rng.normal(size=(count, dimension)) + 1.5 * truth[:, None], [CLASSES[t] for t in truth]


def same(one: HeadWeights, other: HeadWeights) -> None:
    for name in ("directions", "offsets", "constants"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-6, atol=1e-6)


class Centre:
    """A store with contributions, labelled samples and a dataset, and a trainer over it."""

    def __init__(self, folder: Path, store: Store, make_sample: Callable[..., Sample], backbone: bytes) -> None:
        self.store, self.make_sample = store, make_sample
        self.registry = Registry(
            folder / "layers", store, Repository.open(folder / "trust", SystemClock()), SystemClock()
        )
        self.registry.set_backbone(backbone)
        self.backbone = self.registry.backbone()[0].hash
        (folder / "datasets").mkdir()
        self.catalogue = Catalogue(folder / "datasets")
        x, labels = rows(7, 60)
        sites = tuple("south" if row % 4 == 0 else "archive" for row in range(60))
        ids = tuple(bytes([row]) * 16 for row in range(60))
        gold = np.arange(60) % 5 == 0
        self.catalogue.put(
            Dataset("base", "belt", self.backbone, CLASSES, x.astype(np.float32), tuple(labels), sites, ids, gold)
        )
        self.trainer = Trainer(store, self.catalogue, self.registry, LearningSettings(quarantine=False, dimensions=8))

    def gateway(self, name: str, site: str, seed: int, samples: int = 12) -> None:
        """A gateway that contributed half of its labelled samples, and uploaded them all."""
        self.store.put_state(State(gateway_id=name, site_id=site, at_ns=0, agent_version="0", release_id=""))
        x, labels = rows(seed, samples)
        made = [
            self.make_sample(
                seed * 100 + n,
                gateway_id=name,
                site_id=site,
                backbone=self.backbone,
                embedding=x[n].astype("<f2").tobytes(),
            )
            for n in range(samples)
        ]
        self.store.add_samples(made, 0)
        self.store.add_labels(
            [(sample.sample_id, "belt", label) for sample, label in zip(made, labels, strict=True)], "li", 1
        )
        half = samples // 2
        packed, _ = pack(CLASSES, x[:half].astype("<f2"), labels[:half])
        meta = {"classes": list(packed.classes), "covered": [s.sample_id.hex() for s in made[:half]]}
        self.store.put_contribution("belt", self.backbone, name, packed.arrays(), meta, seed)

    def head(self) -> HeadWeights:
        classes = self.trainer.scenarios()["belt"]
        shared = self.trainer.gathering.evidence("belt", classes, self.backbone, None).shared
        return solve_shared(shared, self.trainer.rules.shrinkage, self.trainer.rules.dimension_max)

    def unlearn(self, name: str) -> HeadWeights:
        return unlearn(name, self.store, self.registry, self.trainer, "li", 5).heads["belt"]


@pytest.fixture
def centre(
    tmp_path: Path, store: Store, make_sample: Callable[..., Sample], tiny_backbone: Callable[..., bytes]
) -> Centre:
    return Centre(tmp_path, store, make_sample, tiny_backbone(DIMENSION))


def test_a_site_that_is_unlearned_was_never_there(centre: Centre) -> None:
    centre.gateway("east-1", "east", 1)
    never = centre.head()
    centre.gateway("north-1", "north", 2)
    centre.gateway("north-2", "north", 3)
    assert np.abs(centre.head().directions - never.directions).max() > 1e-3
    found = unlearn("north", centre.store, centre.registry, centre.trainer, "li", 5)
    assert (found.contributions, found.samples, found.anew) == (2, 24, [])
    same(found.heads["belt"], never)
    same(centre.head(), never)
    assert centre.store.contributors() == ["east-1"]
    assert centre.store.audits(1)[0]["action"] == "unlearn"


def test_one_gateway_of_a_site_leaves_and_the_others_stay(centre: Centre) -> None:
    centre.gateway("north-1", "north", 2)
    never = centre.head()
    centre.gateway("north-2", "north", 3)
    centre.head()
    same(centre.unlearn("north-2"), never)
    same(centre.head(), never)


def crowd(centre: Centre) -> None:
    """Sites of six contributed samples, and one of ninety."""
    for number in range(1, 7):
        centre.gateway(f"quiet-{number}", f"quiet-{number}", number)
    centre.gateway("loud-1", "loud", 9, 180)


def test_a_loud_gateway_counts_as_much_as_the_bound_lets_it(centre: Centre) -> None:
    crowd(centre)
    evidence = centre.trainer.gathering.evidence("belt", CLASSES, centre.backbone, None)
    assert evidence.bounded == {"loud-1": pytest.approx(60 / 90)}
    assert evidence.by_site["loud"].total == 180, "its own head is solved from all that it has"
    dataset = 48
    assert evidence.shared.total == pytest.approx(dataset + 6 * 12 + 90 + 60)
    own = evidence.labelled["loud"]
    weights = np.array([evidence.weights.get(name, 1.0) for name in own.ids])
    assert weights.sum() == pytest.approx(90 + 60)
    without = evidence.shared - Statistics.of(CLASSES, own.embeddings, own.labels, weights)
    assert without.total == pytest.approx(dataset + 6 * 12), "the gate's folds leave the sum exactly"


@pytest.mark.parametrize("name", ["quiet-1", "loud"])
def test_unlearning_beside_a_loud_gateway_is_exact_too(centre: Centre, name: str) -> None:
    """The one that leaves moves the median, and with it what the loud one may count."""
    for number in range(1, 7):
        if name != f"quiet-{number}":
            centre.gateway(f"quiet-{number}", f"quiet-{number}", number, 12 if number < 4 else 16)
    if name != "loud":
        centre.gateway("loud-1", "loud", 9, 180)
    never = centre.head()
    centre.gateway(*(("loud-1", "loud", 9, 180) if name == "loud" else ("quiet-1", "quiet-1", 1, 12)))
    assert centre.trainer.gathering.evidence("belt", CLASSES, centre.backbone, None).bounded
    assert np.abs(centre.head().directions - never.directions).max() > 1e-4
    found = unlearn(name, centre.store, centre.registry, centre.trainer, "li", 5)
    assert found.anew == []
    same(found.heads["belt"], never)
    same(centre.head(), never)


def test_what_changed_since_the_last_run_is_summed_anew_and_right(centre: Centre) -> None:
    centre.gateway("east-1", "east", 1)
    never = centre.head()
    centre.gateway("north-1", "north", 2)
    centre.head()
    sample = next(iter(centre.store.samples(site="north", limit=None)))
    centre.store.add_label(sample.sample_id, "belt", "", "li", 9)
    found = unlearn("north", centre.store, centre.registry, centre.trainer, "li", 5)
    assert found.anew == ["belt"]
    same(found.heads["belt"], never)


def test_pictures_of_a_dataset_that_name_the_site_go_too(centre: Centre) -> None:
    (dataset,) = centre.catalogue.datasets("belt")
    head = centre.unlearn("south")
    keep = ~dataset.is_gold & (np.array(dataset.sites) != "south")
    rest = Statistics.of(CLASSES, dataset.embeddings[keep], [dataset.labels[i] for i in np.flatnonzero(keep)])
    same(head, solve_shared(rest, centre.trainer.rules.shrinkage, 8))


def test_undoing_lets_uploaded_samples_count_again(centre: Centre) -> None:
    centre.gateway("north-1", "north", 2)
    centre.head()
    centre.unlearn("north")
    assert centre.store.excluded() == {"north"}
    assert centre.store.include("north")
    assert not centre.store.include("north")
    evidence = centre.trainer.gathering.evidence("belt", CLASSES, centre.backbone, None)
    assert evidence.by_site["north"].total == 12, "what it contributed is deleted, what it uploaded is not"


def test_a_name_that_nobody_knows_is_refused_and_nothing_changes(centre: Centre) -> None:
    centre.gateway("north-1", "north", 2)
    with pytest.raises(OperatorError, match="'nowhere'"):
        centre.unlearn("nowhere")
    assert centre.store.excluded() == frozenset()


def test_the_command_says_what_went_and_releases_without_it(centre: Centre, tmp_path: Path) -> None:
    centre.gateway("north-1", "north", 2)
    config = tmp_path / "cloud.toml"
    config.write_text(f'data_dir = "{tmp_path}"\ndatabase = "sqlite:///{tmp_path / "centre.db"}"\n')

    def run(*arguments: str) -> dict[str, object]:
        result = CliRunner().invoke(app, [*arguments, "--config", str(config), "--json"])
        assert result.exit_code == 0, result.output
        found: dict[str, object] = json.loads(result.stdout)
        return found

    first = run("train")["release_id"]
    found = run("unlearn", "north")
    assert (found["contributions"], found["samples"], found["solved"]) == (1, 12, ["belt"])
    assert found["release_id"] not in ("", first)
    assert run("unlearn", "north", "--undo") == {"name": "north", "undone": True}


def part(seed: int, version: str = "1") -> Part:
    return Part(version, pack(CLASSES, *rows(seed, 6, 16))[0])


def test_the_ledger_adds_what_is_new_and_starts_anew_when_something_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summed: list[int] = []
    real = ledger_module.add_up

    def counted(classes: tuple[str, ...], dimension: int, parts: object) -> Statistics:
        listed = list(parts)  # type: ignore[call-overload]
        summed.append(len(listed))
        return real(classes, dimension, listed)

    monkeypatch.setattr(ledger_module, "add_up", counted)
    ledger = Ledger(tmp_path)
    parts = {f"gateway/{n}": part(n) for n in range(5)}

    def total(given: dict[str, Part]) -> Statistics:
        found = ledger.total("belt", "b" * 64, CLASSES, 16, given)
        truth = real(CLASSES, 16, [p.packed for p in given.values()])
        np.testing.assert_allclose(found.moment, truth.moment, atol=1e-9)
        return found

    total(parts)
    total(parts)
    total(parts | {"gateway/5": part(5)})
    total(parts | {"gateway/5": part(6, "2")})
    total(parts)
    assert summed == [5, 1, 6, 5]
    assert ledger.without("belt", "b" * 64, {"gateway/1": part(1, "other")}) is None
    assert ledger.without("belt", "c" * 64, {}) is None
    rest = ledger.without("belt", "b" * 64, {"gateway/1": parts["gateway/1"], "gateway/9": part(9)})
    assert rest is not None
    assert rest.total == 24
    monkeypatch.setattr(ledger_module, "SUBTRACTIONS_MAX", 0)
    parts.pop("gateway/1")
    total(parts)
    assert summed[-1] == 4, "worn by subtractions: made anew"


def test_a_sum_that_cannot_be_read_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger(tmp_path)
    parts = {"gateway/1": part(1)}
    ledger.total("belt", "b" * 64, CLASSES, 16, parts)
    (file,) = tmp_path.iterdir()
    for broken in (b"", b"PK no archive", file.read_bytes()[:400]):
        file.write_bytes(broken)
        assert ledger.total("belt", "b" * 64, CLASSES, 16, parts).total == 6
    assert "made anew" in caplog.text


def a_sum(centre: Centre, name: str, members: dict[str, int], at_ns: int) -> None:
    """A masked sum of these gateways' samples (gateway -> seed), as it is kept."""
    parts = [rows(seed, 12) for seed in members.values()]
    x, labels = np.concatenate([part for part, _ in parts]), [label for _, own in parts for label in own]
    packed, _ = pack(CLASSES, x, labels)
    meta = {"classes": list(packed.classes), "covered": [], "members": sorted(members)}
    centre.store.put_contribution("belt", centre.backbone, f"sum/{name}", packed.arrays(), meta, at_ns)


def counted(centre: Centre) -> int:
    """Samples of gateways that count."""
    classes = centre.trainer.scenarios()["belt"]
    evidence = centre.trainer.gathering.evidence("belt", classes, centre.backbone, None)
    assert evidence.by_site == {} or not any(name.startswith("sum/") for name in evidence.by_site)
    return int(evidence.shared.total) - 48


def test_a_masked_sum_counts_until_a_member_is_in_something_newer(centre: Centre) -> None:
    a_sum(centre, "first", {"north-1": 1, "north-2": 2}, 10)
    a_sum(centre, "other", {"east-1": 3, "east-2": 4}, 10)
    assert counted(centre) == 48
    a_sum(centre, "second", {"north-2": 2, "north-3": 5}, 20)
    assert counted(centre) == 48, "north-1 alone cannot be told from the older sum"
    packed, _ = pack(CLASSES, *rows(3, 12))
    meta = {"classes": list(packed.classes), "covered": []}
    centre.store.put_contribution("belt", centre.backbone, "east-1", packed.arrays(), meta, 30)
    assert counted(centre) == 36, "east-1 in the clear; east-2 waits for its next round"


def test_a_site_that_is_unlearned_takes_its_sums_with_it(centre: Centre) -> None:
    never = centre.head()
    for gateway in ("north-1", "north-2"):
        state = State(gateway_id=gateway, site_id="north", at_ns=0, agent_version="0", release_id="")
        centre.store.put_state(state)
    a_sum(centre, "first", {"north-1": 1, "west-1": 2}, 10)
    assert counted(centre) == 24
    found = unlearn("north", centre.store, centre.registry, centre.trainer, "li", 5)
    assert found.contributions == 1
    same(found.heads["belt"], never)
    assert centre.store.sums("belt", centre.backbone) == {}
    a_sum(centre, "late", {"north-2": 1, "west-1": 2}, 20)
    assert counted(centre) == 0, "it was under way while the site was unlearned"
