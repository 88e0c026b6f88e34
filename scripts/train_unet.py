"""Train a diffusers UNet on a folder, zip or npz of images; the result is a pipeline folder for `--model`.

    python scripts/train_unet.py --config configs/mnist.yaml --download
    python scripts/train_unet.py --config configs/mnist.yaml --images mnist.npz:train_x[:50000] ...
    torchrun --nproc_per_node 4 scripts/train_unet.py --config configs/mnist.yaml

Interrupted, the same command goes on where it was. On several GPUs use torchrun or `accelerate launch`.
"""

from diffusion_var.app.commands.train_unet import TrainUNetOptions, run
from diffusion_var.app.flags import script

if __name__ == "__main__":
    script(TrainUNetOptions, "train_unet", run)
