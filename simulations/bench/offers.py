"""Offer before pixels on real pictures: 50 virtual sites that see partly the same, with and without asking first.

Pictures of `belt-defects` are dealt to sites. Some are seen at several sites, a little different each time (light,
crop, compression): near-duplicates, as the same model of belt under the same lamp gives. Each site makes its messages
with the gateway's own code, the centre chooses with its own code from the encoded offers.

*Covered* is how well what was uploaded stands for all that was seen: the mean over all distinct pictures of the largest
cosine (centred embeddings, of the pictures as they are) to an uploaded one. The comparator uploads without asking, each
site its most valuable first, all sites in turn, until it covers as much; both pay for every byte, offers included.
"""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from cloud.choosing import Choice
from cloud.learning.datasets import read_folder
from cloud.learning.export import export_default_backbone
from cloud.settings import OfferSettings
from common import codec
from common.backbone import Backbone
from common.coverage import from_int8, unit_rows
from common.ids import layer_hash, sample_id
from common.messages import Offer, Sample
from common.pictures import read_picture
from edge.offers import OFFER_BYTES_MAX, make_offer
from edge.threads import one_thread_each
from simulations.bench._messages import made_sample
from simulations.data import find_data

SITES: Final = 50
COPIES: Final = 4
"""Sites at which a shared picture is seen."""
SHARED: Final = 0.5
"""Share of the pictures that several sites see."""
PICTURES: Final = {True: 150, False: 800}
BUDGETS: Final = (0.2, 0.5, 0.8)
"""Share of the distinct pictures that is asked for."""
SIDE_PX: Final = 640
"""The data set holds patches of 128 px; scaled up they weigh about 40 KB, a small picture for a camera of today."""
THRESHOLDS: Final = (0.97, 0.95, 0.92, 0.90)
QUALITY: Final = 85

Rows = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Seen:
    """A picture as a site saw it."""

    picture: int
    site: int
    payload_bytes: int
    offer: Offer
    offer_bytes: int
    exact: NDArray[np.float64]
    """Its embedding before it was rounded."""


def bench_offers(*, quick: bool) -> dict[str, Any]:
    """Figures of docs/benchmarks.md, `offers`."""
    rng = np.random.default_rng(7)
    originals, seen = _sightings(PICTURES[quick], rng)
    similarity_max = OfferSettings().similarity_max
    rows = []
    for share in BUDGETS:
        count = int(share * len(originals))
        chosen = _asked_for(seen, count, similarity_max)
        ours = _coverage(originals, [item.picture for item in chosen])
        our_bytes = sum(item.offer_bytes for item in seen) + sum(item.payload_bytes for item in chosen)
        plain = _until(originals, seen, ours)
        plain_bytes = sum(item.payload_bytes for item in plain)
        pictures = Counter(item.picture for item in chosen)
        rows.append(
            {
                "asked_for": len(chosen),
                "covered": round(ours, 4),
                "bytes": our_bytes,
                "bytes_without_asking": plain_bytes,
                "uploads_without_asking": len(plain),
                "bytes_ratio": round(our_bytes / plain_bytes, 3),
                "pixel_bytes_ratio": round(sum(item.payload_bytes for item in chosen) / plain_bytes, 3),
                "uploaded_twice": sum(number > 1 for number in pictures.values()),
                "uploaded_twice_without_asking": sum(
                    number > 1 for number in Counter(item.picture for item in plain).values()
                ),
            }
        )
    cosine = [float(_unit(item.exact) @ _unit(_rounded(item.offer))) for item in seen]
    return {
        "sites": SITES,
        "pictures": len(originals),
        "sightings": len(seen),
        "offer_bytes_max": max(item.offer_bytes for item in seen),
        "offer_bytes_mean": round(float(np.mean([item.offer_bytes for item in seen])), 1),
        "offer_bytes_bound": OFFER_BYTES_MAX,
        "payload_bytes_mean": round(float(np.mean([item.payload_bytes for item in seen])), 1),
        "int8_cosine_min": round(min(cosine), 6),
        "similarity_max": similarity_max,
        "without_budget": {f"{bound:.2f}": _without_budget(originals, seen, bound) for bound in THRESHOLDS},
        "at_equal_coverage": rows,
    }


def _without_budget(originals: Rows, seen: list[Seen], similarity_max: float) -> dict[str, Any]:
    """All that is not a near-duplicate is asked for."""
    chosen = _asked_for(seen, len(seen), similarity_max)
    times = Counter(item.picture for item in chosen)
    shared = {item.picture for item in seen if sum(x.picture == item.picture for x in seen) > 1}
    offers, pixels = (sum(x) for x in ((s.offer_bytes for s in seen), (c.payload_bytes for c in chosen)))
    return {
        "asked_for": len(chosen),
        "shared_pictures": len(shared),
        "uploaded_twice": sum(number > 1 for number in times.values()),
        "not_uploaded": len(originals) - len(times),
        "covered": round(_coverage(originals, list(times)), 4),
        "bytes_of_everything": round((offers + pixels) / sum(item.payload_bytes for item in seen), 3),
    }


def _sightings(count: int, rng: np.random.Generator) -> tuple[Rows, list[Seen]]:
    """Embeddings of the distinct pictures, and every sighting in the order in which it is offered."""
    items = read_folder(find_data("belt-defects"))
    picked = [items[row] for row in rng.permutation(len(items))[:count]]
    file = export_default_backbone()
    with one_thread_each():
        path = Path(os.environ.get("TMPDIR", "/tmp")) / f"headframe-offers-{os.getpid()}.onnx"  # noqa: S108
        path.write_bytes(file)
        try:
            backbone = Backbone.open(path)
        finally:
            path.unlink()
        originals, seen = [], list[Seen]()
        for number, item in enumerate(track(picked, "pictures", console=Console(stderr=True), transient=True)):
            image = _scaled(read_picture(item.path))
            originals.append(backbone.embed(image).astype(np.float64))
            sites = rng.permutation(SITES)[: COPIES if number < SHARED * count else 1]
            for place, site in enumerate(sites):
                view = image if place == 0 else _again(image, rng)
                seen.append(_see(number, int(site), view, backbone, layer_hash(file), float(rng.random())))
    return np.stack(originals), [seen[row] for row in rng.permutation(len(seen))]


def _see(picture: int, site: int, image: NDArray[np.uint8], backbone: Backbone, name: str, value: float) -> Seen:
    jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()
    exact = backbone.embed(np.asarray(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR), np.uint8))
    gateway_id, at_ns = f"site-{site}", 1_700_000_000_000_000_000 + picture
    template = made_sample(0, gateway_id)
    sample: Sample = msgspec.structs.replace(
        template,
        sample_id=sample_id(jpeg, gateway_id, template.camera_id, at_ns),
        site_id=gateway_id,
        captured_at_ns=at_ns,
        backbone=name,
        width_px=image.shape[1],
        height_px=image.shape[0],
        jpeg=jpeg,
        embedding=exact.astype("<f2").tobytes(),
        scores=msgspec.structs.replace(template.scores, value=value),
    )
    payload = codec.encode(sample)
    encoded = codec.encode(make_offer(sample, len(payload)))
    offer = codec.decode(encoded)
    if not isinstance(offer, Offer):
        raise TypeError("an offer decodes as something else")
    return Seen(picture, site, len(payload), offer, len(encoded), exact.astype(np.float64))


def _again(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """The same sight at another site: a little darker or lighter, a few pixels of the border away, compressed once."""
    cut = rng.integers(0, max(2, min(image.shape[:2]) // 40), 4)
    view = image[cut[0] : image.shape[0] - cut[1], cut[2] : image.shape[1] - cut[3]]
    view = cv2.resize(view, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_AREA)
    view = cv2.convertScaleAbs(view, alpha=float(rng.uniform(0.95, 1.05)), beta=float(rng.uniform(-6, 6)))
    data = cv2.imencode(".jpg", view, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(75, 95))])[1]
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)


def _scaled(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    scale = SIDE_PX / max(image.shape[:2])
    return np.asarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)


def _asked_for(seen: list[Seen], count: int, similarity_max: float) -> list[Seen]:
    """What the centre asks for of all that is offered, in ten choices, as offers come over a day."""
    choice = Choice(similarity_max)
    by_id = {item.offer.sample_id: item for item in seen}
    chosen: list[Seen] = []
    for part in range(10):
        for item in seen[part::10]:
            choice.offer(item.offer)
        chosen += [by_id[o.sample_id] for o in choice.pick(count * (part + 1) // 10 - len(chosen))]
    chosen += [by_id[o.sample_id] for o in choice.pick(count - len(chosen))]
    return chosen


def _until(originals: Rows, seen: list[Seen], target: float) -> list[Seen]:
    """Without asking: each site its most valuable, all sites in turn, until as much is covered (by bisection)."""
    queues = [sorted((x for x in seen if x.site == site), key=lambda x: -x.offer.scores.value) for site in range(SITES)]
    longest = max(map(len, queues))
    order = [queue[place] for place in range(longest) for queue in queues if place < len(queue)]
    low, high = 1, len(order)
    while low < high:
        middle = (low + high) // 2
        if _coverage(originals, [item.picture for item in order[:middle]]) >= target:
            high = middle
        else:
            low = middle + 1
    return order[:low]


def _coverage(originals: Rows, pictures: list[int]) -> float:
    """Mean over all distinct pictures of the largest cosine to one that was uploaded."""
    shape = unit_rows(originals - originals.mean(axis=0))
    uploaded = shape[sorted(set(pictures))]
    return float((shape @ uploaded.T).max(axis=1).mean()) if len(uploaded) else -1.0


def _rounded(offer: Offer) -> NDArray[np.float64]:
    return from_int8(offer.embedding, offer.step)


def _unit(row: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(unit_rows(row[None])[0], np.float64)
