"""The process that runs the graph on this machine: `python -m pipelines.orchestrate RUN_FOLDER`.

kfp.local starts each step as a process (or container) of its own and keeps what is complete (`<run>/completed`): a
second start on the same folder repeats no completed step. Its output is the run's `logs/pipeline.log`; the steps write
their own.
"""

import json
import signal
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from common.files import read_json
from common.processes import adopt_orphans, die_with_parent, end_descendants
from pipelines.containers.engine import remove_containers
from pipelines.record import FILE_NAME, RunRecord
from pipelines.run_folder import ARGUMENTS_FILE, read_platform


def main(run_folder: Path) -> None:
    """Run the pipeline with the arguments in `run_folder`. Raises `RuntimeError`, after the logs, when a step fails."""
    die_with_parent()
    adopt_orphans()
    platform = read_platform(run_folder)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, partial(_end, run_folder.parent.parent if platform.runner == "containers" else None))

    from kfp import local

    from pipelines.containers.runner import container_runner

    arguments = read_json(run_folder / ARGUMENTS_FILE)
    pipeline = _graph(run_folder, arguments)
    local.init(
        container_runner(run_folder, arguments, platform.containers)
        if platform.runner == "containers"
        else local.SubprocessRunner(use_venv=False),
        pipeline_root=str(run_folder / "artifacts"),
        enable_caching=True,
        cache_root=str(run_folder / "completed"),
    )
    for task in pipeline.pipeline_spec.root.dag.tasks.values():
        task.caching_options.enable_cache = True  # also what a cluster never caches: this cache belongs to one run
    pipeline(**arguments)


def _graph(run_folder: Path, arguments: Mapping[str, str]) -> Any:
    if RunRecord.load(run_folder / FILE_NAME).measures:
        from pipelines.measure import pipeline as measure

        return measure()
    from pipelines.retrain import pipeline as retrain

    return retrain(adapted=json.loads(arguments["adaptation_settings"])["enabled"])


def _end(containers_of: Path | None, signal_number: int, _frame: FrameType | None) -> None:
    if containers_of:
        remove_containers(containers_of)
    end_descendants()
    sys.exit(128 + signal_number)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
