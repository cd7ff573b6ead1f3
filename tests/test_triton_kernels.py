"""The tests of the Triton kernels, each time in a process that knows where kernels run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")


each_file = pytest.mark.parametrize("name", ["triton_statistics.py", "triton_gates.py"])


def run_tests(name: str, **environment: str) -> None:
    laws = Path(__file__).with_name(name)
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(laws)],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert finished.returncode == 0, finished.stdout


@each_file
def test_under_the_interpreter(name: str) -> None:
    # Triton asks for it when it is imported.
    run_tests(name, TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")


@pytest.mark.gpu
@each_file
def test_on_the_graphics_card(name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no graphics card")
    run_tests(name, TRITON_INTERPRET="0")


def test_compiled_without_a_graphics_card(tmp_path: Path) -> None:
    run_tests("triton_compiled.py", TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
