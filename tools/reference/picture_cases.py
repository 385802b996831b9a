"""Requests whose pictures are recorded, and how diffusers answers one row of them."""

import diffusers
import numpy as np
import torch

from text_cases import LONG

SCHEDULERS = ("DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler")

CAT = "a photo of a cat sitting on a red chair"
SEA = "an oil painting of a stormy sea at night, highly detailed"
CITY = "the city skyline at sunset, wow! 4k!!"
UGLY = "blurry, low quality, text"


def row(prompt, negative_prompt=None, **gen_args):
    return {"prompt": prompt, "negative_prompt": negative_prompt, "gen_args": gen_args}


def grid(checkpoint, guidance_scales, negatives, sizes):
    """One case for each combination with each scheduler; step counts, prompts and seeds vary along."""
    number = 0
    for scheduler in SCHEDULERS:
        for guidance_scale in guidance_scales:
            for negative_prompt in negatives:
                for height, width in sizes:
                    name = "-".join(
                        [
                            scheduler.removesuffix("Scheduler").lower(),
                            f"guidance{guidance_scale}",
                            "negative" if negative_prompt else "plain",
                            f"{height}x{width}",
                        ]
                    )
                    one = row(
                        (CAT, SEA, CITY)[number % 3],
                        negative_prompt,
                        scheduler=scheduler,
                        guidance_scale=guidance_scale,
                        height=height,
                        width=width,
                        num_inference_steps=3 + number % 4,
                        seed=1000 + number,
                    )
                    yield {"name": f"{checkpoint}/{name}", "checkpoint": checkpoint, "rows": [one]}
                    number += 1


def special():
    """Arguments beyond the grid, on sd2_base."""
    yield "default", [row(CAT, seed=7)]
    yield "default-dpm", [row(SEA, UGLY, seed=7, scheduler="DPMSolverMultistepScheduler", num_inference_steps=20)]
    yield "one-step", [row(CAT, seed=8, num_inference_steps=1, scheduler=name) for name in SCHEDULERS]
    yield "rows-mixed-arguments", [
        row(CAT, num_inference_steps=3, guidance_scale=7.5, seed=11),
        row(SEA, UGLY, num_inference_steps=6, guidance_scale=1.0, seed=12),
        row(CITY, UGLY, num_inference_steps=4, guidance_scale=3.25, seed=13),
    ]
    yield "rows-mixed-schedulers", [
        row(text, num_inference_steps=4, seed=20 + i, scheduler=name)
        for i, (text, name) in enumerate(zip((CAT, SEA, CITY), SCHEDULERS))
    ]
    yield "rows-equal-arguments", [row(text, num_inference_steps=4, seed=31) for text in (CAT, CAT, SEA)]
    yield "rows-mixed-sizes", [
        row(CAT, num_inference_steps=3, seed=41, height=64, width=64),
        row(CAT, num_inference_steps=3, seed=41, height=48, width=80),
        row(CAT, num_inference_steps=3, seed=41, height=8, width=8),
    ]
    yield "two-images", [row(CAT, UGLY, num_inference_steps=4, num_images_per_prompt=2, seed=51)]
    yield "two-images-no-guidance", [
        row(CAT, num_inference_steps=4, num_images_per_prompt=2, guidance_scale=1.0, seed=52)
    ]
    yield "two-images-eta", [
        row(CAT, num_inference_steps=4, num_images_per_prompt=2, eta=0.5, scheduler="DDIMScheduler", seed=53)
    ]
    yield "three-images-two-rows", [
        row(CAT, num_inference_steps=3, num_images_per_prompt=3, seed=54),
        row(SEA, num_inference_steps=5, num_images_per_prompt=3, seed=55, guidance_scale=0.5),
    ]
    yield "eta", [row(CAT, num_inference_steps=5, eta=0.5, scheduler="DDIMScheduler", seed=61)]
    yield "guidance-rescale", [
        row(SEA, num_inference_steps=5, guidance_rescale=0.7, scheduler="DDIMScheduler", seed=71),
        row(SEA, UGLY, num_inference_steps=4, guidance_rescale=0.7, num_images_per_prompt=2, seed=72),
    ]
    yield "clip-skip", [
        row(CAT, num_inference_steps=4, clip_skip=1, seed=81),
        row(CAT, UGLY, num_inference_steps=4, clip_skip=2, seed=81),
    ]
    yield "timesteps", [
        row(CAT, timesteps=[999, 700, 300, 100], scheduler="DPMSolverMultistepScheduler", seed=91),
    ]
    yield "texts", [
        row("", num_inference_steps=3, seed=101),
        row("!", num_inference_steps=3, seed=101),
        row(LONG, LONG, num_inference_steps=3, seed=101),
        row("Caf\u00e9 \u4e00\u53ea\u732b \U0001f431 <|endoftext|> it's", "\u00fcber\n!", num_inference_steps=3, seed=101),
    ]
    yield "large-seed", [row(CAT, num_inference_steps=3, seed=2**63 - 1)]


def shaped(checkpoint):
    """A few of the special cases on a checkpoint of another shape."""
    yield "default-size", [row(CAT, num_inference_steps=5, seed=111)]
    yield "rows-mixed-arguments", [
        row(CAT, num_inference_steps=3, guidance_scale=7.5, seed=112),
        row(SEA, UGLY, num_inference_steps=5, guidance_scale=1.0, seed=113),
        row(CITY, UGLY, num_inference_steps=4, guidance_scale=3.0, seed=114),
    ]
    yield "two-images", [row(SEA, num_inference_steps=4, num_images_per_prompt=2, seed=115)]
    yield "eta-rescale-clip-skip", [
        row(
            CAT,
            UGLY,
            num_inference_steps=4,
            eta=0.5,
            guidance_rescale=0.7,
            clip_skip=1,
            scheduler="DDIMScheduler",
            seed=116,
        )
    ]


def cases():
    """Every case as plain data."""
    made = list(grid("sd2_base", (7.5, 1.0), (None, UGLY), ((64, 64), (72, 48))))
    made += [{"name": f"sd2_base/{name}", "checkpoint": "sd2_base", "rows": rows} for name, rows in special()]
    for checkpoint in ("sd1", "sd2_768v"):
        made += grid(checkpoint, (7.5, 1.0), (UGLY,), ((72, 48),))
        made += [
            {"name": f"{checkpoint}/{name}", "checkpoint": checkpoint, "rows": rows}
            for name, rows in shaped(checkpoint)
        ]
    return made


def run(pipeline, one):
    """One diffusers call; returns u8 [images, height, width, 3]."""
    arguments = dict(one["gen_args"])
    own = pipeline.scheduler
    scheduler, seed = arguments.pop("scheduler", None), arguments.pop("seed")
    # A scheduler keeps state between calls, so each call gets its own, made from the checkpoint's configuration.
    pipeline.scheduler = (getattr(diffusers, scheduler) if scheduler else type(own)).from_config(own.config)
    try:
        images = pipeline(
            prompt=one["prompt"],
            negative_prompt=one["negative_prompt"],
            generator=torch.Generator("cpu").manual_seed(seed),
            **arguments,
        ).images
    finally:
        pipeline.scheduler = own
    return torch.from_numpy(np.stack([np.array(image) for image in images]))
