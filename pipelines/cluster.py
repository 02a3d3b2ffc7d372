"""The graph as Kubeflow Pipelines' intermediate representation."""

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, cast

from common.errors import UsageError
from common.files import atomic_path
from pipelines.provenance import describe_run
from pipelines.settings import Settings

if TYPE_CHECKING:
    from kfp.dsl.base_component import BaseComponent

_BY_DIGEST = re.compile(r"[^@\s]+@sha256:[0-9a-f]{64}")


def compile_pipeline(
    settings: Settings,
    output: Path,
    *,
    preset: str,
    image: str | None = None,
    triton_image: str | None = None,
    allow_tags: bool = False,
) -> None:
    """Write the pipeline's IR to `output` (`.yaml` or `.json`), with the settings as its parameters' defaults.

    `image` is the steps', `triton_image` that of export and benchmark, both by digest (`registry/emuflow@sha256:…`).
    Raises `UsageError` for a tag, which may mean another image tomorrow, unless `allow_tags`.
    """
    for variable, name, option in (
        ("EMUFLOW_IMAGE", image, "--image"),
        ("EMUFLOW_TRITON_IMAGE", triton_image, "--triton-image"),
    ):
        named = name or os.environ.get(variable)
        if not allow_tags and not (named and _BY_DIGEST.fullmatch(named)):
            raise UsageError(
                f"{named or 'no image'} is not named by its digest",
                where=option,
                fix="write REGISTRY/NAME@sha256:DIGEST, or allow a tag with --allow-tags",
            )
        if named:
            os.environ[variable] = named  # read when the components are imported

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
