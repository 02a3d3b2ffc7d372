"""The process that runs the graph on this machine: `python -m pipelines.orchestrate RUN_FOLDER`.

kfp.local starts each step as a process of its own and keeps what is complete (`<run>/completed`): a second start on
the same folder repeats no completed step. Its output is the run's `logs/pipeline.log`; the steps write their own.
"""

import signal
import sys
from pathlib import Path
from types import FrameType

from common.files import read_json
from common.processes import adopt_orphans, die_with_parent, end_descendants

ARGUMENTS_FILE = "arguments.json"


def main(run_folder: Path) -> None:
    """Run the pipeline with the arguments in `run_folder`. Raises `RuntimeError`, after the logs, when a step fails."""
    die_with_parent()
    adopt_orphans()
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, _end)

    from kfp import local

    from pipelines.retrain import retrain

    local.init(
        local.SubprocessRunner(use_venv=False),
        pipeline_root=str(run_folder / "artifacts"),
        enable_caching=True,
        cache_root=str(run_folder / "completed"),
    )
    for task in retrain.pipeline_spec.root.dag.tasks.values():
        task.caching_options.enable_cache = True  # also what a cluster never caches: this cache belongs to one run
    retrain(**read_json(run_folder / ARGUMENTS_FILE))


def _end(signal_number: int, _frame: FrameType | None) -> None:
    end_descendants()
    sys.exit(128 + signal_number)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
