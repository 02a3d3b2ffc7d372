"""The graph as Kubeflow Pipelines' intermediate representation."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from common.errors import UsageError
from common.files import atomic_path
from pipelines.provenance import describe_run
from pipelines.settings import MEASURED_BY, Settings

_BY_DIGEST = re.compile(r"[^@\s]+@sha256:[0-9a-f]{64}")


def compile_pipeline(
    settings: Settings,
    output: Path,
    *,
    preset: str,
    image: str | None = None,
    triton_image: str | None = None,
    allow_tags: bool = False,
    measuring: bool = False,
) -> None:
    """Write the pipeline's IR to `output` (`.yaml` or `.json`), with the settings as its parameters' defaults; the graph that
    measures an exported package again where that is asked for.

    `image` is the steps', `triton_image` that of export and benchmark, both by digest (`registry/emuflow@sha256:…`).
    Raises `UsageError` where one is missing, or is a tag, which may mean another image tomorrow, unless `allow_tags`.
    """
    images = {"--image": image, "--triton-image": triton_image}
    for option, name in images.items():
        if name is None or not (allow_tags or _BY_DIGEST.fullmatch(name)):
            raise UsageError(
                f"{name or 'no image'} is not named by its digest",
                where=option,
                fix="write REGISTRY/NAME@sha256:DIGEST, or allow a tag with --allow-tags",
            )
    graph, parameters = (_measuring if measuring else _retraining)(settings, preset, image, triton_image)

    from kfp.compiler import Compiler

    from components.interface import IMAGE, TRITON_IMAGE

    with atomic_path(output) as temporary:
        package = temporary.with_suffix(output.suffix)
        Compiler().compile(graph, str(package), pipeline_parameters=parameters)
        _name_images(package, {IMAGE: image, TRITON_IMAGE: triton_image})
        package.replace(temporary)


def _retraining(
    settings: Settings, preset: str, image: str | None, triton_image: str | None
) -> tuple[Any, dict[str, str]]:
    from pipelines.retrain import pipeline

    digests = {
        "image_digest": (image or "").partition("@")[2] or None,
        "server_image_digest": (triton_image or "").partition("@")[2] or None,
    }
    provenance = json.dumps(describe_run(settings, preset, None) | digests, sort_keys=True)
    return pipeline(adapted=settings.adaptation.enabled), {**settings.section_parameters(), "provenance": provenance}


def _measuring(settings: Settings, *_: str | None) -> tuple[Any, dict[str, str]]:
    """What made the package is in its manifest: the settings that measure are all that there is to give."""
    from pipelines.measure import pipeline

    names = {f"{section}_settings" for section in MEASURED_BY}
    return pipeline(), {name: value for name, value in settings.section_parameters().items() if name in names}


def _name_images(package: Path, images: dict[str, str | None]) -> None:
    """Put the images of a cluster in the place of this machine's, which the components name."""
    text = package.read_text()
    documents = list(yaml.safe_load_all(text))  # JSON is YAML, too
    for executor in documents[0]["deploymentSpec"]["executors"].values():
        if "container" in executor:  # an importer runs nothing
            executor["container"]["image"] = images[executor["container"]["image"]]
    if package.suffix == ".json":
        package.write_text(json.dumps(documents[0]))
        return
    comments = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    package.write_text(comments + yaml.safe_dump_all(documents))
