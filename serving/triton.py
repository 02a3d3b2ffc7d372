"""Where the Triton binary of the `serve` extra lies, and the surroundings that it needs to run here.

The `nvidia-pytriton` wheel holds the server with its Python backend only. Its Python stub must stand beside the
backend's library, for the very minor version of Python that runs the models.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from common.errors import ServerError
from common.files import remove

ROOT_VARIABLE = "EMUFLOW_TRITON_ROOT"
"""Names another installation (`/opt/tritonserver` in NVIDIA's image), which is then used as it is."""
_STUB = "triton_python_backend_stub"
_STUB_RUNS = 1
"""What the stub ends with where it runs but is given nothing to do; Triton itself asks it the same way."""
_STUB_TIMEOUT_S = 60
_KEPT_VARIABLES = ("HOME", "LANG", "LC_ALL", "TMPDIR", "TZ")


@dataclass(frozen=True)
class TritonInstallation:
    """The parts of the installed wheel."""

    root: Path
    libraries: Path

    @property
    def binary(self) -> Path:
        return self.root / "bin" / "tritonserver"

    @property
    def stub(self) -> Path:
        return self.root / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}" / _STUB


def find_installation() -> TritonInstallation:
    """The installed Triton. Raises `ServerError` where the `serve` extra is absent or knows no such Python."""
    if root := os.environ.get(ROOT_VARIABLE):
        installation = TritonInstallation(Path(root), Path(root) / "lib")
        _require((installation.binary, installation.root / "backends" / "python" / _STUB), f"correct {ROOT_VARIABLE}")
        return installation
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise ServerError("no Triton server is installed", fix="install the extra 'serve' (nvidia-pytriton)")
    package = Path(spec.origin).parent
    installation = TritonInstallation(package / "tritonserver", package.parent / "nvidia_pytriton.libs")
    _require((installation.binary, installation.stub), "install nvidia-pytriton")
    return installation


def _require(files: Iterable[Path], fix: str) -> None:
    for path in files:
        if not path.is_file():
            raise ServerError("the Triton installation lacks this file", where=str(path), fix=fix)


def backends_folder(installation: TritonInstallation, parent: Path | None = None) -> Path:
    """The backends with the stub in its place, made once per virtual environment (or under `parent`).

    Two processes may ask at once: each makes its own, the first to finish stays.
    """
    if os.environ.get(ROOT_VARIABLE):
        return installation.root / "backends"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    final = (parent or Path(sys.prefix) / "share" / "emuflow") / f"triton-backends-{version}"
    if final.is_dir():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    making = final.parent / f".{final.name}.{uuid.uuid4().hex[:8]}"
    try:
        shutil.copytree(installation.root / "backends", making, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy2(installation.stub, making / "python" / _STUB)
        making.rename(final)
    except OSError:
        if not final.is_dir():
            raise
    finally:
        remove(making)
    return final


def check_stub(installation: TritonInstallation) -> None:
    """Raises `ServerError` where the process that runs the models cannot start here; Triton would not say why."""
    stub = backends_folder(installation) / "python" / _STUB
    done = subprocess.run(
        [str(stub)],
        env=server_environment(installation),
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_STUB_TIMEOUT_S,
        check=False,
    )
    if done.returncode != _STUB_RUNS:
        raise ServerError(
            f"Triton's Python stub does not run here (exit code {done.returncode}): {done.stderr.strip()[-500:]}",
            where=str(stub),
            fix="install what it misses; Debian's libpython is a package of its own: apt-get install libpython3.11",
        )


def server_environment(installation: TritonInstallation) -> dict[str, str]:
    """The server's environment variables, and no others: nothing of the caller's reaches the models.

    The stub takes its packages from the environment of the first `python3` on PATH. One thread for numpy's
    libraries: the engine has its own setting.
    """
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    libraries = [str(installation.libraries), sysconfig.get_config_var("LIBDIR")]  # the second has libpython
    return kept | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"]),
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
