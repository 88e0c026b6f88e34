"""Everything that the package writes, how it is written, and how it is read again.

As a script (saved.py FOLDER …) it reads all of it in a process that has imported diffusers and the name of the package
alone: each artefact in a fork of its own, so that none leans on what another has imported.
"""

import hashlib
import json
import os
import pickle
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

import diffusion_var as dv

#: name: (write into an empty folder, read what lies there); both give the digest of what the thing says or does.
ARTEFACTS: dict[str, tuple[Callable[[Path], str], Callable[[Path], str]]] = {}


def artefact(read: Callable[[Path], str]) -> Callable[[Callable[[Path], str]], Callable[[Path], str]]:
    """Enter a writer, under its name without "write_", with its reader."""

    def enter(write: Callable[[Path], str]) -> Callable[[Path], str]:
        ARTEFACTS[write.__name__.removeprefix("write_")] = write, read
        return write

    return enter


def digest(*values: Any) -> str:
    """Of arrays, and of whatever has a plain text."""
    content = hashlib.sha256()
    for value in values:
        if isinstance(value, torch.Tensor | np.ndarray):
            content.update(np.ascontiguousarray(value).tobytes())
        else:
            content.update(str(value).encode())
    return content.hexdigest()


# ---- pipelines and schedulers --------------------------------------------------------------------------------------


def drawn(pipe: Any) -> str:
    pipe.set_progress_bar_config(disable=True)
    # Kernels round by where in memory weights begin (anywhere, mapped from a file), and by whether they want gradients.
    pipe.unet.requires_grad_(False).to(torch.float64).to(torch.float32)
    seed = torch.Generator().manual_seed(0)
    return digest(pipe(batch_size=2, num_inference_steps=4, generator=seed, output_type="np").images)


def step(scheduler: Any) -> str:
    scheduler.set_timesteps(4)
    x = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    seed = torch.Generator().manual_seed(0)
    return digest(scheduler.step(0.3 * x, scheduler.timesteps[1], x, seed).prev_sample)


def small_pipe() -> Any:
    import small_heads

    config = {"num_train_timesteps": 50, "beta_start": 1e-3, "beta_end": 0.2, "clip_sample": False}
    network = small_heads.denoiser(None).network
    return diffusers.DDPMPipeline(network, diffusers.DDPMScheduler(**config))


def write_pipe(folder: Path, structure: str, eta: float) -> str:
    import small_heads

    pipe = small_pipe()
    pipe.scheduler = dv.AnalyticScheduler.from_table(small_heads.table(False), pipe, structure=structure, eta=eta)
    pipe.save_pretrained(folder)
    return drawn(pipe)


@artefact(lambda folder: drawn(diffusers.DiffusionPipeline.from_pretrained(folder)))
def write_pipeline_with_lists(folder: Path) -> str:
    return write_pipe(folder, "isotropic", 1.0)


@artefact(lambda folder: drawn(diffusers.DDPMPipeline.from_pretrained(folder)))
def write_pipeline_with_a_table_beside(folder: Path) -> str:
    return write_pipe(folder, "dct", 0.5)


@artefact(lambda folder: drawn(diffusers.DDPMPipeline.from_pretrained(folder).to("cpu", torch.float32)))
def write_pipeline_that_is_moved_to_a_device(folder: Path) -> str:
    return write_pipe(folder, "channel", 1.0)


@artefact(lambda folder: step(dv.AnalyticScheduler.from_pretrained(folder, subfolder="scheduler")))
def write_scheduler_in_a_pipeline(folder: Path) -> str:
    write_pipe(folder, "pixel", 1.0)
    return step(dv.AnalyticScheduler.from_pretrained(folder, subfolder="scheduler"))


def read_watched(folder: Path) -> str:
    pipe = diffusers.DDPMPipeline.from_pretrained(folder)
    pipe.scheduler.watch(pipe)
    return drawn(pipe)


@artefact(read_watched)
def write_pipeline_with_a_head(folder: Path) -> str:
    import small_heads

    pipe = small_pipe()
    pipe.scheduler = dv.AnalyticScheduler.from_head(small_heads.head(0.1, clipped=False), pipe)
    pipe.save_pretrained(folder)
    return drawn(pipe)


def small_scheduler() -> Any:
    import small_heads

    return dv.AnalyticScheduler.from_table(small_heads.table(False), small_pipe().scheduler, structure="channel")


@artefact(lambda folder: step(dv.AnalyticScheduler.from_pretrained(folder)))
def write_scheduler(folder: Path) -> str:
    scheduler = small_scheduler()
    scheduler.save_pretrained(folder)
    return step(scheduler)


@artefact(lambda folder: step(pickle.loads((folder / "scheduler.pickle").read_bytes())))
def write_scheduler_for_a_worker(folder: Path) -> str:
    """As multiprocessing hands things over."""
    scheduler = small_scheduler()
    (folder / "scheduler.pickle").write_bytes(pickle.dumps(scheduler))
    return step(scheduler)


# ---- tables, heads, checkpoints ------------------------------------------------------------------------------------


@artefact(lambda folder: dv.VarianceTable.load(folder / "t.safetensors").digest)
def write_table(folder: Path) -> str:
    import small_heads

    small_heads.table().save(folder / "t.safetensors")
    return small_heads.table().digest


@artefact(lambda folder: dv.VarianceTable.from_hub(folder).digest)
def write_table_repository(folder: Path) -> str:
    import small_heads

    from diffusion_var.variance.card import write_repository

    write_repository(small_heads.table(), folder)
    return small_heads.table().digest


@artefact(lambda folder: dv.Head.load(folder / "h.safetensors").digest)
def write_head(folder: Path) -> str:
    import small_heads

    small_heads.head(0.1).save(folder / "h.safetensors")
    return small_heads.head(0.1).digest


def estimated(folder: Path) -> str:
    import small_heads

    options: dict[str, Any] = {"indices": [1, 50], "max_evaluations": 512, "tolerance": 1e9, "progress": False}
    path = folder / "t.partial"
    return dv.estimate(small_heads.denoiser(), small_heads.images(), checkpoint=path, **options).digest


@artefact(lambda folder: digest(estimated(folder), (folder / "t.partial").exists()))
def write_checkpoint_of_an_estimate(folder: Path) -> str:
    return digest(estimated(folder), True)


def trained(folder: Path) -> str:
    import small_training

    return digest(small_training.weights(small_training.train(checkpoint=folder / "c.safetensors")))


@artefact(trained)
def write_checkpoint_of_a_training(folder: Path) -> str:
    return trained(folder)


# ---- caches, statistics, scores ------------------------------------------------------------------------------------


def encoded(folder: Path) -> str:
    """The latents, and when the cache was written: it must not be made again."""
    denoiser = dv.Denoiser.from_pretrained(folder / "model")
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 16, 16), dtype=np.uint8)
    latents: Any = dv.encode_latents(denoiser, images, cache=folder / "cache", progress=False)
    files = sorted((folder / "cache").iterdir())
    return digest(*(latents[i] for i in range(5)), [(path.name, path.stat().st_mtime_ns) for path in files])


@artefact(encoded)
def write_cache_of_latents(folder: Path) -> str:
    import small_pipelines

    small_pipelines.save_ldm(folder / "model")
    return encoded(folder)


@artefact(lambda folder: dv.metrics.FeatureStatistics.load(folder / "s.npz").digest)
def write_statistics(folder: Path) -> str:
    statistics = dv.metrics.FeatureStatistics(3).update(np.random.default_rng(0).standard_normal((9, 3)))
    statistics.save(folder / "s.npz")
    return statistics.digest


def read_features(folder: Path) -> str:
    return str(dv.metrics.load_features(str(folder / "f.safetensors")).fingerprint)


@artefact(read_features)
def write_features(folder: Path) -> str:
    from diffusion_var.metrics.classifier import ClassifierFeatures, save_features

    with torch.random.fork_rng():
        network = ClassifierFeatures(1, (8, 8), 4, 8, 4).eval()
    save_features(network, folder / "f.safetensors")
    return read_features(folder)


def read_cell(folder: Path) -> str:
    from diffusion_var.app.compare.cells import CellStore

    found = CellStore(folder, {"network": "a"}).load("a method", {"steps": 3})
    assert found is not None
    return digest(found.grid, found.scores)


@artefact(read_cell)
def write_cell_of_a_comparison(folder: Path) -> str:
    from diffusion_var.app.compare.cells import CellStore, Measured
    from diffusion_var.metrics.score import Score

    measured = Measured(
        {"fid": Score(1.5, {"metric": "fid"}, 0.1, (1.25, 1.75))}, np.arange(16, dtype=np.uint8).reshape(1, 1, 4, 4)
    )
    CellStore(folder, {"network": "a"}).save("a method", {"steps": 3}, measured)
    return digest(measured.grid, measured.scores)


def read_model(folder: Path) -> str:
    denoiser = dv.Denoiser.from_pretrained(folder / "model")
    x = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    return digest(denoiser(x, 5).mean, denoiser.fingerprint, denoiser.schedule.digest)


@artefact(read_model)
def write_trained_network(folder: Path) -> str:
    from diffusion_var.app.commands.train_unet import TrainUNetOptions, run

    np.savez(folder / "images.npz", np.random.default_rng(0).integers(0, 256, (9, 1, 8, 8), dtype=np.uint8))
    unet = {"block_out_channels": [8], "norm_num_groups": 4, "layers_per_block": 1}
    unet |= {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
    few = {"steps": 2, "batch_size": 2, "scheduler": {"num_train_timesteps": 50}}
    run(TrainUNetOptions(str(folder / "images.npz"), out=folder / "model", unet=unet, **few))
    return read_model(folder)


def read_config(folder: Path) -> str:
    from diffusion_var.app.compare.options import CompareOptions
    from diffusion_var.app.config import load_options

    options = load_options(CompareOptions, {}, folder / "compare.yaml")
    return digest(options.count, options.seeds, options.methods)


@artefact(read_config)
def write_config(folder: Path) -> str:
    content = "out: here\ncount: 7\nseeds: [3]\nmethods:\n  - {covariance: analytic, structure: dct, eta: 0.5}\n"
    (folder / "compare.yaml").write_text(content)
    return read_config(folder)


def read_all(folder: Path) -> dict[str, str]:
    """What every artefact in a folder says, or why it cannot be read."""
    found = {}
    for name, (_, read) in ARTEFACTS.items():
        receiver, sender = os.pipe()
        if os.fork() == 0:
            try:
                said = read(folder / name)
            except BaseException:
                said = traceback.format_exc()
            os.write(sender, said.encode()[-4000:])
            os._exit(0)
        os.close(sender)
        with os.fdopen(receiver, "rb") as pipe:
            found[name] = pipe.read().decode()
        os.wait()
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    _ = diffusers.DDPMPipeline, diffusers.LDMPipeline  # imported once, and not in every fork
    mine = [name for name in sys.modules if name.startswith("diffusion_var.")]
    assert mine == ["diffusion_var.lazy"], mine
    for folder in sys.argv[1:]:
        # At once: the next folder's forks must not inherit a line that is still to be written.
        print(json.dumps(read_all(Path(folder))), flush=True)
