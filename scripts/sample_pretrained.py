"""Sample inside a diffusers pipeline with a measured variance: three lines of it are this package's.

    python scripts/sample_pretrained.py path/to/pipeline --table table.safetensors -o samples --steps 25 --eta 1
    python scripts/sample_pretrained.py stable-diffusion-v1-5/stable-diffusion-v1-5 --table owner/table -o samples \\
        --prompt "a lighthouse at dusk" --guidance-scale 7.5
    python scripts/sample_pretrained.py facebook/DiT-XL-2-256 --table table.safetensors -o samples --classes 207 360

The table is a file of `diffusion-var estimate`, or a hub repository that `table.push_to_hub` made. It belongs to one
model and one guidance scale. Without --table the pipeline keeps its own scheduler, to compare with.
"""

import argparse
import inspect
from pathlib import Path

import diffusion_var as dv


def main(options: argparse.Namespace) -> None:
    import torch
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    if options.out.exists():
        raise dv.InputError(f"the output {options.out} exists already; choose another name.")
    if not options.out.parent.is_dir():
        raise dv.InputError(f"the folder {options.out.parent} does not exist; make it first, or choose another.")

    pipe = DiffusionPipeline.from_pretrained(options.model, variant=options.variant, use_safetensors=True)
    pipe = pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    if options.table is not None:
        file = Path(options.table)
        table = dv.VarianceTable.load(file) if file.is_file() else dv.VarianceTable.from_hub(options.table)
        if options.guidance_scale not in (None, table.guidance_scale):
            raise dv.InputError(
                f"the table was measured at guidance scale {table.guidance_scale:g}, but sampling is asked for at "
                f"{options.guidance_scale:g}; leave out --guidance-scale, or measure another table."
            )
        options.guidance_scale = table.guidance_scale
        pipe.scheduler = dv.analytic_scheduler(table, pipe, structure=options.structure, eta=options.eta)
        # For the noise of pipelines that keep their generator to themselves (LDM, DiT and most flow pipelines).
        pipe.scheduler.generator = torch.Generator().manual_seed(options.seed)

    # A generator per image: in the other pipelines, image i of a seed does not depend on how many are made.
    count = len(options.classes) if options.classes else options.count
    generators = [torch.Generator().manual_seed(options.seed + i) for i in range(count)]
    call: dict[str, object] = {"num_inference_steps": options.steps, "generator": generators}
    if options.guidance_scale is not None and "guidance_scale" in inspect.signature(pipe.__call__).parameters:
        call["guidance_scale"] = options.guidance_scale
    if options.prompt is not None:
        call |= {"prompt": options.prompt, "num_images_per_prompt": count}
    elif options.classes:
        call["class_labels"] = options.classes
    else:
        call["batch_size"] = count
    images = pipe(**call).images

    folder = options.out
    folder.mkdir()
    for i, image in enumerate(images):
        image.save(folder / f"{i:06d}.png")
    print(f"written: {len(images)} images in {folder}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="diffusers pipeline folder, or hub id")
    parser.add_argument("-o", "--out", type=Path, required=True, help="a new folder for PNG files")
    parser.add_argument("--table", help="variance table: a file, or a hub id; none: the pipeline's own scheduler")
    parser.add_argument("--structure", choices=["isotropic", "channel", "pixel", "dct"], default="isotropic")
    parser.add_argument("--eta", type=float, default=1.0, help="1 is DDPM, 0 is DDIM")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--count", type=int, default=4, help="number of images")
    parser.add_argument("--prompt", help="for text-to-image pipelines")
    parser.add_argument("--classes", type=int, nargs="+", help="class labels, for DiT")
    parser.add_argument("--guidance-scale", type=float, help="by default the table's, or else the pipeline's own")
    parser.add_argument("--variant", help="of the weight files, e.g. fp16")
    parser.add_argument("--seed", type=int, default=0)
    try:
        main(parser.parse_args())
    except (dv.InputError, dv.NumericalError) as error:
        parser.exit(2, f"error: {error}\n")
