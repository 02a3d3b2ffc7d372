"""The one decorator of the steps' KFP interfaces, and the two images that they run in (`infra/images/`)."""

import functools
import os
from collections.abc import Callable
from typing import Any

from kfp import dsl

from common.version import VERSION

IMAGE = os.environ.get("EMUFLOW_IMAGE", f"localhost/emuflow:{VERSION}")
"""Of the steps, as `make images` names it; on a cluster it is named by digest: `registry/emuflow@sha256:…`."""
TRITON_IMAGE = os.environ.get("EMUFLOW_TRITON_IMAGE", f"localhost/emuflow-triton:{VERSION}")
"""Of the steps that start a server. It has no torch, no DeepSpeed and no other library that learns."""


def component(image: str = IMAGE) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A KFP component that imports what it needs from its image and installs nothing."""
    return functools.partial(dsl.component, base_image=image, install_kfp_package=False, packages_to_install=[])
