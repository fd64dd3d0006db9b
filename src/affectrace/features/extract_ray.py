"""Feature extraction on a Ray cluster: one task per recording, retried if its worker dies.

Workers load networks of their own and write straight into the output folder, so media, local weights and that folder
must have the same path on every machine of the cluster.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any, TypeVar

from affectrace.errors import AffectraceError, InputError, optional_packages
from affectrace.features.config import ExtractConfig

Job = TypeVar("Job")
Result = TypeVar("Result")
TASK = "affectrace-extract"


def run(
    work: Callable[[Job], Result], jobs: Sequence[Job], config: ExtractConfig, max_retries: int
) -> Iterator[tuple[Job, Result | None]]:
    """Jobs with their results as they finish; None: the worker died each time.

    work: importable by other processes. config: workers over all machines, threads of each, device, cluster address.

    Raises:
        InputError: Ray is not installed, or the cluster cannot be reached. AffectraceError: from `work` or Ray.
    """
    need_ray()
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray

    n_cpus = config.workers * config.threads
    with contextlib.nullcontext() if ray.is_initialized() else _cluster(ray, config.address, n_cpus):
        on_auto = config.device == "auto" and ray.cluster_resources().get("GPU", 0) >= 1
        n_gpus = int(config.device.startswith("cuda") or on_auto)
        options = {"num_cpus": config.threads, "num_gpus": n_gpus, "max_retries": max_retries}
        remote: Any = ray.remote
        task = remote(max_calls=0, **options)(_returning_errors).options(name=TASK)  # 0: workers keep their networks
        waiting, running = list(reversed(jobs)), dict[Any, Job]()
        try:
            while waiting or running:
                while waiting and len(running) < config.workers:
                    job = waiting.pop()
                    running[task.remote(work, job)] = job
                (ref,), _ = ray.wait(list(running), num_returns=1)
                try:
                    found = ray.get(ref)
                except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
                    found = None
                if isinstance(found, AffectraceError):
                    raise found
                yield running.pop(ref), found
        except ray.exceptions.RayError as error:
            hint = "run the same command again: finished files are kept"
            raise AffectraceError(f"Ray failed ({_line(error, -1)})", hint=hint) from None


def _returning_errors(work: Callable[[Job], Result], job: Job) -> Result | AffectraceError:
    """The result, or our own error, which Ray would wrap in one of its own."""
    try:
        return work(job)
    except AffectraceError as error:
        return error


def _line(error: Exception, which: int) -> str:
    lines = str(error).strip().splitlines()
    return lines[which] if lines else type(error).__name__


def need_ray() -> None:
    """Check that Ray is installed (raises InputError)."""
    if find_spec("ray") is None:
        with optional_packages("engine 'ray'"):
            raise ModuleNotFoundError(name="ray")


@contextlib.contextmanager
def _cluster(ray: Any, address: str | None, n_cpus: int) -> Iterator[None]:
    """The cluster at `address`, or one started on this machine, which leaves no file behind."""
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    with contextlib.ExitStack() as stack:
        if address is None:
            base = os.environ.get("RAY_TMPDIR") or ("/tmp" if sys.platform == "darwin" else None)  # as Ray does
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="ray-", dir=base, ignore_cleanup_errors=True)
            )
            stack.enter_context(_own_token())
            stack.callback(ray.shutdown)
            with _no_statistics(ray):
                ray.init(address="local", num_cpus=n_cpus, include_dashboard=False, _temp_dir=folder, **quiet)
        else:
            stack.callback(ray.shutdown)
            try:
                ray.init(address=address, **quiet)
            except (ConnectionError, RuntimeError, ValueError, OSError) as error:
                hint = "give HOST:6379 of its head node, or leave --address out to start one here"
                raise InputError(f"no Ray cluster there ({_line(error, 0)})", where=address, hint=hint) from None
        yield


@contextlib.contextmanager
def _own_token() -> Iterator[None]:
    """A token for a cluster of this process, unless the user set one: Ray would write it to ~/.ray."""
    try:
        from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]
    except ImportError:  # older Ray
        AuthenticationTokenLoader = None
    if AuthenticationTokenLoader is None or {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
        yield
        return
    loader = AuthenticationTokenLoader.instance()  # caches a token for the life of the process
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    loader.reset_cache()
    try:
        yield
    finally:
        del os.environ["RAY_AUTH_TOKEN"]
        loader.reset_cache()


@contextlib.contextmanager
def _no_statistics(ray: Any) -> Iterator[None]:
    """Keep `ray.init` from starting its usage statistics process.

    Even with statistics off, that process looks up `metadata.google.internal` and calls 169.254.169.254 to detect the
    cloud provider. Ray has no option for it; without a dashboard the process does nothing else.
    """
    node: Any = getattr(getattr(ray._private, "node", None), "Node", None)
    start = getattr(node, "start_api_server", None)
    if start is not None:
        node.start_api_server = lambda *_, **__: None
    try:
        yield
    finally:
        if start is not None:
            node.start_api_server = start
