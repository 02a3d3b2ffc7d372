"""Running worlds, and reading what they leave."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from components.train.launcher import rank_environment
from tests.model.parallel.training import Job, initial_weights

Layout = tuple[int, int, int]
"""Tensor, pipeline, data."""


def run_worlds(folder: Path, worlds: Sequence[tuple[Layout, Sequence[Job]]]) -> Path:
    """Run the jobs of each layout, one layout after another."""
    described = [
        {"name": name(layout), "layout": layout, "jobs": [asdict(job) for job in jobs]} for layout, jobs in worlds
    ]
    (folder / "worlds.json").write_text(json.dumps(described))
    done = subprocess.run(
        [sys.executable, "-m", "tests.model.parallel.worlds", str(folder)],
        env=rank_environment(1) | {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=1100,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


def name(layout: Layout) -> str:
    return "x".join(map(str, layout))


def steps_of(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "steps.json").read_text())


def displacement(folder: Path, objective: str = "parallel") -> dict[str, Tensor]:
    """What the weights have moved by."""
    before = initial_weights(objective)
    return {key: value - before[key] for key, value in parameters(whole(folder, "weights")).items()}


def whole(folder: Path, kind: str) -> dict[str, Tensor]:
    """The tensors of all ranks that had some."""
    files = sorted(folder.glob(f"{kind}-*.safetensors"))
    return {key: value for file in files for key, value in load_file(file).items()}


def parameters(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the statistics of batch norms, and the bias before one: it changes nothing, and its gradient is what
    rounding leaves of zero."""
    return {
        key: value.double()
        for key, value in tensors.items()
        if not key.startswith("plan.encoder.latents.3.") and key != "plan.encoder.latents.2.bias"
    }


def distance(own: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Relative L2 of all parameters together."""
    own, other = parameters(own), parameters(other)
    assert own.keys() == other.keys() and len(other) > 25
    difference = torch.cat([(own[key] - other[key]).flatten() for key in other])
    return float(difference.norm() / torch.cat([value.flatten() for value in other.values()]).norm())
