"""The lineage of an answer: the answer first, then that of the package that gave it."""

from pathlib import Path

from common.errors import UsageError
from pipelines.lineage.collect import trace
from pipelines.lineage.compare import digest, unchecked
from pipelines.lineage.find import known_packages
from pipelines.lineage.replay import replay
from pipelines.lineage.response import Response, pixels_digest, read_response
from pipelines.lineage.sources import Sources
from pipelines.lineage.tree import Check, Lineage, Node


def trace_response(sources: Sources, file: Path, *, draw_again: bool = False) -> Lineage:
    """Begin with the answer in `file`; with `draw_again`, draw its image anew and compare the pixels.

    Raises `UsageError` where the file holds no answer, or one of a package that nobody here knows.
    """
    response = read_response(file)
    if response.package_digest not in known_packages(sources):
        raise UsageError(
            f"package {response.package_digest} gave this answer, and nothing of it is here",
            where=str(sources.home.root),
            fix="name the --home whose server was asked",
        )
    checks = [_image_check(response, file)]
    if draw_again:
        package = sources.home.packages / response.package_digest
        checks.append(replay(response, package, sources.home.keys))
    return Lineage(
        trace(sources, response.package_digest).packages,
        Node("response", file.name, _facts(response), tuple(checks)),
    )


def _image_check(response: Response, file: Path) -> Check:
    name = "image file"
    if response.image is None or response.image.file is None:
        return unchecked(name, "the answer names no file")
    return digest(name, file.parent / response.image.file, _pixels, {file.name: response.image.pixels_sha256})


def _pixels(image: Path) -> str:
    import numpy as np
    from PIL import Image

    with Image.open(image) as opened:
        return pixels_digest(np.asarray(opened.convert("RGB")))


def _facts(response: Response) -> dict[str, str]:
    asked = {key: value for key, value in response.options.model_dump(mode="json").items() if value is not None}
    facts = {
        "package": response.package_digest,
        "prompt": response.prompt,
        "seed": response.seed,
        "pixels": response.image.pixels_sha256 if response.image else None,
        **asked,
    }
    return {key: str(value) for key, value in facts.items() if value is not None}
