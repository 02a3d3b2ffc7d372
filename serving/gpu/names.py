"""Names of the Triton models that compute a package's graphs: `<name>-<digest>-<accelerator>-<graph>`."""

import re
from pathlib import Path

from common.errors import RepositoryError
from common.files import read_json
from serving.gpu.accelerators import ACCELERATORS, Accelerator
from serving.package.runtime.graphs import GRAPHS_NAME

ENGINE = "1/engine"
"""Where a package keeps its graphs."""
_DIGEST_CHARACTERS = 12


def generation_of(name: str, digest: str, accelerator: Accelerator) -> str:
    """What the names of all models of one package's graphs begin with."""
    return f"{name}-{digest[:_DIGEST_CHARACTERS]}-{accelerator}"


def generations(name: str, models: Path) -> dict[str, list[str]]:
    """Every graph's model in the repository `models`, also one that a crash left half written, by generation."""
    pattern = re.compile(
        rf"\.?(?P<generation>{re.escape(name)}-[0-9a-f]{{{_DIGEST_CHARACTERS}}}-({'|'.join(ACCELERATORS)}))-.+"
    )
    found: dict[str, list[str]] = {}
    for path in sorted(models.iterdir()):
        if matched := pattern.fullmatch(path.name):
            found.setdefault(matched["generation"], []).append(path.name)
    return found


def read_graphs(package: Path) -> tuple[Accelerator, dict[str, str]] | None:
    """What computes the graphs of a package that lies in a repository, and its models by graph; None where it does so
    itself. Raises `RepositoryError` where its `graphs.json` is damaged."""
    file = package / GRAPHS_NAME
    if not file.is_file():
        return None
    try:
        content = read_json(file)
        accelerator, models = content["accelerator"], dict(content["models"])
    except (ValueError, KeyError, TypeError) as error:
        raise RepositoryError(f"not a list of graphs ({type(error).__name__})", where=str(file)) from error
    if accelerator not in ACCELERATORS or not all(isinstance(model, str) for model in models.values()):
        raise RepositoryError("it names an accelerator or a model that there cannot be", where=str(file))
    return accelerator, models
