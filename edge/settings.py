"""Every key of edge.toml. `headframe edge config keys` prints them from here."""

import dataclasses
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from common.settings import BrokerSection, RoleSettings, Section, check_key_name
from edge.events import EventRule


class GearSettings(Section):
    """[cameras.gears]: how much work the stream of a camera is worth, and when."""

    floor_s: float = Field(10.0, gt=0, le=600, description="At least one look in so many seconds, whatever happens.")
    motion_min: float = Field(
        0.002,
        ge=0,
        le=1,
        description="Share of the picture that must differ from the scene to count as motion; 0 never idles.",
    )
    gate: float = Field(
        0.001,
        ge=0,
        le=1,
        description="A frame is not looked at when less than this share differs from the last look; 0 looks at all.",
    )
    background_s: float = Field(20.0, gt=0, description="Changes slower than this (sun, dust) are no motion.")
    calm_s: float = Field(0.6, gt=0, description="Without motion for so long, a camera falls back to Idle.")
    alert_s: float = Field(3.0, gt=0, description="Without a striking look for so long, Alert falls back to Watch.")
    steady_after_s: float = Field(
        5.0,
        gt=0,
        description="A scene that moves for longer without rest (a belt, a fire) is looked at less often:"
        " see steady_looks_per_s.",
    )
    steady_looks_per_s: float = Field(
        2.5, gt=0, le=60, description="Looks per second of video in Watch when the scene never rests."
    )
    alert_looks_per_s: float = Field(10.0, gt=0, le=60, description="Looks per second of video in Alert.")
    uncertainty_min: float = Field(
        0.7, ge=0, le=1, description="Normalised entropy from which a look is striking, if unusual."
    )
    novelty_sigmas: float = Field(
        4.0, gt=0, description="Standard deviations of novelty over the camera's usual, from which a look is striking."
    )


class ZoneSettings(Section):
    """[[cameras.zones]]: a part of the picture that counts."""

    scenario: str = Field("", description="Scenario or detector that it is for; empty: all.")
    points: tuple[tuple[float, float], ...] = Field(
        min_length=3,
        description="Corners of a polygon, [[x, y], …] as fractions 0..1 of the whole picture. Boxes outside do not"
        " count, nor do patches; what the model sees at all is `zone`.",
    )

    @field_validator("points")
    @classmethod
    def _inside(cls, value: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
        if any(not 0 <= part <= 1 for point in value for part in point):
            raise ValueError("a corner is outside of the picture: fractions are 0..1")
        return value


class CameraSettings(Section):
    """[[cameras]]: one video stream."""

    id: str = Field(description="Name of the camera, unique on the gateway: a-z, 0-9, '-'.")
    source: str = Field(
        description="rtsp://… URL, a video file, a device (/dev/video0), or a folder of pictures played as a stream."
    )
    substream: str | None = Field(
        None,
        description="The camera's small second stream (rtsp://…): looked at; pictures are taken from `source`.",
    )
    looks_per_s: float = Field(
        5.0, gt=0, le=60, description="How many frames per second of video the model looks at while something moves."
    )
    gears: GearSettings = GearSettings()
    zone: tuple[float, float, float, float] | None = Field(
        None, description="Part of the picture to look at: left, top, right, bottom as fractions 0..1."
    )
    zones: tuple[ZoneSettings, ...] = ()
    heat: bool = Field(
        True, description="Say where the picture is unlike this camera's normal, if the backbone gives its feature map."
    )
    paced: bool = Field(
        True,
        description="Files and folders: play at their own speed (true), or as fast as the box can (false).",
    )
    loop: bool = Field(False, description="Files and folders: begin again at the end.")
    picture_fps: float = Field(5.0, gt=0, le=60, description="Folder of pictures: pictures per second of video time.")
    timeout_s: float = Field(5.0, gt=0, description="A stream that gives no frame for so long is reopened.")
    priority: int = Field(
        0, description="When the box is too small for all cameras, those of the lowest number are looked at less first."
    )
    memory_bytes_max: int = Field(
        12_000_000,
        ge=1_000_000,
        description="Bound on the encoded video kept for the pictures of frames that may be chosen, and for clips.",
    )

    @field_validator("id")
    @classmethod
    def _name(cls, value: str) -> str:
        return check_key_name("camera", value)


class EventOverride(Section):
    """[[events.scenarios]]: other figures for one scenario or detector."""

    name: str = Field(description="The scenario or detector.")
    enter_level: float | None = Field(
        None, gt=0, le=1, description="enter_level of this one; by default that of [events]."
    )
    clear_level: float | None = Field(
        None, gt=0, le=1, description="clear_level of this one; by default that of [events]."
    )
    enter_s: float | None = Field(None, ge=0, description="enter_s of this one; by default that of [events].")
    clear_s: float | None = Field(None, ge=0, description="clear_s of this one; by default that of [events].")
    cooldown_s: float | None = Field(None, ge=0, description="cooldown_s of this one; by default that of [events].")


class EventSettings(Section):
    """[events]: when what the model says becomes an alarm, and when the alarm ends."""

    enabled: bool = Field(True, description="Follow events at all.")
    enter_level: float = Field(
        0.7, gt=0, le=1, description="Smoothed probability of anything but normal from which an event may begin."
    )
    clear_level: float = Field(0.4, gt=0, le=1, description="Below it the event may end; not above enter_level.")
    smooth_s: float = Field(0.5, gt=0, le=60, description="Time over which the probability is smoothed.")
    enter_s: float = Field(0.3, ge=0, le=600, description="It must be high for so long before the event begins.")
    clear_s: float = Field(2.0, ge=0, le=600, description="It must be low for so long before the event ends.")
    persist_s: float = Field(30.0, gt=0, description="An event that goes on is told again after so long.")
    cooldown_s: float = Field(
        5.0, ge=0, description="After an event has ended none of its scenario begins for so long."
    )
    scenarios: tuple[EventOverride, ...] = ()

    @model_validator(mode="after")
    def _ordered(self) -> "EventSettings":
        for name in ("", *(item.name for item in self.scenarios)):
            rule = self.rule(name)
            if rule.clear_level > rule.enter_level:
                raise ValueError(f"clear_level is above enter_level{' of ' + name if name else ''}")
        return self

    def rule(self, name: str) -> EventRule:
        """For a scenario or detector."""
        fields = self.model_dump(include={field.name for field in dataclasses.fields(EventRule)})
        for item in self.scenarios:
            if item.name == name:
                fields |= item.model_dump(exclude={"name"}, exclude_none=True)
        return EventRule(**fields)


class SelectionSettings(Section):
    """[selection]: which frames are worth sending, and how many."""

    samples_per_hour: float = Field(120.0, gt=0, description="Budget of the gateway, over all its cameras.")
    window_s: float = Field(60.0, gt=0, description="Frames compete within windows of this much video time.")
    trickle: float = Field(
        0.02,
        ge=0,
        le=1,
        description="Share of the budget spent on randomly chosen frames: keeps evaluation unbiased.",
    )
    similarity_max: float = Field(
        0.97,
        gt=0,
        le=1,
        description="A frame whose embedding has a larger cosine to a chosen one is redundant.",
    )
    rules: tuple[str, ...] = Field(
        ("unexplained", "relative-mahalanobis", "margin"),
        min_length=1,
        description="A frame's value is the mean of its ranks under these: unexplained, relative-mahalanobis, abnormal,"
        " margin, entropy, confidence, sedna-threshold, sedna-cross-entropy, sedna-ibt, or an installed one.",
    )
    normal_s: float = Field(
        3600.0, gt=0, description="An anomaly that stands still keeps half of its distance to normal for so long."
    )
    jpeg_quality: int = Field(90, ge=30, le=100, description="JPEG quality of uploaded pictures.")


class ComputeSettings(Section):
    """[compute]: on what the models run."""

    provider: Literal["auto", "tensorrt", "cuda", "rocm", "cann", "openvino", "coreml", "directml", "cpu"] = Field(
        "auto", description="ONNX Runtime's execution provider; auto takes the first that runs, and says why."
    )
    precision: Literal["auto", "float", "int8"] = Field(
        "auto", description="Variant of the backbone to run; auto measures which is fastest here, when installing."
    )


class InstallSettings(Section):
    """[install]: how a release proves itself here before it stays."""

    tolerance: float = Field(
        0.05,
        ge=0,
        le=1,
        description="How far a probability may be off what the release answers to its golden inputs at the centre.",
    )
    bytes_per_s: float = Field(
        0.0, ge=0, description="How fast a layer that is published for all may come; 0: no bound but the site's share."
    )
    test_s: float = Field(300.0, gt=0, description="Loading and self-test must end within so long.")
    shadow_frames: int = Field(30, ge=0, description="Frames that the new release looks at beside the running one.")
    shadow_s: float = Field(10.0, ge=0, description="Shadow ends after so long, cameras silent or not.")
    shadow_share: float = Field(
        0.5, gt=0, le=1, description="Share of one core that the release beside may use in shadow and on probation."
    )
    probation_frames: int = Field(50, ge=0, description="Healthy frames after which a release is committed.")
    probation_s: float = Field(30.0, ge=0, description="Probation ends after so long, cameras silent or not.")
    latency_ratio: float = Field(
        3.0, gt=1, description="A look of the new release may take so many times that of the one before."
    )
    flag_shift: float = Field(
        0.3,
        gt=0,
        le=1,
        description="How far the flag rate, against that of the old release on the same frames, may move from shadow.",
    )
    hang_s: float = Field(2.5, gt=0, description="On probation, a look that has not ended after so long hangs.")
    crashes_max: int = Field(
        2, ge=1, description="Starts (or attempts to load) on a release that is not committed, before it is left."
    )
    crash_window_s: float = Field(3600.0, gt=0, description="Within so long.")


class BudgetSettings(Section):
    """[budget]: what the agent may take of the box."""

    cores: float | None = Field(
        None,
        gt=0,
        le=256,
        description="CPU that the agent may use, in cores; beyond it cameras are looked at less, the lowest priority"
        " first. By default all.",
    )
    memory_mb: int | None = Field(
        None,
        ge=100,
        description="Memory that the agent may use, in millions of bytes; workers, then looks and kept video of the"
        " lowest priority give way to it. By default without limit.",
    )


class SpoolSettings(Section):
    """[spool]: the durable queue on disk."""

    bytes_max: int = Field(2_000_000_000, ge=1_000_000, description="Bound; the least valuable are evicted first.")
    age_max_h: float = Field(
        24.0 * 90, gt=0, description="What has waited for so many hours of the agent's running time is let go."
    )


class UplinkSettings(Section):
    """[uplink]: how samples leave."""

    window: int = Field(32, ge=1, le=1000, description="Samples sent but not yet receipted by the centre, at most.")
    resend_s: float = Field(
        20.0,
        gt=0,
        description="A sample without receipt is sent again after so long, then twice that, and so on.",
    )
    bytes_per_day: int = Field(
        500_000_000, ge=0, description="Bytes of samples per 24 hours of running, repetitions too; 0 is without limit."
    )
    bytes_per_s: float = Field(0.0, ge=0, description="Bytes of samples per second on average; 0 is without limit.")
    statistics_bytes_max: int = Field(
        0,
        ge=0,
        description="Bytes that a round's statistics of a scenario may have; 0: what the centre asks for. The"
        " smaller of the two bounds holds.",
    )
    class_samples_min: int = Field(
        0, ge=0, description="A class of which there are fewer labelled samples is not told of; the larger bound holds."
    )
    masked_only: bool = Field(
        False, description="Statistics of this gateway leave only masked, in sums over several (docs/privacy.md)."
    )
    cohort_min: int = Field(5, ge=2, description="A masked sum over fewer gateways is refused.")


class TrainingSettings(Section):
    """[training]: for a box that has torch, a server at the mine: it trains backbones on pictures that stay here."""

    app: str = Field(
        "",
        description="Flower ClientApp, as module:attribute, that answers rounds of weight updates; ours, for the"
        " adapter, is cloud.finetuning.site_app:app. Empty: such rounds are refused.",
    )
    pictures: Path | None = Field(
        None,
        description="Folder of labelled pictures (manifest.csv, or one folder per class) to train on, beside those that"
        " were labelled at this gateway's page.",
    )
    threads: int = Field(1, ge=0, description="Threads of torch while it trains; 0: one per core.")


class OfferSettings(Section):
    """[offers]: offer before pixels. Only where pixels may leave at all (`share`)."""

    enabled: bool = Field(
        False, description="Offer samples first (under 4 KB each), and send only those the centre asks for."
    )
    keep_hours: float = Field(72.0, gt=0, description="An offer that nobody asked for is declined after so long.")


class SiteBrokerSettings(BrokerSection):
    """[outputs.broker]"""

    enabled: bool = Field(False, description="Publish events on a broker of the site's own.")


class ClipSettings(Section):
    """[outputs.clips]: video of events, copied from what live cameras sent, in `clips` of data_dir."""

    enabled: bool = Field(True, description="Keep a clip of each event of a live camera.")
    before_s: float = Field(4.0, ge=0, le=5, description="Seconds before the event began.")
    after_s: float = Field(4.0, ge=0, le=5, description="Seconds after it was told.")
    files_max: int = Field(1000, ge=1, description="Clips kept; the oldest go first.")
    bytes_max: int = Field(1_000_000_000, ge=1_000_000, description="Bytes of clips kept; the oldest go first.")


class OutputSettings(Section):
    """[outputs]: events for the people at the site; nothing of this leaves it."""

    topic: str = Field("site", pattern=r"^[^#+\s]+$", description="What the topics begin with.")
    snapshots: bool = Field(True, description="A picture with the boxes drawn in goes with an event that begins.")
    home_assistant: bool = Field(False, description="Announce every camera and scenario to Home Assistant.")
    discovery_topic: str = Field(
        "homeassistant", pattern=r"^[^#+\s]+$", description="Home Assistant's own prefix for what is announced."
    )
    broker: SiteBrokerSettings = SiteBrokerSettings()
    clips: ClipSettings = ClipSettings()


class StatusSettings(Section):
    """[status]: the gateway's own page."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(0, ge=0, le=65535, description="0 picks a free port, written to data_dir/status.json.")


class EdgeSettings(RoleSettings):
    """edge.toml"""

    model_config = SettingsConfigDict(env_prefix="HEADFRAME_EDGE_")

    gateway_id: str = Field(description="Identity of this box; with TLS, the certificate's common name.")
    site_id: str = Field(description="The site (mine) that this gateway stands at.")
    data_dir: Path = Field(Path("/var/lib/headframe/edge"), description="Spool, releases and local labels.")
    release_root: Path = Field(
        description="Root of trust, the file of `headframe cloud keys root`: only what its roles sign runs here."
    )
    share: Literal["samples", "updates", "both"] = Field(
        "samples",
        description="What may leave the site: samples (pixels), updates (statistics; labels are given here), or both.",
    )
    heartbeat_s: float = Field(10.0, gt=0, description="Seconds between reports of state.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Lowest level logged.")
    drift_every_s: float = Field(
        60.0,
        gt=0,
        description="One look of a camera in so many seconds is compared with what it used to show: the first 512 of"
        " them.",
    )
    workers: int | None = Field(
        None,
        ge=0,
        le=256,
        description="Processes that cameras are spread over; 0: all in one. By default one per core from 49 cameras.",
    )
    broker: BrokerSection = BrokerSection()
    cameras: tuple[CameraSettings, ...] = Field(min_length=1, description="At least one [[cameras]] table.")
    selection: SelectionSettings = SelectionSettings()
    events: EventSettings = EventSettings()
    compute: ComputeSettings = ComputeSettings()
    install: InstallSettings = InstallSettings()
    budget: BudgetSettings = BudgetSettings()
    spool: SpoolSettings = SpoolSettings()
    uplink: UplinkSettings = UplinkSettings()
    training: TrainingSettings = TrainingSettings()
    offers: OfferSettings = OfferSettings()
    outputs: OutputSettings = OutputSettings()
    status: StatusSettings = StatusSettings()

    @field_validator("gateway_id", "site_id")
    @classmethod
    def _name(cls, value: str) -> str:
        return check_key_name("gateway or site", value)

    @field_validator("cameras")
    @classmethod
    def _distinct(cls, cameras: tuple[CameraSettings, ...]) -> tuple[CameraSettings, ...]:
        names = [camera.id for camera in cameras]
        if len(set(names)) != len(names):
            raise ValueError(f"camera ids are not unique: {', '.join(names)}")
        return cameras
