"""The one decorator of the steps' KFP interfaces: all steps run in one image that holds the application."""

import os
from collections.abc import Callable
from typing import Any

from kfp import dsl

IMAGE = os.environ.get("EMUFLOW_IMAGE", "emuflow-python:0.1.0")
"""The steps' image (`infra/images/Containerfile`); on a cluster name it by digest: `registry/emuflow@sha256:…`."""


def component(function: Callable[..., Any]) -> Callable[..., Any]:
    """A KFP component that imports what it needs from the image and installs nothing."""
    return dsl.component(function, base_image=IMAGE, install_kfp_package=False, packages_to_install=[])
