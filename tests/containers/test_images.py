"""What is in the images, and what is not."""

import json
import re

import pytest

from infra.images.build import ROOT
from tests.containers.conftest import IMAGES, health_check, output

pytestmark = pytest.mark.containers

LIMITS_GB = {"emuflow": 3.5, "emuflow-triton": 1.5}
FOREIGN = (
    "find / -xdev ( -path /proc -o -path /sys ) -prune -o ( -path /opt/emuflow/*__pycache__ -o -name .git -o -name .cache"
    " -o -name .netrc -o -name *_key -o -name *.key -o -path /root/?* -type f -not -name .bashrc -not -name .profile"
    " -o -path /var/lib/apt/lists/*_Packages -o -path /var/cache/apt/*.deb -o -name pip.conf -size +0 ) -print"
)


@pytest.fixture(scope="module", params=IMAGES)
def name(request):
    return request.param


def inside(engine, name: str, *command: str, **options: str) -> str:
    """What a command prints in a container of the image, with nothing mounted."""
    options |= {"network_mode": "none", "read_only": True, "tmpfs": {"/tmp": "mode=1777"}}
    return output(engine, IMAGES[name], command, **options)


def test_an_image_is_not_too_large(engine, name):
    assert engine.images.get(IMAGES[name]).attrs["Size"] / 1e9 <= LIMITS_GB[name]


def test_an_image_says_what_it_was_built_from(engine, name):
    labels = engine.images.get(IMAGES[name]).labels
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.version"] == IMAGES[name].rpartition(":")[2]
    revision = labels["org.opencontainers.image.revision"]
    assert len(revision.removesuffix("-dirty")) == 40
    assert inside(engine, name, "sh", "-c", "echo $EMUFLOW_GIT_COMMIT").strip() == revision


def test_nobody_in_it_is_root(engine, name):
    user = inside(engine, name, "id", "-u").strip()
    assert user == "10001" == engine.images.get(IMAGES[name]).attrs["Config"]["User"].partition(":")[0]


def test_it_holds_no_cache_no_test_and_nothing_of_this_checkout_or_its_builder(engine, name):
    assert inside(engine, name, *FOREIGN.split(), user="0") == ""
    assert sorted(inside(engine, name, "ls", "/opt/emuflow").split()) == sorted(
        ["LICENSE", "README.md", "common", "components", "model", "pipelines", "serving"]
    )
    tests = "find .venv/lib -type d ( -name tests -o -name test ) -not -path */torch/* -not -path */numpy/*"
    assert inside(engine, name, *tests.split()) == ""
    variables = inside(engine, name, "env").casefold()
    assert not [word for word in ("password", "token", "secret", "index_url") if word in variables]


def test_it_was_built_without_a_secret_among_its_arguments(engine, name):
    history = json.dumps(engine.images.get(IMAGES[name]).history()).casefold()
    assert not [word for word in ("password", "secret", "token") if word in history]
    assert not re.search(r"://[^/\s\"]*:[^/\s\"]*@", history)


def test_its_environment_is_the_pinned_one(engine, name):
    code = "import importlib.metadata as m, json; print(json.dumps({d.name.lower().replace('_', '-'): d.version for d in m.distributions()}))"
    found = json.loads(inside(engine, name, "python", "-c", code))
    lines = (ROOT / "constraints.txt").read_text().lower().replace("_", "-").splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line and line[0].isalpha())
    expected = {"kfp", "onnxruntime", "tritonclient", "pydantic"}
    expected |= {"torch", "deepspeed", "mlflow", "great-expectations"} if name == "emuflow" else {"nvidia-pytriton"}
    assert expected <= set(found)
    ours = {each: version.partition("+")[0] for each, version in found.items() if each != "pip"}
    assert {each: version for each, version in ours.items() if pinned.get(each) != version} == {}


def test_the_servers_image_learns_nothing(engine):
    code = "import importlib.util as u; print([name for name in ('torch', 'deepspeed', 'onnxscript') if u.find_spec(name)])"
    assert inside(engine, "emuflow-triton", "python", "-c", code).strip() == "[]"


def test_deepspeeds_operator_needs_no_compiler(engine):
    code = "from deepspeed.ops.op_builder import ShareMemCommBuilder as Builder; print(Builder().load().__name__)"
    loaded = inside(engine, "emuflow", "env", "DS_ACCELERATOR=cpu", "python", "-c", code)
    assert loaded.split()[-1].endswith("deepspeed_shm_comm_op")
    assert inside(engine, "emuflow", "sh", "-c", "command -v g++ gcc || true") == ""


def test_the_servers_image_tells_its_health(engine):
    assert "/v2/health/ready" in health_check(engine)[-1]
