"""Starting the ranks of a training on this machine with torchrun."""

import contextlib
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


def search_path() -> str:
    """`PATH` with this environment's programs first: torch calls `ninja` by its name, and `pip` puts it there."""
    return os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])


def remove_stale_locks(folder: Path) -> None:
    """Remove the locks of compilations that were killed: whoever waits for one would wait for ever.

    A compilation that is still at work keeps its lock open, and so keeps it.
    """
    locks = set(folder.glob("**/lock"))
    if not locks:
        return
    import psutil

    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            locks -= {Path(file.path) for file in process.open_files()}
    for lock in locks:
        lock.unlink(missing_ok=True)


def rank_environment(threads: int) -> dict[str, str]:
    """The environment of a rank: CPU accelerator where no GPU is, its threads, and no stale build lock to hang on."""
    import torch

    folder = extensions_folder()
    remove_stale_locks(folder)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "PATH": search_path(),
        "TORCH_EXTENSIONS_DIR": str(folder),
    }
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
