"""The house: what importing costs, what is public, and what the project promises about itself."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import foveate

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src" / "foveate").rglob("*.py"))
HEAVY = (
    *("torchvision", "timm", "matplotlib", "lightning_fabric", "pydantic", "scipy", "sklearn"),
    *("rich", "typer", "jinja2", "yaml", "tensorboard", "torchmetrics", "safetensors", "PIL"),
    *("gradio", "fastapi", "uvicorn", "pytorch_grad_cam", "huggingface_hub"),
    *("onnx", "onnxruntime", "onnxscript", "openvino", "torchao"),
)


def fresh(code: str) -> str:
    """What a new interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return done.stdout.strip()


def loaded_by(*statements: str) -> list[set[str]]:
    """What each of some statements, one after the other, adds to what ``import torch`` loads."""
    # What torch itself loads (it looks for some of these where they are installed) is not ours.
    lines = ["import sys, torch; old = set(sys.modules)"]
    for statement in statements:
        lines += [statement, "print(*sorted(set(sys.modules) - old)); old = set(sys.modules)"]
    return [set(line.split()) for line in fresh("\n".join(lines)).splitlines()]


def test_import_needs_torch_only() -> None:
    statements = (
        "import foveate",
        "foveate.create('cbam', 64); foveate.list_mechanisms()",
        "foveate.insert; foveate.remove; foveate.plan",
        "foveate.load_weights",
        "foveate.export.onnx; foveate.export.int8",
        "foveate.record; foveate.diagnose; foveate.explain.sheet",
        "import foveate.experiments.config",  # which shows that this test can fail
    )
    *light, heavy = loaded_by(*statements)
    found = {what: new & set(HEAVY) for what, new in zip(statements, light, strict=False)}
    assert found == {what: set() for what in statements[:-1]}
    assert "pydantic" in heavy


def test_public_names_are_these() -> None:
    assert foveate.__all__ == [
        *(
            "create",
            "diagnose",
            "explain",
            "export",
            "get_mechanism",
            "insert",
            "list_mechanisms",
            "load",
            "load_weights",
        ),
        *("models", "plan", "profile", "record", "remove"),
    ]
    assert set(foveate.__all__) <= set(dir(foveate))
    with pytest.raises(AttributeError, match="has no attribute 'isnert'"):
        foveate.isnert  # noqa: B018


def test_public_names_stay_what_they_are() -> None:
    """A submodule of the same name would take the place of a lazy function once imported."""
    code = "import foveate as f; import foveate.cli; all(getattr(f, n) for n in f.__all__); "
    code += "print(*(n for n in f.__all__ if not callable(getattr(f, n))))"
    assert fresh(code) == "explain export models"


@pytest.mark.parametrize(
    ("name", "signature"),
    [
        ("create", "(key, channels, **options)"),
        ("list_mechanisms", "(pattern='*')"),
        ("remove", "(model)"),
        ("load", "(path, *, trust_code=False)"),
        ("load_weights", "(model, weights, *, layout='auto', head='match', strict=True)"),
        ("profile", "(model, images, *, repeats=20)"),
        ("record", "(model)"),
        (
            "diagnose",
            "(model, data, *, metric=None, loss=None, thresholds=None, seed=0)",
        ),
        (
            "plan",
            "(model, mechanism, *, where=None, at=None, init='identity', example=None, **options)",
        ),
        (
            "insert",
            "(model, mechanism, *, where=None, at=None, init='identity', example=None, "
            "optimizer=None, **options)",
        ),
    ],
)
def test_signatures_are_these(name: str, signature: str) -> None:
    found = inspect.signature(getattr(foveate, name))
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in found.parameters.values()]
    shown = str(found.replace(parameters=bare, return_annotation=inspect.Signature.empty))
    assert shown == signature


def test_version_is_the_one_of_the_package() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert re.search(r'^version = "(.*)"$', text, re.MULTILINE)[1] == foveate.__version__


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_files_are_short_and_say_what_they_are(path: Path) -> None:
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), "no docstring"
    assert len(text.splitlines()) <= 400


def test_constraints_pin_every_dependency() -> None:
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    text = (ROOT / "pyproject.toml").read_text()
    wanted = re.findall(r'"([a-zA-Z][\w-]*)(?:\[\w+\])?>=', text)
    untested = {"hatchling", "mlflow", "wandb"}  # the build, and trackers that need an account
    assert {name.lower() for name in wanted} - untested <= pinned
