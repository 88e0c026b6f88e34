"""The command stats: the feature statistics of images, as an npz."""

from __future__ import annotations

from ...data.names import open_images
from ...errors import InputError
from ...files import require_new_file
from ...metrics.networks import load_features
from ...metrics.sample import collect
from ..model import open_device
from ..options import StatsOptions


def run(options: StatsOptions) -> None:
    """Write the feature statistics of images to an npz."""
    if options.out.suffix.lower() != ".npz":
        raise InputError(f"the output {options.out} does not end in .npz; give the file that suffix.")
    require_new_file(options.out, options.overwrite)
    device = open_device(options.device)
    images = open_images(options.images, options.download, options.skip_corrupt)
    sample = collect(
        images,
        load_features(
            options.features, inception_weights=options.inception_weights, accept_weights=options.accept_weights
        ),
        batch_size=options.batch_size,
        device=device,
        name=options.images,
        progress=True,
    )
    sample.statistics.save(options.out)
    for key, value in sample.origin.items():
        print(f"  {key}: {value}")
    print(f"written: statistics of {sample.statistics.count} images in {options.out}")
