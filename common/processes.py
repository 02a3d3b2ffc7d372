"""Children that do not outlive their parent."""

import contextlib
import ctypes
import signal
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_MEMORY_EVENTS = (Path("/sys/fs/cgroup/memory.events"), Path("/sys/fs/cgroup/memory/memory.oom_control"))
"""Of this process's control group inside a container, in both versions of cgroups."""


def die_with_parent(signal_number: int = signal.SIGTERM) -> None:
    """Ask the kernel to send this process `signal_number` when its parent thread ends (Linux only, else nothing).

    Called in a child: as `preexec_fn` of `subprocess.Popen`, or at the start of a worker.
    """
    _prctl(_PR_SET_PDEATHSIG, signal_number)


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose own parent ends, so that none is lost (Linux only)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_descendants(grace_s: float = 10.0) -> None:
    """End every child, grandchild and so on of this process: SIGTERM, then SIGKILL after `grace_s` seconds.

    After `adopt_orphans` this reaches those that moved to a session of their own or lost their parent, too.
    """
    import psutil

    me = psutil.Process()
    for signal_number, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
        descendants = me.children(recursive=True)
        for process in descendants:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal_number)
        psutil.wait_procs(descendants, timeout=patience_s)
        if not me.children(recursive=True):
            return


def memory_kills() -> int:
    """How many processes of this container the kernel has killed for memory so far; 0 where that cannot be told."""
    for file in _MEMORY_EVENTS:
        with contextlib.suppress(OSError, ValueError, KeyError):
            return int(dict(line.split() for line in file.read_text().splitlines())["oom_kill"])
    return 0


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
