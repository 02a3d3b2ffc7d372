"""What a request is on the wire."""

import pytest

from emuflow_client import InvalidRequest
from emuflow_client.wire import Options, encode


@pytest.mark.parametrize("name", list(Options.__annotations__))
def test_none_is_the_packages_own_as_is_what_is_left_out(name: str) -> None:
    assert encode("generator", "a red seven", {name: None}) == encode("generator", "a red seven", {})


@pytest.mark.parametrize("format", ["jpeg", "", 0])
def test_a_format_that_there_is_not_is_refused(format: object) -> None:
    with pytest.raises(InvalidRequest, match="only raw or png"):
        encode("generator", "a red seven", {"format": format})
