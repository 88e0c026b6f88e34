"""Train a diffusers UNet on a folder, zip or npz of images; the result is a pipeline folder for `--model`.

    python scripts/train_unet.py --config configs/mnist.yaml --download
    python scripts/train_unet.py --config configs/mnist.yaml --images mnist.npz:train_x[:50000] ...
    torchrun --nproc_per_node 4 scripts/train_unet.py --config configs/mnist.yaml

Interrupted, the same command goes on where it was. On several GPUs use torchrun or `accelerate launch`.
"""

import runpy
import sys

if __name__ == "__main__":
    sys.argv.insert(1, "train-unet")  # as `diffusion-var train-unet`
    runpy.run_module("diffusion_var", run_name="__main__")
