"""The base of every typed settings section.

A section is a frozen pydantic model that stands beside the component it configures; `pipelines/settings.py`
puts the sections together. Unknown keys are refused, with the nearest valid one in the message.
"""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from common.errors import SettingsError


class Section(BaseModel):
    """Typed settings of one component: immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @classmethod
    def parse(cls, content: Mapping[str, Any], *, where: str = "settings") -> Self:
        """Validate a mapping. Raises `SettingsError` naming each bad key and, if unknown, the nearest valid one."""
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise SettingsError(explain(cls, error), where=where, fix="correct these keys and run again") from None

    @classmethod
    def parse_json(cls, text: str) -> Self:
        """Validate the JSON form in which a pipeline step receives its section."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise SettingsError(explain(cls, error), where=cls.__name__) from None


def setting_keys(root: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key below a section, sections and settings alike: `training`, `training.steps`, …"""
    for name, field in root.model_fields.items():
        yield f"{prefix}{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from setting_keys(field.annotation, f"{prefix}{name}.")


def explain(root: type[BaseModel], error: ValidationError) -> str:
    """Turn a validation error into one line per bad key. Values are not repeated: they may be secrets."""
    lines = []
    for problem in error.errors(include_url=False):
        location = [str(part) for part in problem["loc"]]
        key = ".".join(location) or root.__name__
        if problem["type"] == "extra_forbidden":
            lines.append(_explain_unknown(root, location))
        else:
            lines.append(f"'{key}': {problem['msg']}")
    return "; ".join(lines)


def _explain_unknown(root: type[BaseModel], location: list[str]) -> str:
    section: type[BaseModel] = root
    for part in location[:-1]:
        field = section.model_fields.get(part)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            break
        section = field.annotation
    names = list(section.model_fields)
    nearest = difflib.get_close_matches(location[-1], names, n=1, cutoff=0.5)
    likely = [".".join([*location[:-1], name]) for name in nearest]
    likely = likely or [key for key in setting_keys(root) if key.rpartition(".")[2] == location[-1]]
    hint = f"did you mean '{likely[0]}'?" if likely else f"valid keys: {', '.join(names)}"
    return f"unknown key '{'.'.join(location)}', {hint}"
