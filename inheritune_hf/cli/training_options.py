"""Transformers' training arguments as command-line options, read from its source: importing it takes seconds."""

from __future__ import annotations

import ast
import builtins
import dataclasses
import types
from collections.abc import Iterator, Mapping
from enum import Enum
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from ..annotations import conform

if TYPE_CHECKING:
    from transformers import TrainingArguments


@cache
def argument_parser() -> Any:
    """Return `HfArgumentParser`, loaded from its own file: its package would bring the whole of Transformers along."""
    spec = spec_from_file_location(f"{__name__}.hf_argparser", _transformers() / "hf_argparser.py")
    if spec is not None and spec.loader is not None:
        module = module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except ImportError:  # a version whose parser needs the package
            pass
        else:
            return module.HfArgumentParser
    from transformers import HfArgumentParser

    return HfArgumentParser


@cache
def training_options() -> Any:
    """
    Return a dataclass with the names, types and help texts of the installed `TrainingArguments`.

    It makes the same options as the class itself does, but for what its source computes: such defaults are None, and
    such choices are checked by `make_training_arguments`.
    """
    tree = ast.parse((_transformers() / "training_args.py").read_text(encoding="utf-8"))
    known: dict[str, Any] = {"Any": Any, "Literal": Literal, **_enumerations(tree)}
    fields = []
    for name, annotation, call in _fields(tree):
        for item in ast.walk(annotation):
            if isinstance(item, ast.Name) and item.id not in known and not hasattr(builtins, item.id):
                known[item.id] = type(item.id, (), {})  # a class that no word of a command line can name
        kind = eval(compile(ast.Expression(annotation), "training_args.py", "eval"), known)
        words = {word.arg: word.value for word in call.keywords}
        default = _literal(words["default"]) if "default" in words else None
        fields.append((name, kind, dataclasses.field(default=default, metadata=_metadata(words.get("metadata")))))
    return dataclasses.make_dataclass("TrainingOptions", fields)


def make_training_arguments(given: Mapping[str, Any]) -> TrainingArguments:
    """Return the training arguments; a value that cannot be used, on this machine or at all, is a `ValueError`."""
    from transformers import TrainingArguments

    hints = get_type_hints(TrainingArguments)
    for item in dataclasses.fields(TrainingArguments):
        # The word that an option without a value stands for may be of another type than its annotation says.
        if item.name not in given or given[item.name] == item.metadata.get("const", given):
            continue
        conform(_checked_kind(hints[item.name]), given[item.name], item.name)
        choices = item.metadata.get("choices")
        if choices is not None and given[item.name] not in choices:
            raise ValueError(f"{item.name} must be one of {', '.join(choices)}, got {given[item.name]!r}.")
    return TrainingArguments(**given)


def _checked_kind(kind: Any) -> Any:
    """Return an annotation of `TrainingArguments` as `conform` takes it: enumerations are text."""
    if get_origin(kind) in (Union, types.UnionType):
        return Union[tuple(map(_checked_kind, get_args(kind)))]  # noqa: UP007 (made of values)
    if kind is list:
        return list[Any]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return str
    return kind if kind in (int, float, str, bool, dict, type(None)) or get_origin(kind) is list else Any


def _transformers() -> Path:
    spec = find_spec("transformers")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("inheritune needs Transformers; install it with: pip install inheritune-hf")
    return Path(spec.origin).parent


def _fields(tree: ast.Module) -> Iterator[tuple[str, ast.expr, ast.Call]]:
    """Name, annotation and `field(...)` of each field of the class."""
    (found,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments")
    for item in found.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and isinstance(item.value, ast.Call):
            yield item.target.id, item.annotation, item.value


def _enumerations(tree: ast.Module) -> dict[str, Any]:
    """The enumerations of strings that a module defines, or imports from the modules beside it."""
    found: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module in ("trainer_utils", "debug_utils"):
            path = _transformers() / f"{node.module}.py"
            found |= _enumerations(ast.parse(path.read_text(encoding="utf-8")))
        elif isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "ExplicitEnum" for base in node.bases):
            pairs = [(item.targets[0], _literal(item.value)) for item in node.body if isinstance(item, ast.Assign)]
            names = {target.id: value for target, value in pairs if isinstance(target, ast.Name)}
            found[node.name] = Enum(node.name, names, type=str)
    return found


def _metadata(node: ast.expr | None) -> dict[str, Any]:
    """What a field's metadata says in so many words."""
    if not isinstance(node, ast.Dict):
        return {}
    pairs = [(_literal(key), _literal(value)) for key, value in zip(node.keys, node.values, strict=True) if key]
    return {key: value for key, value in pairs if value is not None}


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None
