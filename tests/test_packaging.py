"""The wheel that users would install holds what the source tree holds."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return zipfile.ZipFile(built)


def test_wheel_holds_the_whole_package_and_nothing_else(wheel):
    source = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "lca_widgets").rglob("*")
        if path.is_file() and not {"__pycache__", ".ipynb_checkpoints"} & set(path.parts)
    }
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == source
    assert "lca_widgets/py.typed" in source
    assert any(name.endswith(".js") for name in source)


def test_estimators_need_no_jupyterlab(wheel):
    (metadata,) = (name for name in wheel.namelist() if name.endswith("METADATA"))
    needed = [
        line
        for line in wheel.read(metadata).decode().splitlines()
        if line.startswith("Requires-Dist:") and "extra ==" not in line
    ]
    assert len(needed) > 5
    assert not any("jupyterlab" in line for line in needed)
