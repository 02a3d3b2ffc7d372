"""What the entry of the step hands to its ranks: one JSON file in the work folder."""

from pathlib import Path
from typing import Self

from common.files import read_json, write_json
from common.settings import Section
from components.train.launcher import RankCommand
from components.train.settings import Objective, OptimizationSettings
from model.transformer.config import GeneratorConfig


class Job(Section):
    """A training's inputs. All paths are absolute."""

    training: OptimizationSettings
    objective: Objective
    model: GeneratorConfig
    shards: Path
    shards_digest: str
    tokenizers_digest: str
    unconditional_prompt: tuple[int, ...]
    start_from: Path | None
    """A checkpoint of the same shape; None starts from random weights."""
    work: Path

    def with_micro_batch(self, size: int) -> Self:
        """The same, computing so many images at once."""
        parallel = self.training.parallel.model_copy(update={"micro_batch_size": size})
        return self.model_copy(update={"training": self.training.model_copy(update={"parallel": parallel})})

    def ranks(self, file: Path) -> RankCommand:
        """What is to be started for it; `file` is where it was written."""
        return RankCommand(
            module="components.train.worker",
            arguments=[str(file)],
            processes=self.training.processes,
            threads=self.training.threads_per_process,
            restarts=self.training.restarts,
        )

    @classmethod
    def read(cls, file: Path) -> Self:
        return cls.parse(read_json(file), where=str(file))

    def write(self, file: Path) -> None:
        write_json(file, self.model_dump(mode="json"))
