"""Stands between a program and its server, so that the server never outlives the program.

    python -m serving.guard SHARED_MEMORY_PREFIX GRACE_SECONDS COMMAND...

The guard's standard input is a pipe from the program: its end of file means that the program is gone, however it
went. Then, or on SIGTERM or SIGINT, the command is ended (SIGTERM, after the grace SIGKILL), with whatever it
started, and its shared memory is removed. Its exit status is the command's.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

from common.processes import die_with_parent

_AWAITED = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}


def main() -> int:
    prefix, grace_s, command = sys.argv[1], float(sys.argv[2]), sys.argv[3:]
    # A group of its own, to end what the command started; if the guard itself is killed, the kernel ends it.
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=partial(die_with_parent, signal.SIGKILL)
    )
    signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
    threading.Thread(target=_end_with_input, daemon=True).start()
    while child.poll() is None and signal.sigwait(_AWAITED) == signal.SIGCHLD:
        pass
    _end(child, grace_s)
    for region in Path("/dev/shm").glob(f"{prefix}*"):
        region.unlink(missing_ok=True)
    return child.returncode


def _end_with_input() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


def _end(child: subprocess.Popen, grace_s: float) -> None:
    if child.poll() is None:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(grace_s)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


if __name__ == "__main__":
    sys.exit(main())
