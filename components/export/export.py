"""Export: an engine becomes two signed, self-contained model packages, and a real server must load the INT8 one."""

from dataclasses import asdict, dataclass
from pathlib import Path

from common.files import files_under, remove, write_json
from common.progress import enter_phase
from components.export.load_check import check_loads
from components.export.settings import DecodingSettings, ExportSettings
from serving.package.builder import RuntimeOptions, build_package
from serving.package.manifest import Provenance
from serving.package.runtime.requests import Limits

PRECISIONS = ("int8", "fp32")


@dataclass(frozen=True)
class Exported:
    """The two packages of one engine, by digest."""

    int8: str
    """The candidate."""
    fp32: str
    """Its full-precision reference."""
    bytes: dict[str, int]
    """Size of each package on disk, by precision."""
    timings_ms: dict[str, float]
    """Of the load check's image on the server."""


def export(
    settings: ExportSettings,
    decoding: DecodingSettings,
    engine: Path,
    provenance: Provenance,
    key_folder: Path,
    package_store: Path,
    exported: Path,
) -> Exported:
    """Build both packages of `engine` into `package_store`, check that the INT8 one serves, write `export.json`.

    Raises `ExportError` where a package cannot be built, loaded or answer; packages of this call are then removed.
    """
    kept_before = {path.name for path in package_store.iterdir()} if package_store.is_dir() else set()
    runtime = runtime_options(settings)
    packages: dict[str, Path] = {}
    try:
        for done, precision in enumerate(PRECISIONS):
            enter_phase(done, 3, f"building the {precision} package")
            packages[precision], _ = build_package(
                engine,
                precision,
                decoding=decoding.model_dump(),
                runtime=runtime,
                provenance=provenance,
                key_folder=key_folder,
                package_store=package_store,
            )
        enter_phase(2, 3, "loading the package into a server")
        timings = check_loads(settings, packages["int8"], packages["int8"].name, key_folder)
    except BaseException:
        for package in packages.values():
            if package.name not in kept_before:
                remove(package)
        raise
    result = Exported(
        int8=packages["int8"].name,
        fp32=packages["fp32"].name,
        bytes={precision: _size(package) for precision, package in packages.items()},
        timings_ms=timings,
    )
    write_json(exported / "export.json", asdict(result))
    enter_phase(3, 3, "exported")
    return result


def runtime_options(settings: ExportSettings) -> RuntimeOptions:
    limits = Limits(
        max_prompt_bytes=settings.max_prompt_bytes,
        max_coarse_steps=settings.max_coarse_steps,
        max_temperature=settings.max_temperature,
        max_guidance=settings.max_guidance,
        max_deadline_ms=settings.max_deadline_ms,
        blocked_patterns=settings.blocked_patterns,
    )
    return RuntimeOptions(
        threads=settings.threads,
        provider=settings.provider,
        instances=settings.instances,
        largest_group=settings.largest_group,
        largest_queue=settings.largest_queue,
        prefix_cache_bytes=settings.prefix_cache_bytes,
        warmup_requests=settings.warmup_requests,
        limits=limits,
    )


def _size(package: Path) -> int:
    return sum(path.stat().st_size for path in files_under(package))
