"""The process that runs the models is tried before a server is started."""

from pathlib import Path

import pytest

from common.errors import ServerError
from serving.triton import ROOT_VARIABLE, check_stub, find_installation


def test_the_installed_stub_runs_here():
    check_stub(find_installation())


def test_a_stub_that_cannot_start_is_told_with_its_reason(tmp_path: Path, monkeypatch):
    """As it is where Python has no shared library of its own; Triton speaks of an execute permission then."""
    stub = tmp_path / "backends" / "python" / "triton_python_backend_stub"
    stub.parent.mkdir(parents=True)
    stub.write_text("#!/bin/sh\necho 'libpython3.11.so.1.0: cannot open shared object file' >&2\nexit 127\n")
    stub.chmod(0o755)
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    with pytest.raises(ServerError, match=f"{tmp_path}/bin/tritonserver.*lacks"):
        find_installation()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tritonserver").touch()
    with pytest.raises(ServerError, match=r"libpython3\.11\.so\.1\.0.*\n.*libpython3\.11") as caught:
        check_stub(find_installation())
    assert str(stub) in str(caught.value)
