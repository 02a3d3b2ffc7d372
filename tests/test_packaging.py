"""An installation holds what the code reads beside itself, not only its modules."""

from pathlib import Path

import pytest
from setuptools import Distribution
from setuptools.config.pyprojecttoml import apply_configuration

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("common", "components", "model", "pipelines", "serving")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> set[str]:
    """Paths inside a wheel, as setuptools would lay them out."""
    monkeypatch.chdir(ROOT)
    distribution = apply_configuration(Distribution({"script_name": "setup.py"}), ROOT / "pyproject.toml")
    distribution.get_command_obj("egg_info").egg_base = str(tmp_path)  # an older list of files counts otherwise
    build = distribution.get_command_obj("build_py")
    build.build_lib = str(tmp_path)
    build.ensure_finalized()
    return {Path(path).relative_to(tmp_path).as_posix() for path in build.get_outputs(include_bytecode=False)}


def test_every_file_beside_the_code_is_installed_with_it(installed):
    beside = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for pattern in ("*.j2", "*.yaml", "*.html", "*.pbtxt")
        for path in (ROOT / package).rglob(pattern)
    }
    assert {"components/gate/report.html.j2", "pipelines/presets/quickstart.yaml"} <= beside
    assert beside <= installed, beside - installed


def test_the_modules_are_installed_and_the_tests_are_not(installed):
    assert {"pipelines/cli.py", "components/gate/quality.py", "serving/package/runtime/engine.py"} <= installed
    assert not any(path.startswith(("tests/", "serving/client/")) for path in installed)
