"""Jobs on a Ray cluster: one recording a task, repeated where its worker dies.

Each worker keeps networks of its own and writes straight into the folder, so media, local weights and the folder must
lie where every machine of the cluster sees them under the same path.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any, TypeVar

from affectrace.errors import AffectraceError, InputError

Job = TypeVar("Job")
Result = TypeVar("Result")
TASK = "affectrace-extract"


def run(
    work: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    workers: int,
    threads: int,
    device: str,
    address: str | None,
    max_retries: int,
) -> Iterator[tuple[Job, Result | None]]:
    """Each job and what `work` gave for it, as they come; None: its worker died each time.

    Args:
        work: a function that other processes can import. workers: tasks at a time, over all machines. threads: of each.
        device: as in `Compute.choose`; a GPU is for one task alone. address: of the cluster; None: one is started.

    Raises:
        InputError: Ray is not installed, or the cluster cannot be reached. AffectraceError: of `work`.
    """
    ray = _ray()
    with contextlib.nullcontext() if ray.is_initialized() else _cluster(ray, address, workers * threads):
        gpu = device.startswith("cuda") or (device == "auto" and ray.cluster_resources().get("GPU", 0) >= 1)
        options = {"num_cpus": threads, "num_gpus": int(gpu), "max_retries": max_retries}
        task = ray.remote(max_calls=0, **options)(_shielded).options(name=TASK)  # 0: workers keep their networks
        waiting = list(reversed(jobs))
        running: dict[Any, Job] = {}
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    job = waiting.pop()
                    running[task.remote(work, job)] = job
                for ref in ray.wait(list(running), num_returns=1)[0]:
                    job = running.pop(ref)
                    try:
                        found = ray.get(ref)
                    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
                        found = None
                    if isinstance(found, AffectraceError):
                        raise found
                    yield job, found
        except ray.exceptions.RayError as error:
            said = str(error).strip().splitlines()
            raise AffectraceError(
                f"Ray cannot go on ({said[-1] if said else type(error).__name__})",
                hint="run the same command again: what was made is kept",
            ) from None


def _shielded(work: Callable[[Job], Result], job: Job) -> Result | AffectraceError:
    """Errors of ours come back as they are, not wrapped in Ray's."""
    try:
        return work(job)
    except AffectraceError as error:
        return error


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
def _cluster(ray: Any, address: str | None, n_cpus: int) -> Iterator[None]:
    """The cluster at `address`; otherwise one is started here, as large as asked for, and leaves no file behind."""
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    with contextlib.ExitStack() as after:
        if address is None:
            where = os.environ.get("RAY_TMPDIR") or ("/tmp" if sys.platform == "darwin" else None)  # as Ray does
            folder = tempfile.mkdtemp(prefix="ray-", dir=where)
            after.callback(shutil.rmtree, folder, ignore_errors=True)
            after.enter_context(_own_token())
            after.callback(ray.shutdown)
            with _no_statistics():
                ray.init(address="local", num_cpus=n_cpus, include_dashboard=False, _temp_dir=folder, **quiet)
        else:
            after.callback(ray.shutdown)
            _connect(ray, address, quiet)
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
