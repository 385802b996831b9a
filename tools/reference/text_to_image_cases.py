"""Requests whose pictures are recorded, and how diffusers answers one row of them."""

import contextlib

import diffusers
import numpy as np
import torch

import weighted_cases
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
    yield (
        "rows-mixed-arguments",
        [
            row(CAT, num_inference_steps=3, guidance_scale=7.5, seed=11),
            row(SEA, UGLY, num_inference_steps=6, guidance_scale=1.0, seed=12),
            row(CITY, UGLY, num_inference_steps=4, guidance_scale=3.25, seed=13),
        ],
    )
    yield (
        "rows-mixed-schedulers",
        [
            row(text, num_inference_steps=4, seed=20 + i, scheduler=name)
            for i, (text, name) in enumerate(zip((CAT, SEA, CITY), SCHEDULERS, strict=True))
        ],
    )
    yield "rows-equal-arguments", [row(text, num_inference_steps=4, seed=31) for text in (CAT, CAT, SEA)]
    yield (
        "rows-mixed-sizes",
        [
            row(CAT, num_inference_steps=3, seed=41, height=64, width=64),
            row(CAT, num_inference_steps=3, seed=41, height=48, width=80),
            row(CAT, num_inference_steps=3, seed=41, height=8, width=8),
        ],
    )
    yield "two-images", [row(CAT, UGLY, num_inference_steps=4, num_images_per_prompt=2, seed=51)]
    yield (
        "two-images-no-guidance",
        [row(CAT, num_inference_steps=4, num_images_per_prompt=2, guidance_scale=1.0, seed=52)],
    )
    yield (
        "two-images-eta",
        [row(CAT, num_inference_steps=4, num_images_per_prompt=2, eta=0.5, scheduler="DDIMScheduler", seed=53)],
    )
    yield (
        "three-images-two-rows",
        [
            row(CAT, num_inference_steps=3, num_images_per_prompt=3, seed=54),
            row(SEA, num_inference_steps=5, num_images_per_prompt=3, seed=55, guidance_scale=0.5),
        ],
    )
    yield "eta", [row(CAT, num_inference_steps=5, eta=0.5, scheduler="DDIMScheduler", seed=61)]
    yield (
        "guidance-rescale",
        [
            row(SEA, num_inference_steps=5, guidance_rescale=0.7, scheduler="DDIMScheduler", seed=71),
            row(SEA, UGLY, num_inference_steps=4, guidance_rescale=0.7, num_images_per_prompt=2, seed=72),
        ],
    )
    yield (
        "clip-skip",
        [
            row(CAT, num_inference_steps=4, clip_skip=1, seed=81),
            row(CAT, UGLY, num_inference_steps=4, clip_skip=2, seed=81),
        ],
    )
    yield (
        "timesteps",
        [
            row(CAT, timesteps=[999, 700, 300, 100], scheduler="DPMSolverMultistepScheduler", seed=91),
        ],
    )
    yield (
        "texts",
        [
            row("", num_inference_steps=3, seed=101),
            row("!", num_inference_steps=3, seed=101),
            row(LONG, LONG, num_inference_steps=3, seed=101),
            row(
                "Caf\u00e9 \u4e00\u53ea\u732b \U0001f431 <|endoftext|> it's",
                "\u00fcber\n!",
                num_inference_steps=3,
                seed=101,
            ),
        ],
    )
    yield "large-seed", [row(CAT, num_inference_steps=3, seed=2**63 - 1)]


def shaped(checkpoint):
    """A few of the special cases on a checkpoint of another shape."""
    yield "default-size", [row(CAT, num_inference_steps=5, seed=111)]
    yield (
        "rows-mixed-arguments",
        [
            row(CAT, num_inference_steps=3, guidance_scale=7.5, seed=112),
            row(SEA, UGLY, num_inference_steps=5, guidance_scale=1.0, seed=113),
            row(CITY, UGLY, num_inference_steps=4, guidance_scale=3.0, seed=114),
        ],
    )
    yield "two-images", [row(SEA, num_inference_steps=4, num_images_per_prompt=2, seed=115)]
    yield (
        "eta-rescale-clip-skip",
        [
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
        ],
    )


def checked():
    """Pictures that go through a safety checker, some of which it flags."""
    # The seeds were looked for: every score is at least 0.028 from its edge (tiny_safety.margin), where the whole adjustment
    # is 0.01. The second picture is near to a special care concept, and yet to no other.
    yield "kept", [row(SEA, num_inference_steps=4, seed=127), row(SEA, num_inference_steps=4, seed=124)]
    yield "flagged", [row(CAT, num_inference_steps=4, seed=126)]
    yield "one-of-two-images", [row(CAT, num_inference_steps=4, seed=129, num_images_per_prompt=2)]
    yield "one-of-two-rows", [row(CAT, num_inference_steps=4, seed=126), row(CITY, num_inference_steps=4, seed=122)]
    yield "portrait", [row(CITY, num_inference_steps=4, seed=seed, height=72, width=48) for seed in (135, 138)]


def weighted():
    """Prompts of the weighted syntax. Those of the first case do not share a UNet call: they have 77 to 231 tokens."""
    syntax = dict(prompt_syntax="weighted", num_inference_steps=3)
    long = "a (detailed:1.4) painting of a [castle] above the clouds, " * 10
    yield (
        "sd2_base",
        "weighted-lengths",
        [
            row("a (red:1.4) cat on a [blue] (chair)", **syntax, seed=121),
            row(long, **syntax, seed=121),
            row("a (red:1.4) cat on a [blue] (chair)", "(blurry:1.3)", **syntax, seed=122),
            row(CAT, UGLY, num_inference_steps=3, seed=122),
            row("a cat", long * 3, **syntax, seed=121),
            row("a cat", long * 3, **syntax, seed=121, guidance_scale=1.0),
        ],
    )
    yield (
        "sd2_base",
        "weighted-two-images",
        [
            row("a ((stormy:1.2) sea at night", long, **syntax, seed=123, num_images_per_prompt=2),
        ],
    )
    yield (
        "sd1",
        "weighted-clip-skip",
        [
            row("a (red:1.4) cat, ((wow)) \\(4k\\)", "(blurry), low quality", **syntax, seed=124, clip_skip=1),
        ],
    )


def distilled():
    """A few steps with the schedulers of the `lcm` and `sd_turbo` folders."""
    yield "lcm", "default", [row(CAT, seed=131), row(SEA, seed=132, guidance_scale=1.0)]
    yield (
        "lcm",
        "steps",
        [
            row(CAT, num_inference_steps=steps, guidance_scale=scale, seed=133)
            for steps, scale in ((1, 8.0), (2, 8.0), (3, 1.0), (4, 0.0))
        ],
    )
    yield (
        "lcm",
        "two-images",
        [row(CITY, num_inference_steps=3, guidance_scale=8.0, num_images_per_prompt=2, height=72, width=48, seed=134)],
    )
    yield (
        "sd_turbo",
        "steps",
        [row(CAT, num_inference_steps=steps, guidance_scale=0.0, seed=136) for steps in (1, 2, 3, 4)],
    )
    yield (
        "sd_turbo",
        "guidance",
        [
            row(SEA, num_inference_steps=2, guidance_scale=1.0, seed=137),
            row(SEA, UGLY, num_inference_steps=3, guidance_scale=7.5, seed=137),
        ],
    )
    yield (
        "sd_turbo",
        "two-images",
        [row(CITY, num_inference_steps=2, guidance_scale=0.0, num_images_per_prompt=2, height=72, width=48, seed=137)],
    )


def named(cases):
    return [
        {"name": f"{checkpoint}/{name}", "checkpoint": checkpoint, "rows": rows} for checkpoint, name, rows in cases
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
    made += [{"name": f"sd1_safety/{name}", "checkpoint": "sd1_safety", "rows": rows} for name, rows in checked()]
    return made + named(weighted()) + named(distilled())


def encoded(pipeline, one, arguments):
    """The row's prompts as diffusers takes them: as text, or as embeddings if their syntax is not its own. Takes the
    arguments that are for the encoding alone out of `arguments`."""
    prompt, negative_prompt = one["prompt"], one["negative_prompt"]
    if arguments.pop("prompt_syntax", "plain") == "plain":
        return {"prompt": prompt, "negative_prompt": negative_prompt}
    if arguments.get("guidance_scale", 7.5) <= 1:
        negative_prompt = None
    elif negative_prompt is None:
        negative_prompt = ""
    prompt_embeds, negative_prompt_embeds, _ = weighted_cases.encode(
        pipeline, prompt, negative_prompt, arguments.pop("clip_skip", None)
    )
    return {"prompt_embeds": prompt_embeds, "negative_prompt_embeds": negative_prompt_embeds}


@contextlib.contextmanager
def own_scheduler(pipeline, name):
    """Gives the pipeline a fresh scheduler of that class, or of its own, made from the checkpoint's configuration.

    A scheduler keeps state between calls, so each call needs its own.
    """
    own = pipeline.scheduler
    pipeline.scheduler = (getattr(diffusers, name) if name else type(own)).from_config(own.config)
    try:
        yield
    finally:
        pipeline.scheduler = own


def run(pipeline, one):
    """One diffusers call; returns u8 [images, height, width, 3] and, with a safety checker, which images it flagged."""
    arguments = dict(one["gen_args"])
    seed = arguments.pop("seed")
    prompts = encoded(pipeline, one, arguments)
    with own_scheduler(pipeline, arguments.pop("scheduler", None)):
        made = pipeline(
            **prompts,
            generator=torch.Generator("cpu").manual_seed(seed),
            **arguments,
        )
    return torch.from_numpy(np.stack([np.array(image) for image in made.images])), made.nsfw_content_detected
