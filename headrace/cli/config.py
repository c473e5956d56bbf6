"""`headrace config`: what is set, and where it came from."""

import json as json_module
import os
import tomllib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from headrace.cli.console import out, print_json
from headrace.cli.options import Json

if TYPE_CHECKING:
    from pydantic import BaseModel

MASK = "**********"


class Setting(NamedTuple):
    """One setting: its path (`kafka`, `partitions`), its variable, its value as JSON has it, and who set it."""

    path: tuple[str, ...]
    variable: str
    value: Any
    origin: str


def config(
    env: Annotated[bool, typer.Option("--env", help="The variables that can be set, with their defaults.")] = False,
    json: Json = False,
) -> None:
    """The effective settings as TOML, secrets masked; a comment says where each came from that isn't the default."""
    from headrace.config import CONFIG_VARIABLE, DEFAULT_FILE, ENV_PREFIX, Settings, load_settings, secret_files

    if env:
        defaults = [*settings_of(Settings.model_construct(), ENV_PREFIX)]
        if json:
            print_json({setting.variable: setting.value for setting in defaults})
        else:
            for setting in defaults:
                out().print(f"{setting.variable}={_shell(setting.value)}", markup=False, soft_wrap=True)
        return
    settings = load_settings()
    file = Path(os.environ.get(CONFIG_VARIABLE, DEFAULT_FILE))
    in_file = tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    variables = [*os.environ, *secret_files(os.environ)]
    effective = [*settings_of(settings, ENV_PREFIX, variables, in_file, str(file))]
    if json:
        print_json(nested(effective))
    else:
        out().print(toml(effective), markup=False, soft_wrap=True, end="")


def settings_of(
    model: "BaseModel",
    prefix: str,
    variables: Collection[str] = (),
    in_file: Mapping[str, Any] | None = None,
    file: str = "",
    path: tuple[str, ...] = (),
    origin: str = "default",
) -> Iterator[Setting]:
    """Every setting in the order of the code, with secrets masked."""
    from pydantic import BaseModel

    named = {name.upper() for name in variables}
    for name in type(model).model_fields:
        value, variable = getattr(model, name), prefix + name.upper()
        here = in_file[name] if in_file and name in in_file else None
        came_from = variable if variable in named else file if here is not None else origin
        if isinstance(value, BaseModel):
            inside = here if isinstance(here, dict) else None
            # A whole section may be set as JSON in one variable.
            inherited = variable if variable in named else origin
            yield from settings_of(value, f"{variable}__", variables, inside, file, (*path, name), inherited)
        else:
            yield Setting((*path, name), variable, _shown(value), came_from)


def _shown(value: Any) -> Any:
    from pydantic import BaseModel, SecretStr

    if isinstance(value, BaseModel):
        value = dict(value)
    if isinstance(value, dict):
        return {name: _shown(one) for name, one in value.items()}
    return MASK if isinstance(value, SecretStr) else str(value) if isinstance(value, Path) else value


def nested(settings: list[Setting]) -> dict[str, Any]:
    """As JSON prints it."""
    tree: dict[str, Any] = {}
    for setting in settings:
        branch = tree
        for part in setting.path[:-1]:
            branch = branch.setdefault(part, {})
        branch[setting.path[-1]] = setting.value
    return tree


def toml(settings: list[Setting]) -> str:
    """As a settings file has it; what is not set is a comment."""
    lines: list[str] = []
    section: tuple[str, ...] | None = None
    for setting in sorted(settings, key=lambda setting: setting.path[:-1]):
        if setting.path[:-1] != section:
            section = setting.path[:-1]
            lines += ["", f"[{'.'.join(section)}]"] if section else []
        name = setting.path[-1]
        line = f"# {name} is not set" if setting.value is None else f"{name} = {_toml_value(setting.value)}"
        lines.append(line if setting.origin == "default" else f"{line}  # {setting.origin}")
    return "\n".join(lines).lstrip("\n") + "\n"


def _toml_value(value: Any) -> str:
    """TOML's strings, numbers, booleans and lists of these are written as JSON's are."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml_value(name)} = {_toml_value(one)}" for name, one in value.items()) + "}"
    return json_module.dumps(value, ensure_ascii=False)


def _shell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json_module.dumps(value)
