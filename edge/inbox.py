"""Releases that are carried here by hand: a file put into `import`, taken like a message of the centre.

Decides nothing about trust: the installer gets the message and the layers as if they had come over the link. The
command `headframe edge import` looks into a file before it puts it here; a file that appears by other means is treated
the same.
"""

import logging
import shutil
from collections import deque
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from common.archive import Archive
from common.errors import HeadframeError, OperatorError
from common.files import sync_folder
from common.manifest import Manifest
from common.messages import Desired, Fetch, LayerPart
from common.metadata import STATE, TrustedMetadata

log = logging.getLogger(__name__)

FOLDER: Final = "import"
ENDING: Final = ".release"
TAKEN: Final = ".taken"
IDLE_MAX: Final = 120
"""Steps without a question after which a file has served."""
WAITING_MAX: Final = 64
"""Requests that wait for the next step; the installer asks for one part at a time."""


class Inbox:
    """Files in a folder; the newest is offered, and removed when it is of no more use.

    Args:
        tell, give: the installer's ways in.
    """

    def __init__(
        self, folder: Path, gateway_id: str, tell: Callable[[Desired], None], give: Callable[[LayerPart], None]
    ) -> None:
        self._folder, self._gateway_id, self._tell, self._give = folder, gateway_id, tell, give
        self._archive: Archive | None = None
        self._idle = 0
        """Steps since the open file was last of use."""
        for path in folder.glob(f"*{TAKEN}"):  # of a run that was cut short: what is there already is not fetched again
            path.replace(path.with_suffix(ENDING))
        self._asked: deque[Fetch] = deque(maxlen=WAITING_MAX)

    def take(self, fetch: Fetch) -> bool:
        """Keep a request that the open file can answer; False: it is for the centre."""
        if self._archive is None or not self._archive.has_layer(fetch.layer):
            return False
        self._asked.append(fetch)
        return True

    def step(self) -> None:
        """Open a file that has come, answer what was asked for. Called about once a second."""
        for path in sorted(self._folder.glob(f"*{ENDING}")) if self._folder.is_dir() else ():
            self._open(path)
        self._idle += 1
        while self._asked and self._archive:
            self._idle = 0
            self._answer(self._archive, self._asked.popleft())
        if self._idle > IDLE_MAX:
            self.close()

    def close(self) -> None:
        """Let the open file go."""
        if self._archive:
            self._archive.close()
            self._archive.path.unlink(missing_ok=True)
            self._archive = None

    def _open(self, path: Path) -> None:
        self.close()
        taken, self._idle = path.with_suffix(TAKEN), 0
        path.replace(taken)
        try:
            archive = Archive(taken)
            desired = archive.desired(self._gateway_id)
        except HeadframeError as error:
            log.error("%s is not taken: %s", path.name, error)
            taken.unlink(missing_ok=True)
            return
        log.info("a release is taken from %s", path.name)
        self._archive = archive
        self._tell(desired)

    def _answer(self, archive: Archive, fetch: Fetch) -> None:
        try:
            data, total = archive.part(fetch.layer, fetch.offset, fetch.length)
        except HeadframeError as error:
            log.error("%s", error)
            data, total = b"", 0
        self._give(LayerPart(layer=fetch.layer, offset=fetch.offset, total_bytes=total, data=data))


def put_in(
    path: Path, data_dir: Path, trust: Path, root: bytes, gateway_id: str, site_id: str, now_ns: int
) -> Manifest:
    """Look into a file as the gateway would, and hand it over to the agent if it is right.

    Args:
        trust: folder of what the gateway trusts; it is not changed.

    Raises:
        OperatorError: no such file, or not for this gateway.
        TrustError, WireError: not what the centre signed, or damaged; nothing was handed over.
    """
    with Archive(path) as archive, TemporaryDirectory(prefix="headframe-import-") as name:
        known = Path(name) / STATE
        if (trust / STATE).is_file():
            shutil.copyfile(trust / STATE, known)
        manifest = TrustedMetadata(Path(name), root, gateway_id).check(archive.desired(gateway_id), now_ns)
        for layer in manifest.layers_for(site_id):
            archive.layer(layer.hash, layer.size_bytes)
    folder = data_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    try:
        copy = folder / f".{path.stem}.copy"
        shutil.copyfile(path, copy)
        copy.replace(folder / f"{path.stem}{ENDING}")
        sync_folder(folder)
    except OSError as error:
        raise OperatorError(f"cannot copy {path} to {folder}: {error.strerror}", "Free space for it.") from error
    return manifest
