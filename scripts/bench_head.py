"""Benchmark of covariance heads: what they cost at sampling and in training, over the frozen network alone.

    python scripts/bench_head.py [--model runs/mnist/model] [--threads 1] [--device cuda]

Sampling: `dv.Sampler` with a head over the same sampler with the isotropic table. Training: one optimiser step of a
head over the network's forward pass without a graph, on batches of the same size; and the bytes that autograd keeps for
the backward pass. Contestants take turns in a rotating order, so that drift cancels; medians are compared. Without
--model: a network of the MNIST config's kind with random weights, for which all of this takes the same time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers.models.unets.unet_2d import UNet2DModel

import diffusion_var as dv

CONFIG = Path(__file__).parents[1] / "configs" / "mnist.yaml"
SAMPLING_TARGET, TRAINING_TARGET = 1.05, 1.5


def open_denoiser(model: str | None, device: torch.device) -> dv.Denoiser:
    if model is not None:
        return dv.Denoiser.from_pretrained(model, device=device)
    unet = yaml.safe_load(CONFIG.read_text())["train_unet"]["unet"]
    torch.manual_seed(0)
    network = UNet2DModel(sample_size=28, in_channels=1, out_channels=1, **unet).eval()
    return dv.Denoiser(network.to(device), dv.NoiseSchedule.linear(1000), shape=(1, 28, 28), clip=(-1.0, 1.0))


def race(contestants: dict[str, Callable[[], Any]], repeats: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each, one warm-up round apart."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    order = list(contestants)
    for round_ in range(repeats + 1):
        for name in order:
            synchronise(device)
            start = time.perf_counter()
            contestants[name]()
            synchronise(device)
            if round_:
                seconds[name].append(time.perf_counter() - start)
        order = order[1:] + order[:1]
    return {name: statistics.median(values) for name, values in seconds.items()}


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def kept_bytes(call: Callable[[], Any], weights: set[int]) -> int:
    """Bytes of the distinct tensors that autograd keeps for backward passes during `call`, weights not counted."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(kept.values())


def show(title: str, medians: dict[str, float], targets: dict[str, float]) -> None:
    print(f"\n{title}")
    reference = next(iter(medians.values()))
    for name, median in medians.items():
        told = f"  (target: at most {targets[name]})" if name in targets else ""
        print(f"{name:<28s}{1e3 * median:>10.1f} ms{median / reference:>8.3f}{told}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="folder of a model; default: random weights")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=5, help="sampling steps")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=None, help="CPU threads; default: torch's own choice")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action="store_true", help="autocast of the network")
    args = parser.parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    denoiser = open_denoiser(args.model, device)
    denoiser.autocast = torch.bfloat16 if args.bf16 else None
    images = torch.randint(0, 256, (args.batch, *denoiser.shape), dtype=torch.uint8)
    table = dv.estimate(denoiser, images, tolerance=1e9, indices=[1, denoiser.schedule.num_steps], progress=False)
    print(
        f"batches of {args.batch} × {denoiser.shape}, {'bf16' if args.bf16 else 'float32'} on {device.type}, "
        f"{torch.get_num_threads()} threads; medians of {args.repeats}"
    )

    source = dv.training.Source.of(images, None, denoiser, "images")
    specs = {
        f"{target}, {kind}": dv.HeadSpec(target, kind) for kind in ("simple", "residual") for target in ("npr", "sn")
    }
    specs["ocm, simple"] = dv.HeadSpec("ocm", "simple")
    heads = {name: dv.training.new_head(denoiser, table, spec, 0, source) for name, spec in specs.items()}
    for parameter in denoiser.network.parameters():
        parameter.requires_grad_(False)

    covariances = {"isotropic table": dv.Analytic(table)} | {
        f"head, {kind}": heads[f"npr, {kind}"] for kind in ("simple", "residual")
    }
    samplers = {name: dv.Sampler(denoiser, covariance, args.steps) for name, covariance in covariances.items()}
    calls = {
        name: (lambda sampler=sampler: sampler.sample(args.batch, batch_size=args.batch))
        for name, sampler in samplers.items()
    }
    medians = race(calls, args.repeats, device)
    show(f"Sampling, {args.steps} steps", medians, {"head, simple": SAMPLING_TARGET})

    x, n = torch.randn(args.batch, *denoiser.shape, device=device), torch.arange(args.batch) + 1

    def forward() -> None:
        with torch.no_grad():
            denoiser(x, n, None)

    settings = dv.training.HeadTraining(steps=1, batch_size=args.batch)
    steps = {name: dv.training.HeadRun(head, denoiser, [source], settings).step for name, head in heads.items()}
    medians = race({"frozen forward": forward, **steps}, args.repeats, device)
    show("A training step", medians, {"npr, simple": TRAINING_TARGET, "sn, simple": TRAINING_TARGET})

    print("\nKept by autograd during a training step")
    modules = [denoiser.network, *(head.network for head in heads.values())]
    weights = {p.untyped_storage().data_ptr() for module in modules for p in module.parameters()}
    for name, step in steps.items():
        print(f"{name:<28s}{kept_bytes(step, weights) / 2**20:>10.1f} MiB")


if __name__ == "__main__":
    main()
