"""Build both images: `make images`, or `python3 -m infra.images.build [ARGUMENT OF build ...]` in the checkout.

    ENGINE    podman or docker; whichever is there without it
    BASE      the base of both images; without it Docker Hub's Python, or, where that cannot be pulled, a Debian made
              here (base.py)
    TRITON_BASE   another base of the server's image, which brings a Triton in /opt/tritonserver: NVIDIA's
    TORCH     cpu (default) or cuda
    APT_MIRROR    where Debian's packages come from, for what is made here and inside the builds

Every argument is handed to both builds; the tag is the application's version. With podman, pip's own settings on this
machine (an index, a certificate, folders of wheels) hold for the build, too; nothing of them stays in an image.
"""

import ast
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.version import VERSION
from infra.images.base import NAME as MADE_BASE
from infra.images.base import make_base
from infra.images.engine import EngineError, call, engine_environment, find_engine, is_podman

ROOT = Path(__file__).resolve().parents[2]
LOGS = ROOT / "build" / "images"
PUBLIC_BASE = "docker.io/library/python:3.11-slim-bookworm"
_INSIDE = "/run/emuflow"
"""Where this machine's pip settings lie during a build."""
_NOT_FOR_A_BUILD = {
    "break-system-packages", "cache-dir", "config-file", "log", "prefix", "python", "require-virtualenv", "root", "target", "user",
}  # fmt: skip
"""Settings of pip that say where it works on this machine, not what it installs."""


@dataclass(frozen=True)
class Image:
    name: str
    file: str
    arguments: Mapping[str, str]


def main(arguments: Sequence[str]) -> int:
    """Build, and print each image's name, identity, size and the seconds that it took."""
    try:
        engine = find_engine()
        environment = engine_environment(engine, LOGS)
        LOGS.mkdir(parents=True, exist_ok=True)
        base = base_image(engine, environment)
        print(f"{Path(engine).name}, base {base}", flush=True)
        mirror = os.environ.get("APT_MIRROR", "")
        common = [*_as_options({"GIT_COMMIT": git_commit(), "VERSION": VERSION, "APT_MIRROR": mirror}), *arguments]
        with tempfile.TemporaryDirectory(prefix="emuflow-pip-") as folder:
            if is_podman(engine):
                common = ["--format", "docker", *pip_settings(Path(folder)), *common]  # OCI has no health check
            for image in (
                Image("emuflow", "emuflow.Containerfile", {"BASE": base, "TORCH": os.environ.get("TORCH", "cpu")}),
                Image("emuflow-triton", "triton.Containerfile", _triton_arguments(base)),
            ):
                _build(engine, environment, image, common)
    except EngineError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def base_image(engine: str, environment: Mapping[str, str]) -> str:
    """The name of the base that both images start from, made here where it has to be. Raises `EngineError`."""
    if named := os.environ.get("BASE"):
        return named
    if _is_there(engine, environment, PUBLIC_BASE):
        return PUBLIC_BASE
    try:
        call(engine, environment, "pull", PUBLIC_BASE)
    except EngineError as error:
        if _is_there(engine, environment, MADE_BASE):
            return MADE_BASE
        print(f"{PUBLIC_BASE} cannot be pulled; a base is made out of Debian's packages instead", flush=True)
        if not is_podman(engine):
            raise EngineError(f"{error}\nname another base: BASE=… make images") from None
        started = time.monotonic()
        make_base(engine, environment)
        print(f"{MADE_BASE}: {time.monotonic() - started:.0f} s", flush=True)
        return MADE_BASE
    return PUBLIC_BASE


def git_commit() -> str:
    """The checkout's commit, `-dirty` where files differ from it, `unknown` where there is none."""
    try:
        commit, changed = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}-dirty" if changed else commit


def pip_settings(folder: Path) -> list[str]:
    """Arguments of podman's build that give it this machine's pip settings; `folder` takes a pip.conf of them."""
    settings = _pip_config()
    if not settings:
        return []
    mounted: dict[str, str] = {}
    lines = ["[global]"]
    for name, value in settings.items():
        lines.append(f"{name} = " + "\n    ".join(_inside(word, mounted) for word in value.split()))
    file = folder / "pip.conf"
    file.write_text("\n".join(lines) + "\n")
    mounted[str(file)] = f"{_INSIDE}/pip.conf"
    volumes = [f"--volume={source}:{target}:ro" for source, target in mounted.items()]
    return [*volumes, "--build-arg", f"PIP_CONFIG_FILE={_INSIDE}/pip.conf", "--network", "host"]


def _pip_config() -> dict[str, str]:
    """What pip would use here: the environment goes before a command's own section, that before `global`."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    found: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in listed.stdout.splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        if section in found and name not in _NOT_FOR_A_BUILD:
            found[section][name.removeprefix("default-")] = ast.literal_eval(value)
    return found["global"] | found["install"] | found[":env:"]


def _inside(value: str, mounted: dict[str, str]) -> str:
    """`value` as the build sees it: a local path is mounted, anything else stays as it is."""
    path = Path(value.removeprefix("file://"))
    if not path.is_absolute() or not path.exists():
        return value
    scheme = "file://" if value.startswith("file://") else ""
    source = path.parent if scheme else path  # an index refers to files beside itself
    # Named after what is mounted: a cached layer keeps the empty place of each mount, which must stay a file or folder.
    target = mounted.setdefault(str(source), f"{_INSIDE}/{hashlib.sha256(str(source).encode()).hexdigest()[:12]}")
    return f"{scheme}{target}/{path.relative_to(source)}".removesuffix("/.")


def _build(engine: str, environment: Mapping[str, str], image: Image, common: Sequence[str]) -> None:
    name, started, log = f"localhost/{image.name}:{VERSION}", time.monotonic(), LOGS / f"{image.name}.log"
    file = f"infra/images/{image.file}"
    command = [engine, "build", *_as_options(image.arguments), *common, "--tag", name, "--file", file, "."]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as build:
        assert build.stdout is not None
        with log.open("w") as written:
            for line in _shown(build.stdout, image.name):
                written.write(line)
    if build.returncode != 0:
        end = "".join(log.read_text().splitlines(keepends=True)[-60:])
        raise EngineError(f"{end}\n{image.name} could not be built; the whole output: {log}")
    identity, size = call(engine, environment, "image", "inspect", "--format", "{{.Id}} {{.Size}}", name).split()
    seconds = time.monotonic() - started
    print(f"{name:<34} {identity.removeprefix('sha256:')[:12]} {int(size) / 1e9:6.2f} GB {seconds:5.0f} s", flush=True)


def _shown(lines: Iterator[str], name: str) -> Iterator[str]:
    """Pass the build's lines on; a terminal shows the step that it is at."""
    for line in lines:
        if sys.stdout.isatty() and ("STEP " in line or line.startswith("#")):
            print(f"\r\x1b[K{name}: {line.strip()[:100]}", end="", flush=True)
        yield line
    if sys.stdout.isatty():
        print("\r\x1b[K", end="", flush=True)


def _triton_arguments(base: str) -> dict[str, str]:
    triton_base = os.environ.get("TRITON_BASE")
    if not triton_base:
        return {"BASE": base}
    return {
        "BASE": triton_base,
        "TRITON": "base",
        "TRITON_ROOT": "/opt/tritonserver",
        "VENV_PACKAGES": "python3-venv",
    }


def _as_options(arguments: Mapping[str, str]) -> list[str]:
    return [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]


def _is_there(engine: str, environment: Mapping[str, str], image: str) -> bool:
    try:
        call(engine, environment, "image", "inspect", image)
    except EngineError:
        return False
    return True


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
