"""The Binder folder, read by repo2docker itself: what it would build, without Docker.

Sees: a folder that repo2docker reads otherwise than meant, versions that drift apart, scripts that
would not start. Does not see: whether the built image runs.
"""

import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from repo2docker.buildpacks import PythonBuildPack

ROOT = Path(__file__).parents[1]
BINDER = ROOT / "binder"


def requirements(lines: list[str]) -> dict[str, Requirement]:
    """Requirements by normalised name; options and comments left out."""
    found = [Requirement(line) for line in lines if re.match(r"\w", line)]
    return {re.sub(r"[-_.]+", "-", one.name).lower(): one for one in found}


@pytest.fixture(scope="module")
def project() -> Any:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def pinned() -> dict[str, Requirement]:
    return requirements((BINDER / "constraints.txt").read_text().splitlines())


@pytest.fixture
def build_pack(monkeypatch: pytest.MonkeyPatch) -> PythonBuildPack:
    monkeypatch.chdir(ROOT)  # repo2docker looks at the working directory
    pack = PythonBuildPack("docker.io/library/buildpack-deps:jammy")
    pack.platform = "linux/amd64"
    assert pack.detect()
    return pack


def test_image_has_the_tested_python(build_pack):
    assert build_pack.python_version == "3.11"
    assert "conda/environment.py-3.11-linux-64.lock" in build_pack.get_build_script_files()


def test_image_installs_requirements_then_project(build_pack):
    dockerfile = build_pack.render()
    # The constraints lie beside the requirements, so both are copied before pip runs.
    copied, installed, built = (
        dockerfile.index(step)
        for step in (" src/ ${REPO_DIR}/", '-r "binder/requirements.txt"', "./binder/postBuild")
    )
    assert copied < installed < built


def test_image_starts_through_our_script(build_pack):
    assert 'R2D_ENTRYPOINT="${REPO_DIR}/binder/start"' in build_pack.render()


def test_every_pin_is_exact_and_public(pinned):
    assert len(pinned) > 50
    for one in pinned.values():
        (specifier,) = one.specifier
        assert specifier.operator == "=="
        assert Version(specifier.version).local is None, f"{one} is found on no public index"
        assert one.url is None


def test_project_and_extras_are_pinned_within_their_ranges(project, pinned):
    extras = project["optional-dependencies"]
    for name, wanted in requirements(
        project["dependencies"] + extras["lab"] + extras["test"]
    ).items():
        (pin,) = pinned[name].specifier
        assert wanted.specifier.contains(pin.version), f"{wanted}, but {pinned[name]}"


def test_binder_installs_the_runtime_and_nothing_else(project, pinned):
    lines = (BINDER / "requirements.txt").read_text().splitlines()
    runtime = requirements(project["dependencies"] + project["optional-dependencies"]["lab"])
    binder = requirements(lines)
    assert binder.keys() == runtime.keys()
    assert binder["torch"] == pinned["torch"]
    assert "-c constraints.txt" in lines


@pytest.mark.parametrize("name", ["postBuild", "start"])
def test_scripts_can_be_run(name):
    assert os.access(BINDER / name, os.X_OK)
    assert (BINDER / name).read_bytes().startswith(b"#!/bin/bash\n")


def test_start_hands_over_to_the_command_with_one_thread():
    # Jupyter must take start's place, or signals never reach it.
    started = subprocess.run(
        [BINDER / "start", "bash", "-c", 'echo "$OMP_NUM_THREADS $PPID" "$@"', "-", "two words"],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.environ["PATH"]},
    )
    assert started.stdout == f"1 {os.getpid()} two words\n"
