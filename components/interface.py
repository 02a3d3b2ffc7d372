"""The one decorator of the steps' KFP interfaces, and the two images that they run in (`infra/images/`)."""

import functools
import os
from collections.abc import Callable
from typing import Any

from kfp import dsl

IMAGE = os.environ.get("EMUFLOW_IMAGE", "emuflow-python:0.1.0")
"""Of the steps; whoever compiles names it by digest: `registry/emuflow@sha256:…`."""
TRITON_IMAGE = os.environ.get("EMUFLOW_TRITON_IMAGE", "emuflow-triton-python:0.1.0")
"""Of the steps that start a server. It has no torch, no DeepSpeed and no other library that learns."""


def component(image: str = IMAGE) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A KFP component that imports what it needs from its image and installs nothing."""
    return functools.partial(dsl.component, base_image=image, install_kfp_package=False, packages_to_install=[])
