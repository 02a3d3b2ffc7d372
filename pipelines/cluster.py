"""The graph as Kubeflow Pipelines' intermediate representation."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

from common.files import atomic_path
from pipelines.provenance import describe_run
from pipelines.settings import Settings

if TYPE_CHECKING:
    from kfp.dsl.base_component import BaseComponent


def compile_pipeline(settings: Settings, output: Path, *, preset: str, image: str | None = None) -> None:
    """Write the pipeline's IR to `output` (`.yaml` or `.json`), with the settings as its parameters' defaults.

    `image` names the steps' image, best by digest (`registry/emuflow@sha256:…`).
    """
    if image:
        os.environ["EMUFLOW_IMAGE"] = image  # read when the components are imported

    provenance = json.dumps(describe_run(settings, preset, None), sort_keys=True)

    from kfp.compiler import Compiler

    from pipelines.retrain import retrain

    with atomic_path(output) as temporary:
        package = temporary.with_suffix(output.suffix)
        Compiler().compile(
            cast("BaseComponent", retrain),  # what the decorator makes of it; its annotation does not say so
            str(package),
            pipeline_parameters={**settings.section_parameters(), "provenance": provenance},
        )
        package.replace(temporary)
