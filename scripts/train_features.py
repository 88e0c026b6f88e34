"""Train a small classifier whose last hidden layer serves as features for FID, KID, precision and recall.

    python scripts/train_features.py my_images/ --out my_features.safetensors    # one subfolder a class
    python scripts/train_features.py data.npz:train_x --labels data.npz:train_y --out features.safetensors \\
        --held-out data.npz:test_x --held-out-labels data.npz:test_y
    python scripts/train_features.py --config configs/mnist.yaml --download

then `diffusion-var fid samples/ real/ --features features.safetensors`. The images are held in memory as 8-bit numbers.
The accuracy on held-out images, printed and kept in the file, says how far the features can be trusted.
"""

import runpy
import sys

if __name__ == "__main__":
    sys.argv.insert(1, "train-features")  # as `diffusion-var train-features`
    runpy.run_module("diffusion_var", run_name="__main__")
