"""Compare the peak memory predicted by `smat train --memory-report` with the peak of a training run.

    python benchmarks/memory.py                          small ViTs, two minutes
    python benchmarks/memory.py --cases full,recompute   ViT-S/16, 128 px, 20 + 100 images: 4 GB, minutes
    python benchmarks/memory.py --device cuda            peak of torch's allocator instead of resident memory

One process predicts each case and another trains it for a few updates, with validation after the last. The kernel reports the peak resident
memory of the second process. Goal: within 20 %.
"""

import argparse
import csv
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

RECIPE = """
kind: train
run: {root}/run
device: {device}
threads: {threads}
backbone: {{name: vit_tiny_patch16_224, args: {{patch_size: 8, embed_dim: 128, depth: 6, num_heads: 4}}, image_size: 64, weights: none}}
data: {{root: {root}/data, train: [glyphs, signs], id: [glyphs], ood: [numbers]}}
episode: {{kind: fixed, ways: 5, shots: 5, queries: 10}}
method: {{name: smat, experts: 8}}
train: {{steps: 3, valid_every: 3, valid_episodes: 1, checkpoint_every: 3}}
eval: {{adapt: [proto]}}
"""
VIT_S = ["backbone={name: vit_small_patch16_224, image_size: 128, weights: none}", "episode={kind: fixed, ways: 5, shots: 4, queries: 20}"]
CASES: dict[str, list[str]] = {
    "micro": [],
    "micro-fp32": ["precision=fp32"],
    "micro-4-tasks": ["train.meta_batch=4"],
    "micro-8-ways": ["episode={kind: fixed, ways: 8, shots: 10, queries: 10}"],
    "micro-chunk": ["episode={kind: fixed, ways: 8, shots: 10, queries: 10}", "train.chunk=64"],
    "full": [*VIT_S, "precision=fp32"],
    "bf16": [*VIT_S, "precision=bf16"],
    "recompute": [*VIT_S, "precision=fp32", "train.checkpoint_activations=true"],
    "16-experts": [*VIT_S, "precision=fp32", "method.experts=16"],
}
PEAK = """
import sys, resource, torch
from smatcli.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
if torch.cuda.is_available():
    print("peak", torch.cuda.max_memory_allocated() / 2**20)
else:
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10))
"""


def output(arguments: list[str], pattern: str, env: dict[str, str]) -> float:
    """Run `smat` in a new process, and return the number that matches `pattern` in its output."""
    done = subprocess.run([sys.executable, "-c", PEAK, *arguments], capture_output=True, text=True, env=env)
    match = re.search(pattern, done.stdout)
    if done.returncode or match is None:
        raise SystemExit(f"smat {' '.join(arguments)} failed: {done.stderr[-2000:]}")
    return float(match.group(1).replace(",", ""))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", default=",".join(name for name in CASES if name.startswith("micro")), help=f"of {', '.join(CASES)}")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--csv", default="", help="also write the table to this file")
    args = parser.parse_args()
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    rows = []
    print(f"{'case':16} {'predicted MiB':>14} {'reached MiB':>12}   ratio")
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.yaml"
        recipe.write_text(RECIPE.format(root=folder, device=args.device, threads=args.threads))
        for size in (64, 128):
            more = ["--classes", "60", "--per-class", "20", "--domains", "glyphs,signs,numbers"]
            subprocess.run(
                [sys.executable, "-m", "smatcli", "data", "synthetic", "--out", f"{folder}/data{size}", "--size", str(size), *more],
                env=env,
                check=True,
                stdout=subprocess.DEVNULL,
            )
        for number, name in enumerate(args.cases.split(",")):
            own = [*CASES[name], f"data.root={folder}/data{128 if VIT_S[0] in CASES[name] else 64}"]
            predicted = output(["train", str(recipe), *own, "--memory-report"], r"predicted peak: ([\d,]+) MiB", env)
            reached = output(["train", str(recipe), *own, f"run={folder}/run{number}"], r"peak ([\d.]+)", env)
            rows.append((name, round(predicted), round(reached), round(predicted / reached, 3)))
            print(f"{name:16} {predicted:14,.0f} {reached:12,.0f}   {predicted / reached:.2f}", flush=True)
    worst = max(abs(row[3] - 1) for row in rows)
    print(f"worst {100 * worst:.0f} % (goal 20 %): {'met' if worst <= 0.2 else 'missed'}")
    if args.csv:
        with open(args.csv, "w", newline="") as file:
            csv.writer(file).writerows([("case", "predicted_mib", "reached_mib", "ratio"), *rows])


if __name__ == "__main__":
    main()
