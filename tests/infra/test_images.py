"""What builds the images, as far as it can be tried without an engine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.images.build import ROOT, pip_settings
from infra.images.engine import EngineError, call, engine_environment, find_engine
from infra.images.requirements import main as print_requirements


def test_where_no_engine_is_the_container_tests_say_so_and_count_as_skipped():
    done = subprocess.run(
        [sys.executable, "-m", "tests.containers.run"],
        cwd=ROOT, env={"ENGINE": "no-such-engine", "PATH": "/usr/bin"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 77
    assert done.stdout == "skipped: no container can be started here: no-such-engine is not installed\n"


def test_an_engine_is_found_by_its_name(monkeypatch, tmp_path):
    engine = tmp_path / "podman-remote"
    engine.write_text("#!/bin/sh\necho asked: $1; echo complaint >&2; [ $1 = good ]\n")
    engine.chmod(0o755)
    monkeypatch.setenv("ENGINE", str(engine))
    assert find_engine() == str(engine)
    assert call(str(engine), {}, "good") == "asked: good"
    with pytest.raises(EngineError, match="podman-remote bad: complaint"):
        call(str(engine), {}, "bad")


def test_a_configuration_of_ones_own_is_left_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("CONTAINERS_CONF", "mine.conf")
    assert engine_environment("/usr/bin/podman", tmp_path)["CONTAINERS_CONF"] == "mine.conf"
    monkeypatch.delenv("CONTAINERS_CONF")
    assert "CONTAINERS_CONF" not in engine_environment("/usr/bin/docker", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_this_machines_pip_settings_hold_inside_a_build(monkeypatch, tmp_path):
    wheels, index, certificate = tmp_path / "wheels", tmp_path / "mirror" / "simple", tmp_path / "ca.pem"
    wheels.mkdir()
    index.mkdir(parents=True)
    certificate.write_text("")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    settings = {
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_INDEX_URL": "https://user:secret@pypi.example/simple",
        "PIP_EXTRA_INDEX_URL": f"{index.as_uri()} https://other.example/simple",
        "PIP_FIND_LINKS": str(wheels),
        "PIP_CERT": str(certificate),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    options = pip_settings(tmp_path)
    written = (tmp_path / "pip.conf").read_text().split()
    mounted = dict(option.removeprefix("--volume=").split(":")[:2] for option in options if "--volume" in option)
    assert set(mounted) == {str(wheels), str(index.parent), str(certificate), str(tmp_path / "pip.conf")}
    assert f"file://{mounted[str(index.parent)]}/simple" in written and "https://other.example/simple" in written
    assert {mounted[str(wheels)], mounted[str(certificate)], settings["PIP_INDEX_URL"]} <= set(written)
    assert "secret" not in " ".join(options), "what a command line holds, every user of the machine can read"


def test_an_image_installs_what_its_extras_name_and_not_ourselves(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    print_requirements(["serve"])
    found = capsys.readouterr().out.split()
    assert {"nvidia-pytriton", "onnxruntime", "kfp"} <= set(found)
    assert not {"torch==2.13.0", "emuflow-client"} & set(found)


@pytest.mark.parametrize("file", sorted(Path(ROOT / "infra" / "images").glob("*.Containerfile")), ids=lambda f: f.stem)
def test_an_image_takes_its_base_as_an_argument_and_does_not_end_as_root(file):
    lines = file.read_text().splitlines()
    assert [line for line in lines if line.startswith("FROM")][-1] == "FROM ${BASE}"
    assert [line for line in lines if line.startswith("USER")][-1] == "USER 10001:10001"
