"""Does `make run` keep its promises, whatever the seed? `python -m benchmarks.quickstart --seeds 5 --json FILE`

Each seed is a whole quickstart run in a home of its own: other training scenes, other weights, another order, the
same evaluation set. Exit code 1 where one promise is broken.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.files import write_json
from pipelines.provenance import git_commit

PROMISES = {
    "accuracy_int8": (">=", 0.90),
    "accuracy_loss_int8": ("<=", 0.01),
    "block_bytes_ratio": ("<=", 0.27),
    "image_p95_ms": ("<=", 25.0),
    "captions": (">=", 500),
    "minutes": ("<=", 8.0),
    "peak_memory_gib": ("<=", 6.0),
}
"""Of the first run in a fresh clone, after the installation."""


@dataclass(frozen=True)
class SeedResult:
    """One seed's run: the verdict, and what the promises are about."""

    seed: int
    verdict: str
    values: dict[str, float]
    broken: list[str]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 0 on")
    parser.add_argument("--json", type=Path, help="where the numbers go")
    chosen = parser.parse_args(arguments)
    results: list[SeedResult] = []
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="emuflow-quickstart-") as homes:
        for seed in range(chosen.seeds):
            results.append(measure(seed, Path(homes) / str(seed)))
            left_s = (time.monotonic() - started) / len(results) * (chosen.seeds - len(results))
            print(f"seed {seed}: {results[-1].verdict}, about {left_s / 60:.0f} minutes left", flush=True)
    print(table(results))
    kept = sum(not result.broken for result in results)
    print(f"{kept} of {len(results)} seeds keep every promise")
    if chosen.json:
        content = {
            "commit": git_commit(),
            "cores": os.cpu_count(),
            "promises": {name: " ".join(map(str, promise)) for name, promise in PROMISES.items()},
            "seeds": [asdict(result) for result in results],
        }
        write_json(chosen.json, content)
    return 0 if kept == len(results) else 1


def measure(seed: int, home: Path) -> SeedResult:
    """Run the quickstart once; what a run that failed cannot tell is a broken promise."""
    cli = [sys.executable, "-m", "pipelines.cli"]
    subprocess.run([*cli, "run", "--seed", str(seed), "--home", str(home)], check=False)
    told = subprocess.run([*cli, "status", "--json", "--home", str(home)], capture_output=True, text=True, check=True)
    run: dict[str, Any] = json.loads(told.stdout)["last_run"]
    verdict = run["verdict"] or {"result": run["status"], "checks": []}
    checks = {check["name"]: check for check in verdict["checks"]}
    values = {name: checks[name]["value"] for name in PROMISES if name in checks and checks[name]["value"] is not None}
    values |= {"minutes": run["seconds"]["total"] / 60, "peak_memory_gib": run["peak_memory_mb"] / 1024}
    if "accuracy_int8" in checks:
        values["captions"] = checks["accuracy_int8"]["n"]
    broken = [name for name, (sign, bound) in PROMISES.items() if not _holds(values.get(name), sign, bound)]
    if verdict["result"] != "PASS":
        broken.append("verdict")
    return SeedResult(seed, verdict["result"], values, broken)


def table(results: list[SeedResult]) -> str:
    rows = [["seed", "verdict", *PROMISES], ["", "PASS", *(f"{sign} {bound:g}" for sign, bound in PROMISES.values())]]
    for result in results:
        values = (f"{result.values[name]:.4g}" if name in result.values else "–" for name in PROMISES)
        rows.append([str(result.seed), result.verdict, *values])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _holds(value: float | None, sign: str, bound: float) -> bool:
    return value is not None and (value >= bound if sign == ">=" else value <= bound)


if __name__ == "__main__":
    sys.exit(main())
