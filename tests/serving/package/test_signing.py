"""The key pair: made once, never in the place of a key that is trusted."""

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from common.errors import SignatureError
from serving.package.signing import check_can_sign, check_signature, sign

CONTENT = b"content"


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_with_neither_key_gets_a_pair(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    check_can_sign(keys)
    assert not keys.exists()
    check_signature(CONTENT, sign(CONTENT, keys), keys)
    made = files(keys)
    assert made.keys() == {"signing.key", "signing.pub"}
    check_signature(CONTENT, sign(CONTENT, keys), keys)
    assert files(keys) == made


def test_where_the_public_key_is_alone_nothing_is_signed_and_it_stays(tmp_path: Path) -> None:
    """An operator's machine, or one that lost its private key: a new pair would end the trust in all that was signed."""
    signature = sign(CONTENT, tmp_path)
    (tmp_path / "signing.key").unlink()
    kept = files(tmp_path)
    for refused in (lambda: sign(CONTENT, tmp_path), lambda: check_can_sign(tmp_path)):
        with pytest.raises(SignatureError) as error:
            refused()
        assert "only signing.pub" in error.value.what
        assert error.value.where == str(tmp_path / "signing.key")
        assert error.value.fix and "rename signing.pub" in error.value.fix
    assert files(tmp_path) == kept
    check_signature(CONTENT, signature, tmp_path)


def test_a_public_key_under_another_name_stays_trusted_beside_the_machine_s_own_pair(tmp_path: Path) -> None:
    """What the error says to do."""
    signature = sign(CONTENT, tmp_path)
    (tmp_path / "signing.key").unlink()
    (tmp_path / "signing.pub").rename(tmp_path / "pipeline.pub")
    for each in (sign(CONTENT, tmp_path), signature):
        check_signature(CONTENT, each, tmp_path)


def test_a_public_key_that_is_missing_is_that_of_the_private_one(tmp_path: Path) -> None:
    sign(CONTENT, tmp_path)
    made = files(tmp_path)
    (tmp_path / "signing.pub").unlink()
    check_can_sign(tmp_path)
    sign(CONTENT, tmp_path)
    assert files(tmp_path) == made


@contextmanager
def ended_before_link(number: int) -> Iterator[None]:
    """This process ends right before the file of that number gets its name."""
    links, link = [], os.link

    def counted(*arguments: Any, **options: Any) -> None:
        if len(links) == number:
            raise KeyboardInterrupt
        links.append(arguments)
        link(*arguments, **options)

    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "link", counted)
        yield


@pytest.mark.parametrize("number", [0, 1])
def test_fault_20_a_pair_that_was_half_made_becomes_a_whole_one(tmp_path: Path, number: int) -> None:
    with ended_before_link(number):
        sign(CONTENT, tmp_path)
    left = files(tmp_path)
    assert list(left) == ["signing.key"] * number
    check_signature(CONTENT, sign(CONTENT, tmp_path), tmp_path)
    whole = files(tmp_path)
    assert whole.keys() == {"signing.key", "signing.pub"} and left.items() <= whole.items()


FOLDERS, PROCESSES = 20, 4


def sign_in_each(root: Path, start: Any, told: Any) -> None:
    for number in range(FOLDERS):
        start.wait(60)
        told.put((number, sign(CONTENT, root / str(number))))


def test_first_uses_of_several_processes_at_once_agree_on_one_pair(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start, told = context.Barrier(PROCESSES), context.Queue()
    running = [context.Process(target=sign_in_each, args=(tmp_path, start, told)) for _ in range(PROCESSES)]
    for process in running:
        process.start()
    signed = [told.get(timeout=120) for _ in range(FOLDERS * PROCESSES)]
    for process in running:
        process.join(60)
    assert [process.exitcode for process in running] == [0] * PROCESSES
    for number, signature in signed:
        check_signature(CONTENT, signature, tmp_path / str(number))
