"""Which images a run uses: settled once, by what they are at its start."""

import os
from typing import TYPE_CHECKING, Any

from common.errors import PlatformError
from pipelines.containers.engine import engine
from pipelines.provenance import code_digest
from pipelines.settings import ContainerSettings

if TYPE_CHECKING:
    from docker import DockerClient

IMAGE_VARIABLES = {"image": "EMUFLOW_IMAGE", "triton_image": "EMUFLOW_TRITON_IMAGE"}
_REVISION_LABEL = "org.opencontainers.image.revision"
_TELL_CODE = ["python", "-c", "from pipelines.provenance import code_digest; print(code_digest())"]


def settle_images(settings: ContainerSettings) -> None:
    """Put both images, by what they are at this moment (`name@sha256:…`), into the environment that the graph reads.

    Raises `PlatformError` where no engine answers, an image is absent and cannot be pulled, or an image holds other
    code than this: the graph, the steps and the packages that they export would then be of different versions.
    """
    with engine() as client:
        for field, variable in IMAGE_VARIABLES.items():
            name = getattr(settings, field)
            image = _find(client, name, f"platform.containers.{field}")
            _require_our_code(client, image.id, f"platform.containers.{field}: {name}")
            os.environ[variable] = f"{name.partition('@')[0]}@{image.id}"
            if revision := (image.labels or {}).get(_REVISION_LABEL):
                os.environ["EMUFLOW_GIT_COMMIT"] = revision


def _find(client: "DockerClient", name: str, where: str) -> Any:
    import docker.errors

    try:
        return client.images.get(name)
    except docker.errors.ImageNotFound:
        pass
    try:
        return client.images.pull(name)
    except docker.errors.APIError as error:
        raise PlatformError(
            f"there is no such image ({error.explanation})", where=f"{where}: {name}", fix="build both: make images"
        ) from None


def _require_our_code(client: "DockerClient", image: str, where: str) -> None:
    import docker.errors

    container = client.containers.create(image, _TELL_CODE, network_mode="none", healthcheck={"test": ["NONE"]})
    try:
        output = container.attach(stream=True)
        container.start()
        told = b"".join(output).decode(errors="replace").strip()
        container.wait()
    except docker.errors.APIError as error:
        raise PlatformError(f"the image cannot be started ({error.explanation})", where=where) from None
    finally:
        container.remove(force=True)
    if told != code_digest():
        raise PlatformError(
            "the image holds other code than the one that starts it",
            where=where,
            fix="build both again: make images; or start the run from the commit that the images name",
        )
