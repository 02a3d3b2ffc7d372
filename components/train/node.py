"""One node of a training on several machines: `python -m components.train.node JOB.json --nodes N --number I …`.

Every node runs it with the same `JOB.json`, on a folder that all of them see; `training.processes` ranks start on each. A
launcher of several machines runs it on each of them (`components.train.launcher.Launcher`).
"""

import argparse
from pathlib import Path

from common.files import digest_json
from components.train.job import Job
from components.train.launcher import LocalLauncher, Node


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", type=Path)
    parser.add_argument("--nodes", type=int, required=True, help="how many machines there are")
    parser.add_argument("--number", type=int, required=True, help="which one this is, from 0")
    parser.add_argument("--rendezvous", required=True, metavar="HOST:PORT", help="of node 0, which listens there")
    parser.add_argument("--address", help="how the other nodes reach this one; without it, by its host name")
    parser.add_argument("--interface", help="the network interface of that address, where there are several")
    asked = parser.parse_args()
    job = Job.read(asked.job)
    node = Node(
        nodes=asked.nodes,
        number=asked.number,
        rendezvous=asked.rendezvous,
        run=digest_json(str(job.work))[:16],
        address=asked.address,
        interface=asked.interface,
    )
    LocalLauncher(node).run(job.ranks(asked.job))


if __name__ == "__main__":
    main()
