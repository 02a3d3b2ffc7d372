"""The state from which an interrupted training goes on: weights and optimizer as safetensors, the step as JSON.

Everything else (the order of the data, the masks) is a pure function of the seed and the step.
"""

import logging
import shutil
from pathlib import Path

from common.errors import EmuflowError
from common.files import atomic_path, read_json, write_json
from components.train.optimizer import MuonWithAdamW
from model.checkpoint import load_tensors, save_tensors
from model.transformer.model import Generator

_KEPT_STATES = 2
_log = logging.getLogger(__name__)


def save_state(work: Path, step: int, fingerprint: str, model: Generator, optimizer: MuonWithAdamW) -> None:
    """Write the state after `step` steps whole, then drop all but the newest two."""
    with atomic_path(work / f"state-{step:08d}") as folder:
        folder.mkdir()
        save_tensors(folder / "model.safetensors", model.state_dict())
        save_tensors(folder / "optimizer.safetensors", optimizer.tensors())
        write_json(folder / "state.json", {"step": step, "fingerprint": fingerprint})
    for old in _states(work)[_KEPT_STATES:]:
        shutil.rmtree(old, ignore_errors=True)


def load_state(work: Path, fingerprint: str, model: Generator, optimizer: MuonWithAdamW) -> int:
    """Restore the newest usable state in place and return its step; 0 where there is none.

    A state of other settings or other data (`fingerprint`) is passed over; so is one that cannot be read, loudly.
    """
    for folder in _states(work):
        try:
            state = read_json(folder / "state.json")
            if state["fingerprint"] != fingerprint:
                _log.warning("%s belongs to other settings or data: passed over", folder)
                continue
            weights, moments = (
                load_tensors(folder / "model.safetensors"),
                load_tensors(folder / "optimizer.safetensors"),
            )
            model.load_state_dict(weights)
            optimizer.load_tensors(moments)
            return int(state["step"])
        except (EmuflowError, OSError, ValueError, KeyError, RuntimeError) as error:
            _log.warning("%s cannot be read (%s): falling back to the one before", folder, error)
    return 0


def _states(work: Path) -> list[Path]:
    """State folders, the newest first."""
    return sorted(work.glob("state-*"), reverse=True)
