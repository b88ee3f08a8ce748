"""Fine-tuning: the same graph with other numbers, resumable to the byte, released with the heads that stand on it."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from cloud.cli import app
from cloud.finetuning.examples import Example, draw, hold_back
from cloud.finetuning.graph import Depth, Network
from cloud.finetuning.run import Finetuner
from cloud.finetuning.tuning import Recipe, Tuning
from cloud.learning.adoption import adopt_backbone
from cloud.learning.clocks import CARRIED
from cloud.learning.datasets import Catalogue, read_folder
from cloud.learning.export import set_default_backbone
from cloud.learning.lifting import lift_backbone, place, random_signs
from cloud.learning.training import Trainer
from cloud.registry import Registry
from cloud.settings import LearningSettings
from cloud.store import Store
from cloud.trust import Repository
from common import manifest as keys
from common.backbone import Backbone, create_session
from common.errors import OperatorError, WireError
from common.ids import layer_hash
from common.manifest import SHARED
from common.messages import Fetch, LayerPart, Sample, State
from common.packing import pack
from common.weights import read_weights
from simulations.bench._yard import GATEWAY, Gateway, HandClock
from tests.cloud.normed import CLASSES, SIDE, picture, small_backbone

SCENARIO = "belt"
FAST = Recipe(epochs=2, batch=8, rate=0.01)
REPOSITORY = Path(__file__).resolve().parents[2]


def examples(count: int = 24, sites: int = 6) -> list[Example]:
    found = []
    for number in range(count):
        label = CLASSES[number % 2]
        read = lambda label=label, number=number: picture(label, number)  # noqa: E731
        found.append(Example(bytes([number]) * 16, SCENARIO, label, f"site{number % sites}", read))
    return found


# --- the graph ------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", list(Depth))
def test_the_network_says_what_gateways_compute(depth: Depth) -> None:
    data = small_backbone()
    network = Network(data, depth)
    x = np.random.default_rng(0).normal(0, 1, (3, 3, SIDE, SIDE)).astype(np.float32)
    wanted = create_session(data).run([keys.EMBEDDING], {keys.IMAGE: x})[0]
    np.testing.assert_allclose(network(torch.from_numpy(x)).detach().numpy(), wanted, atol=1e-5)
    assert network.layer() == data


def test_each_depth_trains_what_it_says() -> None:
    data = small_backbone()
    assert Network(data, Depth.ADAPTER).trained == [f"bn{n}.{part}" for n in (1, 2, 3) for part in ("scale", "shift")]
    assert Network(data, Depth.BLOCK).trained == ["last", "bn3.scale", "bn3.shift"]
    assert {"stem", "mix", "last"} < set(Network(data, Depth.FULL).trained)
    assert not any(".mean" in name or ".variance" in name for name in Network(data, Depth.FULL).trained)


def test_an_operator_that_cannot_be_trained_is_named() -> None:
    with pytest.raises(OperatorError, match="Softplus"):
        Network(small_backbone(operator="Softplus"), Depth.ADAPTER)


@pytest.mark.data
def test_an_adopted_backbone_is_tuned_like_ours(sample_data: Path) -> None:
    file = sample_data / "backbone-shufflenetv2-05" / "shufflenetv2_05.onnx"
    data = adopt_backbone(file.read_bytes(), input_px=96, mean=(127.0,), scale=(128.0,))
    with pytest.raises(OperatorError, match="adapter") as error:
        Network(data, Depth.ADAPTER)
    assert "folded" in error.value.hint
    network = Network(data, Depth.BLOCK)
    x = np.random.default_rng(0).uniform(0, 255, (2, 3, 96, 96)).astype(np.float32)
    wanted = create_session(data).run([keys.EMBEDDING], {keys.IMAGE: x})[0]
    np.testing.assert_allclose(network(torch.from_numpy(x)).detach().numpy(), wanted, rtol=1e-3, atol=1e-4)


# --- examples -------------------------------------------------------------------------------------


def test_whole_sites_are_kept_back_and_no_class_with_them() -> None:
    train, held = hold_back(examples(240, sites=30))
    assert held
    assert not {e.site for e in train} & {e.site for e in held}
    few = examples(8, sites=2)
    assert len(hold_back(few)[0]) + len(hold_back(few)[1]) == 8
    lonely = [*train, Example(b"x" * 16, SCENARIO, "hole", held[0].site, few[0].read)]
    assert any(e.label == "hole" for e in hold_back(lonely)[0]), "a class of one site is learnt, not judged"


def test_rare_classes_and_small_sites_are_drawn_as_often_as_the_others() -> None:
    many = [Example(b"", SCENARIO, "normal", "big", lambda: picture("normal", 0)) for _ in range(90)]
    many += [Example(b"", SCENARIO, "normal", "small", lambda: picture("normal", 0)) for _ in range(9)]
    many += [Example(b"", SCENARIO, "tear", "big", lambda: picture("tear", 0))]
    rows = draw(many, 3000, np.random.default_rng(0))
    assert (rows == 99).mean() == pytest.approx(0.5, abs=0.05)
    assert ((rows >= 90) & (rows < 99)).mean() == pytest.approx(0.25, abs=0.05)


# --- tuning ---------------------------------------------------------------------------------------


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    path = tmp_path / "base.onnx"
    path.write_bytes(small_backbone())
    return path


def test_an_adapter_changes_scale_and_shift_and_learns(layer: Path) -> None:
    tuned = Tuning(layer, examples(), Recipe(epochs=3, batch=8, rate=0.01)).run()
    before, after = read_weights(layer.read_bytes()), read_weights(tuned.data)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {f"bn{n}.{part}" for n in (1, 2, 3) for part in ("scale", "shift")}
    assert len(tuned.data) == len(layer.read_bytes())
    assert tuned.curve[-1] < tuned.curve[0] - 0.05


def test_the_same_seed_makes_the_same_bytes_and_another_one_others(layer: Path) -> None:
    one, again = (Tuning(layer, examples(), FAST).run().data for _ in range(2))
    assert one == again
    assert Tuning(layer, examples(), Recipe(epochs=2, batch=8, rate=0.01, seed=1)).run().data != one


def test_distillation_holds_the_embedding_where_it_was(layer: Path) -> None:
    def distance(weight: float) -> float:
        tuned = Tuning(layer, examples(), Recipe(epochs=2, batch=8, rate=0.02, distillation=weight)).run()
        path = layer.with_name("tuned.onnx")
        path.write_bytes(tuned.data)
        base, new = Backbone.open(layer), Backbone.open(path)
        return float(np.mean([np.linalg.norm(base.embed(e.read()) - new.embed(e.read())) for e in examples()]))

    assert distance(10.0) < 0.7 * distance(0.0)


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.cloud import test_finetuning as t
def progress(done, total):
    if done == 1:
        os.kill(os.getpid(), signal.SIGKILL)
t.Tuning(Path(sys.argv[2]), t.examples(), t.FAST, Path(sys.argv[3])).run(progress)
"""


def test_a_run_killed_after_an_epoch_ends_with_the_same_bytes(layer: Path, tmp_path: Path) -> None:
    arguments = [str(REPOSITORY), str(layer), str(tmp_path / "kept")]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], cwd=REPOSITORY, timeout=90, check=False)
    assert killed.returncode == -signal.SIGKILL
    began: list[int] = []
    tuning = Tuning(layer, examples(), FAST, tmp_path / "kept")
    resumed = tuning.run(lambda done, _: began.append(done))
    assert began[0] == 1
    assert resumed.data == Tuning(layer, examples(), FAST).run().data
    tuning.forget()
    assert list((tmp_path / "kept").iterdir()) == []


def test_one_class_is_nothing_to_tune_on(layer: Path) -> None:
    with pytest.raises(OperatorError, match="1 class"):
        Tuning(layer, examples()[::2], FAST)


# --- the release ----------------------------------------------------------------------------------


class Centre:
    """A centre with a dataset of six scenes, uploads of one site, and a gateway that shares updates only."""

    def __init__(self, folder: Path, store: Store, make_sample: Callable[..., Sample], clock: HandClock) -> None:
        self.store, self.clock, self.folder = store, clock, folder
        self.registry = Registry(folder / "layers", store, Repository.open(folder / "trust", clock), clock)
        self.registry.set_backbone(small_backbone())
        self.catalogue = Catalogue(folder / "datasets")
        rows = ["file,class,scene"]
        for number in range(144):
            label = CLASSES[number % 2]
            cv2.imwrite(str(folder / f"{number}.png"), picture(label, number))
            rows.append(f"{number}.png,{label},scene{number // 2 % 12}")
        (folder / "manifest.csv").write_text("\n".join(rows))
        (folder / "datasets").mkdir()
        _, path = self.registry.backbone()
        self.catalogue.add("base", SCENARIO, read_folder(folder), Backbone.open(path))
        self.trainer = Trainer(store, self.catalogue, self.registry, LearningSettings(dimensions=16))
        self.trainer.run("first")
        self._upload(make_sample, Backbone.open(path))
        self.share_updates("deep-1", "deep", Backbone.open(path))

    def _upload(self, make_sample: Callable[..., Sample], backbone: Backbone) -> None:
        made, labels = [], []
        for number in range(12):
            label = CLASSES[number % 2]
            jpeg = cv2.imencode(".jpg", picture(label, 500 + number), [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
            seen = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
            embedding = backbone.embed(np.asarray(seen, np.uint8)).astype("<f2").tobytes()
            sample = make_sample(number, jpeg=jpeg, embedding=embedding, backbone=backbone.hash, width_px=SIDE)
            made.append(sample)
            labels.append((sample.sample_id, SCENARIO, label))
        self.store.add_samples(made, 0)
        self.store.add_labels(labels, "li", 1)

    def share_updates(self, gateway: str, site: str, backbone: Backbone) -> None:
        """Statistics of ten labelled pictures that never leave their site."""
        self.store.put_state(State(gateway_id=gateway, site_id=site, at_ns=0, agent_version="0", release_id=""))
        labels = [CLASSES[number % 2] for number in range(10)]
        x = np.stack([backbone.embed(picture(label, 900 + n)) for n, label in enumerate(labels)])
        packed, _ = pack(CLASSES, x, labels)
        covered = [f"{n:032x}" for n in range(1, 11)]
        meta = {"classes": list(packed.classes), "covered": covered}
        self.store.put_contribution(SCENARIO, backbone.hash, gateway, packed.arrays(), meta, 7)

    def finetune(self, recipe: Recipe) -> dict[str, object]:
        parts = self.store, self.catalogue, self.registry, self.trainer, self.clock
        return Finetuner(*parts, self.folder / "finetuning").run(recipe, "li").record

    def answer(self, fetch: Fetch) -> LayerPart:
        return self.registry.part(fetch)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def centre(tmp_path: Path, store: Store, make_sample: Callable[..., Sample], clock: HandClock) -> Centre:
    return Centre(tmp_path, store, make_sample, clock)


def test_backbone_and_heads_reach_a_gateway_as_one_release(
    centre: Centre, clock: HandClock, tmp_path: Path, make_sample: Callable[..., Sample]
) -> None:
    del make_sample
    store, registry = centre.store, centre.registry
    first = registry.active()
    assert first is not None
    gateway = Gateway(tmp_path / "gateway", registry.repository.root(), clock)
    (name,) = [release.release_id for release in store.releases()]
    gateway.tell(registry.desired(GATEWAY, name))  # type: ignore[arg-type]
    gateway.serve(centre)  # type: ignore[arg-type]
    assert gateway.runs == name

    record = centre.finetune(Recipe(epochs=4, batch=8, rate=0.005))
    assert record.get("release_id"), record["gate"]
    second = registry.active()
    assert second is not None
    assert second.backbone != first.backbone
    assert second.backbone.hash == record["backbone"]

    before = gateway.installer.bytes_down
    gateway.tell(registry.desired(GATEWAY, str(record["release_id"])))  # type: ignore[arg-type]
    gateway.serve(centre)  # type: ignore[arg-type]
    assert gateway.runs == record["release_id"], gateway.installer.outcome
    assert gateway.intact()
    heads = sum(layer.size_bytes for layer in second.scenarios[0].heads.values())
    golden = second.golden.size_bytes if second.golden else 0
    down = gateway.installer.bytes_down - before
    assert down <= int(str(record["delta_bytes"])) + heads + golden, "the backbone came as its delta"
    model = gateway.stage.runs
    assert model is not None
    assert model.look(picture("tear", 3)).predictions[0].classes == CLASSES

    run = store.runs()[0]
    assert (run.status, run.record["kind"]) == ("released", "fine-tune")
    layers = {item.layer: item for item in store.layers()}
    assert layers[second.backbone.hash].parent == first.backbone.hash


def test_every_picture_counts_on_the_new_backbone_and_what_cannot_be_seen_is_carried(centre: Centre) -> None:
    old = centre.registry.backbone()[0].hash
    record = centre.finetune(Recipe(epochs=2, batch=8, rate=0.005))
    new = str(record["backbone"])
    assert record["release_id"]
    store = centre.store
    own = Backbone.open(centre.registry.layer_path(new))
    labelled = store.labelled(SCENARIO, new)
    assert len(labelled.sample_ids) == 12
    seen = cv2.imdecode(np.frombuffer(store.jpeg(labelled.sample_ids[0]), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_allclose(labelled.embeddings[0], own.embed(np.asarray(seen, np.uint8)), rtol=2e-3, atol=2e-3)
    assert {dataset.backbone for dataset in centre.catalogue.datasets()} == {old, new}

    assert record[SCENARIO]["carried"] == 1  # type: ignore[index]
    (carried,) = store.contributions(SCENARIO, new)
    assert (carried.client, carried.meta[CARRIED]) == ("deep-1", old)
    centre.share_updates("deep-1", "deep", own)
    again = centre.trainer.run("the next round")
    (counted,) = store.contributions(SCENARIO, new)
    assert CARRIED not in counted.meta
    assert again.record[SCENARIO]["carried"] == 0  # type: ignore[index]
    assert store.contributions(SCENARIO, old), "a roll-back finds what it stands on"


def test_a_backbone_that_loses_is_refused_and_forgotten(centre: Centre) -> None:
    running = centre.registry.active()
    assert running is not None
    network = Network(small_backbone(), Depth.FULL)
    values = network.values()
    values["stem"] = np.broadcast_to(values["stem"].mean((1, 2, 3), keepdims=True), values["stem"].shape)
    network.take(values)  # it sees how bright a picture is, and no stripes
    parts = centre.store, centre.catalogue, centre.registry, centre.trainer, centre.clock
    outcome = Finetuner(*parts, centre.folder / "finetuning").take(network.layer(), "li")
    assert outcome.release_id == ""
    gold = outcome.record[SCENARIO]["gate"]["comparisons"][0]  # type: ignore[index]
    assert (gold["name"], gold["running"], gold["verdict"]) == ("gold", 1.0, "worse")
    assert centre.registry.active() == running
    assert centre.store.runs()[0].status == "refused by the gate"
    new = str(outcome.record["backbone"])
    assert centre.store.contributions(SCENARIO, new) == []
    assert centre.store.labelled(SCENARIO, new).sample_ids == []
    assert {dataset.backbone for dataset in centre.catalogue.datasets()} == {running.backbone.hash}


def test_a_backbone_of_another_architecture_takes_the_place_of_the_running_one(centre: Centre, tmp_path: Path) -> None:
    gateway = Gateway(tmp_path / "gateway", centre.registry.repository.root(), centre.clock)
    gateway.tell(centre.registry.desired(GATEWAY, centre.store.releases()[0].release_id))  # type: ignore[arg-type]
    gateway.serve(centre)  # type: ignore[arg-type]
    other = small_backbone(seed=3, features=20)
    parts = centre.store, centre.catalogue, centre.registry, centre.trainer, centre.clock
    outcome = Finetuner(*parts, centre.folder / "finetuning").replace(other, "li", "Apache-2.0")
    assert outcome.release_id, outcome.record["gate"]
    active = centre.registry.active()
    assert active is not None
    assert outcome.record[SCENARIO]["carried"] == 1  # type: ignore[index]
    (carried,) = centre.store.contributions(SCENARIO, active.backbone.hash)
    assert carried.arrays["means"].shape == (2, 20), "what a site counted on the old network, as far as a map can"
    layers = {item.layer: item for item in centre.store.layers()}
    assert layers[active.backbone.hash].record["licence"] == "Apache-2.0"
    assert layers[active.backbone.hash].parent == ""

    gateway.tell(centre.registry.desired(GATEWAY, outcome.release_id))  # type: ignore[arg-type]
    gateway.serve(centre)  # type: ignore[arg-type]
    assert gateway.runs == outcome.release_id, gateway.installer.outcome
    assert gateway.stage.runs is not None
    assert gateway.stage.runs.backbone.dimension == 20
    assert gateway.stage.runs.look(picture("tear", 3)).predictions[0].classes == CLASSES


def test_a_lift_is_released_with_every_head_solved_anew_and_travels_as_a_delta(centre: Centre, tmp_path: Path) -> None:
    gateway = Gateway(tmp_path / "gateway", centre.registry.repository.root(), centre.clock)
    gateway.tell(centre.registry.desired(GATEWAY, centre.store.releases()[0].release_id))  # type: ignore[arg-type]
    gateway.serve(centre)  # type: ignore[arg-type]
    _, path = centre.registry.backbone()
    (dataset,) = centre.catalogue.datasets()
    made = lift_backbone(path.read_bytes(), random_signs(16, 32, 1), *place(dataset.embeddings))
    parts = centre.store, centre.catalogue, centre.registry, centre.trainer, centre.clock
    outcome = Finetuner(*parts, centre.folder / "finetuning").replace(made, "li", "as before")
    assert outcome.release_id, outcome.record["gate"]
    assert outcome.record["delta_bytes"] < outcome.record["bytes"]  # type: ignore[operator]

    before = gateway.installer.bytes_down
    gateway.tell(centre.registry.desired(GATEWAY, outcome.release_id))  # type: ignore[arg-type]
    gateway.serve(centre)  # type: ignore[arg-type]
    assert gateway.runs == outcome.release_id, gateway.installer.outcome
    active = centre.registry.active()
    assert active is not None
    heads = sum(layer.size_bytes for layer in active.scenarios[0].heads.values())
    golden = active.golden.size_bytes if active.golden else 0
    assert gateway.installer.bytes_down - before <= int(str(outcome.record["delta_bytes"])) + heads + golden
    assert gateway.stage.runs is not None
    assert gateway.stage.runs.backbone.dimension == 32
    assert gateway.stage.runs.look(picture("tear", 3)).predictions[0].classes == CLASSES


def test_no_head_of_the_old_backbone_is_kept_for_a_site(centre: Centre) -> None:
    record = centre.finetune(Recipe(epochs=2, batch=8, rate=0.005))
    active = centre.registry.active()
    assert active is not None
    assert "kept" not in record[SCENARIO]["gate"]["sites"].values()  # type: ignore[index]
    assert SHARED in active.scenarios[0].heads
    for layer in active.scenarios[0].heads.values():
        metadata = create_session(centre.registry.layer_path(layer.hash).read_bytes()).get_modelmeta()
        assert metadata.custom_metadata_map[keys.BACKBONE] == active.backbone.hash


def test_pictures_that_moved_are_asked_for(centre: Centre) -> None:
    (centre.folder / "7.png").unlink()
    with pytest.raises(OperatorError, match="is not at") as error:
        centre.finetune(FAST)
    assert "dataset add" in error.value.hint
    assert centre.store.runs()[0].status == "failed"


def test_the_command_makes_a_release_and_says_what_it_weighs(tmp_path: Path) -> None:
    for number in range(60):
        label = CLASSES[number % 2]
        (tmp_path / "pictures" / label).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "pictures" / label / f"{number}.png"), picture(label, number))
    layers, layer = tmp_path / "data" / "layers", small_backbone()
    layers.mkdir(parents=True)
    (layers / layer_hash(layer)).write_bytes(layer)
    set_default_backbone(layers, layer_hash(layer))
    (tmp_path / "cloud.toml").write_text(f'data_dir = "{tmp_path / "data"}"\n')

    def run(*words: str) -> Result:
        return CliRunner().invoke(app, [*words, "--config", str(tmp_path / "cloud.toml")])

    assert run("dataset", "add", str(tmp_path / "pictures"), "--scenario", SCENARIO).exit_code == 0
    early = run("finetune")
    assert isinstance(early.exception, OperatorError), "there is nothing yet that could be compared with"
    assert run("train").exit_code == 0
    assert "no depth" in str(run("finetune", "--depth", "head").exception)
    found = run("finetune", "--epochs", "1", "--rate", "0.002", "--seed", "4", "--json")
    assert found.exit_code == 0, found.output
    record = json.loads(found.stdout)
    assert record["release_id"].startswith("r2-")
    assert 0 < record["delta_bytes"] < record["bytes"]
    assert record["parameters"]["seed"] == 4
    assert list((tmp_path / "data" / "finetuning").glob("*.checkpoint")) == [], "nothing is left of a run that is over"

    retained = run("retain", "--keep", "1")
    assert retained.exit_code == 0, retained.output
    assert len(list((tmp_path / "data" / "maps").iterdir())) == 1, "as long as a release of the old backbone is kept"
    assert run("train").exit_code == 0
    lifted = run("lift", "--width", "24")
    assert lifted.exit_code == 0, lifted.output
    assert "24 features" in lifted.stdout
    assert "released r4-" in lifted.stdout


# --- weights that come from elsewhere --------------------------------------------------------------


def test_a_client_refuses_the_weights_of_another_backbone(layer: Path) -> None:
    network = Network(layer.read_bytes(), Depth.ADAPTER)
    values = network.values()
    with pytest.raises(WireError, match="not the weights"):
        network.take({name: value[:-1] for name, value in values.items()})
    with pytest.raises(WireError, match="not the weights"):
        network.take({name: value * np.nan for name, value in values.items()})
    network.take(values)
    assert network.layer() == layer.read_bytes()
