"""Option parsing: one dataclass per command, filled from recipe, `--config FILE` and command line.

    @dataclass(frozen=True, kw_only=True)
    class TrainOptions(Common):
        model: str = field(default="mamba-va", kw_only=False)  # positional, too
        training: Annotated[TrainConfig, flat(TRAINING)] = field(default_factory=TrainConfig)

Cyclopts parses the command line and prints the help; pydantic validates and builds the dataclass. The class docstring
is the command's help, the docstring below a field the help of that option. Every field of a nested configuration is an
option: `flat` configurations under the field's own name (--lr), others with a prefix (--tuning.lr).
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from cyclopts import App, CoercionError, CycloptsError, Group, Parameter
from cyclopts.argument import ArgumentCollection

from affectrace import config as configs
from affectrace.cli import COMMANDS, DONE, load
from affectrace.errors import ConfigError, InputError

T = TypeVar("T", bound="Common")
OPTIONS = "options"
"""Key of the options in run.json and options.json."""
SEPARATOR = "__"
"""Separates the parts of a nested field in a parameter's name."""
INPUTS, DATA, MODEL, SCORES, OUTPUT, ANALYSIS = (
    Group(name, sort_key=i)
    for i, name in enumerate(("Input", "Data", "Model", "Scores", "Output", "Faces, audio and speech"))
)
TRAINING, OTHER, COMMON = (Group(name, sort_key=9 + i) for i, name in enumerate(("Training", "Other", "Common")))
GROUPED = {
    INPUTS: "inputs traces predictions models checkpoint folder repo_id action names all video tables "
    "labels time rate_hz label_rate_hz low high",
    DATA: "data features split fold folds store accept_features missing expressions sample recording",
    MODEL: "model encoder preset recipe set beit licence finetune device shares windows smooth weights ensemble drop",
    OUTPUT: "out format to report overlay conditions resume media choose check "
    "standardise public message frames start_s end_s",
    COMMON: "quiet json config",
    SCORES: "draws seed by smoothing_curve keep_smoothing modalities published",
}
GROUPS = {name: group for group, names in GROUPED.items() for name in names.split()}
"""Option -> its group on the help page, unless the field sets one."""
SHORT = {"out": "-o", "model": "-m", "data": "-d", "features": "-f", "resume": "-r", "person": "-p"}
SHORT |= {"quiet": "-q", "json": "-j", "config": "-c"}


def under(group: Group) -> Parameter:
    """Puts an option into a group of the help page."""
    return Parameter(group=group)


def flat(group: Group) -> Parameter:
    """Makes the fields of a configuration options of the command itself, in a group of the help page."""
    return Parameter(name="*", group=group)


@dataclass(frozen=True, kw_only=True)
class Common(configs.Config):
    """Options of all commands."""

    quiet: bool = False
    """Print errors only."""
    json: bool = False
    """Print the result as JSON on standard output."""
    config: Path | None = None
    """JSON file of options (run.json, options.json). Options on the command line override it."""
    given: Annotated[dict[str, Any], Parameter(parse=False)] = field(default_factory=dict, repr=False, compare=False)
    """Values from the command line and --config, without those of the recipe and the defaults."""

    @classmethod
    def recipe_values(cls, given: Mapping[str, Any], fold: int | None = None) -> dict[str, Any]:
        """Values that replace the defaults, chosen by the values given."""
        return {}


def parse(kind: type[T], name: str, argv: Sequence[str]) -> T:
    """Options of the command `name`. Precedence: command line, --config, recipe, defaults.

    Raises:
        ConfigError: the file cannot be used. InputError: wrong usage or refused values. SystemExit: help was printed.
    """
    app = application(kind, name)
    if {"--help", "-h"} & set(argv):
        app.help_print([])
        raise SystemExit(DONE)
    for word in argv:
        if configs.is_huge(word.rpartition("=")[2]):
            raise InputError(f"'{word}' is too large or too small a number")
    try:
        _, bound, _ = app.parse_args(list(argv), exit_on_error=False, print_error=False)
    except CycloptsError as error:
        raise InputError(str(error)) from None
    line: dict[str, Any] = {}
    for parameter, value in bound.arguments.items():
        for part in reversed(parameter.split(SEPARATOR)):
            value = {part: value}
        line = _merged(line, value)
    file = _options_in(Path(line["config"]), kind, name) if line.get("config") else {}
    return build(kind, _merged(file, line))


def build(kind: type[T], given: Mapping[str, Any], fold: int | None = None) -> T:
    """Options of the values given over those of the recipe for a fold (raises InputError: refused values)."""
    values = {**_merged(kind.recipe_values(given, fold), given), "given": given}
    made, wrong = configs.validated(kind, values)
    if made is None:
        options = {p.name: p.annotation.__metadata__[0].name[0] for p in _parameters(kind)}
        fields = [[part for part in path if not part.startswith("[")] for path, _ in wrong]
        places = [options.get(SEPARATOR.join(field), ".".join(field)) for field in fields]
        raise InputError("; ".join(f"{place}: {what}" for place, (_, what) in zip(places, wrong, strict=True)))
    return made


def written(options: Common) -> dict[str, Any]:
    """Options as run.json keeps them: fields of flat configurations beside the others."""
    values = configs.to_dict(options)
    for name in ("quiet", "json", "config", "given"):
        del values[name]
    for name in _flat_fields(type(options)):
        values |= values.pop(name)
    return values


def _options_in(path: Path, kind: type[Common], name: str) -> dict[str, Any]:
    """Options for the command `name` from a JSON file (raises ConfigError)."""
    values = configs.read_json(path)
    if isinstance(values, dict) and isinstance(values.get(OPTIONS), dict):  # an earlier run's run.json or options.json
        if values.get("command", name) != name:
            raise ConfigError(
                f"contains options of `affectrace {values['command']}`", where=path, hint=f"not of {name}"
            )
        values = values[OPTIONS]
    if not isinstance(values, dict):
        raise ConfigError("is not a JSON object of options", where=path, hint='write {"option": value, ...}')
    values = {key: value for key, value in values.items() if key not in ("quiet", "json", "config", "given")}
    for outer, inner in _flat_fields(kind).items():
        for key in inner & values.keys():
            values = _merged(values, {outer: {key: values.pop(key)}})
    return values


def _flat_fields(kind: type[Common]) -> dict[str, set[str]]:
    """Name of every flat configuration -> names of its fields."""
    hints = configs.fields_of(kind)
    flat_hints = {name: hint for name, hint in hints.items() if _parameter(hint).name == ("*",)}
    return {name: set(configs.fields_of(hint)) for name, hint in flat_hints.items()}


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values, `over` winning."""
    both = {
        k: _merged(under[k], v) for k, v in over.items() if isinstance(v, Mapping) and isinstance(under.get(k), Mapping)
    }
    return {**under, **over, **both}


def named_streams(texts: Sequence[str]) -> dict[str, str]:
    """Stream -> extractor of --features STREAM=EXTRACTOR (raises InputError: another form)."""
    for text in texts:
        if "=" not in text:
            raise InputError(f"'{text}' is not STREAM=EXTRACTOR", where="--features", hint="as visual=mae-vit-l=FOLDER")
    return {stream: extractor for stream, _, extractor in (text.partition("=") for text in texts)}


# ---- Cyclopts


def _new_application(kind: Any, name: str, prog: str = "affectrace ") -> App:
    """Parser and help page of a command."""
    parameters = list(_parameters(kind))
    places = [f"[{p.name.upper()}]" for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    app = App(
        f"{prog}{name}",
        usage=" ".join([f"Usage: affectrace {name}", *places, "[OPTIONS]"]),
        help="\n\n".join(" ".join(part.split()) for part in str(inspect.getdoc(kind)).split("\n\n")),
        help_format="plaintext",
        help_flags=(),
        help_epilogue=f"Example: {COMMANDS[name].example}",
        version_flags=(),
        result_action="return_value",
        config=(_check_numbers,),
        default_parameter=Parameter(  # of a repeated option the last one counts
            negative_iterable=(), consume_multiple=(1, None), allow_repeating=True
        ),
    )

    def command(**values: Any) -> None:
        """Placeholder: only its signature is used."""

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = None
    app.default(command)
    return app


application: Callable[..., App] = functools.cache(_new_application)


def _check_numbers(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Refuse 1.5 for an integer, which Cyclopts would round."""
    for argument in arguments:
        kinds = (argument.hint, *typing.get_args(argument.hint))
        for token in argument.tokens:
            if int in kinds and "." in token.value:
                raise CoercionError(argument=argument, token=token, target_type=int)


def _parameters(
    kind: Any, path: tuple[str, ...] = (), prefix: str = "--", default: Any = None, group: Any = ()
) -> Iterator[inspect.Parameter]:
    """A parameter per option, positional ones first, nested configurations expanded in place."""
    types, docs = typing.get_type_hints(kind), _field_docs(kind)
    hints = {} if path else configs.fields_of(kind)  # with marks, which only the command's own fields have
    for f in sorted(dataclasses.fields(kind), key=lambda f: f.kw_only is True):
        told, here = _parameter(hints.get(f.name)), (*path, f.name)
        value = _default(f) if default is None else getattr(default, f.name)
        own = told.group or group or GROUPS.get(f.name, OTHER)
        if told.parse is False:
            continue
        if dataclasses.is_dataclass(value):
            inner = prefix if told.name == ("*",) else f"{prefix}{f.name.replace('_', '-')}."
            yield from _parameters(type(value), here, inner, value, own)
            continue
        names = [*(told.name or (prefix + f.name.replace("_", "-"),)), *(told.alias or ())]
        names += [SHORT[f.name]] if prefix == "--" and f.name in SHORT else []
        empty = value is None or value is False or value in ((), "")
        mark = Parameter(name=names, group=own, help=docs.get(f.name), show_default=False if empty else _shown)
        positional = not path and not f.kw_only
        yield inspect.Parameter(
            SEPARATOR.join(here),
            inspect.Parameter.POSITIONAL_OR_KEYWORD if positional else inspect.Parameter.KEYWORD_ONLY,
            default=value,
            annotation=Annotated[types[f.name] | None if value is None else types[f.name], mark],
        )


def _field_docs(kind: type) -> dict[str, str]:
    """Field -> the docstring below it, those of base classes included."""
    found = {}
    for base in reversed(kind.__mro__[:-1]):
        for statement, following in itertools.pairwise(_class_bodies(base.__module__).get(base.__name__, [])):
            match statement, following:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = " ".join(text.split())
    return found


@functools.cache
def _class_bodies(module: str) -> dict[str, list[ast.stmt]]:
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node.body for node in tree.body if isinstance(node, ast.ClassDef)}


def _parameter(hint: Any) -> Parameter:
    found = [x for x in getattr(hint, "__metadata__", ()) if isinstance(x, Parameter)]
    return found[0] if found else Parameter()


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def install_completion() -> int:
    """Install completion of all commands for the current shell."""
    app = App("affectrace", version_flags=(), help_flags=())
    for name in COMMANDS:
        app.command(application(kind_of(name), name, prog=""))
    app.register_install_completion_command()
    app(["--install-completion"], result_action="return_value")
    return DONE


def kind_of(name: str) -> type[Common]:
    """The options of a command."""
    found: type[Common] = load(f"commands:{name.capitalize()}Options")
    return found
