"""A detector of the group's own beside the backbone: real frames through the agent, and files that are wrong."""

import importlib.util
import json
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import av
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cloud.learning.adoption import DetectorForm, adopt_detector
from cloud.trust import Repository
from common import codec
from common import manifest as keys
from common.clock import SystemClock
from common.errors import OperatorError
from common.ids import layer_hash
from common.manifest import SHARED, DetectorLayer, Layer, Manifest, Scenario, encode_manifest
from common.messages import Desired, Event, Sample
from common.settings import BrokerSection
from edge.agent import RELEASES, Agent
from edge.detectors import Detector
from edge.installer import LAYERS
from edge.lookout import Lookout
from edge.perception import Model, load_model
from edge.settings import CameraSettings, EdgeSettings, GearSettings, SelectionSettings

FRAMES, EVERY, KNOWN = 71, 5, 14
"""Frames of the clip, which of them the detector is known for, and in how many of those it finds the person (the notes
of the data). At the end of a file the decoder holds back what it reorders: at most two frames here."""

EVERY_FRAME = GearSettings(motion_min=0, gate=0, steady_looks_per_s=60, alert_looks_per_s=60)


def tiny_ssd(boxes: list[list[float]], scores: list[list[float]]) -> bytes:
    """A detector that always says the same of any picture of 16 x 16."""
    outputs = {"b": np.array([boxes], np.float32), "s": np.array([scores], np.float32)}
    nothing = numpy_helper.from_array(np.zeros(1, np.float32), "nothing")
    nodes = [
        helper.make_node("ReduceMean", ["picture"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "nothing"], ["zero"]),
    ]
    nodes += [helper.make_node("Add", [f"{name}_values", "zero"], [name]) for name in outputs]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("picture", TensorProto.FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(value.shape)) for name, value in outputs.items()],
        [nothing, *(numpy_helper.from_array(value, f"{name}_values") for name, value in outputs.items())],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    data: bytes = model.SerializeToString()
    return data


SSD = DetectorForm("ssd", ("person", "truck"), score_min=0.5)


def open_detector(folder: Path, data: bytes, name: str = "people") -> Detector:
    path = folder / layer_hash(data)
    path.write_bytes(data)
    return Detector.open(DetectorLayer(name, Layer(path.name, len(data))), path)


def test_boxes_and_near_misses_are_told_apart(tmp_path: Path) -> None:
    boxes = [[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.9, 0.9], [0.5, 0.5, 0.9, 0.89]]
    scores = [[0.1, 0.3, 0.6], [0.3, 0.4, 0.3], [0.4, 0.35, 0.25]]
    detector = open_detector(tmp_path, adopt_detector(tiny_ssd(boxes, scores), SSD))
    sighting = detector.detect(np.zeros((90, 160, 3), np.uint8))
    ((box,), (faint,)) = sighting.boxes, sighting.faint
    assert (box.detector, box.label) == ("people", "truck")
    assert (box.left, box.top, box.right, box.bottom) == pytest.approx((0.1, 0.2, 0.3, 0.4), abs=1e-6)
    assert box.score == pytest.approx(0.6)
    assert (faint.label, faint.score) == ("person", pytest.approx(0.4)), "the third is suppressed by it"


def test_a_file_that_is_no_detector_is_refused_in_words(tmp_path: Path, tiny_backbone: Callable[..., bytes]) -> None:
    whole = tiny_ssd([[0, 0, 1, 1]], [[0.1, 0.2, 0.7]])
    for form, said in (
        (DetectorForm("yolox", ("a",)), r"one output \[1, 5, 6\]"),
        (DetectorForm("ssd", ("a", "b", "c")), r"scores \(1, n, 4\)"),
        (DetectorForm("detr", ("a",)), "no decoder"),
        (DetectorForm("ssd", ("a", "b"), letterbox="round"), "no letterbox"),
        (DetectorForm("ssd", (), 0.5), "class names"),
    ):
        with pytest.raises(OperatorError, match=said) as caught:
            adopt_detector(whole, form)
        assert caught.value.hint
    with pytest.raises(OperatorError, match="should be a detector"):
        open_detector(tmp_path, tiny_backbone())
    model = onnx.load_model_from_string(adopt_detector(whole, SSD))
    kept = [item for item in model.metadata_props if item.key != keys.SCORE_MIN]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    with pytest.raises(OperatorError, match="lacks what a detector declares"):
        open_detector(tmp_path, model.SerializeToString())


def tiny_open(output: np.ndarray) -> bytes:
    """A detector of one output whose sizes are known only when it runs, as exporters with open axes make them."""
    sizes = np.array(output.shape, np.int64)
    nodes = [
        helper.make_node("ReduceMean", ["picture"], ["mean"], axes=[0, 1, 2, 3], keepdims=0),
        helper.make_node("Mul", ["mean", "nothing"], ["zero"]),
        helper.make_node("Cast", ["zero"], ["no_size"], to=TensorProto.INT64),
        helper.make_node("Add", ["sizes", "no_size"], ["shape"]),
        helper.make_node("Reshape", ["values", "shape"], ["output"]),
    ]
    values = {"nothing": np.zeros(1, np.float32), "sizes": sizes, "values": output}
    graph = helper.make_graph(
        nodes,
        "open",
        [helper.make_tensor_value_info("picture", TensorProto.FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["a", "b", "c"])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    data: bytes = model.SerializeToString()
    return data


@pytest.mark.parametrize(
    ("decoder", "fits", "wrong"),
    [("yolox", (5, 7), [(5, 8), (5, 6), (6, 7)]), ("yolov8", (6, 5), [(7, 5), (5, 5)])],
)
def test_axes_that_a_file_leaves_open_are_tried_before_it_is_signed(
    decoder: str, fits: tuple[int, int], wrong: list[tuple[int, int]]
) -> None:
    """At 16 pixels there are 4 + 1 anchors."""
    form = DetectorForm(decoder, ("person", "truck"))
    assert adopt_detector(tiny_open(np.zeros((1, *fits), np.float32)), form)
    for shape in wrong:
        with pytest.raises(OperatorError, match="with 2 classes") as caught:
            adopt_detector(tiny_open(np.zeros((1, *shape), np.float32)), form)
        assert f"[1, {shape[0]}, {shape[1]}]" in caught.value.message


@pytest.mark.parametrize("decoder", ["yolox", "yolov8", "ssd"])
def test_a_detector_with_a_class_that_has_no_name_is_refused_when_a_release_is_loaded(
    tmp_path: Path, tiny_backbone: Callable[..., bytes], decoder: str
) -> None:
    """And not on the day that something of this class is seen."""
    shape = {"yolox": (1, 5, 7), "yolov8": (1, 6, 5)}.get(decoder)
    whole = tiny_open(np.zeros(shape, np.float32)) if shape else tiny_ssd([[0, 0, 1, 1]], [[0.1, 0.2, 0.7]])
    adopted = onnx.load_model_from_string(adopt_detector(whole, DetectorForm(decoder, ("person", "truck"))))
    backbone = put(tmp_path, tiny_backbone())

    def load(classes: tuple[str, ...]) -> Model:
        next(item for item in adopted.metadata_props if item.key == keys.CLASSES).value = json.dumps(classes)
        detector = DetectorLayer("people", put(tmp_path, adopted.SerializeToString()))
        manifest = Manifest(
            sequence=1,
            created_at_ns=0,
            expires_at_ns=1,
            minimum_agent="0.1.0",
            backbone=backbone,
            scenarios=(),
            detectors=(detector,),
        )
        return load_model("r", manifest, lambda name: tmp_path / name, "north")

    assert load(("person", "truck")).look(np.zeros((8, 8, 3), np.uint8)).sightings
    for classes in (("person",), ("person", "truck", "dog")):
        with pytest.raises(OperatorError, match=f"with {len(classes)} classes") as caught:
            load(classes)
        assert str(tmp_path) in caught.value.message, "names the file"
        assert "class names" in caught.value.hint


FPS = 10


def write_blackout(path: Path) -> Path:
    """Five seconds of a scene, eight of darkness, six of the scene."""
    random = np.random.default_rng(1)
    walls = np.kron(random.uniform(40, 220, (9, 16)), np.ones((20, 20)))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"tune": "zerolatency"})
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        stream.codec_context.gop_size = FPS
        for index in range(19 * FPS):
            scene = walls * 0.01 if 5 * FPS <= index < 13 * FPS else walls
            noisy = np.clip(scene + random.normal(0, 2, scene.shape), 0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(noisy, format="gray").reformat(format="yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_a_camera_that_goes_dark_ends_its_event_and_the_detector_may_say_what_it_likes(
    tmp_path: Path, tiny_backbone: Callable[..., bytes]
) -> None:
    people = put(tmp_path, adopt_detector(tiny_ssd([[0.1, 0.1, 0.6, 0.9]], [[0.05, 0.9, 0.05]]), SSD))
    manifest = Manifest(
        sequence=1,
        created_at_ns=0,
        expires_at_ns=1,
        minimum_agent="0.1.0",
        backbone=put(tmp_path, tiny_backbone()),
        scenarios=(),
        detectors=(DetectorLayer("people", people),),
    )
    camera = CameraSettings(
        id="yard", source=str(write_blackout(tmp_path / "yard.mp4")), paced=False, looks_per_s=FPS, gears=EVERY_FRAME
    )
    settings = EdgeSettings(
        gateway_id="gw-1", site_id="north", data_dir=tmp_path, release_root=Path("root.json"), cameras=(camera,)
    )
    told: list[Event] = []
    lookout = Lookout(settings, settings.cameras, SystemClock(), lambda _sample: None, on_event=told.append)
    lookout.hand_over(load_model("r", manifest, lambda name: tmp_path / name, "north"))
    lookout.start()
    deadline = time.monotonic() + 30
    while not lookout.ended:
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)
    lookout.stop()
    began_ns = told[0].began_at_ns
    first, dark, again = (item for item in told if item.cause != "camera ended")
    assert (first.phase, dark.phase, again.phase) == ("enter", "clear", "enter")
    assert dark.event_id == first.event_id != again.event_id
    assert dark.cause == "camera dark"
    assert 5 < (dark.at_ns - began_ns) / 1e9 < 10, "as soon as the darkness is a fault"
    assert (again.at_ns - began_ns) / 1e9 > 13, "not before there is light"


def put(folder: Path, data: bytes) -> Layer:
    (folder / layer_hash(data)).write_bytes(data)
    return Layer(layer_hash(data), len(data))


@pytest.fixture
def yolox(sample_data: Path) -> bytes:
    folder = sample_data / "detector-yolox-nano"
    names = tuple((folder / "coco.names").read_text().split("\n"))
    classes = tuple(name.strip() for name in names if name.strip())
    return adopt_detector((folder / "yolox_nano.onnx").read_bytes(), DetectorForm("yolox", classes, bgr=True))


def load_reference(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("detect", folder / "detect.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.data
def test_the_detector_says_what_its_own_script_says(yolox: bytes, sample_data: Path, tmp_path: Path) -> None:
    import cv2

    reference = load_reference(sample_data / "detector-yolox-nano")
    detector = open_detector(tmp_path, yolox)
    video = cv2.VideoCapture(str(sample_data / "videos" / "worker_zone.mp4"))
    compared = 0
    for _ in range(0, 71, 10):
        frame = next(image for _ in range(10) for ok, image in [video.read()] if ok)
        ours = {(box.label, round(box.score, 2)): box for box in detector.detect(frame).boxes}
        height, width = frame.shape[:2]
        for label, score, *corners in reference.detect(frame):
            box = ours[label, score]
            found = [box.left * width, box.top * height, box.right * width, box.bottom * height]
            assert found == pytest.approx(np.clip(corners, 0, [width, height] * 2), abs=2)
            compared += 1
    video.release()
    assert compared >= 5


@pytest.mark.data
def test_the_agent_finds_the_worker_and_sends_the_boxes_along(
    yolox: bytes,
    sample_data: Path,
    tmp_path: Path,
    free_port: int,
    tiny_backbone: Callable[..., bytes],
    tiny_head: Callable[..., bytes],
) -> None:
    repository = Repository.open(tmp_path / "trust", SystemClock())
    root = tmp_path / "root.json"
    root.write_bytes(repository.root())
    layers = tmp_path / "gateway" / RELEASES / LAYERS
    layers.mkdir(parents=True)

    backbone = put(layers, tiny_backbone())
    now_ns = time.time_ns()
    manifest = Manifest(
        sequence=1,
        created_at_ns=now_ns,
        expires_at_ns=now_ns + 10**15,
        minimum_agent="0.1.0",
        backbone=backbone,
        scenarios=(Scenario("belt", ("normal", "tear"), "normal", {SHARED: put(layers, tiny_head(backbone.hash))}),),
        detectors=(DetectorLayer("people", put(layers, yolox), alarms=("person",)),),
    )
    settings = EdgeSettings(
        gateway_id="gw-1",
        site_id="north",
        data_dir=tmp_path / "gateway",
        release_root=root,
        broker=BrokerSection(port=free_port),
        selection=SelectionSettings(samples_per_hour=1e6, window_s=0.5, similarity_max=1.0, trickle=0.0),
        cameras=(
            CameraSettings(
                id="yard",
                source=str(sample_data / "videos" / "worker_zone.mp4"),
                paced=False,
                looks_per_s=60,
                gears=EVERY_FRAME,
            ),
        ),
    )
    agent = Agent(settings)
    data = encode_manifest(manifest)
    repository.add(data, (), ())
    proof = {"metadata": repository.bundle(data, b""), "assignment": repository.assign("gw-1", data, 1)}
    agent.installer.on_desired(Desired(manifest=data, **proof))
    until = time.monotonic() + 30
    while not agent.installer.outcome and time.monotonic() < until:
        time.sleep(0.02)
    assert agent.installer.outcome.startswith("installed"), agent.installer.outcome
    agent.start()
    deadline = time.monotonic() + 60
    while not agent.ended:
        assert time.monotonic() < deadline, "not in time"
        agent.step()
        time.sleep(0.02)
    state = agent.state()
    found = [codec.decode(queued.payload) for queued in agent.spool.pending(1000)]
    agent.stop()
    samples = [sample for sample in found if isinstance(sample, Sample)]
    assert len(samples) == state.looks >= FRAMES - 2
    samples = sorted(samples, key=lambda sample: sample.captured_at_ns)[::EVERY]
    with_person = [sample for sample in samples if any(box.label == "person" for box in sample.boxes)]
    assert len(with_person) >= KNOWN
    assert all(0 <= edge <= 1 for s in samples for b in s.boxes for edge in (b.left, b.top, b.right, b.bottom))
    assert {"people"} == {box.detector for sample in samples for box in sample.boxes}
    assert state.events >= 1, "and it is an event"
    assert any(sample.scores.doubt > 0 for sample in samples), "the helmet that is taken for a ball is in doubt"
