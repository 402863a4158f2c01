"""The options of a command: the parameters of its function, with help from its docstring, and the settings of a run.

A loop adds them to argparse. Libraries that build a command line from declarations cannot read the published command:
tyro takes no `0` for False, jsonargparse neither that nor a bare `--calibration`, and pydantic-settings no `None`.
"""

from __future__ import annotations

import argparse
import inspect
import re
import typing
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, NoReturn

from pydantic import TypeAdapter, ValidationError, create_model

from amir_grpo.choices import check_names, names_of, refusal
from amir_grpo.settings import FIELDS, PROFILES, RUNTIME_CONFIG, annotation_of, help_of
from amir_grpo.trl_options import trainer_options


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise an error instead of printing the usage, which is pages long."""
        raise ValueError(message)


def parse(name: str, command: Callable[..., None], arguments: Sequence[str]) -> dict[str, Any]:
    """Parse the arguments of a command: its own options and, if it takes `**settings`, the given settings.

    Args:
        name: Name of the command.
        command: Its function. A parameter without a default is positional; a dataclass stands for its fields.
        arguments: The words of the command line after the name.

    Raises:
        ValueError: If an option is unknown (the message names the nearest) or a value has the wrong type.
        SystemExit: After printing help.
    """
    parameters = inspect.signature(command, eval_str=True).parameters
    takes_settings = "settings" in parameters
    own, groups = _own_options(parameters.values())
    helps = _helps(command)
    for group in groups.values():
        meanings = _helps(group)
        helps |= {field.name: f"{meanings[field.name]} ({field.default})" for field in fields(group)}
    usage = "%(prog)s [--option value ...]" if takes_settings else None
    parser = _Parser(prog=f"amir_grpo {name}", description=about(command), usage=usage, allow_abbrev=False)
    for option, (kind, default) in own.items():
        if default is ...:
            parser.add_argument(option, metavar=option.upper(), help=helps[option])
        else:
            parser.add_argument(f"--{option}", **_declared(kind, helps[option]))
    if takes_settings:
        settings = parser.add_argument_group("settings, with their published values (except for claims)")
        for option, field in FIELDS.items():
            shown = " ".join(map(str, field.default)) if isinstance(field.default, list) else field.default
            settings.add_argument(f"--{option}", **_declared(field.annotation, f"{help_of(option)} ({shown})"))
    known, unknown = parser.parse_known_args([_underscored(word) for word in arguments])
    given = vars(known) | _by_name(unknown)
    strange = set(given).difference(own, FIELDS if takes_settings else ())
    if strange:
        valid = {*own, *FIELDS, *trainer_options()} if takes_settings else own
        listed = f"python -m amir_grpo {name} --help" if takes_settings else ""
        check_names("setting" if takes_settings else "option", strange, sorted(valid), listed)
    chosen = {option: _value(own[option][0], words) for option, words in given.items() if option in own}
    # compare's option json hides a method of pydantic's models, which warn of it
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        declared = create_model("Options", __config__=RUNTIME_CONFIG, **own)
    try:
        options = dict(declared.model_validate(chosen))
    except ValidationError as error:
        raise refusal(error, chosen, lambda name: own[name][0]) from None
    for parameter, group in groups.items():
        options[parameter] = group(**{field.name: options.pop(field.name) for field in fields(group)})
    return options | {n: _setting(n, words) for n, words in given.items() if n not in own}


def about(command: Callable[..., None]) -> str:
    """Return the first line of a command's docstring."""
    return inspect.getdoc(command).splitlines()[0]


def _own_options(parameters: Sequence[inspect.Parameter]) -> tuple[dict[str, tuple[Any, Any]], dict[str, type]]:
    """Return the types and defaults of a command's own options, and the dataclasses that some of them belong to."""
    own: dict[str, tuple[Any, Any]] = {}
    groups = {p.name: p.annotation for p in parameters if is_dataclass(p.annotation)}
    for p in parameters:
        if p.name in groups:
            kinds = typing.get_type_hints(p.annotation, include_extras=True)
            own |= {field.name: (kinds[field.name], field.default) for field in fields(p.annotation)}
        elif p.kind is not p.VAR_KEYWORD:
            own[p.name] = p.annotation, ... if p.default is p.empty else p.default
    return own, groups


def _helps(command: Callable) -> dict[str, str]:
    """Return the help of each argument in a docstring, by name."""
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", inspect.getdoc(command), re.MULTILINE)
    return {name: " ".join(text.split()).replace("{profiles}", ", ".join(PROFILES)) for name, text in found}


def _list_in(kind: Any) -> Any:
    """Return a list type, or the list type in a union; None for other types."""
    return next((each for each in (kind, *typing.get_args(kind)) if typing.get_origin(each) is list), None)


def _declared(kind: Any, text: str) -> dict[str, Any]:
    names = names_of(kind)
    declared = {"metavar": f"{{{','.join(names)}}}" if names else "VALUE", "help": text.replace("%", "%%")}
    if kind is bool:
        declared |= {"nargs": "?", "const": "true"}
    elif _list_in(kind):
        declared |= {"nargs": "+"}
    return {"default": argparse.SUPPRESS} | declared


def _underscored(word: str) -> str:
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value if word.startswith("--") else word


def _by_name(words: Sequence[str]) -> dict[str, str]:
    """Return words that argparse did not know, such as ["--temperature", "0.7"], by option name."""
    found: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--") or not found:
            name, equals, value = word.removeprefix("--").partition("=")
            found[name] = [value] if equals else []
        else:
            found[next(reversed(found))].append(word)
    return {name: " ".join(values) or "true" for name, values in found.items()}


def _setting(name: str, words: str | list[str]) -> Any:
    return " ".join(words) if isinstance(words, list) else _value(annotation_of(name), words)


def _value(kind: Any, words: str | list[str]) -> Any:
    """Convert words to a value; words of another type are returned unchanged, and a later check refuses them."""
    if isinstance(words, list):
        (item,) = typing.get_args(_list_in(kind))
        return [_value(item, word) for word in words]
    if hasattr(kind, "__metadata__"):  # bounds are checked elsewhere
        kind = kind.__origin__
    if words.lower() == "none" and (kind is Any or type(None) in typing.get_args(kind)):
        return None
    try:
        return words if kind is Any else TypeAdapter(kind).validate_strings(words)
    except ValidationError:
        return words
