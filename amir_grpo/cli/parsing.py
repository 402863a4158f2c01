"""The command line's words: what a command declares, and how its options and the settings of a run are read."""

from __future__ import annotations

import argparse
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any

from amir_grpo.choices import check_names
from amir_grpo.settings import FIELDS, help_of


@dataclass(frozen=True)
class Command:
    """A command of the command line.

    Attributes:
        about: One sentence for the help.
        options: A dataclass of the options that are the command's own.
        run: Does it; gets the options and, where the command takes settings, those that were given.
        takes_settings: Whether every setting of a run is an option, too.
        arguments: argparse's declarations of arguments without a name, in place of options.
    """

    about: str
    options: type
    run: Callable[..., None]
    takes_settings: bool = True
    arguments: Mapping[str, dict[str, Any]] = field(default_factory=dict)


def parse(name: str, command: Command, arguments: list[str]) -> tuple[Any, dict[str, Any]]:
    """The command's own options, and the settings given on the command line (and no others).

    Raises:
        ValueError: If something is no option of the command, with the nearest ones.
        SystemExit: For help, and where a value is not of its option's type.
    """
    parser = _parser(name, command)
    arguments, none = _without_none(arguments) if command.takes_settings else (arguments, {})
    parsed, unknown = parser.parse_known_args(arguments)
    valid = sorted({a.dest for a in parser._actions if a.dest != "help" and not a.dest.startswith("no_")})
    kind = "setting" if command.takes_settings else "option"
    listed = f"python -m amir_grpo {name} --help" if command.takes_settings else ""
    check_names(kind, [argument.lstrip("-").split("=")[0] for argument in unknown], valid, listed)
    values = vars(parsed)
    own = {f.name for f in fields(command.options)}
    options = command.options(**{option: values[option] for option in own})
    overrides = {n: v for n, v in values.items() if n not in own and v is not None}
    return options, overrides | none


def _parser(name: str, command: Command) -> argparse.ArgumentParser:
    about: dict[str, Any] = {"prog": f"amir_grpo {name}", "description": command.about, "allow_abbrev": False}
    if command.arguments:  # these stand alone, as the folders of diff do
        parser = argparse.ArgumentParser(**about)
        for argument, options in command.arguments.items():
            parser.add_argument(argument, **options)
        return parser
    from transformers import HfArgumentParser

    declared = [command.options, *([_optional_settings()] if command.takes_settings else [])]
    about |= {"usage": "%(prog)s [--option value ...]", "formatter_class": argparse.HelpFormatter}
    return HfArgumentParser(declared, **about)


def _without_none(arguments: list[str]) -> tuple[list[str], dict[str, None]]:
    """The arguments without pairs like ``--eval_limit none`` for settings that may be None, and those settings."""
    may_be_none = {n for n, f in FIELDS.items() if type(None) in typing.get_args(f.annotation)}
    rest, none = [], {}
    words = iter(arguments)
    for word in words:
        name, _, value = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if word.startswith("--") and name in may_be_none:
            value = value or next(words, "")
            if value.lower() == "none":
                none[name] = None
                continue
            word = f"--{name}={value}"
        rest.append(word)
    return rest, none


def _optional_settings() -> type:
    """Settings with None for every default, so that what the user gave can be told from what was left out."""
    columns = [
        # a plain bool, so that HfArgumentParser lets the option stand alone: --calibration
        (
            name,
            bool if f.annotation is bool else _kind(f.annotation) | None,
            field(
                default=None,
                metadata={"help": f"{help_of(name)} (paper-qwen3b: {_default(f.default)})".replace("%", "%%")},
            ),
        )
        for name, f in FIELDS.items()
    ]
    return make_dataclass("OptionalSettings", columns)


def _kind(annotation: Any) -> Any:
    return str if typing.get_origin(annotation) is typing.Literal else annotation


def _default(value: Any) -> str:
    """The default of a setting, which is the value of profile paper-qwen3b, as the command line would be given it."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
