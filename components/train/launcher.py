"""Starting the ranks of a training on this machine with torchrun."""

import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from common.errors import TrainingError
from common.processes import die_with_parent


def extensions_folder() -> Path:
    """Where DeepSpeed's compiled operators lie: `TORCH_EXTENSIONS_DIR`, else beside the environment's libraries."""
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR", Path(sysconfig.get_path("data")) / "torch_extensions"))


def rank_environment(threads: int) -> dict[str, str]:
    """The environment of a rank: CPU accelerator where no GPU is, its threads, and no stale build lock to hang on."""
    import torch

    folder = extensions_folder()
    for lock in folder.glob("**/lock"):
        lock.unlink(missing_ok=True)  # left by a killed compilation; waiting for it would never end
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TORCH_EXTENSIONS_DIR": str(folder)}
    if not torch.cuda.is_available():
        environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return environment


def run_ranks(module: str, arguments: Sequence[str], *, processes: int, threads: int) -> None:
    """Run `python -m module arguments` on `processes` ranks and wait.

    The ranks write to this process's standard output and end with it. Raises `TrainingError` when one fails.
    """
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
        "-m",
        module,
        *arguments,
    ]
    with subprocess.Popen(command, env=rank_environment(threads), preexec_fn=die_with_parent) as torchrun:
        try:
            code = torchrun.wait()
        except BaseException:
            torchrun.terminate()
            torchrun.wait(timeout=30)
            raise
    if code != 0:
        raise TrainingError(
            f"a rank ended with an error (torchrun's exit code {code})",
            where="training",
            fix="read the step's log; `emuflow run --resume` goes on from the last saved state",
        )
