"""How a working step tells how far it is.

A step runs in a process of its own whose output goes to a log file. It writes its progress to the small JSON
file that the environment variable `EMUFLOW_PROGRESS_FILE` names; whoever started the step shows it. Without
that variable `report` does nothing.
"""

import json
import logging
import os
import time
from pathlib import Path

PROGRESS_VARIABLE = "EMUFLOW_PROGRESS_FILE"
_MINIMUM_INTERVAL_S = 0.2
_last_report_s = -_MINIMUM_INTERVAL_S
_begun: dict[str, float] = {}
_log = logging.getLogger(__name__)


def report(done: int, total: int, message: str = "") -> None:
    """Publish "`done` of `total`" with a short message, at most five times a second (the last one always).

    A `total` of 0 means that nobody knows it yet; then no report is the last one. The first report of a count is kept
    in each later one (`begun`): the pace is taken from there, not from the start of the process with its imports.
    """
    global _last_report_s, _begun
    target = os.environ.get(PROGRESS_VARIABLE)
    now, clock = time.monotonic(), time.time()
    if _begun.get("total") != total or done < _begun["done"]:
        _begun = {"done": done, "total": total, "time": clock}
    last = total > 0 and done >= total
    if not target or (not last and now - _last_report_s < _MINIMUM_INTERVAL_S):
        return
    _last_report_s = now
    temporary = Path(f"{target}.{os.getpid()}")
    content = {"done": done, "total": total, "message": message, "time": clock, "begun": _begun}
    temporary.write_text(json.dumps(content))
    temporary.replace(target)


def enter_phase(done: int, total: int, phase: str) -> None:
    """`report`, and a line in the log: for work of a few long phases, whose times are worth reading afterwards."""
    _log.info("%s", phase)
    report(done, total, phase)
