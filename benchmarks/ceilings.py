"""What the machine can do at best, measured: `python benchmarks/ceilings.py`.

A floor is what a job takes if nothing but its arithmetic, or nothing but its bytes, takes time:
max(operations / matrix_rate, bytes / bandwidth). The best of many runs counts, because these are limits.
"""

import argparse
import sys
from collections.abc import Callable

import report
import timing
import torch

SIZES = {"cpu": 2048, "cuda": 8192}  # n of an n x n product
BYTES = {"cpu": 2**28, "cuda": 2**30}  # copied at a time: much more than a cache holds
REPEATS = 20


def main() -> int:
    """Measures all of it and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    device = parser.parse_args().device
    rates = {name: rate / 1e9 for name, rate in matrix_rates(device).items()}
    bytes_a_second = bandwidth(device) / 1e9
    rows = [(f"matrix product, {name}", rate, "GFLOP/s") for name, rate in rates.items()]
    text = "# What the machine can do at best\n\n" + report.table(
        ("what", "measured", "unit"), [*rows, ("copy in memory, read and written", bytes_a_second, "GB/s")]
    )
    found = {"gflops": rates, "gigabytes_per_second": bytes_a_second}
    report.write("ceilings", text, found, {}, device=report.slug(device))
    return 0


def matrix_rates(device: str = "cpu") -> dict[str, float]:
    """FLOP/s by the name of the precision; on a GPU also with TF32, which PyTorch leaves off."""
    found = {"float32": matrix_rate(torch.float32, device), "bfloat16": matrix_rate(torch.bfloat16, device)}
    if torch.device(device).type == "cuda":
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True
        found |= {"tf32": matrix_rate(torch.float32, device), "float16": matrix_rate(torch.float16, device)}
        torch.backends.cuda.matmul.allow_tf32 = before
    return found


def matrix_rate(dtype: torch.dtype, device: str = "cpu") -> float:
    """FLOP/s of the product of two large square matrices: 2 n³ operations each."""
    size = SIZES[torch.device(device).type]
    one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(one)
    return 2 * size**3 / _fastest(lambda: torch.mm(one, other, out=out))


def bandwidth(device: str = "cpu") -> float:
    """Bytes/s of a copy from memory to memory: those that are read and those that are written."""
    source = torch.ones(BYTES[torch.device(device).type] // 4, device=device)
    target = torch.empty_like(source)
    return 2 * 4 * source.numel() / _fastest(lambda: target.copy_(source))


def _fastest(call: Callable[[], object]) -> float:
    return timing.in_turn({"": call}, REPEATS, warmup=2)[""].lowest


if __name__ == "__main__":
    sys.exit(main())
