"""Which options and settings the running command has, so that remedies do not suggest others."""

import dataclasses
import importlib
import sys
from collections.abc import Sequence

import click

_RUN = ("matrix_ssl.config", "RunConfig")
_SETTINGS = {  # the settings that --set changes, by command
    "pretrain": _RUN, "chain": _RUN, "compare": _RUN, "worth": _RUN,
    "evaluate": ("matrix_ssl.evaluate.trained.protocols", "EvaluationSettings"),
    "detect": ("matrix_ssl.evaluate.detection.settings", "DetectionSettings"),
    "serve": ("matrix_ssl.api.serve.settings", "ServeSettings"),
    "llm finetune": ("matrix_ssl.llm.finetune.settings", "FineTuneSettings"),
}  # fmt: skip


def find_command(group: click.Group, words: Sequence[str]) -> tuple[str, click.Command] | None:
    """The name and the command that the words of a command line give; None if they do not name a command."""
    names: list[str] = []
    command: click.Command | None = group
    for word in words:
        command = command.commands.get(word) if isinstance(command, click.Group) else None
        if command is None:
            return None
        names.append(word)
        if not isinstance(command, click.Group):
            return " ".join(names), command
    return None


def has(name: str, command: click.Command, remedy: str) -> bool:
    """Whether a command has an option, such as ``--fresh``, or a setting for ``--set``, such as ``data.workers``."""
    if remedy.startswith("--"):
        return any(remedy in parameter.opts for parameter in command.params)
    if name not in _SETTINGS:
        return False
    module, settings = _SETTINGS[name]
    fields = dataclasses.fields(getattr(importlib.import_module(module), settings))
    return remedy.partition(".")[0] in {field.name for field in fields}


def option_instead(command: click.Command, key: str) -> str:
    """The option of a command that bears the name of a setting which it does not have; empty if there is none.

    For ``data.max_unreadable`` of ``evaluate`` it is ``--max-unreadable``.
    """
    option = f"--{key.rpartition('.')[2].replace('_', '-')}"
    name = next((name for name in _SETTINGS if name.split()[-1] == command.name), "")
    return option if has(name, command, option) and not has(name, command, key) else ""


def running_has(group: click.Group, remedy: str) -> bool:
    """Whether this process's command has an option or setting; always true if the command line names no command."""
    running = find_command(group, sys.argv[1:])
    return running is None or has(*running, remedy)
