"""The command stats: the feature statistics of images, as an npz."""

from __future__ import annotations

from ...errors import InputError
from ...files import require_new_file
from ...metrics.networks import load_features
from ...metrics.sample import collect
from ..model import image_range, open_device, read
from ..options import StatsOptions
from ..terminal import say


def run(options: StatsOptions) -> None:
    """Write the feature statistics of images to an npz."""
    if options.out.suffix.lower() != ".npz":
        raise InputError(f"the output {options.out} does not end in .npz; give the file that suffix.")
    require_new_file(options.out, options.overwrite)
    device = open_device(options.device)
    data_range = image_range(options.data_range)
    images = read(options.images, options)
    sample = collect(
        images,
        load_features(
            options.features, inception_weights=options.inception_weights, accept_weights=options.accept_weights
        ),
        data_range=data_range,
        batch_size=options.batch_size,
        device=device,
        name=options.images,
        progress=True,
    )
    sample.statistics.save(options.out)
    for key, value in sample.origin.items():
        say(f"  {key}: {value}")
    say(f"written: statistics of {sample.statistics.count} images in {options.out}")
