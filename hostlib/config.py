"""Configuration in TOML: defaults < file < drop-ins < flags, typed, and strict.

A configuration is a frozen dataclass whose fields are settings, or sections (dataclasses again).
`setting` gives a field its default, its explanation and its bounds. A section may have a method
``validate(self) -> None`` that raises `BadValue` for what concerns several settings at once.

Unknown keys and bad values are refused with the file, the line, the key and a hint. Drop-ins are
``<file>.d/*.toml``, read in the order of their names; each overrides single keys.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from hostlib.errors import InvalidArgument

T = TypeVar("T")

MAX_BYTES: Final = 1024 * 1024


class BadConfig(InvalidArgument):
    """A configuration that is refused; the message begins with the file and the line."""


class BadValue(ValueError):
    """Raised by a section's ``validate``: the key at fault, what is wrong, and what to do."""

    def __init__(self, key: str, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.key, self.message, self.hint = key, message, hint


def setting(
    default: Any,
    doc: str,
    *,
    choices: Sequence[str] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    pattern: str | None = None,
    pattern_hint: str | None = None,
) -> Any:
    """A dataclass field with its explanation and bounds; `pattern` must match the whole text."""
    metadata = {
        "doc": doc,
        "choices": tuple(choices),
        "minimum": minimum,
        "maximum": maximum,
        "pattern": pattern,
        "pattern_hint": pattern_hint,
    }
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class _Origin:
    """Where a value came from; `line` is 1-based, 0 where it has none."""

    source: str
    line: int

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


_Values = dict[tuple[str, ...], tuple[Any, _Origin]]


def load(schema: type[T], *, file: Path | None, flags: Mapping[str, object] | None = None) -> T:
    """The configuration. `flags` maps dotted keys to values; None means not given.

    Raises `BadConfig`; a `file` that is given must exist.
    """
    values: _Values = {}
    if file is not None:
        if not file.is_file():
            raise BadConfig(
                f"{file}: no such configuration file",
                hint="`thaw config default` prints a template",
            )
        for path in (file, *drop_ins(file)):
            values.update(_read(schema, path))
    for key, value in (flags or {}).items():
        if value is not None:
            values[tuple(key.split("."))] = (value, _Origin(f"--{key.replace('_', '-')}", 0))
    built = _build(schema, (), values)
    return typing.cast("T", built)


def drop_ins(file: Path) -> list[Path]:
    """The drop-ins of `file`, in the order in which they apply."""
    folder = file.with_name(file.name + ".d")
    return sorted(folder.glob("*.toml")) if folder.is_dir() else []


def _read(schema: type[Any], path: Path) -> _Values:
    try:
        with open(path, "rb") as source:
            data = source.read(MAX_BYTES + 1)
    except OSError as error:
        raise BadConfig(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise BadConfig(f"{path}: larger than {MAX_BYTES} bytes")
    try:
        text = data.decode()
        tree = tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise BadConfig(f"{path}: not UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        where = f"{path}:{line.group(1)}" if line else str(path)
        raise BadConfig(
            f"{where}: not TOML: {error}", hint="strings need quotes; sections are [name]"
        ) from error
    values: _Values = {}
    _flatten(schema, tree, (), path, _lines(text), values)
    return values


def _lines(text: str) -> dict[tuple[str, ...], int]:
    """Where each section and key stands. tomllib says nothing about lines; for the plain
    ``[section]`` and ``key = value`` forms a scan finds them."""
    found: dict[tuple[str, ...], int] = {}
    section: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        if match := re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", line):
            section = tuple(part.strip(" \"'") for part in match.group(1).split("."))
            found.setdefault(section, number)
        elif match := re.match(r"\s*([A-Za-z0-9_.\"'-]+)\s*=", line):
            key = tuple(part.strip(" \"'") for part in match.group(1).split("."))
            for depth in range(1, len(key) + 1):
                found.setdefault((*section, *key[:depth]), number)
    return found


def _flatten(
    schema: type[Any],
    tree: Mapping[str, Any],
    prefix: tuple[str, ...],
    path: Path,
    lines: Mapping[tuple[str, ...], int],
    values: _Values,
) -> None:
    fields = {field.name: field for field in dataclasses.fields(schema)}
    hints = typing.get_type_hints(schema)
    for name, value in tree.items():
        key = (*prefix, name)
        origin = _Origin(str(path), lines.get(key, 0))
        dotted = ".".join(key)
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            known = "known here: " + ", ".join(sorted(fields))
            raise BadConfig(
                f"{origin}: unknown key {dotted}",
                hint=f"did you mean {near[0]}?" if near else known,
            )
        if dataclasses.is_dataclass(hints[name]):
            if not isinstance(value, dict):
                raise BadConfig(f"{origin}: {dotted} is a section", hint=f"write [{dotted}]")
            _flatten(typing.cast("type[Any]", hints[name]), value, key, path, lines, values)
        else:
            values[key] = (value, origin)


def _build(schema: type[Any], prefix: tuple[str, ...], values: _Values) -> Any:
    hints = typing.get_type_hints(schema)
    arguments: dict[str, Any] = {}
    for field in dataclasses.fields(schema):
        key = (*prefix, field.name)
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            arguments[field.name] = _build(typing.cast("type[Any]", kind), key, values)
        elif key in values:
            value, origin = values[key]
            try:
                arguments[field.name] = _check(kind, value, field.metadata)
            except BadValue as bad:
                raise BadConfig(f"{origin}: {'.'.join(key)}: {bad.message}", hint=bad.hint) from bad
    built = schema(**arguments)
    validate = getattr(built, "validate", None)
    if validate is not None:
        try:
            validate()
        except BadValue as bad:
            key = (*prefix, bad.key)
            origin = values[key][1] if key in values else _Origin("the configuration", 0)
            raise BadConfig(f"{origin}: {'.'.join(key)}: {bad.message}", hint=bad.hint) from bad
    return built


def _check(kind: Any, value: Any, metadata: Mapping[str, Any]) -> Any:
    """`value` as the type `kind`, within the bounds of `metadata`. Raises `BadValue`."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        kind = next(arm for arm in typing.get_args(kind) if arm is not type(None))
        origin = typing.get_origin(kind)
    if origin is tuple:
        item = typing.get_args(kind)[0]
        if not isinstance(value, (list, tuple)):
            raise BadValue("", "must be a list", f"write [{json.dumps(str(value))}]")
        return tuple(_check(item, each, metadata) for each in value)
    if kind is Path:
        if not isinstance(value, (str, Path)) or not str(value):
            raise BadValue("", "must be a path", 'write "/a/path"')
        if not Path(value).is_absolute():
            raise BadValue("", f"{str(value)!r} is no absolute path", "begin it with /")
        return Path(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        names = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}
        wanted = names.get(kind, str(kind))
        raise BadValue("", f"must be {wanted}, not {value!r}", f"write {wanted}")
    return _bounds(value, metadata)


def _bounds(value: Any, metadata: Mapping[str, Any]) -> Any:
    if (choices := metadata.get("choices")) and value not in choices:
        raise BadValue("", f"{value!r} is not known", "one of: " + ", ".join(choices))
    low, high = metadata.get("minimum"), metadata.get("maximum")
    if (low is not None and value < low) or (high is not None and value > high):
        top = f" to {high:g}" if high is not None else " or more"
        raise BadValue("", f"{value!r} is out of range", f"from {low or 0:g}{top}")
    if (pattern := metadata.get("pattern")) and not re.fullmatch(pattern, value):
        raise BadValue("", f"{value!r} is malformed", metadata.get("pattern_hint"))
    return value


def template(schema: type[Any], defaults: Any, heading: Sequence[str] = ()) -> str:
    """A configuration file in which every setting is explained and commented out."""
    lines = [f"# {line}".rstrip() for line in heading]
    _template(schema, defaults, (), lines)
    return "\n".join(lines).strip() + "\n"


def _template(schema: type[Any], values: Any, prefix: tuple[str, ...], lines: list[str]) -> None:
    hints = typing.get_type_hints(schema)
    sections = []
    for field in dataclasses.fields(schema):
        if dataclasses.is_dataclass(hints[field.name]):
            sections.append(field.name)
            continue
        lines += ["", *(f"# {line}" for line in field.metadata["doc"].splitlines())]
        if choices := field.metadata["choices"]:
            lines.append("# One of: " + ", ".join(choices) + ".")
        value = getattr(values, field.name)
        text = '""' if value is None else _toml(value)
        lines.append(f"#{field.name} = {text}")
    for name in sections:
        key = (*prefix, name)
        lines += ["", f"[{'.'.join(key)}]"]
        _template(typing.cast("type[Any]", hints[name]), getattr(values, name), key, lines)


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(each) for each in value) + "]"
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)
