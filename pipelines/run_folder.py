"""The files of a run that more than one process of it reads."""

from pathlib import Path

from common.files import read_json
from pipelines.settings import PlatformSettings

ARGUMENTS_FILE = "arguments.json"
SETTINGS_FILE = "settings.json"


def read_platform(run_folder: Path) -> PlatformSettings:
    """How the run was told to work. Its addresses are not read from here: they may hold hidden passwords."""
    return PlatformSettings.parse(read_json(run_folder / SETTINGS_FILE)["platform"])
