"""Two tiny packages of one engine, an evaluation set of real scenes, and a judge that trains in seconds."""

import io
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from common.files import write_json
from components.benchmark.settings import (
    BenchmarkSettings,
    LatencySettings,
    NeighbourSettings,
    OpenLoadSettings,
    WarmupSettings,
)
from components.evaluation_set import freeze_evaluation_set
from components.ingest.digit_world import digits, render, scenes
from components.judge.judge import judge
from components.judge.settings import JudgeSettings
from components.samples import SAMPLE_SCHEMA, SAMPLES_FILE, image_sample, write_rows
from tests.engines import TinyShape, write_engine
from tests.packages import build

CAPTIONS = 24
HELDOUT = {
    "samples_digest": "5" * 64,
    "masks_digest": "6" * 64,
    "text_length": 32,
    "coarse_grid": [8, 8],
    "fine_grid": [16, 16],
    "groups": [i // 2 for i in range(40)],
    "loss_per_sample": {"fp32": [1.0 + 0.01 * i for i in range(40)], "int8": [1.001 + 0.01 * i for i in range(40)]},
}
QUICK_JUDGE = JudgeSettings(scenes=400, steps=60, batch=64, width=8, test_scenes=100, min_accuracy=0.0)
SETTINGS = BenchmarkSettings(
    warmup=WarmupSettings(window_requests=5, max_windows=40, tolerance=0.5),
    latency=LatencySettings(block_requests=4, min_rounds=3, max_rounds=4, full_rounds=2),
    seeds_per_caption=2,
    chunk_questions=10,
    examples=3,
    open_load=OpenLoadSettings(chunk_seconds=0.5),
    frechet_resamples=20,
    unjudged_captions=10,
    max_steal_share=1.0,
    neighbours=NeighbourSettings(max_others_share=1.0),
)


@dataclass(frozen=True)
class Workbench:
    """Everything that a benchmark reads."""

    root: Path
    exported: Path
    package_store: Path
    key_folder: Path
    evaluation_set: Path
    tokenizers: Path
    judge: Path
    int8: str
    fp32: str


@pytest.fixture(scope="session")
def workbench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    root = tmp_path_factory.mktemp("workbench")
    engine = write_engine(root / "engine", shape=TinyShape(text_length=32))
    write_json(engine / "calibration.json", {"block_bytes": {"fp32": 400, "int8": 104}, "heldout": HELDOUT})
    write_evaluation_set(root / "evaluation_set")
    store, keys = root / "packages", root / "keys"
    int8, fp32 = (build(engine, store, keys, precision).name for precision in ("int8", "fp32"))
    write_json(root / "exported" / "export.json", {"int8": int8, "fp32": fp32})
    write_json(root / "tokenizers" / "tokenizers.json", {"digest": "3" * 64, "lineage": "3", "metrics": {"ssim": 0.87}})
    judge(QUICK_JUDGE, root / "evaluation_set", root / "cache", root / "judge")
    folders = (root / name for name in ("exported", "packages", "keys", "evaluation_set", "tokenizers", "judge"))
    return Workbench(root, *folders, int8=int8, fp32=fp32)


def write_evaluation_set(folder: Path, *, judged: bool = True) -> None:
    """A frozen set of real scenes of test digits."""
    drawn = scenes.sample_specs(CAPTIONS, seed=1)
    source = digits.load_split("test")
    images = render.render_scenes(source.images, source.labels, drawn, seed=1)
    folder.mkdir(parents=True)
    rows = []
    for index, (scene, image) in enumerate(zip(drawn, images, strict=True)):
        payload = io.BytesIO()
        Image.fromarray(image).save(payload, "PNG")
        row = image_sample(
            source="evaluation.tar",
            member=f"{index:06d}",
            payload=payload.getvalue(),
            caption=scene.caption,
            mime="image/png",
            width=64,
            height=64,
            labels=scene.labels if judged else None,
        )
        rows.append(row)
    write_rows(folder / SAMPLES_FILE, SAMPLE_SCHEMA, rows)
    freeze_evaluation_set(folder, "caption_hash" if judged else "near_duplicate_groups", 0.05, judged)
