"""The wheel: built, installed in an empty environment, and used from an empty folder."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, cwd=cwd, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "uv", "build", "--wheel", "--out-dir", folder, ROOT, cwd=folder)
    return next(folder.glob("*.whl"))


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    inside = {Path(name).parts[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert inside == {"foveate", wheel.name.split("-py3")[0] + ".dist-info"}
    names = zipfile.ZipFile(wheel).namelist()
    assert "foveate/py.typed" in names
    package = ROOT / "src" / "foveate"
    files = [p for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert {f"foveate/{p.relative_to(package)}" for p in files} <= set(names)


def test_wheel_works_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    uv = (sys.executable, "-m", "uv")
    run(*uv, "venv", "--python", sys.executable, tmp_path / "venv", cwd=tmp_path)
    install = (*uv, "pip", "install", "--python", python, "--constraint", ROOT / "constraints.txt")
    run(*install, wheel, cwd=tmp_path)
    foveate = tmp_path / "venv" / "bin" / "foveate"
    assert "cbam" in run(foveate, "list", cwd=tmp_path)
    for words, extra in ((["compare"], "train"), (["plan", "resnet18", "se"], "hosts")):
        missing = subprocess.run(
            [foveate, *words], capture_output=True, text=True, cwd=tmp_path, check=False
        )
        assert missing.returncode == 2, missing.stderr
        assert missing.stderr.strip().endswith(f"pip install 'foveate[{extra}]'")
        assert len(missing.stderr.splitlines()) == 1
    run(*install, f"{wheel}[train]", cwd=tmp_path)
    small = ("--epochs", "1", "--seeds", "1", "--limit", "100", "--mechanisms", "se")
    # Kernels are built in tests of their own; that their sources are here, the test above sees.
    run("env", "FOVEATE_KERNELS=eager", foveate, "compare", *small, "--out", "out", cwd=tmp_path)
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000
