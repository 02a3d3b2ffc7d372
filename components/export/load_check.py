"""The export's proof: a real server loads the package and answers with an image."""

import tempfile
from pathlib import Path

from common.errors import ExportError, ServerError
from common.files import read_json
from components.export.settings import ExportSettings
from emuflow_client import GeneratorClient, GeneratorError, Result
from serving.server import TritonServer

_NAME = "candidate"
_PROMPT = "a"
_SEED = 1


def check_loads(settings: ExportSettings, package: Path, digest: str, key_folder: Path) -> dict[str, float]:
    """Load `package` into an embedded server and ask it for one image twice; returns the image's timings in ms.

    Raises `ExportError` where it does not load, does not answer, or answers with something else than the package
    promises: its digest, the image's size, the same image for the same seed.
    """
    expected_shape = (*read_json(package / "1" / "generator.json")["image_size"], 3)
    with tempfile.TemporaryDirectory(prefix="emuflow-export-") as folder:
        # Nobody else asks this server: it need not drain before it ends.
        server = TritonServer(Path(folder), key_folder, load_timeout_s=settings.load_timeout_s, stop_grace_s=0)
        try:
            with server:
                server.load(package, _NAME, expected_digest=digest)
                first, second = _ask_twice(settings, server)
        except (ServerError, GeneratorError) as error:
            raise ExportError(f"the server cannot load it and answer: {error}", where=str(package)) from error
    if first.version != digest:
        raise ExportError(f"the server answered as package {first.version}, not {digest}", where=str(package))
    if first.image.shape != expected_shape:
        raise ExportError(f"the image is {first.image.shape}, not {expected_shape}", where=str(package))
    if not (first.image == second.image).all():
        raise ExportError("the same seed gave two images, one with a preview and one without", where=str(package))
    return first.timings


def _ask_twice(settings: ExportSettings, server: TritonServer) -> tuple[Result, Result]:
    with GeneratorClient(server.grpc_endpoint, timeout_s=settings.answer_timeout_s, model=_NAME) as client:
        return client.generate(_PROMPT, seed=_SEED, previews=True), client.generate(_PROMPT, seed=_SEED)
