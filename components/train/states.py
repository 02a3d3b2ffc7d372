"""States from which an interrupted training goes on: saved while it does, whole, whatever its layout.

A state is a folder `state-<steps>`: for each pipeline stage the weights and the optimizer's state of its layers, as
safetensors of whole tensors under the names of the whole model (`weights:NAME`, `optimizer:KEY:NAME`), and `state.json`
with the files' sha256. It has this name only once it is complete. Everything else (the order of the data, the masks) is a
pure function of the seed and the step, so a state can be gone on with by other numbers of ranks in another layout.
"""

import logging
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor

from common.errors import EmuflowError, TrainingError
from common.files import read_json, remove, sha256_file, write_json
from model.checkpoint import save_tensors
from model.parallel.engine import Engine

_POLL_S = 0.05
_log = logging.getLogger(__name__)


class States:
    """The states of one training. All ranks call `restore` and `save` at the same steps."""

    def __init__(self, work: Path, fingerprint: Mapping[str, str], engine: Engine[Any], *, kept: int, timeout_s: float):
        """`work` is a folder that all ranks see. A state is for trainings of the same `fingerprint`, a digest of each thing
        that a training depends on; the newest `kept` stay. A stage that takes longer than `timeout_s` to write its part has
        died."""
        self._work, self._fingerprint, self._engine = work, dict(fingerprint), engine
        self._kept, self._timeout_s = kept, timeout_s
        self._writer: threading.Thread | None = None
        self._failure: Exception | None = None

    def restore(self) -> int:
        """Go on from the newest usable state: returns its step, 0 where there is none.

        One of other settings or data is passed over; so is one that is damaged, loudly.
        """
        chosen: list[tuple[str, int] | None] = [None]
        if dist.get_rank() == 0:
            for unfinished in self._work.glob(".state-*"):
                shutil.rmtree(unfinished, ignore_errors=True)
            chosen = [self._newest()]
        dist.broadcast_object_list(chosen, src=0)
        if chosen[0] is None:
            return 0
        name, step = chosen[0]
        with StateFiles(self._work / name) as tensors:
            self._engine.restore(_Under("weights:", tensors), _Under("optimizer:", tensors))
        return step

    def save(self, step: int) -> None:
        """Keep what is known after `step` steps. Returns when it is copied; it is written meanwhile.

        Raises `TrainingError`, or `DiskFullError`, where the save before this one failed.
        """
        self.wait()
        place = self._engine.place
        if place.data > 0 and not self._engine.options.zero:
            return  # another replica has the same
        weights, optimizer = self._engine.weights(), self._engine.optimizer_state()
        if not place.holds_whole:
            return
        tensors = {f"weights:{name}": value for name, value in weights.items()}
        tensors |= {f"optimizer:{name}": value for name, value in optimizer.items()}
        self._writer = threading.Thread(target=self._write, args=(step, place.stage, tensors), name="states")
        self._writer.start()

    def wait(self) -> None:
        """Return when what was saved is written; raises as `save`."""
        if self._writer is not None:
            self._writer.join()
        self._writer, failure, self._failure = None, self._failure, None
        if isinstance(failure, EmuflowError):
            raise failure
        if failure is not None:
            raise TrainingError(f"a state could not be saved: {failure}", where=str(self._work)) from failure

    def _write(self, step: int, stage: int, tensors: dict[str, Tensor]) -> None:
        try:
            folder = self._work / f".state-{step:08d}"
            folder.mkdir(parents=True, exist_ok=True)
            save_tensors(folder / f"stage-{stage}.safetensors", tensors)
            digest = sha256_file(folder / f"stage-{stage}.safetensors")
            write_json(folder / f"stage-{stage}.json", {"sha256": digest})
            if stage == 0:
                self._complete(folder, step)
        except Exception as error:  # noqa: BLE001 - told at the next save: this is another thread
            self._failure = error

    def _complete(self, folder: Path, step: int) -> None:
        """Once every stage has written its part, give the state its name, and drop those that are too many."""
        stages = range(self._engine.place.layout.pipeline)
        parts = [folder / f"stage-{stage}.json" for stage in stages]
        deadline = time.monotonic() + self._timeout_s
        while not all(part.is_file() for part in parts):
            if time.monotonic() > deadline:
                raise TrainingError(f"a stage has not written its part in {self._timeout_s:g} s", where=str(folder))
            time.sleep(_POLL_S)
        digests = {
            f"stage-{stage}.safetensors": read_json(part)["sha256"] for stage, part in zip(stages, parts, strict=True)
        }
        write_json(
            folder / "state.json",
            {
                "step": step,
                "fingerprint": self._fingerprint,
                "layout": str(self._engine.place.layout),
                "files": digests,
            },
        )
        final = self._work / folder.name[1:]
        remove(final)
        folder.rename(final)
        own = [state for state in self._states() if state.name <= final.name and self._is_own(state)]
        for old in own[self._kept :]:
            shutil.rmtree(old, ignore_errors=True)

    def _is_own(self, state: Path) -> bool:
        """Whether it is this training's; what is of others, or damaged, is not counted among the newest."""
        try:
            return read_json(state / "state.json")["fingerprint"] == self._fingerprint
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _differs(self, other: Mapping[str, str]) -> list[str]:
        """What is another in a state's training than in this one."""
        return [name for name, digest in self._fingerprint.items() if other.get(name) != digest]

    def _newest(self) -> tuple[str, int] | None:
        for folder in self._states():
            try:
                state = read_json(folder / "state.json")
                if differs := self._differs(state["fingerprint"]):
                    _log.warning("%s is of a training with other %s: passed over", folder, " and other ".join(differs))
                    continue
                damaged = [name for name, digest in state["files"].items() if sha256_file(folder / name) != digest]
                if damaged:
                    raise ValueError(f"{', '.join(damaged)} changed since it was written")
                return folder.name, int(state["step"])
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                _log.warning("%s cannot be read (%s): falling back to the one before", folder, error)
        return None

    def _states(self) -> list[Path]:
        """The newest first."""
        return sorted(self._work.glob("state-*"), reverse=True)


class StateFiles(Mapping[str, Tensor]):
    """The tensors of a state, read when they are asked for."""

    def __init__(self, folder: Path):
        self._folder, self._open = folder, ExitStack()
        self._files: dict[str, safe_open] = {}

    def __enter__(self) -> "StateFiles":
        try:
            for path in sorted(self._folder.glob("*.safetensors")):
                file = self._open.enter_context(safe_open(path, framework="pt"))
                self._files |= dict.fromkeys(file.keys(), file)
        except SafetensorError as error:
            raise TrainingError(f"a state cannot be read: {error}", where=str(self._folder)) from error
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def __getitem__(self, name: str) -> Tensor:
        return self._files[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


class _Under(Mapping[str, Tensor]):
    """Those tensors whose names begin so, without that beginning."""

    def __init__(self, beginning: str, tensors: Mapping[str, Tensor]):
        self._beginning, self._tensors = beginning, tensors
        self._names = [name[len(beginning) :] for name in tensors if name.startswith(beginning)]

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._beginning + name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
