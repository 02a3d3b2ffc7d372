"""Drawing an answer's image again, in this process, with the code that travels inside the package."""

import importlib
import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from common.errors import SignatureError
from pipelines.lineage.compare import unchecked
from pipelines.lineage.response import Response, pixels_digest
from pipelines.lineage.tree import Check
from serving.package.verify import verify

_NAME = "replay"
_ELSEWHERE = "another processor or onnxruntime may round otherwise than the one that drew it"


def replay(response: Response, package: Path, key_folder: Path) -> Check:
    """Whether the package draws the very pixels again. Nothing of a package that does not verify is run."""
    missing = [name for name in ("prompt", "seed", "image") if getattr(response, name) is None]
    if missing or response.image is None:
        return unchecked(_NAME, f"the answer does not hold its {', '.join(missing)}")
    if not package.is_dir():
        return unchecked(_NAME, "the package is gone from the package store")
    with tempfile.TemporaryDirectory(prefix="emuflow-replay-") as temporary:
        copy = Path(temporary) / package.name
        try:
            shutil.copytree(package, copy)  # what is verified is what runs, and nothing is written into a package
            verify(copy, key_folder, expected_digest=response.package_digest)
        except (SignatureError, OSError) as error:
            return unchecked(_NAME, f"the package does not verify, so it was not run: {error}")
        with _runtime(copy / "1") as runtime:
            try:
                pixels = _draw(runtime, copy / "1", response)
            except (runtime.RequestError, TypeError, ValueError) as error:
                return Check(_NAME, "failed", f"the package does not draw it: {error}", "an image", "an error")
    found, expected = pixels_digest(pixels), response.image.pixels_sha256
    if found != expected:
        return Check(_NAME, "failed", f"drawn again, the pixels are others; {_ELSEWHERE}", expected, found)
    return Check(_NAME, "ok", f"drawn again, the {response.image.height}x{response.image.width} pixels are the same")


def _draw(runtime: SimpleNamespace, version: Path, response: Response) -> np.ndarray:
    known = {field.name for field in fields(runtime.Request)}
    asked: dict[str, Any] = response.options.model_dump()
    optional = {
        key: value for key, value in asked.items() if value is not None or key in ("coarse_steps", "temperature")
    }
    if "previews" not in known:  # a package that is older than it takes no notice
        optional.pop("previews", None)
    request = runtime.Request(prompt=response.prompt, seed=response.seed, **optional)
    *_, final = runtime.Generator(version).images(request)
    return final.pixels


@contextmanager
def _runtime(version: Path) -> Iterator[SimpleNamespace]:
    """The package's own runtime, imported under a name that no other package has."""
    name = f"_emuflow_package_{version.parent.name}"
    folder = version / "runtime"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None, "a file with this ending has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        generator, requests = (importlib.import_module(f"{name}.{part}") for part in ("generator", "requests"))
        yield SimpleNamespace(
            Generator=generator.Generator, Request=requests.Request, RequestError=requests.RequestError
        )
    finally:
        for loaded in [each for each in sys.modules if each == name or each.startswith(f"{name}.")]:
            del sys.modules[loaded]
