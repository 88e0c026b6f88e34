"""Make the bundled digits model and feature network, and measure whether they are good enough to ship.

    python scripts/train_digits.py                        # train both into diffusion_var/assets, then the gate
    python scripts/train_digits.py --gate-only            # measure the weights that are there

The gate, over three seeds of 1000-step DDPM samples (variance β̃, as many as there are training images):
  1. Fréchet distance to the score split at most 1.5 times that of the training images to the score split;
  2. feature accuracy on the score split at least 97 %;
  3. no copying: the median distance of a sample to its nearest training image at least 0.8 of the held-out
     images' median.
It is printed and kept in digits/training.json beside the weights. About 15 minutes of training and 30 of sampling on
two CPU cores.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

import diffusion_var as dv
from diffusion_var.data import digits_splits, to_float, to_uint8
from diffusion_var.metrics import ClassifierFeatures
from diffusion_var.training import UNetTraining, accuracy, train_classifier, train_unet

ASSETS = Path(__file__).parent.parent / "diffusion_var" / "assets"
UNET = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
    "attention_head_dim": 16,
    "dropout": 0.2,
}


def train_features(folder: Path, seed: int) -> None:
    """The feature classifier, from the train split; saved in half precision."""
    from safetensors.torch import save_file

    train = digits_splits().train
    network = train_classifier(
        ClassifierFeatures(1, 8, 10, name="digits", seed=seed), train.images, train.labels, seed=seed
    )
    state = {name: tensor.detach().half().contiguous() for name, tensor in network.state_dict().items()}
    save_file(state, folder / "digits_features.safetensors")
    (folder / "digits_features.safetensors").chmod(0o644)  # safetensors writes files that only their owner can read


def train_model(folder: Path, steps: int, seed: int) -> list[tuple[int, float, float]]:
    """The UNet, saved as a diffusers pipeline in half precision; returns the loss curve (held out: the table split)."""
    from diffusers.models.unets.unet_2d import UNet2DModel
    from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    splits = digits_splits()
    scheduler = DDPMScheduler(num_train_timesteps=1000, variance_type="fixed_small", clip_sample=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = UNet2DModel(**UNET)
    result = train_unet(
        network,
        to_float(splits.train.images),
        dv.NoiseSchedule.from_diffusers(scheduler),
        UNetTraining(steps, batch_size=128, mixed_precision="bf16", seed=seed),
        held_out=to_float(splits.table.images),
    )
    DDPMPipeline(result.network.half(), scheduler).save_pretrained(folder / "digits", safe_serialization=True)
    # safetensors writes files that only their owner can read; these are to be shipped.
    for weights in (folder / "digits").rglob("*.safetensors"):
        weights.chmod(0o644)
    return result.curve


def nearest_distance(images: torch.Tensor, others: torch.Tensor) -> float:
    """Median over images of the Euclidean distance to the nearest of the others, in [-1, 1] units."""
    distances = torch.cdist(to_float(images).flatten(1), to_float(others).flatten(1))
    return float(distances.min(dim=1).values.median())


def gate(folder: Path, seeds: int, steps: int) -> dict[str, Any]:
    """Measure the three conditions on the weights in `folder`."""
    splits = digits_splits()
    train, score = splits.train.images, splits.score.images
    features = dv.metrics.load_features("digits")
    baseline = float(dv.metrics.fid(train, score, features))
    held_out_distance = nearest_distance(score, train)
    sampler = dv.Sampler(dv.Denoiser.from_pretrained(folder / "digits", device="cpu"), dv.FixedSmall(), steps)
    rows = []
    for seed in range(seeds):
        images = to_uint8(sampler.sample(len(train), seed=seed, batch_size=250, progress=True))
        rows.append(
            {
                "seed": seed,
                "frechet_distance_ratio": float(dv.metrics.fid(images, score, features)) / baseline,
                "nearest_distance_ratio": nearest_distance(images, train) / held_out_distance,
            }
        )
        print(rows[-1], flush=True)
    return {
        "steps": steps,
        "frechet_distance_of_training_images": baseline,
        "nearest_training_distance_of_held_out_images": held_out_distance,
        "feature_accuracy_on_score_split": accuracy(features, score, splits.score.labels),
        "seeds": rows,
        "passes": {
            "frechet_distance_ratio <= 1.5": max(row["frechet_distance_ratio"] for row in rows) <= 1.5,
            "nearest_distance_ratio >= 0.8": min(row["nearest_distance_ratio"] for row in rows) >= 0.8,
            "feature accuracy >= 0.97": accuracy(features, score, splits.score.labels) >= 0.97,
        },
    }


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Keep what was done and measured beside the weights."""
    path.write_text(json.dumps(record, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4000, help="training steps of the UNet")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gate-only", action="store_true", help="measure the weights that are there")
    parser.add_argument("--gate-seeds", type=int, default=3)
    parser.add_argument("--gate-steps", type=int, default=1000)
    args = parser.parse_args()
    ASSETS.mkdir(parents=True, exist_ok=True)
    record_path = ASSETS / "digits" / "training.json"
    if args.gate_only:
        record = json.loads(record_path.read_text())
    else:
        train_features(ASSETS, args.seed)
        curve = train_model(ASSETS, args.steps, args.seed)
        record = {
            "command": f"python scripts/train_digits.py --steps {args.steps} --seed {args.seed}",
            "loss_curve": [{"step": s, "train": round(a, 5), "table split": round(b, 5)} for s, a, b in curve],
        }
        write_record(record_path, record)
    record["gate"] = gate(ASSETS, args.gate_seeds, args.gate_steps)
    write_record(record_path, record)
    print(json.dumps(record["gate"], indent=2))


if __name__ == "__main__":
    main()
