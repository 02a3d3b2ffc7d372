"""Packages that take their time to load."""

import shutil
from pathlib import Path

from tests.packages import change_and_sign

_BEGIN = "def initialize(self, args: dict[str, str]) -> None:\n"


def slow_copy(package: Path, key_folder: Path, seconds: float, *, fails: bool = False) -> Path:
    """A signed copy beside `package` whose load takes `seconds` longer, and fails then if it `fails`. Returns its folder."""

    def change(copy: Path) -> None:
        model = copy / "1" / "model.py"
        end = "; raise RuntimeError('too late')" if fails else ""
        assert _BEGIN in model.read_text()
        model.write_text(
            model.read_text().replace(_BEGIN, f"{_BEGIN}        import time; time.sleep({seconds}){end}\n")
        )

    return change_and_sign(
        Path(shutil.copytree(package, package.parent / f"slow-{seconds}-{fails}")), change, key_folder
    )
