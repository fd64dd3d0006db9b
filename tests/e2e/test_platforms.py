"""Dependencies on every platform and Python version of README.md: wheels of the pinned versions exist.

Only resolved, not installed; needs the package index. Intel Macs have no wheels of torch and Ray.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from uv import find_uv_bin

ROOT = Path(__file__).parents[2]
PYTHONS = ("3.11", "3.12", "3.13")
INTEL_MAC = "x86_64-apple-darwin"
# glibc 2.28 and macOS 14: the oldest that onnxruntime's wheels support
PLATFORMS = ("x86_64-manylinux_2_28", "windows", "aarch64-apple-darwin")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def resolve(*args: str, requirements: str = "") -> str:
    """What keeps the requirements from being installed from wheels; empty if nothing does."""
    command = [find_uv_bin(), "pip", "compile", "--quiet", "--python", sys.executable, "--only-binary", ":all:"]
    environment = os.environ | {"MACOSX_DEPLOYMENT_TARGET": "14.0"}
    done = subprocess.run(
        [*command, "--output-file", os.devnull, *args],
        input=requirements,
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        check=False,
    )
    return done.stderr if done.returncode else ""


@pytest.fixture(scope="module", autouse=True)
def index() -> None:
    """Skips without a package index."""
    if problem := resolve("-", requirements="packaging"):
        pytest.skip(f"no package index: {' '.join(problem.split())[:200]}")


def project(platform: str, python: str, *extras: str) -> str:
    """As `resolve`, for this project with its pinned versions."""
    named = [word for extra in extras for word in ("--extra", extra)]
    pins = ("--constraints", "constraints.txt", "pyproject.toml")
    return resolve("--python-platform", platform, "--python-version", python, *named, *pins)


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_all_extras(platform: str, python: str) -> None:
    assert project(platform, python, "test") == ""


@pytest.mark.parametrize("python", PYTHONS)
def test_intel_macs(python: str) -> None:
    assert project(INTEL_MAC, python, "data", "plot") == ""


@pytest.mark.parametrize("package", ["torch", "ray"])
def test_intel_macs_lack(package: str) -> None:
    pinned = next(
        line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith(package + "=")
    )
    assert pinned in resolve("--no-deps", "--python-platform", INTEL_MAC, "-", requirements=pinned)
