"""A package whose graphs are Triton models of their own, on a real server: its Python model asks them through Triton.

The server here has the Python backend alone, so models of that one stand in for the graphs' (`stand_ins.py`).
"""

import io
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.load import load_until_ended
from common.errors import ServerError, SignatureError
from common.files import read_json
from emuflow_client import GeneratorClient, InvalidRequest, ServerFault
from serving.control import Load, LoadTimeout
from serving.control_key import ControlKey
from serving.gpu.config import GpuOptions
from serving.gpu.layout import GraphLayout
from serving.package.manifest import Manifest
from serving.remote import RemoteDeployment
from serving.server import TritonServer
from tests.packages import change_and_sign
from tests.serving.gpu.stand_ins import StandIns
from tests.serving.served import eventually

PROMPT = "a red seven left of a green two"
QUIET_S = 0.5


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    with TritonServer(tmp_path_factory.mktemp("theirs"), tmp_path_factory.mktemp("no-keys"), stop_grace_s=0) as running:
        yield running


class Place:
    """A server of others with its repository, and what is to be served there."""

    def __init__(self, server: TritonServer, package_store: Path, key_folder: Path):
        self.server, self.models = server, server.folder / "repository" / "models"
        self._arguments = (server.grpc_endpoint, server.folder / "repository", package_store, key_folder)

    def remote(self, graphs: GraphLayout | None) -> RemoteDeployment:
        key = ControlKey.read(self.server.key_file)
        return RemoteDeployment(*self._arguments, graphs=graphs, control_key=key, quiet_s=QUIET_S)

    def graphs(self) -> list[str]:
        """Of the package that stands there."""
        return sorted(read_json(self.models / "generator" / "graphs.json")["models"].values())

    def folders(self) -> list[str]:
        return sorted(path.name for path in self.models.iterdir())

    def version(self) -> str:
        with GeneratorClient(self.server.grpc_endpoint, timeout_s=20, retries=0) as client:
            return client.generate(PROMPT).version


@pytest.fixture(scope="module")
def place(theirs: TritonServer, package_store: Path, key_folder: Path) -> Place:
    return Place(theirs, package_store, key_folder)


@pytest.fixture
def remote(place: Place, packages: dict[str, Path]) -> RemoteDeployment:
    """It serves the INT8 package, by graphs of their own."""
    deployment = place.remote(StandIns())
    deployment.reconcile(packages["int8"].name)
    return deployment


@pytest.fixture
def clients(
    remote: RemoteDeployment, place: Place, server: TritonServer, packages: dict[str, Path]
) -> Iterator[tuple[GeneratorClient, GeneratorClient]]:
    """Of that one, and of the same package that computes its graphs itself."""
    server.load(packages["int8"], "whole", expected_digest=packages["int8"].name)
    with (
        GeneratorClient(place.server.grpc_endpoint, timeout_s=20, retries=0) as apart,
        GeneratorClient(server.grpc_endpoint, timeout_s=20, retries=0, model="whole") as whole,
    ):
        yield apart, whole


@pytest.mark.parametrize(
    "asked",
    [
        {"temperature": 1.0},
        {"coarse_steps": 4, "temperature": 1.0},
        {"coarse_steps": 1, "previews": False},
        {"guidance": 3.0},
        {"size": (32, 32)},
        {"format": "png"},
    ],
    ids=lambda asked: "-".join(asked),
)
def test_every_stage_is_pixel_for_pixel_that_of_the_package_in_process(
    clients: tuple[GeneratorClient, GeneratorClient], asked: dict
) -> None:
    for seed in range(3):
        apart, whole = (list(client.stream(PROMPT, seed=seed, **asked)) for client in clients)
        assert [stage.stage for stage in apart] == [stage.stage for stage in whole]
        assert ("coarse" in [stage.stage for stage in apart]) == (
            asked.keys() <= {"temperature", "coarse_steps", "guidance", "format"}
        )
        for mine, theirs in zip(apart, whole, strict=True):
            assert mine.version == theirs.version
            np.testing.assert_array_equal(pixels(mine), pixels(theirs))


def pixels(stage) -> np.ndarray:
    return stage.image if stage.png is None else np.asarray(Image.open(io.BytesIO(stage.png)))


def test_requests_of_many_callers_at_once_are_each_their_own(clients: tuple[GeneratorClient, GeneratorClient]) -> None:
    """Drawn in groups by graphs that batch, too: the image of a seed is the same in any company."""
    apart, whole = clients
    asked = [
        {"seed": seed % 7, "guidance": 3.0 if seed % 3 == 0 else None, "coarse_steps": seed % 2 + 1}
        for seed in range(40)
    ]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda one: apart.generate(PROMPT, **one).image, asked))
    for one, answer in zip(asked, answers, strict=True):
        np.testing.assert_array_equal(answer, whole.generate(PROMPT, **one).image)


def test_the_graphs_models_do_the_computing(
    clients: tuple[GeneratorClient, GeneratorClient], place: Place, packages: dict[str, Path]
) -> None:
    apart, _ = clients
    before = {model: place.server.control.requests(model) for model in place.graphs()}
    apart.generate(PROMPT, coarse_steps=4, previews=True)
    apart.generate(PROMPT, coarse_steps=1, previews=False)
    asked = {model: place.server.control.requests(model) - count for model, count in before.items()}
    prefix = f"generator-{packages['int8'].name[:12]}-onnxruntime-"
    assert asked.pop(f"{prefix}prefill") in (0, 1)  # it may know the prompt already
    assert asked == {f"{prefix}coarse": 4, f"{prefix}fine": 1, f"{prefix}image_decoder": 2, f"{prefix}draw": 1}


def test_a_graph_that_is_gone_is_a_typed_error_and_comes_back(
    clients: tuple[GeneratorClient, GeneratorClient], remote: RemoteDeployment, place: Place, packages: dict[str, Path]
) -> None:
    apart, _ = clients
    (coarse,) = (model for model in place.graphs() if model.endswith("-coarse"))
    place.server.control.unload(coarse)
    eventually(lambda: not place.server.control.is_ready(coarse))
    with pytest.raises(ServerFault, match=f"INTERNAL: .*'{coarse}' did not answer"):
        apart.generate(PROMPT)
    with pytest.raises(InvalidRequest):
        apart.generate(" ")
    assert remote.reconcile(packages["int8"].name)
    assert apart.generate(PROMPT).final
    assert not remote.reconcile(packages["int8"].name)


def test_swaps_under_requests_lose_none_and_old_graphs_go_when_nobody_asks_them(
    remote: RemoteDeployment, place: Place, packages: dict[str, Path]
) -> None:
    """Half a hundred requests wait at any time: the old package still asks its graphs when the new one serves already."""
    int8, fp32 = packages["int8"].name, packages["fp32"].name
    remote.reconcile(fp32)
    settle(remote, place, fp32)
    asked = place.server.control.requests("generator")
    with load_until_ended(place.server.grpc_endpoint, "generator", clients=48) as end:
        eventually(lambda: place.server.control.requests("generator") > asked + 96)
        for digest, other in ((int8, fp32), (fp32, int8)):
            assert remote.reconcile(digest)
            assert any(other[:12] in name for name in place.folders()), "the old graphs stay while they may be asked"
            time.sleep(1)
        load = end()
    assert load.errors == []
    assert load.versions.keys() == {int8, fp32}
    settle(remote, place, fp32)
    assert all(fp32[:12] in model for model in place.graphs())
    assert place.version() == fp32


def settle(remote: RemoteDeployment, place: Place, digest: str) -> None:
    """Until only the graphs of the package that serves are left."""
    eventually(lambda: remote.reconcile(digest) or place.folders() == sorted(["generator", *place.graphs()]))


def test_a_package_that_comes_back_at_once_finds_its_graphs_still_loaded(
    remote: RemoteDeployment, place: Place, packages: dict[str, Path]
) -> None:
    int8, fp32 = packages["int8"].name, packages["fp32"].name
    settle(remote, place, int8)
    counts = {model: place.server.control.requests(model) for model in place.graphs()}
    remote.reconcile(fp32)
    remote.reconcile(int8)
    assert place.version() == int8
    for model, count in counts.items():  # one that is loaded anew counts from 0
        assert place.server.control.requests(model) >= count > 0


def test_a_server_without_the_backend_refuses_and_the_old_package_serves_on(
    remote: RemoteDeployment, place: Place, packages: dict[str, Path]
) -> None:
    settle(remote, place, packages["int8"].name)
    before = place.folders()
    for accelerator in ("onnxruntime", "tensorrt"):
        without = place.remote(GraphLayout(GpuOptions(accelerator=accelerator)))
        with pytest.raises(ServerError, match="cannot be served as a model of its own") as refused:
            without.reconcile(packages["fp32"].name)
        assert "unable to find backend library for backend 'onnxruntime'" in str(refused.value)
        assert "--accelerator none" in str(refused.value)
    assert place.folders() == before
    assert place.version() == packages["int8"].name


def test_fault_22_an_altered_package_changes_nothing(
    place: Place, packages: dict[str, Path], package_store: Path, key_folder: Path, tmp_path: Path
) -> None:
    good, bad = packages["int8"].name, packages["fp32"].name
    store = Path(shutil.copytree(package_store, tmp_path / "store"))
    remote = Place(place.server, store, key_folder).remote(StandIns())
    remote.reconcile(good)
    settle(remote, place, good)
    before = place.folders()
    weights = store / bad / "1" / "engine" / "weights.bin"
    weights.write_bytes(b"\1" + weights.read_bytes()[1:])
    with pytest.raises(SignatureError):
        remote.reconcile(bad)
    assert place.folders() == before
    assert place.version() == good


def test_a_package_that_does_not_load_takes_its_graphs_with_it(
    place: Place, packages: dict[str, Path], package_store: Path, key_folder: Path, tmp_path: Path
) -> None:
    def raises(package: Path) -> None:
        (package / "1" / "model.py").write_text("raise RuntimeError('no')\n")

    store = Path(shutil.copytree(package_store, tmp_path / "store"))
    bad = change_and_sign(store / packages["fp32"].name, raises, key_folder)
    remote = Place(place.server, store, key_folder).remote(StandIns())
    remote.reconcile(packages["int8"].name)
    settle(remote, place, packages["int8"].name)
    before = place.folders()
    with pytest.raises(ServerError, match="could not load model 'generator'"):
        remote.reconcile(bad.name)
    assert place.folders() == before
    assert place.version() == packages["int8"].name


class Mute(StandIns):
    """One graph's model loads and answers nothing."""

    def write(self, package: Path, manifest: Manifest, name: str, models: Path) -> dict[str, str]:
        written = super().write(package, manifest, name, models)
        program = models / written["fine"] / "1" / "model.py"
        program.write_text(
            program.read_text().replace("feeds = {", "raise RuntimeError('out of memory')\n        feeds = {")
        )
        return written


def test_a_graph_that_loads_but_does_not_answer_is_found_before_the_package_serves(
    remote: RemoteDeployment, place: Place, packages: dict[str, Path]
) -> None:
    settle(remote, place, packages["int8"].name)
    before = place.folders()
    with pytest.raises(ServerError, match=r"the graph 'fine' .* does not answer: .*out of memory"):
        place.remote(Mute()).reconcile(packages["fp32"].name)
    assert place.folders() == before
    assert place.version() == packages["int8"].name


class Late(StandIns):
    """One graph's model is loaded once `go` is there, notes that, and fails then if it `fails`."""

    def __init__(self, folder: Path, *, fails: bool = False) -> None:
        super().__init__()
        self.go, self.notes, self._fails = folder / "go", folder / "notes", fails

    def write(self, package: Path, manifest: Manifest, name: str, models: Path) -> dict[str, str]:
        written = super().write(package, manifest, name, models)
        program = models / written["fine"] / "1" / "model.py"
        begin = "def initialize(self, args: dict[str, str]) -> None:\n"
        more = f"        import time\n        while not Path({str(self.go)!r}).exists(): time.sleep(0.05)\n"
        more += f"        print('loaded', file=open({str(self.notes)!r}, 'a'))\n"
        more += "        raise RuntimeError('out of memory')\n" if self._fails else ""
        assert begin in program.read_text()
        program.write_text(program.read_text().replace(begin, begin + more))
        return written

    def loads(self) -> list[str]:
        return self.notes.read_text().splitlines()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second is all that a load is waited for at a time; whoever is asked something has as long as ever."""
    wait = Load.wait
    monkeypatch.setattr(Load, "wait", lambda self, _: wait(self, 0.5))


def be_late(deployment: RemoteDeployment, place: Place, digest: str) -> None:
    """Until the server loads the graph that is late; on a busy machine others are, too."""
    told = ""
    while "'fine'" not in told:
        with pytest.raises(LoadTimeout) as late:
            deployment.reconcile(digest)
        told = str(late.value)
    assert_that_it_stays(place, digest)


def assert_that_it_stays(place: Place, digest: str) -> None:
    stands = [name for name in place.folders() if name.endswith("-fine") and digest[:12] in name]
    assert len(stands) == 1, "Triton may read it"


def test_a_graph_that_is_late_is_waited_for_and_never_asked_for_again(
    remote: RemoteDeployment, place: Place, packages: dict[str, Path], tmp_path: Path, hasty: None
) -> None:
    int8, fp32, late = packages["int8"].name, packages["fp32"].name, Late(tmp_path)
    settle(remote, place, int8)
    deployment = place.remote(late)
    be_late(deployment, place, fp32)
    for digest in (fp32, int8, fp32):
        with pytest.raises(LoadTimeout, match="-fine' was not loaded within"):
            deployment.reconcile(digest)
        assert_that_it_stays(place, fp32)
    assert place.version() == int8
    late.go.touch()
    eventually(lambda: _settled(deployment, fp32))
    assert place.version() == fp32 and late.loads() == ["loaded"]
    settle(deployment, place, fp32)


def test_a_graph_that_is_late_and_fails_then_leaves_the_old_package_alone(
    remote: RemoteDeployment, place: Place, packages: dict[str, Path], tmp_path: Path, hasty: None
) -> None:
    int8, fp32, late = packages["int8"].name, packages["fp32"].name, Late(tmp_path, fails=True)
    settle(remote, place, int8)
    before, deployment = place.folders(), place.remote(late)
    be_late(deployment, place, fp32)
    late.go.touch()
    eventually(lambda: _settled(deployment, int8))
    settle(deployment, place, int8)
    assert place.folders() == before and place.version() == int8 and late.loads() == ["loaded"]


def test_a_process_that_comes_after_waits_for_a_graph_that_is_loaded_still(
    remote: RemoteDeployment, place: Place, packages: dict[str, Path], tmp_path: Path, hasty: None
) -> None:
    """It knows of it by a file beside the models, and moves nothing until then."""
    int8, fp32, late = packages["int8"].name, packages["fp32"].name, Late(tmp_path)
    settle(remote, place, int8)
    before, marks = place.folders(), place.models.parent / "loading-graphs"
    be_late(place.remote(late), place, fp32)
    after = place.remote(StandIns())
    for digest in (fp32, int8):
        with pytest.raises(LoadTimeout):
            after.reconcile(digest)
        assert_that_it_stays(place, fp32)
    [mark] = marks.iterdir()
    assert mark.name.endswith("-fine") and fp32[:12] in mark.name
    late.go.touch()
    eventually(lambda: _settled(after, int8))
    settle(after, place, int8)
    assert place.folders() == before and place.version() == int8 and list(marks.iterdir()) == []


def _settled(deployment: RemoteDeployment, digest: str) -> bool:
    """Whether the package serves; a load that has not ended may be in the way."""
    try:
        deployment.reconcile(digest)
    except LoadTimeout:
        return False
    return True


def test_a_restarted_server_gets_graphs_and_package_anew(
    tmp_path: Path, packages: dict[str, Path], package_store: Path, key_folder: Path
) -> None:
    with TritonServer(tmp_path / "theirs", tmp_path / "no-keys", stop_grace_s=0) as server:
        place = Place(server, package_store, key_folder)
        remote = place.remote(StandIns())
        remote.reconcile(packages["int8"].name)
        for model in ("generator", *place.graphs()):
            server.control.unload(model)  # as a restart would
            eventually(lambda model=model: not server.control.is_ready(model))
        assert remote.reconcile(packages["int8"].name)
        assert place.version() == packages["int8"].name
        without = place.remote(None)
        left = place.models / ".generator-0123456789ab-tensorrt-draw.00000000.tmp"
        left.mkdir()  # as a crash would
        assert without.reconcile(packages["int8"].name), "the same package, but to compute its graphs itself"
        assert place.version() == packages["int8"].name
        eventually(lambda: without.reconcile(packages["int8"].name) or place.folders() == ["generator"])
        assert place.version() == packages["int8"].name
