"""Score images against a reference, and print how each score was made, with the Python API.

    python scripts/score.py samples path/to/real/images --features inception --metrics fid kid
    python scripts/score.py samples reference.npz --features my_features.safetensors

Images are a folder, zip, npz or npy; the reference too, or an npz of statistics (`mu`, `sigma`). Features of your own
kind of images are trained by `scripts/train_features.py`. Prints JSON.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch

import diffusion_var as dv


def main(options: argparse.Namespace) -> None:
    features = options.features
    if options.inception_weights is not None:
        features = dv.metrics.load_features(features, inception_weights=options.inception_weights)
    # A feature network of your own, any torch module from uint8 images (B, C, H, W) to (B, dimension), goes in here:
    #   features = network
    # and so do images that are no files: a tensor, a Dataset, or a sampler's stream in the place of options.images.

    scores = dv.metrics.evaluate(
        options.images,
        options.reference,
        options.metrics,
        features,
        seed=options.seed,
        bootstrap=options.bootstrap,
        batch_size=options.batch_size,
        device="cuda" if torch.cuda.is_available() else "cpu",
        progress=True,
    )
    print(json.dumps({metric: asdict(score) for metric, score in scores.items()}, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("reference", type=Path)
    parser.add_argument("--features", default="inception", help="inception, digits, or a .safetensors file")
    parser.add_argument("--inception-weights", type=Path, help="file of Inception's weights; else cached or downloaded")
    parser.add_argument("--metrics", nargs="+", default=["fid"], help="fid kid precision recall density coverage")
    parser.add_argument("--bootstrap", type=int, default=0, help="repeats for a 95 %% interval of the FID")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    try:
        main(parser.parse_args())
    except (dv.InputError, dv.NumericalError) as error:
        parser.exit(2, f"error: {error}\n")
