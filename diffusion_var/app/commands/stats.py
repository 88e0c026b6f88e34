"""The command stats: the feature statistics of images, as an npz."""

from __future__ import annotations

from ...errors import InputError
from ...metrics.networks import load_features
from ...metrics.sample import collect
from ...parallel import is_first
from ..claims import claimed_file, run_identity, run_of_npz
from ..model import image_range, open_device, read
from ..options import StatsOptions
from ..terminal import say


def run(options: StatsOptions) -> None:
    """Write the feature statistics of images to an npz."""
    if options.out.suffix.lower() != ".npz":
        raise InputError(f"the output {options.out} does not end in .npz; give the file that suffix.")
    this = run_identity("stats", options)
    with claimed_file(options.out, this, run_of_npz, options.overwrite) as finished:
        if not finished:
            _measure(options, this)


def _measure(options: StatsOptions, this: str) -> None:
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
    if is_first():
        sample.statistics.save(options.out, run=this)
    for key, value in sample.origin.items():
        say(f"  {key}: {value}")
    say(f"written: statistics of {sample.statistics.count} images in {options.out}")
