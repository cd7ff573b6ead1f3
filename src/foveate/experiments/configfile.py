"""Configurations as YAML and plain values, with errors of one line."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from foveate.errors import InvalidValueError, unknown

_Model = TypeVar("_Model", bound=BaseModel)

_WANTED = {
    "dict_type": "must be keys with values",
    "model_type": "must be keys with values",
    "tuple_type": "must be a list",
}

_SHORT = {"data": "name", "mechanism": "key"}  # what a plain string there stands for


def parse(model: type[_Model], values: Any) -> _Model:
    """Check plain values.

    Raises:
        ValueError: In one line: the key, what is accepted, and what was given.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _one_line(model, error) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping.

    Raises:
        ValueError: If the file cannot be read, is no YAML, or is no mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InvalidValueError(f"cannot read the configuration {path}: {reason}") from error
    except yaml.YAMLError as error:
        raise InvalidValueError(f"{path} is not valid YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        kind = type(values).__name__
        raise InvalidValueError(f"{path} must hold keys with values, but it holds a {kind}")
    return values


def to_yaml(config: BaseModel) -> str:
    """The whole configuration, defaults included, as :func:`read_yaml` reads it."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with ``changes`` laid over it, mappings key by key."""
    result = dict(values)
    for key, change in changes.items():
        old = result.get(key)
        if key in _SHORT and isinstance(old, str) and isinstance(change, dict):
            old = {_SHORT[key]: old}
        if isinstance(old, dict) and isinstance(change, dict):
            change = merged(old, change)
        result[key] = change
    return result


def _one_line(model: type[BaseModel], error: ValidationError) -> InvalidValueError:
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return unknown("key", key, _keys(model, first["loc"]))
    subject = key or "the configuration"
    if first["type"] == "value_error":  # ours: it names the value itself
        return InvalidValueError(f"{subject}: {first['ctx']['error']}")
    wanted = _WANTED.get(first["type"], first["msg"].replace("Input should", "must"))
    return InvalidValueError(f"{subject}: {wanted}, but got {first['input']!r}")


def _keys(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The keys accepted beside the last one of ``loc``, with the same path in front."""
    fields: Mapping[str, Any] = model.model_fields
    for part in loc[:-1]:
        if isinstance(part, str) and part in fields:
            nested = _settings_in(fields[part].annotation)
            fields = nested.model_fields if nested else {}
    path = ".".join(str(part) for part in loc[:-1])
    return [f"{path}.{name}" if path else name for name in fields]


def _settings_in(annotation: Any) -> type[BaseModel] | None:
    """The settings class in an annotation such as ``tuple[MechanismConfig, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_settings_in(part) for part in getattr(annotation, "__args__", ()))
    return next((found for found in inner if found), None)
