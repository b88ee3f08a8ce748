"""What travels between gateway and centre. Each struct is one message; `common.codec` turns it into bytes.

Binary fields are bytes, never base64. Unknown fields are ignored, so a field may be added without a new version;
a change of meaning raises `SCHEMA_VERSION`.
"""

import msgspec

SCHEMA_VERSION = 1


class Prediction(msgspec.Struct, frozen=True):
    """What one scenario's head said about a frame."""

    scenario: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    novelty: float
    """Relative Mahalanobis distance to the class statistics of the release (higher = less like what was trained)."""

    @property
    def top(self) -> str:
        """The most probable class."""
        return self.classes[max(range(len(self.classes)), key=self.probabilities.__getitem__)]


class Box(msgspec.Struct, frozen=True):
    """What a detector found, in fractions 0..1 of the picture it stands with."""

    detector: str
    label: str
    score: float
    left: float
    top: float
    right: float
    bottom: float


class Scores(msgspec.Struct, frozen=True):
    """Why a frame was chosen. Ranks are in 0..1 among the recent frames of the gateway (1 = most unusual)."""

    novelty: float
    abnormality: float
    uncertainty: float
    redundancy: float
    """Largest cosine similarity (0..1) of the embedding to a sample already chosen."""
    value: float
    """The figure the budget ranks by."""
    doubt: float = 0.0
    """How much a detector is to be doubted here (0..1), where the release has one: `edge.doubts`."""


class Sample(msgspec.Struct, frozen=True, tag="sample", kw_only=True):
    """One frame that the edge chose to keep (a hard sample, or one of the random trickle)."""

    sample_id: bytes
    gateway_id: str
    site_id: str
    camera_id: str
    captured_at_ns: int
    release_id: str
    backbone: str
    """Layer hash of the backbone that made `embedding`."""
    width_px: int
    height_px: int
    jpeg: bytes
    embedding: bytes
    """float16 little-endian, the raw output of the backbone."""
    predictions: tuple[Prediction, ...]
    scores: Scores
    reason: str
    """novel, abnormal, uncertain, doubtful or trickle: the largest of the scores, or the random trickle."""
    pixel_path: str = ""
    """How the pixels reached the model, e.g. `main-1280x720/zone`: logits are not comparable across paths."""
    boxes: tuple[Box, ...] = ()
    """What the release's detectors found when the frame was looked at."""
    variant: str = ""
    """Layer hash of the variant that made `embedding`, where it was not `backbone` itself."""
    epoch: str = ""
    """Life of the spool that numbered it (`SpoolEpoch`); empty from an agent that does not number."""
    sequence: int = 0
    """Its number in that epoch, 1 for the first."""


class Event(msgspec.Struct, frozen=True, tag="event", kw_only=True):
    """Something began, goes on, or is over at a camera. News: sent while the link is up, never durable."""

    event_id: str
    """The same for all that is said about one event (`common.ids.event_id`)."""
    gateway_id: str
    site_id: str
    camera_id: str
    scenario: str
    """The scenario, or the detector, that says so."""
    phase: str
    """enter, persist or clear."""
    label: str
    """What was seen when it was clearest."""
    peak: float
    """How sure the model was then, 0..1."""
    began_at_ns: int
    at_ns: int
    release_id: str
    cause: str = ""
    """Why it was closed, when not because it is over."""
    boxes: tuple[Box, ...] = ()
    jpeg: bytes = b""
    """A small picture with the boxes drawn in, when it entered; none where pixels may not leave the site."""


class Chunk(msgspec.Struct, frozen=True, tag="chunk", kw_only=True):
    """A part of an encoded message that is larger than the chunk size."""

    transfer_id: bytes
    """BLAKE2b-128 of the whole payload."""
    index: int
    count: int
    total_bytes: int
    data: bytes


class Refusal(msgspec.Struct, frozen=True):
    """A sample that the centre will never store, and why; the edge drops it and reports it."""

    sample_id: bytes
    reason: str


class Partial(msgspec.Struct, frozen=True):
    """What the centre still lacks of a transfer that was begun before."""

    transfer_id: bytes
    missing: tuple[int, ...]
    """Indexes of chunks, at most 256 of them."""


class Receipt(msgspec.Struct, frozen=True, tag="receipt", kw_only=True):
    """Sent after the centre's commit: the spool may forget these. Nothing else lets it forget."""

    stored: tuple[bytes, ...] = ()
    refused: tuple[Refusal, ...] = ()
    ledger: tuple[tuple[str, int], ...] = ()
    """(epoch, sequence) of entries of `Ledger` that are in the centre's store."""
    pause_s: float = 0.0
    """The centre is behind: send nothing new for so long."""
    partial: tuple[Partial, ...] = ()
    renew: str = ""
    """Epoch that the centre has seen further than the gateway says it is: an old disk image. Begin a new one."""


class Ended(msgspec.Struct, frozen=True):
    """A sample that the spool let go without a receipt."""

    epoch: str
    sequence: int
    sample_id: bytes
    value: float
    state: str
    """evicted (the spool was full), expired (too old), or declined (it was offered, and nobody asked for it)."""


class Ledger(msgspec.Struct, frozen=True, tag="ledger", kw_only=True):
    """What a spool let go, sent again until it is receipted: a gap in the numbers is either here or a loss."""

    gateway_id: str
    ended: tuple[Ended, ...]


class SpoolEpoch(msgspec.Struct, frozen=True):
    """One life of a spool: it begins with a new file, or when an old image of the disk is noticed."""

    epoch: str
    head: int
    """Number of the last sample accepted."""
    tail: int
    """Lowest number that the centre has not receipted; head + 1 when it has all."""
    waiting: int
    """How many it has not receipted: samples in the spool, and entries of the ledger."""


class CameraState(msgspec.Struct, frozen=True, kw_only=True):
    """Reported state of one camera."""

    camera_id: str
    state: str
    """starting, live, ended, failed; or what is wrong with the picture: dark, frozen, covered, moved, garbled."""
    detail: str = ""
    frames: int = 0
    looks: int = 0
    dropped: int = 0
    reconnects: int = 0
    damaged: int = 0
    """Packets and frames that could not be decoded, or only in parts."""
    gear: str = ""
    """idle, watch or alert; empty while nothing is decoded."""
    fps: float = 0.0
    """Frames that arrive per second of wall time, over the last seconds."""
    looks_per_s: float = 0.0
    """Looks per second of wall time, over the last seconds."""
    latency_ms: float = 0.0
    """From the arrival of a frame to the end of its look: median of the recent looks."""
    latency_ms_p99: float = 0.0
    drift: float = 0.0
    """How far what it shows has moved from what it used to show, as a share of the limit: 1 is drift (`edge.drift`); 0
    while its usual is being learnt."""


class ReleaseHealth(msgspec.Struct, frozen=True, kw_only=True):
    """How a release does on this gateway since it began to run here (or beside the running one): counts, never pixels.

    The centre's rollout judges by these; a newly active release counts as healthy only after enough frames.
    """

    release_id: str
    phase: str
    """fetching, testing, shadow, probation, committed, or rolled-back."""
    reason: str = ""
    """Why it was refused or rolled back."""
    frames: int = 0
    """Looks by this release."""
    errors: int = 0
    restarts: int = 0
    """Starts of the agent since it began to run."""
    flagged: int = 0
    """Looks that asked for attention: some scenario's most probable class was not its normal one, or a detector found
    what raises an event."""
    score_sum: float = 0.0
    score_squares: float = 0.0
    """Sum and sum of squares of the top probability over `frames`: the centre compares distributions by them."""
    latency_ms: float = 0.0
    """Median of the recent looks."""
    unseen: float = 0.0
    """Looks that were due while it ran and did not happen, because the box was too slow for them."""
    compared: int = 0
    """Frames seen by the old release too (shadow, probation)."""
    disagreed: int = 0
    """Of `compared`, those on which the two named another class."""
    moved: dict[str, tuple[int, int]] = {}
    """Per `scenario/class`: of `compared`, frames on which the release before named it, and those of them on which this
    one names another. Frames on which it names what the one before could not are left out."""


class State(msgspec.Struct, frozen=True, tag="state", kw_only=True):
    """Reported state of a gateway: its heartbeat."""

    gateway_id: str
    site_id: str
    at_ns: int
    agent_version: str
    release_id: str
    """What runs now."""
    install: str = ""
    """Outcome of the last install: `committed r3-…`, `refused r4-…: why`."""
    share: str = "samples"
    spool_rows: int = 0
    spool_bytes: int = 0
    accepted: int = 0
    receipted: int = 0
    evicted: int = 0
    refused: int = 0
    declined: int = 0
    """Samples that were offered and not asked for in time."""
    bytes_up: int = 0
    bytes_down: int = 0
    looks: int = 0
    chosen: dict[str, int] = {}
    """Samples accepted into the spool, by reason."""
    local_labels: int = 0
    """Labels given at the site's own page (a site that shares updates only)."""
    compute: str = ""
    """What the models run on, in which precision, and why."""
    events: int = 0
    """Events that have begun since the start."""
    alarms: tuple[str, ...] = ()
    """Events that are open now: `camera/scenario`."""
    cameras: tuple[CameraState, ...] = ()
    online: bool = True
    """False only in the last will."""
    config: str = ""
    """Outcome of the last reload of the configuration (`applied: …`, `refused: why`), and what the budget costs."""
    epochs: tuple[SpoolEpoch, ...] = ()
    """Lives of the spool, the running one first, then those of which something still waits (at most 8)."""
    health: tuple[ReleaseHealth, ...] = ()
    """Of the release that runs, and of one that is being installed or was just rolled back (at most 3)."""
    shared: bool = False
    """It takes what is published once for all (`Parcel`); else it is told, and given, everything by itself."""
    trains: bool = False
    """It answers rounds of weight updates of the backbone."""


class Parcel(msgspec.Struct, frozen=True):
    """Bytes that are published once for all who need them (`common.parcels`)."""

    root: bytes
    """Hash of the one piece, or of the index that lists the pieces."""
    total_bytes: int


class Desired(msgspec.Struct, frozen=True, tag="desired", kw_only=True):
    """What the centre wants a gateway to run: a manifest, and all that proves it. Published retained."""

    manifest: bytes
    signature: bytes = b""
    """Of earlier versions: one key's Ed25519 signature. The roles below have taken its place."""
    base: bytes = b""
    """The whole release that `manifest` changes parts of, where no more than parts were signed for."""
    metadata: dict[str, bytes] = {}
    """TUF metadata by file name: `3.root.json`, `timestamp.json`, `7.snapshot.json`, `4.targets.json` …"""
    assignment: bytes = b""
    """TUF metadata of the role `assignments`: that this gateway is to run this manifest."""
    proof: Parcel | None = None
    """Where `manifest`, `base` and `metadata` are when they are not in here: the same for every gateway."""
    release_id: str = ""
    """With `proof`: the release that it is of."""


class Fetch(msgspec.Struct, frozen=True, tag="fetch", kw_only=True):
    """A gateway asks for part of a layer; it asks for the next part when this one has come (pull, resumable)."""

    layer: str
    offset: int
    length: int
    bases: tuple[str, ...] = ()
    """Layers that the gateway holds: a delta from any of them will do. Empty: the whole file."""
    shared: bool = False
    """What is published for all will do: the answer is then `Shelved`, if the centre does that."""
    silent: bool = False
    """It was told where, and what follows on `offset` has not come: it may have to be published again."""


class Shelved(msgspec.Struct, frozen=True, tag="shelved", kw_only=True):
    """Where what a gateway asked for is published for all: a layer's file, or a delta that makes it of `base`."""

    layer: str
    parcel: Parcel
    base: str = ""
    wait_s: float = 0.0
    """How long it may take until all of it is published: the centre has a bound on its bytes a second."""
    bytes_per_s: float = 0.0
    """What this gateway's share of its site's line is; 0: no bound."""


class LayerPart(msgspec.Struct, frozen=True, tag="layer", kw_only=True):
    """Part of a layer's file, or of a delta (`common.delta`) that makes it of the layer `base`.

    `total_bytes` is of what is sent, 0 when the centre does not hold it.
    """

    layer: str
    offset: int
    total_bytes: int
    data: bytes
    base: str = ""


class FlowerFrame(msgspec.Struct, frozen=True, tag="flower", kw_only=True):
    """A Flower message as its own protobuf bytes (`flwr.proto.message_pb2.Message`)."""

    message: bytes


class Renewal(msgspec.Struct, frozen=True, tag="renew", kw_only=True):
    """A gateway asks for its next certificate, and proves with the one it has that it may (`common.certificates`)."""

    request: bytes
    """Signing request (PEM) of the new key."""
    certificate: bytes
    """The certificate it has (PEM)."""
    signature: bytes
    """Over the request, with the key of that certificate."""


class Certificate(msgspec.Struct, frozen=True, tag="certificate", kw_only=True):
    """The centre's answer to a renewal."""

    certificate: bytes


class Offer(msgspec.Struct, frozen=True, tag="offer", kw_only=True):
    """A sample that a gateway holds and would send: under 4 KB, so that the centre can choose across the fleet."""

    sample_id: bytes
    gateway_id: str
    site_id: str
    camera_id: str
    captured_at_ns: int
    backbone: str
    embedding: bytes
    """int8, times `step`."""
    step: float
    scores: Scores
    reason: str
    payload_bytes: int
    """What sending it would cost."""
    thumbnail: bytes = b""
    """A small JPEG."""


class Want(msgspec.Struct, frozen=True, tag="want", kw_only=True):
    """The centre's answer to offers."""

    wanted: tuple[bytes, ...] = ()
    """Send these."""
    heard: tuple[bytes, ...] = ()
    """Not now, perhaps later; they need not be offered again soon."""


Message = (
    Offer
    | Want
    | Sample
    | Event
    | Chunk
    | Receipt
    | Ledger
    | State
    | Desired
    | Fetch
    | LayerPart
    | Shelved
    | FlowerFrame
    | Renewal
    | Certificate
)
