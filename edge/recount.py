"""A new backbone looks again at the samples whose pictures stay at the site, so that their statistics count on it.

A few at a time, between other duties: until all are done, the centre carries the old statistics over by a linear map.
Samples whose pictures went to the centre are counted there and need nothing here.
"""

import logging
from typing import Final

from common.pictures import decode_picture
from edge.exemplars import Exemplars
from edge.perception import Model

log = logging.getLogger(__name__)

AT_ONCE: Final = 4  # 20 to 100 ms a step, beside the looks


def recount(exemplars: Exemplars, model: Model) -> int:
    """Embed the next few; labelled ones first, since they alone are counted. Returns how many.

    Raises:
        EnvironmentFault: the disk is full or fails; they are looked at again.
    """
    backbone = model.manifest.backbone.hash
    waiting = exemplars.stale(backbone, AT_ONCE)
    for name, jpeg in waiting:
        picture = decode_picture(jpeg)
        if picture is None:
            log.warning("the picture of sample %s is damaged and let go", name.hex())
            exemplars.drop_picture(name)
            continue
        embedding = model.backbone.embed(picture)
        exemplars.look_again(name, backbone, embedding.astype("<f2").tobytes())
    return len(waiting)
