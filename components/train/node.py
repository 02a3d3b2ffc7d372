"""One node of a training on several machines: `python -m components.train.node JOB.json --nodes N --number I …`.

Every node runs it with the same `JOB.json`, on a folder that all of them see; `training.processes` ranks start on each.
`HostsLauncher` runs it through a remote shell; a scheduler, or a person, may run it on each machine as well.
"""

import argparse
import json
import os
import sys
import threading
from dataclasses import replace
from pathlib import Path

from common.errors import UsageError
from common.files import digest_json
from components.train.job import Job
from components.train.launcher import LocalLauncher, Node
from components.train.memory import telling_kills

_ATTENDED = "the standard input's first line is a JSON object of environment variables; end once the input ends"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", type=Path)
    parser.add_argument("--nodes", type=int, required=True, help="how many machines there are")
    parser.add_argument("--number", type=int, required=True, help="which one this is, from 0")
    parser.add_argument("--rendezvous", required=True, metavar="HOST:PORT", help="of node 0, which listens there")
    parser.add_argument("--address", help="how the other nodes reach this one; without it, by its host name")
    parser.add_argument("--interface", help="the network interface of that address, where there are several")
    parser.add_argument("--module", help="what the ranks run; without it, the training")
    parser.add_argument("--restarts", type=int, help="of ranks that die; without it, as the job says")
    parser.add_argument("--run", help="the same name on all nodes; without it, one that follows from the job")
    parser.add_argument("--attended", action="store_true", help=_ATTENDED)
    asked = parser.parse_args()
    job = Job.read(asked.job)
    ranks = job.ranks(asked.job)
    ranks = replace(
        ranks,
        module=asked.module or ranks.module,
        restarts=ranks.restarts if asked.restarts is None else asked.restarts,
    )
    node = Node(
        nodes=asked.nodes,
        number=asked.number,
        rendezvous=asked.rendezvous,
        run=asked.run or digest_json(str(job.work))[:16],
        address=asked.address,
        interface=asked.interface,
    )
    if asked.attended:
        os.environ.update(read_variables(sys.stdin.readline()))
        threading.Thread(target=_end_with_input, daemon=True).start()
    with telling_kills(job.work):
        LocalLauncher(node).run(ranks)


def read_variables(line: str) -> dict[str, str]:
    """Raises `UsageError` for another first line, without telling it: what was meant may be secret."""
    try:
        variables = json.loads(line)
    except ValueError:
        variables = None
    if not isinstance(variables, dict) or not all(isinstance(value, str) for value in variables.values()):
        raise UsageError(
            "the first line is no JSON object of environment variables", where="standard input", fix="begin with {}"
        )
    return variables


def _end_with_input() -> None:
    """Whoever started this through a remote shell has gone, and torchrun goes with this process."""
    while os.read(0, 1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
