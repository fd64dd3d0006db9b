"""Extraction on a Ray cluster, through Ray Data: the same work, the same files.

Recordings go to actors in small groups; each actor is a `Line` with networks of its own and writes straight into the
folder. So media, local weights and the folder must lie where every machine of the cluster sees them under the same
path. An actor that dies is started again with its group, of which only what is missing is made.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import secrets
import shutil
import sys
import tempfile
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from affectrace.errors import AffectraceError, InputError
from affectrace.features import registry
from affectrace.features.extract_config import ExtractConfig, Outcome
from affectrace.features.extract_line import Line, compute_of
from affectrace.features.extract_workers import GIVEN_UP, MOST_DEATHS
from affectrace.features.store import FeatureStore
from affectrace.recording import PATHS, Recording

ATTEMPTS = ".attempts"  # folder in which an actor notes what it works on
LARGEST_GROUP = 8  # recordings that go to an actor together: they fill batches, and are lost together when it dies


def run(
    todo: Sequence[Recording], out: Path, chosen: tuple[str, ...], config: ExtractConfig
) -> Generator[Outcome, None, None]:
    """Outcomes as they come.

    Raises:
        InputError: Ray is not installed, or the cluster cannot be reached. AffectraceError: of an actor that cannot go
            on, as it raised it.
    """
    ray = _ray()
    with contextlib.nullcontext() if ray.is_initialized() else _cluster(ray, config):
        yield from _run(ray, todo, out, chosen, config)


def _run(
    ray: Any, todo: Sequence[Recording], out: Path, chosen: tuple[str, ...], config: ExtractConfig
) -> Generator[Outcome, None, None]:
    try:
        config = replace(  # one precision for all machines, whatever each has; an actor sees its own GPU alone
            config,
            compute=compute_of(config).precision,
            device="cuda" if config.device.startswith("cuda") else config.device,
        )
        store, todo = FeatureStore(out), [_absolute(r) for r in todo]
        for outcome in _answers(ray, todo, out.absolute(), chosen, config):
            yield _seen(outcome, store)
    finally:
        shutil.rmtree(out / ATTEMPTS, ignore_errors=True)


def need_ray() -> None:
    """Refuse before any work (raises InputError: Ray is not installed)."""
    if find_spec("ray") is None:
        raise InputError("engine 'ray' needs Ray, which is not installed", hint="pip install 'affectrace[ray]'")


def _ray() -> Any:
    need_ray()
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its own files keep the rest
    import ray

    return ray


@contextlib.contextmanager
def _cluster(ray: Any, config: ExtractConfig) -> Iterator[None]:
    """The cluster at `address`; otherwise one is started here, as large as asked for, and leaves no file behind."""
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    with contextlib.ExitStack() as after:
        if config.address is None:
            where = os.environ.get("RAY_TMPDIR") or ("/tmp" if sys.platform == "darwin" else None)  # as Ray does
            folder = tempfile.mkdtemp(prefix="ray-", dir=where)
            after.callback(shutil.rmtree, folder, ignore_errors=True)
            after.enter_context(_own_token())
            after.callback(ray.shutdown)
            with _no_statistics():
                n_cpus = config.workers * config.threads
                ray.init(address="local", num_cpus=n_cpus, include_dashboard=False, _temp_dir=folder, **quiet)
        else:
            after.callback(ray.shutdown)
            _connect(ray, config.address, quiet)
        yield


@contextlib.contextmanager
def _own_token() -> Iterator[None]:
    """A token for a cluster of this process, unless the user set one: Ray would write it to ~/.ray."""
    if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
        yield
        return
    try:
        from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]
    except ImportError:  # a Ray before tokens
        yield
        return
    loader = AuthenticationTokenLoader.instance()  # remembers a token for as long as the process lives
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    loader.reset_cache()
    try:
        yield
    finally:
        del os.environ["RAY_AUTH_TOKEN"]
        loader.reset_cache()


@contextlib.contextmanager
def _no_statistics() -> Iterator[None]:
    """Keeps `ray.init` from starting its process for usage statistics.

    Even with statistics off that process looks up `metadata.google.internal` and calls 169.254.169.254, to find out in
    whose cloud it runs. Ray has no option for it; without a dashboard the process does nothing else.
    """
    try:
        from ray._private.node import Node

        start = Node.start_api_server
    except (ImportError, AttributeError):  # another Ray
        yield
        return
    Node.start_api_server = lambda *_, **__: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        Node.start_api_server = start  # type: ignore[method-assign]


def _connect(ray: Any, address: str, quiet: dict[str, Any]) -> None:
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        said = str(error).strip().splitlines()
        raise InputError(
            f"no Ray cluster can be reached ({said[0] if said else type(error).__name__})",
            where=address,
            hint="give HOST:6379 of its head node, or leave --address out to start one here",
        ) from None


def _answers(
    ray: Any, todo: list[Recording], out: Path, chosen: tuple[str, ...], config: ExtractConfig
) -> Iterator[Outcome]:
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    group = max(1, min(LARGEST_GROUP, len(todo) // (4 * config.workers)))
    answers = ray.data.from_items(
        [{"recording": pickle.dumps(r)} for r in todo], override_num_blocks=-(-len(todo) // group)
    ).map_batches(  # actors that die are restarted, and their groups given out again, as often as it takes
        _Actor,
        fn_constructor_args=(str(out), tuple(_absolute_name(name) for name in chosen), config),
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=config.workers),
        num_cpus=config.threads,
        num_gpus=1 if config.device.startswith("cuda") or _has_gpus(ray, config) else 0,
    )
    try:
        for row in answers.iter_rows():
            found = pickle.loads(row["outcome"])
            if isinstance(found, AffectraceError):
                raise found
            yield found
    except ray.exceptions.RayError as error:
        said = str(error).strip().splitlines()
        raise AffectraceError(
            f"Ray cannot go on ({said[-1] if said else type(error).__name__})",
            where=str(out),
            hint="run the same command again: what was made is kept",
        ) from None


class _Actor:
    """What stays alive on the cluster: networks, loaded when the first group comes so that their errors can be told."""

    def __init__(self, out: str, chosen: tuple[str, ...], config: ExtractConfig) -> None:
        self.out, self.chosen, self.config = Path(out), chosen, config
        self.line: Line | None = None

    def __call__(self, batch: Mapping[str, Iterable[bytes]]) -> dict[str, list[bytes]]:
        recordings = [pickle.loads(packed) for packed in batch["recording"]]
        found: list[Outcome | AffectraceError] = []
        try:
            for recording in recordings:
                with self._attempt(recording) as there_is_hope:
                    if not there_is_hope:
                        found.append(Outcome(recording.id, error=GIVEN_UP))
                    else:
                        found += self._line().add(recording)
                    if recording is recordings[-1]:
                        found += self._line().finish()
        except AffectraceError as error:
            found.append(error)
        return {"outcome": [pickle.dumps(outcome) for outcome in found]}

    def _line(self) -> Line:
        if self.line is None:
            import torch

            torch.set_num_threads(self.config.threads)
            compute = compute_of(self.config)
            extractors = registry.load(self.chosen, compute=compute).extractors
            self.line = Line(extractors, self.out, self.config, compute)
        return self.line

    @contextlib.contextmanager
    def _attempt(self, recording: Recording) -> Iterator[bool]:
        """Whether to work on it: not once it took several actors with it. Each leaves a byte, which survives it."""
        path = self.out / ATTEMPTS / recording.id
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(b"x")
            n = file.tell()
        yield n <= MOST_DEATHS + 1
        path.unlink(missing_ok=True)


def _seen(outcome: Outcome, store: FeatureStore) -> Outcome:
    """The outcome, unless what another machine wrote is not to be seen from here."""
    lacking = [name for name in outcome.made if not store.path(name, outcome.recording_id).is_file()]
    if not lacking or outcome.error:
        return outcome
    why = f"{store.root}: {lacking[0]} was written on another machine; choose an --out that all of the cluster share"
    return replace(outcome, made=(), error=why)


def _has_gpus(ray: Any, config: ExtractConfig) -> bool:
    return config.device == "auto" and ray.cluster_resources().get("GPU", 0) >= 1


def _absolute(recording: Recording) -> Recording:
    """An actor works in another folder."""
    return replace(recording, **{k: p.absolute() for k in PATHS if (p := getattr(recording, k)) is not None})


def _absolute_name(name: str) -> str:
    """`mae-vit-l=FOLDER` with the folder's whole path; other names as they are."""
    extractor, _, source = name.partition("=")
    own = Path(source).expanduser()
    return f"{extractor}={own.absolute()}" if source and own.exists() else name
