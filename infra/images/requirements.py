"""Print what pyproject.toml asks for, one requirement a line: `python requirements.py EXTRA [EXTRA ...]`.

An image installs this in layers that only a changed requirement rebuilds; the application itself is copied on top.
Read from `pyproject.toml` in the working folder. `emuflow-client` is left out: it lies in the repository.
"""

import sys
import tomllib
from pathlib import Path


def main(extras: list[str]) -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(name for extra in extras for name in project["optional-dependencies"][extra])]
    print("\n".join(name for name in wanted if name != "emuflow-client"))


if __name__ == "__main__":
    main(sys.argv[1:])
