"""A release out of the centre as one file, and into another centre: the layout is `common.archive`'s.

What comes in is verified by the roles of the centre that it comes from, from the root that a person names, and then
published here under this centre's own roles: gateways trust one root.
"""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from cloud.registry import Registry
from common.archive import CENTRE, Archive, write_archive
from common.clock import Clock
from common.errors import OperatorError
from common.files import sync_folder
from common.manifest import Manifest
from common.metadata import TrustedMetadata


def export_release(registry: Registry, name: str, path: Path, gateways: Sequence[str]) -> Manifest:
    """Write a release with its layers and the assignments of these gateways.

    Raises:
        OperatorError: there is no such release, it waits for signatures, or its layers are gone.
    """
    manifest, desired = registry.manifest(name), registry.desired(CENTRE, name)
    if manifest is None or desired is None:
        raise OperatorError(
            f"there is no release {name}, or it waits for signatures", "`headframe cloud releases` lists them."
        )
    layers = sorted({(layer.hash, registry.layer_path(layer.hash)) for layer in manifest.layers()})
    gone = [layer for layer, file in layers if not file.is_file()]
    if gone:
        raise OperatorError(f"layer {gone[0][:12]} of release {name} is not kept any more", "Choose a newer release.")
    told = {gateway_id: registry.desired(gateway_id, name) for gateway_id in (CENTRE, *gateways)}
    registry.flush()
    temporary = path.with_name(f".{path.name}.part")
    try:
        write_archive(temporary, desired, {who: said.assignment for who, said in told.items() if said}, layers)
        temporary.replace(path)
        sync_folder(path.resolve().parent)
    finally:
        temporary.unlink(missing_ok=True)
    return manifest


def import_release(registry: Registry, path: Path, root: Path, clock: Clock) -> str:
    """Verify a file and publish what is in it; returns the id that the release has here.

    Args:
        root: root of trust of the centre that exported it.

    Raises:
        OperatorError: the file or the root is not one.
        TrustError, WireError: it is not what that centre signed; nothing was kept.
    """
    with Archive(path) as archive, TemporaryDirectory(prefix="headframe-import-") as folder:
        trusted = TrustedMetadata(Path(folder), _read(root), CENTRE)
        manifest = trusted.check(archive.desired(CENTRE), clock.wall_ns())
        made = [archive.layer(layer.hash, layer.size_bytes) for layer in manifest.layers()]
        for data in made:
            registry.put(data)
    gate = {"passed": True, "imported": path.name}
    return registry.publish(
        manifest.scenarios, manifest.backbone, gate, f"imported from {path.name}", manifest.variants, manifest.golden
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise OperatorError(f"cannot read {path}: {error.strerror}", "Give the file of `keys root`.") from error
