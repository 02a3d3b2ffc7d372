"""The packages that the gate is tried on: a champion, the same model again, a slower one and one with damaged weights."""

import copy
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks import checkpoints
from benchmarks.served_package import provenance, write_engine
from common.files import remove, write_json
from components.export.export import PRECISIONS, runtime_options
from components.export.settings import DecodingSettings, ExportSettings
from model.transformer.model import Generator
from serving.package.builder import build_package
from serving.package.manifest import MANIFEST_NAME, SIGNATURE_NAME, parse_manifest, write_manifest
from serving.package.signing import sign

_CHECKPOINT = "progressive"
_EXTRA_WORK = '''

_draw_without_extra_work = Generator.draw


def _draw_with_extra_work(self, group):
    """Keeps the processor for {extra_ms} ms more with every image."""
    for images in _draw_without_extra_work(self, group):
        until = time.perf_counter() + {extra_ms} / 1000 * len(group)
        while time.perf_counter() < until:
            pass
        yield images


Generator.draw = _draw_with_extra_work
'''


@dataclass(frozen=True)
class Candidate:
    """The two packages of an export, by digest."""

    int8: str
    fp32: str

    def write(self, exported: Path) -> Path:
        """The artifact that the benchmark step reads."""
        write_json(exported / "export.json", {"int8": self.int8, "fp32": self.fp32})
        return exported


@dataclass(frozen=True)
class Damage:
    """Gaussian noise on the blocks' matrices, of `noise` times their standard deviation, from a seed of its own."""

    seed: int
    noise: float


class PackageMaker:
    """Makes packages of the kept progressive checkpoint in one store, as the pipeline exports it by default."""

    def __init__(self, work: Path, evaluation_digest: str):
        self.store, self.key_folder = work / "packages", work / "keys"
        self._work, self._evaluation_digest = work, evaluation_digest

    def export(self, damages: Sequence[Damage]) -> None:
        """The engines of the checkpoint as it is and damaged in each of these ways, by as many processes as there are
        cores: `model` packages them."""
        models = (None, *damages)
        workers = min(len(models), len(os.sched_getaffinity(0)))
        with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            list(pool.map(_write_engine, models, map(self._engine, models)))

    def _engine(self, damage: Damage | None) -> Path:
        return self._work / ("engine" if damage is None else f"engine-{damage.seed}")

    def model(self, run_id: str, damage: Damage | None = None) -> Candidate:
        """The checkpoint, damaged or as it is; `export` has written its engine."""
        decoding = DecodingSettings(previews=False).model_dump()
        digests = {}
        for precision in PRECISIONS:
            package, _ = build_package(
                self._engine(damage),
                precision,
                decoding=decoding,
                runtime=runtime_options(ExportSettings()),
                provenance=provenance(run_id, self._evaluation_digest),
                key_folder=self.key_folder,
                package_store=self.store,
            )
            digests[precision] = package.name
        return Candidate(**digests)

    def slower(self, model: Candidate, extra_ms: float) -> Candidate:
        """`model` with so much more work for every image in its runtime, signed as what it is."""

        def work_more(package: Path) -> None:
            code = package / "1" / "runtime" / "generator.py"
            code.write_text(code.read_text() + _EXTRA_WORK.format(extra_ms=extra_ms))

        return Candidate(self._changed(model.int8, work_more), model.fp32)

    def _changed(self, digest: str, change: Callable[[Path], None]) -> str:
        package = shutil.copytree(self.store / digest, self._work / "changing")
        manifest = parse_manifest((package / MANIFEST_NAME).read_bytes())
        for name in (MANIFEST_NAME, SIGNATURE_NAME):
            (package / name).unlink()
        change(package)
        encoded = write_manifest(package, manifest.provenance, manifest.precision)
        (package / SIGNATURE_NAME).write_bytes(sign(encoded, self.key_folder))
        name = parse_manifest(encoded).digest
        if (self.store / name).exists():  # the same change was made before
            remove(package)
        else:
            package.rename(self.store / name)
        return name


def _write_engine(damage: Damage | None, engine: Path) -> None:
    write_engine(_damaged(checkpoints.load(_CHECKPOINT), damage), engine, PRECISIONS)


def _damaged(generator: Generator, damage: Damage | None) -> Generator:
    if damage is None:
        return generator
    damaged, random = copy.deepcopy(generator), torch.Generator().manual_seed(damage.seed)
    with torch.no_grad():
        for block in damaged.decoder_blocks():
            for weight in (parameter for parameter in block.parameters() if parameter.dim() == 2):
                weight += damage.noise * weight.std() * torch.randn(weight.shape, generator=random)
    return damaged
