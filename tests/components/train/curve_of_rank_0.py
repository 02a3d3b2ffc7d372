"""One rank that trains nothing: rank 0 leaves a curve of one point. `torchrun … -m tests.components.train.curve_of_rank_0`."""

import logging
import os
import sys
from pathlib import Path

from components.train.curves import Curves
from components.train.job import Job

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    if os.environ["RANK"] == "0":
        Curves(Job.read(Path(sys.argv[1])).work / "curves.jsonl", 0).log(1, coarse_loss=2.0)
