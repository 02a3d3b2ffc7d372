"""Builds a signed model package from an engine."""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.errors import ExportError, SignatureError
from common.files import read_json, write_json
from model.decoding.loop import stage_name
from serving.package.config import WARMUP_NAME, config_pbtxt, warmup_data
from serving.package.manifest import SIGNATURE_NAME, Manifest, Provenance, parse_manifest, write_manifest
from serving.package.runtime.requests import Limits
from serving.package.runtime.shape import detail_stages
from serving.package.signing import sign
from serving.package.verify import verify
from serving.package.workspace import building_folder

log = logging.getLogger(__name__)
_HERE = Path(__file__).resolve().parent
_ENGINE_FILES = ("image_decoder.onnx", "draw.onnx", "weights.bin")
_READERS = {True: ("prompt.onnx", "plan.onnx"), False: ("prefill.onnx",)}
"""What reads a prompt, by whether the model draws plans."""


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """How the runtime inside the package runs."""

    threads: int
    """Threads of one operator, for each instance."""
    provider: str
    """What computes: `auto`, `cpu`, `cuda` or `tensorrt`, as `runtime/providers.py` says."""
    instances: int
    """Copies of the model that answer at the same time."""
    largest_group: int
    """Requests that one of them draws together."""
    largest_queue: int
    """Requests that wait for one of them; one more is refused as unavailable."""
    prefix_cache_bytes: int
    """What each instance keeps of the prompts that it read."""
    warmup_requests: int
    limits: Limits


def build_package(
    engine: Path,
    precision: str,
    *,
    decoding: dict[str, Any],
    runtime: RuntimeOptions,
    provenance: Provenance,
    key_folder: Path,
    package_store: Path,
) -> tuple[Path, Manifest]:
    """Build `package_store/<digest>/` from `engine/` at `precision` (`int8` or `fp32`).

    `decoding` are the fields of `DecodingOptions` that the package answers with. Whole or absent; one that is
    already there stays if it verifies, and is replaced if it does not. Raises `ExportError` where the engine lacks a
    file.
    """
    with building_folder(package_store) as folder:
        building = folder / "new"
        description = _description(engine)
        _copy_engine(engine, precision, building / "1", description)
        _write_generator_config(description, building / "1" / "generator.json", decoding, runtime)
        _copy_runtime(building / "1")
        _write_triton_files(building, runtime)
        encoded = write_manifest(building, provenance, precision)
        (building / SIGNATURE_NAME).write_bytes(sign(encoded, key_folder))
        manifest = parse_manifest(encoded)
        final = package_store / manifest.digest
        if not _verifies(final, key_folder):
            if final.exists():
                final.replace(folder / "damaged")
            building.replace(final)
        return final, manifest


def _verifies(package: Path, key_folder: Path) -> bool:
    """Whether this package is there, as it was signed."""
    if not package.is_dir():
        return False
    try:
        verify(package, key_folder, expected_digest=package.name)
    except SignatureError as error:
        log.warning("replacing a package that does not verify: %s", error)
        return False
    return True


def _description(engine: Path) -> dict[str, Any]:
    source = engine / "generator.json"
    if not source.is_file():
        raise ExportError("the engine lacks this file", where=str(source), fix="run the calibrate step again")
    return read_json(source)


def _copy_engine(engine: Path, precision: str, version: Path, description: Mapping[str, Any]) -> None:
    has_plan = description["plan_noise_shape"] is not None
    stages = (f"{stage_name(stage)}.onnx" for stage in range(detail_stages(description) + 1))
    (version / "engine").mkdir(parents=True)
    for name in (*_READERS[has_plan], *stages, *_ENGINE_FILES):
        _copy(engine / precision / name, version / "engine" / name)
    _copy(engine / "tokenizers" / "text" / "tokenizer.json", version / "tokenizer.json")
    _copy(engine / "calibration.json", version / "calibration.json")  # signed numbers that a later gate compares with


def _copy(source: Path, target: Path) -> None:
    if not source.is_file():
        raise ExportError("the engine lacks this file", where=str(source), fix="run the calibrate step again")
    shutil.copyfile(source, target)


def _write_generator_config(
    description: dict[str, Any], target: Path, decoding: dict[str, Any], runtime: RuntimeOptions
) -> None:
    if decoding.get("guidance", 1) != 1 and not description["unconditional_share"]:
        raise ExportError(
            "decoding.guidance is for a model that was trained without prompts, too, and this one was not",
            fix="set decoding.guidance=1, or train with training.masking.unconditional_share above 0",
        )
    settings = {
        "threads": runtime.threads,
        "provider": runtime.provider,
        "largest_group": runtime.largest_group,
        "largest_queue": runtime.largest_queue,
        "prefix_cache_bytes": runtime.prefix_cache_bytes,
        "limits": asdict(runtime.limits),
    }
    write_json(target, description | {"decoding": decoding, "runtime": settings})


def _copy_runtime(version: Path) -> None:
    """Copy the runtime with the decode loop that `runtime/decoding` links to: no link goes into a package."""
    shutil.copyfile(_HERE / "model.py", version / "model.py")
    shutil.copytree(_HERE / "runtime", version / "runtime", ignore=shutil.ignore_patterns("__pycache__"))


def _write_triton_files(package: Path, runtime: RuntimeOptions) -> None:
    (package / "config.pbtxt").write_text(
        config_pbtxt(instances=runtime.instances, warmup_requests=runtime.warmup_requests)
    )
    (package / "warmup").mkdir()
    (package / "warmup" / WARMUP_NAME).write_bytes(warmup_data())
