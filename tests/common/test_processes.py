"""No process outlives the one that started it."""

import subprocess
import sys
import time

import psutil

_TREE = """
import subprocess, sys, time
from common.processes import adopt_orphans, end_descendants
adopt_orphans()
stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
middle = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {stubborn!r}], start_new_session=True)"
subprocess.run([sys.executable, "-c", middle])
own = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
import psutil
while len(psutil.Process().children(recursive=True)) < 2:
    time.sleep(0.05)
time.sleep(0.5)
print(*[p.pid for p in psutil.Process().children(recursive=True)], flush=True)
end_descendants(grace_s=0.5)
print("left", len(psutil.Process().children(recursive=True)), flush=True)
"""


def test_fault_27_orphans_in_their_own_session_that_ignore_sigterm_end_too():
    done = subprocess.run([sys.executable, "-c", _TREE], capture_output=True, text=True, timeout=30, check=True)
    pids, left = done.stdout.splitlines()
    assert left == "left 0"
    assert len(pids.split()) == 2
    assert not any(psutil.pid_exists(int(pid)) for pid in pids.split())


def test_a_child_that_asked_for_it_ends_with_its_parent():
    parent = (
        "import subprocess, sys; from common.processes import die_with_parent; "
        "c = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], preexec_fn=die_with_parent); "
        "print(c.pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        child = psutil.Process(int(process.stdout.readline()))
        process.kill()
    deadline = time.monotonic() + 10
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
