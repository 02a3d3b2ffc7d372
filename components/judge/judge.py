"""Make the judge that reads the candidates' images, where anybody can: of the digit world."""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

from common.files import atomic_path, write_json
from components.evaluation_set import load_evaluation_set
from components.judge.reading import GRAPH_NAME, RECORD_NAME
from components.judge.settings import JudgeSettings

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JudgeResult:
    """The summary for the step's record; the benchmark reads the artifact."""

    digest: str
    accuracy: float | None


def judge(settings: JudgeSettings, evaluation_set: Path, cache: Path, output: Path) -> JudgeResult:
    """Write `output/judge.onnx` and `output/judge.json` (its digest and accuracies).

    For a user's own data there is no judge: `judge.json` is `null`. Raises `JudgeError` where it reads badly.
    """
    if load_evaluation_set(evaluation_set).rule != "caption_hash":
        _log.info("nobody can read these images: quality is measured by the held-out loss")
        with atomic_path(output) as folder:
            folder.mkdir()
            write_json(folder / RECORD_NAME, None)
        return JudgeResult(digest="", accuracy=None)
    from components.judge.training import trained_judge

    trained = trained_judge(settings, cache)
    with atomic_path(output) as folder:
        folder.mkdir()
        for name in (GRAPH_NAME, RECORD_NAME):
            shutil.copyfile(trained.folder / name, folder / name)
    return JudgeResult(trained.report.digest, trained.report.accuracy)
