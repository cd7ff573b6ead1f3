"""What ``import foveate`` costs beyond ``import torch``: new interpreters, in turns.

Usage: python benchmarks/import_time.py [--rounds 15]
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from lightning_fabric import Fabric

from foveate.experiments.training.environment import describe

CODE = (
    "import time; import torch; start = time.perf_counter(); import foveate; "
    "print(time.perf_counter() - start)"
)


def seconds() -> float:
    """Time to import foveate in a new interpreter that has torch already."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/import_time.json"))
    args = parser.parse_args()
    seconds()  # compiles the byte code
    times = [seconds() for _ in range(args.rounds)]
    low, median, high = statistics.quantiles(times, n=4)
    result = {
        "environment": describe(Fabric(accelerator="cpu")),
        "seconds_beyond_torch": {"median": median, "iqr": high - low, "all": times},
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{median:.3f} s beyond torch, IQR {high - low:.3f} s")


if __name__ == "__main__":
    main()
