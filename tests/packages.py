"""Packages for tests: their options, their provenance, and a rightly signed change."""

from collections.abc import Callable
from pathlib import Path

from common.files import sha256_bytes
from serving.package.builder import RuntimeOptions, build_package
from serving.package.manifest import MANIFEST_NAME, SIGNATURE_NAME, Provenance, write_manifest
from serving.package.runtime.requests import Limits
from serving.package.signing import sign

RUNTIME = RuntimeOptions(
    threads=1,
    provider="auto",
    instances=1,
    largest_group=4,
    largest_queue=512,
    prefix_cache_bytes=64 << 10,
    warmup_requests=1,
    limits=Limits(
        max_prompt_bytes=256, max_coarse_steps=64, max_temperature=2.0, max_guidance=20.0, max_deadline_ms=60_000
    ),
)


def provenance(run_id: str = "run-1") -> Provenance:
    return Provenance(
        run_id=run_id,
        preset="smoke",
        git_commit="0" * 40,
        image_digest=None,
        data_digest="1" * 64,
        evaluation_digest="2" * 64,
        tokenizers_digest="3" * 64,
        settings_digest="4" * 64,
        parent_package=None,
    )


def build(
    engine: Path,
    package_store: Path,
    key_folder: Path,
    precision: str = "int8",
    run_id: str = "run-1",
    runtime: RuntimeOptions = RUNTIME,
) -> Path:
    """A package of `engine` that draws in two coarse steps."""
    return build_package(
        engine,
        precision,
        decoding={"coarse_steps": 2},
        runtime=runtime,
        provenance=provenance(run_id),
        key_folder=key_folder,
        package_store=package_store,
    )[0]


def change_and_sign(package: Path, change: Callable[[Path], object], key_folder: Path) -> Path:
    """Change a package and sign it again: bad in content, not in signature. Returns its new folder."""
    for name in (MANIFEST_NAME, SIGNATURE_NAME):
        (package / name).unlink()
    change(package)
    encoded = write_manifest(package, provenance("changed"), "int8")
    (package / SIGNATURE_NAME).write_bytes(sign(encoded, key_folder))
    return package.rename(package.parent / sha256_bytes(encoded))
