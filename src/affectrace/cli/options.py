"""Options of commands: a dataclass each, read by Cyclopts from the command line, from --config FILE and from recipes.

    @dataclass(frozen=True, kw_only=True)
    class TrainOptions(Common):
        model: Annotated[str, under(MODEL)] = field(default="mamba-va", kw_only=False)  # a place on the line, too
        training: Annotated[TrainConfig, flat(TRAINING)] = field(default_factory=TrainConfig)

The class's docstring is the command's help, the docstring under a field the option's. A library's configuration is a
field: `flat` gives its fields names of their own (--lr), without it they are below its name (--tuning.lr).
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Len
from attrs import evolve
from cyclopts import App, CoercionError, CycloptsError, Group, Parameter
from cyclopts.argument import Argument, ArgumentCollection
from cyclopts.argument.utils import extract_docstring_help
from cyclopts.config import Dict
from cyclopts.help import DefaultFormatter
from rich.text import Text

from affectrace import config as configs
from affectrace.cli import COMMANDS, DONE
from affectrace.errors import ConfigError, InputError
from affectrace.features.config import AnalysisConfig

T = TypeVar("T", bound="Common")
OPTIONS = "options"  # field of run.json and options.json
INPUTS, DATA, MODEL, SCORES, OUTPUT = (
    Group(name, sort_key=i) for i, name in enumerate(("Input", "Data", "Model", "Scores", "Output"))
)
ANALYSIS = Group("Faces, sound and speech", sort_key=5)
TRAINING, OTHER, COMMON = (Group(name, sort_key=9 + i) for i, name in enumerate(("Training", "Other", "Common")))

SHORT = {"out": "-o", "model": "-m", "data": "-d", "features": "-f", "resume": "-r", "person": "-p"}
SHORT |= {"quiet": "-q", "json": "-j", "config": "-c"}

GROUPED: dict[Group, str] = {
    INPUTS: "inputs traces predictions models checkpoint folder repo_id action names all video tables "
    "labels time rate_hz label_rate_hz low high",
    DATA: "data features split fold folds store accept_features missing expressions sample recording",
    MODEL: "model encoder preset recipe set beit licence finetune device shares windows smooth weights ensemble drop",
    OUTPUT: "out format to report overlay conditions resume media panel history_s crf choose check "
    "standardise public message frames start_s end_s",
    COMMON: "quiet json",
    SCORES: "draws seed by smoothing_curve keep_smoothing modalities published",
}
"""Names of options, by the group that lists them where their class does not say another."""
GROUPS = {name: group for group, names in GROUPED.items() for name in names.split()}

Files = tuple[str, ...]
Format = Literal["csv", "parquet", "json"]


def flat(group: Group) -> Parameter:
    """Fields of a configuration as options of the command itself, in a group."""
    return Parameter(name="*", group=group)


def under(group: Group) -> Parameter:
    """A group of options on the help page."""
    return Parameter(group=group)


@dataclass(frozen=True, kw_only=True)
class Common(configs.Config):
    """Shared by all commands."""

    quiet: bool = False
    """Say nothing but errors."""
    json: bool = False
    """Print the result as JSON on standard output."""


ConfigFile = Annotated[
    Path | None,
    Parameter(group=COMMON, help="JSON file of options (run.json, options.json); the command line wins."),
]


@dataclass(frozen=True, kw_only=True)
class PredictOptions(Common):
    """Predict valence and arousal for every frame of recordings.

    Results go to OUT: one CSV a recording (and person), a summary where there are several, run.json with all options.
    Estimates describe what is shown and heard, not what a person feels. Nothing leaves this machine.
    """

    inputs: Files = field(default=(), kw_only=False)
    """Videos, sound files, image folders, folders of these, or quoted patterns."""
    out: Path = Path("affectrace_out")
    """Folder for results."""
    format: Annotated[tuple[Format, ...], Len(1)] = ("csv",)
    """Trace formats to write."""
    report: bool = False
    """Write an HTML report for each recording, and a summary page for several."""
    overlay: bool = False
    """Write each video with its trace drawn on it."""
    conditions: Path | None = None
    """CSV with columns recording,condition: adds a table per condition."""
    resume: bool = False
    """Skip recordings that OUT already holds, made with the same options from the same input."""
    model: tuple[str, ...] = ("zero-shot",)
    """zero-shot, the folder of a trained model (run/best), or user/model@COMMIT of the Hugging Face Hub. Several
    trained ones that read the same features: the mean of their traces."""
    features: Annotated[tuple[str, ...], under(MODEL)] = ()
    """For a trained model: STREAM=EXTRACTOR where it is not what the checkpoint names, above all where an encoder's
    weights are: visual=mae-vit-l=FOLDER."""
    device: str = "auto"
    """What a trained model and its encoders run on: cpu, cuda, cuda:1, or auto."""
    shares: bool = False
    """For a trained model of several modalities: columns share_visual, share_audio, ... (and a lane in the report): how
    far the answer moves without each, as shares, second by second. One more run of the model for each."""
    windows: str | None = None
    """For a causal trained model: SIZE:STRIDE in frames. It reads overlapping windows, joined by fading, instead of
    carrying its state through the recording."""
    smooth: str = "none"
    """Smooth each trace: none, or median, mean, wiener with the window in seconds (median:0.5), or auto: what was kept
    beside the trained model. Extra columns are left as they are."""
    analysis: Annotated[AnalysisConfig, flat(ANALYSIS)] = field(default_factory=AnalysisConfig)
    speech: Annotated[bool, under(ANALYSIS)] = True
    """Look for words. --no-speech leaves them out."""


def parse(kind: type[T], name: str, argv: Sequence[str], behind: Callable[[T], Mapping[str, Any]] | None = None) -> T:
    """Options of the command `name`: the command line, then --config FILE, then `behind`, then the defaults.

    behind: options given so far -> values of others (a recipe's), as `dataclasses.asdict` has them.

    Raises:
        ConfigError: the file cannot be used. InputError: wrong usage, in Cyclopts' words, or values that are refused,
        all of them. SystemExit: help was asked for and printed.
    """

    def file(arguments: ArgumentCollection) -> tuple[dict[str, Any], str]:
        path = arguments["--config"].tokens
        return (_options_in(Path(path[0].value), name), path[0].value) if path else ({}, "")

    def recipe(arguments: ArgumentCollection) -> tuple[dict[str, Any], str]:
        return ({} if behind is None else dict(behind(_so_far(kind, arguments)))), "the recipe"

    def sources(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        for source in (file, recipe):
            values, where = source(arguments)
            Dict(_lifted(kind, values), source=where, use_commands_as_keys=False)(app, commands, arguments)
        for argument in arguments:
            _check_number(argument)

    app = application(kind, name)
    app.config = [sources]
    if {"--help", "-h"} & set(argv):
        app.help_print([])
        raise SystemExit(DONE)
    for word in argv:
        if configs.is_huge(word.rpartition("=")[2]):
            raise InputError(f"'{word}' is too large or too small a number")
    try:
        command, bound, _ = app.parse_args(list(argv), exit_on_error=False, print_error=False)
    except CycloptsError as error:
        raise InputError(str(error)) from None
    made: T = command(*bound.args, **bound.kwargs)
    if wrong := configs.mistakes(made):
        raise InputError("; ".join(f"{_option(kind, at)}: {what}" if at else what for at, what in wrong))
    return made


def written(options: Common) -> dict[str, Any]:
    """Options with the fields of flat configurations beside the others, as run.json keeps them."""
    values = _lifted(type(options), configs.to_dict(options))
    return {name: value for name, value in values.items() if name not in ("quiet", "json")}


@functools.cache  # help is parsed from the source of the options' classes
def application(kind: type[Common], name: str, prog: str = "affectrace ") -> App:
    """A command's parser and help page."""
    places = [_shown_place(f) for f in dataclasses.fields(kind) if not f.kw_only]
    app = App(
        f"{prog}{name}",
        usage=" ".join([f"Usage: affectrace {name}", *places, "[OPTIONS]"]),
        help="\n\n".join(" ".join(part.split()) for part in str(inspect.getdoc(kind)).split("\n\n")),
        help_format="plaintext",
        help_formatter=Pages(),
        help_flags=(),
        help_epilogue=f"Example: {COMMANDS[name].example}",
        version_flags=(),
        result_action="return_value",
        group_parameters=OTHER,
        default_parameter=Parameter(
            negative_iterable=(),
            consume_multiple=(1, None),
            allow_repeating=True,  # the last one counts
            show_default=_shown,
            short_alias=lambda field, _: SHORT.get(field.name),
        ),
    )
    app.default(_command(kind))
    return app


def kind_of(name: str) -> type[Common]:
    """The options of a command."""
    module, _, kind = COMMANDS[name].target.split(":")
    found: type[Common] = getattr(importlib.import_module(f"affectrace.cli.{module}"), kind)
    return found


def install_completion() -> int:
    """Write completion of all commands for the shell that runs, and have the shell read it when it starts."""
    app = App("affectrace", version_flags=(), help_flags=())
    for name in COMMANDS:
        app.command(application(kind_of(name), name, prog=""))
    app.register_install_completion_command()
    app(["--install-completion"], result_action="return_value")
    return DONE


def _shown_place(field: dataclasses.Field[Any]) -> str:
    """A field with a place on the line, as the usage shows it."""
    name = field.name.upper().replace("_", "-") + ("..." if "tuple" in str(field.type) or field.type == "Files" else "")
    return name if field.default is dataclasses.MISSING else f"[{name}]"


class Pages(DefaultFormatter):
    """Help with its paragraphs filled again, without defaults that say nothing."""

    def __call__(self, console: Any, options: Any, panel: Any) -> None:
        for entry in panel.entries:
            words = " ".join(getattr(entry.description.primary_renderable, "plain", "").split())
            entry.description.primary_renderable = Text(words)
        shown = [evolve(entry, default=entry.default or None) for entry in panel.entries]
        super().__call__(console, options, evolve(panel, entries=shown))


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return "" if value is None or value is False else str(value)


def _command(kind: type[T]) -> Callable[..., T]:
    """A function that takes the fields of `kind`, those with a place on the line first, and builds one."""
    hints, told = typing.get_type_hints(kind, include_extras=True), extract_docstring_help(kind)

    def command(*places: Any, config: Path | None = None, **given: Any) -> T:
        return kind(*places, **given)

    taken = [
        inspect.Parameter(
            f.name,
            inspect.Parameter.KEYWORD_ONLY if f.kw_only else inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=_default(f),
            annotation=_annotated(f.name, hints[f.name], told.get((f.name,), Parameter())),
        )
        for f in sorted(dataclasses.fields(kind), key=lambda f: f.kw_only is True)
    ]
    taken.append(inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=ConfigFile))
    command.__signature__ = inspect.Signature(taken)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in taken}
    return command


def _annotated(name: str, hint: Any, told: Parameter) -> Any:
    if any(isinstance(x, Parameter) for x in getattr(hint, "__metadata__", ())):
        return Annotated[hint, told]
    return Annotated[hint, under(GROUPS.get(name, OTHER)), told]


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default


# ---- values from elsewhere


def _options_in(path: Path, name: str) -> dict[str, Any]:
    """The options that a JSON file gives to the command `name` (raises ConfigError)."""
    values = configs.read_json(path)
    if not isinstance(values, dict):
        raise ConfigError("is not an object of options", where=path, hint='write {"option": value, ...}')
    if OPTIONS in values:  # what an earlier run wrote beside its results
        if values.get("command", name) != name:
            raise ConfigError(f"holds options of `affectrace {values['command']}`", where=path, hint=f"not of {name}")
        values = values[OPTIONS]
    return {key: value for key, value in values.items() if key not in ("quiet", "json")}


def _is_flat(hint: Any) -> bool:
    return any(isinstance(x, Parameter) and x.name == ("*",) for x in getattr(hint, "__metadata__", ()))


def _lifted(kind: type[Common], values: Mapping[str, Any]) -> dict[str, Any]:
    """Values with those of flat configurations beside the others, as Cyclopts knows them."""
    lifted = dict(values)
    for name, hint in configs.fields_at(kind, ()).items():
        if _is_flat(hint) and isinstance(lifted.get(name), Mapping):
            lifted |= lifted.pop(name)
    return lifted


def _so_far(kind: type[T], arguments: ArgumentCollection) -> T:
    """Options of what the line and the file give, without the configurations in them."""
    given = {a.field_info.name: a.convert() for a in arguments if a.tokens and not a.keys and not a.children}
    given.pop("config", None)
    return kind(**given)


def _check_number(argument: Argument) -> None:
    """Refuse 1.5 for a whole number, which Cyclopts would round, and numbers that take a gigabyte of digits."""
    kinds = _leaves(argument.hint) - {type(None)}
    for token in argument.tokens:
        if (kinds == {int} and "." in token.value) or (str not in kinds and configs.is_huge(token.value)):
            raise CoercionError(argument=argument, token=token, target_type=next(iter(kinds)))


def _leaves(hint: Any) -> set[Any]:
    inner = typing.get_args(hint)[:1] if typing.get_origin(hint) is Annotated else typing.get_args(hint)
    return {hint} if not inner else {leaf for x in inner if x is not ... for leaf in _leaves(x)}


def _option(kind: type[Common], path: Sequence[str]) -> str:
    """The option that sets the field at `path`."""
    fields = configs.fields_at(kind, ())
    while path and path[0] in fields and _is_flat(fields[path[0]]):
        fields, path = configs.fields_at(kind, path[:1]), path[1:]
    return "--" + configs.place([part for part in path if not part.startswith("[")]).replace("_", "-")
