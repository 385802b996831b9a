"""Cases of text to image, and how diffusers generates one batch element of them."""

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


def element(prompt, negative_prompt=None, **gen_args):
    """Returns a batch element as plain data."""
    return {"prompt": prompt, "negative_prompt": negative_prompt, "gen_args": gen_args}


def grid(checkpoint, guidance_scales, negatives, sizes):
    """Yields one case for each combination with each scheduler; steps, prompts and seeds vary too."""
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
                    one = element(
                        (CAT, SEA, CITY)[number % 3],
                        negative_prompt,
                        scheduler=scheduler,
                        guidance_scale=guidance_scale,
                        height=height,
                        width=width,
                        num_inference_steps=3 + number % 4,
                        seed=1000 + number,
                    )
                    yield {"name": f"{checkpoint}/{name}", "checkpoint": checkpoint, "elements": [one]}
                    number += 1


def special():
    """Yields further arguments, for sd2_base."""
    yield "default", [element(CAT, seed=7)]
    yield "default-dpm", [element(SEA, UGLY, seed=7, scheduler="DPMSolverMultistepScheduler", num_inference_steps=20)]
    yield "one-step", [element(CAT, seed=8, num_inference_steps=1, scheduler=name) for name in SCHEDULERS]
    yield (
        "elements-mixed-arguments",
        [
            element(CAT, num_inference_steps=3, guidance_scale=7.5, seed=11),
            element(SEA, UGLY, num_inference_steps=6, guidance_scale=1.0, seed=12),
            element(CITY, UGLY, num_inference_steps=4, guidance_scale=3.25, seed=13),
        ],
    )
    yield (
        "elements-mixed-schedulers",
        [
            element(text, num_inference_steps=4, seed=20 + i, scheduler=name)
            for i, (text, name) in enumerate(zip((CAT, SEA, CITY), SCHEDULERS, strict=True))
        ],
    )
    yield "elements-equal-arguments", [element(text, num_inference_steps=4, seed=31) for text in (CAT, CAT, SEA)]
    yield (
        "elements-mixed-sizes",
        [
            element(CAT, num_inference_steps=3, seed=41, height=64, width=64),
            element(CAT, num_inference_steps=3, seed=41, height=48, width=80),
            element(CAT, num_inference_steps=3, seed=41, height=8, width=8),
        ],
    )
    yield "two-images", [element(CAT, UGLY, num_inference_steps=4, num_images_per_prompt=2, seed=51)]
    yield (
        "two-images-no-guidance",
        [element(CAT, num_inference_steps=4, num_images_per_prompt=2, guidance_scale=1.0, seed=52)],
    )
    yield (
        "two-images-eta",
        [element(CAT, num_inference_steps=4, num_images_per_prompt=2, eta=0.5, scheduler="DDIMScheduler", seed=53)],
    )
    yield (
        "three-images-two-elements",
        [
            element(CAT, num_inference_steps=3, num_images_per_prompt=3, seed=54),
            element(SEA, num_inference_steps=5, num_images_per_prompt=3, seed=55, guidance_scale=0.5),
        ],
    )
    yield "eta", [element(CAT, num_inference_steps=5, eta=0.5, scheduler="DDIMScheduler", seed=61)]
    yield (
        "guidance-rescale",
        [
            element(SEA, num_inference_steps=5, guidance_rescale=0.7, scheduler="DDIMScheduler", seed=71),
            element(SEA, UGLY, num_inference_steps=4, guidance_rescale=0.7, num_images_per_prompt=2, seed=72),
        ],
    )
    yield (
        "clip-skip",
        [
            element(CAT, num_inference_steps=4, clip_skip=1, seed=81),
            element(CAT, UGLY, num_inference_steps=4, clip_skip=2, seed=81),
        ],
    )
    yield (
        "timesteps",
        [
            element(CAT, timesteps=[999, 700, 300, 100], scheduler="DPMSolverMultistepScheduler", seed=91),
        ],
    )
    yield (
        "texts",
        [
            element("", num_inference_steps=3, seed=101),
            element("!", num_inference_steps=3, seed=101),
            element(LONG, LONG, num_inference_steps=3, seed=101),
            element(
                "Caf\u00e9 \u4e00\u53ea\u732b \U0001f431 <|endoftext|> it's",
                "\u00fcber\n!",
                num_inference_steps=3,
                seed=101,
            ),
        ],
    )
    yield "large-seed", [element(CAT, num_inference_steps=3, seed=2**63 - 1)]


def shaped(checkpoint):
    """Yields some of the special cases for a checkpoint of another shape."""
    yield "default-size", [element(CAT, num_inference_steps=5, seed=111)]
    yield (
        "elements-mixed-arguments",
        [
            element(CAT, num_inference_steps=3, guidance_scale=7.5, seed=112),
            element(SEA, UGLY, num_inference_steps=5, guidance_scale=1.0, seed=113),
            element(CITY, UGLY, num_inference_steps=4, guidance_scale=3.0, seed=114),
        ],
    )
    yield "two-images", [element(SEA, num_inference_steps=4, num_images_per_prompt=2, seed=115)]
    yield (
        "eta-rescale-clip-skip",
        [
            element(
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
    """Yields cases with a safety checker, which flags some of the images."""
    # With these seeds, every score is at least 0.028 from its threshold (tiny_safety.margin),
    # more than the adjustment of 0.01. The second image is near a special care concept, but near no other concept.
    yield "kept", [element(SEA, num_inference_steps=4, seed=127), element(SEA, num_inference_steps=4, seed=124)]
    yield "flagged", [element(CAT, num_inference_steps=4, seed=126)]
    yield "one-of-two-images", [element(CAT, num_inference_steps=4, seed=129, num_images_per_prompt=2)]
    yield (
        "one-of-two-elements",
        [element(CAT, num_inference_steps=4, seed=126), element(CITY, num_inference_steps=4, seed=122)],
    )
    yield "portrait", [element(CITY, num_inference_steps=4, seed=seed, height=72, width=48) for seed in (135, 138)]


def weighted():
    """Yields weighted prompts. Those of the first case have 77 to 231 tokens and do not share a UNet call."""
    syntax = dict(prompt_syntax="weighted", num_inference_steps=3)
    long = "a (detailed:1.4) painting of a [castle] above the clouds, " * 10
    yield (
        "sd2_base",
        "weighted-lengths",
        [
            element("a (red:1.4) cat on a [blue] (chair)", **syntax, seed=121),
            element(long, **syntax, seed=121),
            element("a (red:1.4) cat on a [blue] (chair)", "(blurry:1.3)", **syntax, seed=122),
            element(CAT, UGLY, num_inference_steps=3, seed=122),
            element("a cat", long * 3, **syntax, seed=121),
            element("a cat", long * 3, **syntax, seed=121, guidance_scale=1.0),
        ],
    )
    yield (
        "sd2_base",
        "weighted-two-images",
        [
            element("a ((stormy:1.2) sea at night", long, **syntax, seed=123, num_images_per_prompt=2),
        ],
    )
    yield (
        "sd1",
        "weighted-clip-skip",
        [
            element("a (red:1.4) cat, ((wow)) \\(4k\\)", "(blurry), low quality", **syntax, seed=124, clip_skip=1),
        ],
    )


def distilled():
    """Yields a few steps with the schedulers of the folders `lcm` and `sd_turbo`."""
    yield "lcm", "default", [element(CAT, seed=131), element(SEA, seed=132, guidance_scale=1.0)]
    yield (
        "lcm",
        "steps",
        [
            element(CAT, num_inference_steps=steps, guidance_scale=scale, seed=133)
            for steps, scale in ((1, 8.0), (2, 8.0), (3, 1.0), (4, 0.0))
        ],
    )
    yield (
        "lcm",
        "two-images",
        [
            element(
                CITY, num_inference_steps=3, guidance_scale=8.0, num_images_per_prompt=2, height=72, width=48, seed=134
            )
        ],
    )
    yield (
        "sd_turbo",
        "steps",
        [element(CAT, num_inference_steps=steps, guidance_scale=0.0, seed=136) for steps in (1, 2, 3, 4)],
    )
    yield (
        "sd_turbo",
        "guidance",
        [
            element(SEA, num_inference_steps=2, guidance_scale=1.0, seed=137),
            element(SEA, UGLY, num_inference_steps=3, guidance_scale=7.5, seed=137),
        ],
    )
    yield (
        "sd_turbo",
        "two-images",
        [
            element(
                CITY, num_inference_steps=2, guidance_scale=0.0, num_images_per_prompt=2, height=72, width=48, seed=137
            )
        ],
    )


def named(cases):
    return [
        {"name": f"{checkpoint}/{name}", "checkpoint": checkpoint, "elements": elements}
        for checkpoint, name, elements in cases
    ]


def cases():
    """Returns every case as plain data."""
    made = list(grid("sd2_base", (7.5, 1.0), (None, UGLY), ((64, 64), (72, 48))))
    made += [
        {"name": f"sd2_base/{name}", "checkpoint": "sd2_base", "elements": elements} for name, elements in special()
    ]
    for checkpoint in ("sd1", "sd2_768v"):
        made += grid(checkpoint, (7.5, 1.0), (UGLY,), ((72, 48),))
        made += [
            {"name": f"{checkpoint}/{name}", "checkpoint": checkpoint, "elements": elements}
            for name, elements in shaped(checkpoint)
        ]
    made += [
        {"name": f"sd1_safety/{name}", "checkpoint": "sd1_safety", "elements": elements} for name, elements in checked()
    ]
    return made + named(weighted()) + named(distilled())


def encoded(pipeline, one, arguments):
    """Returns the prompts for diffusers: as text, or as embeddings if diffusers does not have the syntax.

    Removes the arguments of the encoding from `arguments`.
    """
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
def new_scheduler(pipeline, name):
    """Gives the pipeline a new scheduler of a class, by default the same class, with the checkpoint's configuration.

    A scheduler keeps state between calls, so each call needs a new one.
    """
    saved = pipeline.scheduler
    pipeline.scheduler = (getattr(diffusers, name) if name else type(saved)).from_config(saved.config)
    try:
        yield
    finally:
        pipeline.scheduler = saved


def run(pipeline, one):
    """Makes one call of diffusers; returns u8 [images, height, width, 3], and the safety checker's flags or None."""
    arguments = dict(one["gen_args"])
    seed = arguments.pop("seed")
    prompts = encoded(pipeline, one, arguments)
    with new_scheduler(pipeline, arguments.pop("scheduler", None)):
        made = pipeline(
            **prompts,
            generator=torch.Generator("cpu").manual_seed(seed),
            **arguments,
        )
    return torch.from_numpy(np.stack([np.array(image) for image in made.images])), made.nsfw_content_detected
