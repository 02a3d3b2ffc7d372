"""Every setting that a page or a message names can be set under that name."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_origin

import pytest
from pydantic import BaseModel

from common.settings import setting_keys
from pipelines.settings import Settings
from pipelines.steps import STEPS

ROOT = Path(__file__).resolve().parent.parent
CODE = ("common", "components", "model", "pipelines", "serving")
KEYS = set(setting_keys(Settings))
MISTAKABLE = {name.partition("-")[0] for name in STEPS} | {"validation", "curate", "evaluation", "limits", "platform"}
SECTIONS = sorted({key for key in KEYS if "." not in key} | MISTAKABLE)
FILES = r"(?:bin|html|idx|j2|json|jsonl|log|md|onnx|parquet|png|py|safetensors|sig|tar|txt|yaml)"
NAME = re.compile(rf"(?<![\w./\\@-])(?:{'|'.join(SECTIONS)})(?:\.(?!{FILES}\b)[a-z_][a-z_0-9]*)+(?![\w/(])")


def setting_names(text: str) -> list[str]:
    """What looks like `section.key` in a text: names of files, folders, modules and calls do not."""
    return [name for name in NAME.findall(text) if not is_module(name)]


def is_known(name: str) -> bool:
    """Whether it can be set; below a setting that is a mapping the names are the user's."""
    return name in KEYS or any(name.startswith(f"{mapping}.") for mapping in MAPPINGS)


def mappings(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        if get_origin(field.annotation) is dict:
            yield f"{prefix}{name}"
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from mappings(field.annotation, f"{prefix}{name}.")


MAPPINGS = set(mappings(Settings))


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def literals(file: Path) -> Iterator[str]:
    """The strings of a program, without docstrings; what an f-string puts in is left out."""
    tree = ast.parse(file.read_text(), str(file))
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node.value


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def programs() -> list[Path]:
    return [file for folder in CODE for file in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_a_page_names_only_settings_that_exist(page):
    assert [name for name in setting_names(page.read_text()) if not is_known(name)] == []


def test_messages_name_only_settings_that_exist():
    found = [(file, name) for file in programs() for text in literals(file) for name in setting_names(text)]
    assert len(found) > 10, "no message names a setting: the test looks at the wrong place"
    assert [f"{file.relative_to(ROOT)}: {name}" for file, name in found if not is_known(name)] == []


def test_the_pages_that_explain_settings_are_read():
    named = {name for page in pages() for name in setting_names(page.read_text())}
    assert {"data.limits.max_pixels", "curation.minimum_side", "training.steps"} <= named


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("set ingest.tolerate_empty_shards=true", ["ingest.tolerate_empty_shards"]),
        ("below `curate.minimum_side`.", ["curate.minimum_side"]),
        ("`data.evaluation.hold_out_captions=false`: then", ["data.evaluation.hold_out_captions"]),
        ("raise tokenizer.text_length. Then", ["tokenizer.text_length"]),
        ("`model.decoding`, `components.train.train.train(settings)`, `model/data/shards.py`", []),
        ("training.json, export.json and release.sig", []),
        ("the data. it ends the training.", []),
    ],
)
def test_what_counts_as_the_name_of_a_setting(text, names):
    assert setting_names(text) == names
