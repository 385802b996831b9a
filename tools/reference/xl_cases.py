"""Cases of Stable Diffusion XL, and how diffusers generates one batch element of them."""

import diffusers
import numpy as np
import torch
from PIL import Image

from image_cases import element, short
from text_to_image_cases import CAT, CITY, SEA, UGLY, new_scheduler

SCHEDULERS = (
    "EulerDiscreteScheduler",
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "UniPCMultistepScheduler",
    "HeunDiscreteScheduler",
)
IMAGE = "waves-72x48"
SIZES = {"original_size": [96, 80], "crops_coords_top_left": [8, 16], "target_size": [64, 72]}
NEGATIVE_SIZES = {
    "negative_original_size": [32, 48],
    "negative_crops_coords_top_left": [4, 2],
    "negative_target_size": [128, 64],
}


def text_to_image():
    number = 0
    for scheduler in SCHEDULERS:
        for guidance_scale in (5.0, 1.0):
            for negative, (height, width) in ((None, (64, 64)), (UGLY, (72, 48))):
                yield (
                    f"{short(scheduler)}-guidance{guidance_scale}-{'negative' if negative else 'zeros'}",
                    [
                        element(
                            (CAT, SEA, CITY)[number % 3],
                            negative,
                            scheduler=scheduler,
                            guidance_scale=guidance_scale,
                            height=height,
                            width=width,
                            num_inference_steps=3 + number % 3,
                            seed=7000 + number,
                        )
                    ],
                )
                number += 1
    steps = {"num_inference_steps": 4}
    yield "default", [element(CAT, seed=1)]
    yield "empty-negative", [element(CAT, "", seed=2, **steps)]
    yield "rescaled", [element(SEA, UGLY, seed=3, guidance_rescale=0.7, **steps)]
    yield "prompt-2", [element(CAT, UGLY, seed=4, prompt_2=SEA, negative_prompt_2=CITY, **steps)]
    yield "prompt-2-alone", [element(CAT, seed=5, prompt_2=SEA, **steps)]
    yield "sizes", [element(CITY, UGLY, seed=6, **SIZES, **steps)]
    yield "negative-sizes", [element(CITY, UGLY, seed=7, **SIZES, **NEGATIVE_SIZES, **steps)]
    yield "negative-sizes-alone", [element(CITY, UGLY, seed=8, negative_original_size=[32, 48], **steps)]
    yield "clip-skip", [element(CITY, UGLY, seed=9, clip_skip=1, **steps)]
    yield "three-images", [element(CITY, UGLY, seed=10, num_images_per_prompt=3, **steps)]
    yield "timesteps", [element(CITY, seed=11, timesteps=[999, 700, 300, 20])]
    yield (
        "elements",
        [
            element(CAT, UGLY, seed=12, num_inference_steps=3, **SIZES),
            element(SEA, seed=13, num_inference_steps=5, scheduler="DDIMScheduler", prompt_2=CITY),
            element(CITY, UGLY, seed=14, num_inference_steps=4, guidance_scale=1.0),
        ],
    )


def image_to_image():
    for number, strength in enumerate((0.3, 0.8, 1.0)):
        for guidance_scale in (5.0, 1.0):
            yield (
                f"image-strength{strength}-guidance{guidance_scale}",
                [
                    element(
                        (CAT, SEA, CITY)[number],
                        UGLY if number else None,
                        image=IMAGE if number % 2 else "waves-53x83",
                        strength=strength,
                        guidance_scale=guidance_scale,
                        num_inference_steps=5,
                        seed=7100 + number,
                    )
                ],
            )
    pair = dict(image=IMAGE, num_inference_steps=4, strength=0.8)
    yield "image-default", [element(CAT, image=IMAGE, seed=20)]
    yield "image-sizes", [element(CAT, UGLY, seed=21, **SIZES, **pair)]
    yield "image-negative-sizes", [element(CAT, UGLY, seed=22, **SIZES, **NEGATIVE_SIZES, **pair)]
    yield "image-two", [element(CAT, UGLY, seed=23, num_images_per_prompt=2, **pair)]
    yield "image-ddim", [element(CAT, UGLY, seed=24, scheduler="DDIMScheduler", prompt_2=SEA, **pair)]


def inpaint():
    for number, strength in enumerate((0.5, 0.9999, 1.0)):
        for mask, size in (("spot-72x48", {"height": 48, "width": 72}), ("soft-72x48", {})):
            yield (
                f"mask-{mask.split('-')[0]}-strength{strength}",
                [
                    element(
                        (CAT, SEA, CITY)[number],
                        UGLY if number else None,
                        image=IMAGE,
                        mask_image=mask,
                        strength=strength,
                        keep_unmasked=False,
                        num_inference_steps=4,
                        seed=7200 + number,
                        **size,
                    )
                ],
            )
    masked = dict(image=IMAGE, mask_image="soft-72x48", keep_unmasked=False, num_inference_steps=4)
    yield "mask-sizes", [element(CAT, UGLY, seed=30, **SIZES, **masked)]
    yield "mask-two", [element(CAT, UGLY, seed=31, num_images_per_prompt=2, **masked)]
    yield "mask-dpm", [element(CAT, seed=32, scheduler="DPMSolverMultistepScheduler", guidance_scale=1.0, **masked)]


def cases():
    """Returns every case as plain data."""
    made = [("sdxl_base", case) for case in (*text_to_image(), *image_to_image(), *inpaint())]
    made += [("sdxl_inpaint", case) for case in inpaint()]
    return [
        {"name": f"{checkpoint}/{name}", "checkpoint": checkpoint, "elements": elements}
        for checkpoint, (name, elements) in made
    ]


def pipeline_class(one):
    if one["mask_image"]:
        return diffusers.StableDiffusionXLInpaintPipeline
    return diffusers.StableDiffusionXLImg2ImgPipeline if one["image"] else diffusers.StableDiffusionXLPipeline


def run(pipeline, one, inputs):
    """Makes one call of diffusers; returns u8 [images, height, width, 3]."""
    arguments = dict(one["gen_args"])
    seed = arguments.pop("seed")
    arguments.pop("keep_unmasked", None)
    for name in ("image", "mask_image"):
        if one[name]:
            arguments[name] = Image.fromarray(inputs[one[name]])
    for name in (*SIZES, *NEGATIVE_SIZES):
        if name in arguments:
            arguments[name] = tuple(arguments[name])
    with new_scheduler(pipeline, arguments.pop("scheduler", None)):
        cls = pipeline_class(one)
        names = set(cls._get_signature_keys(cls)[0]) | set(cls._get_signature_keys(cls)[1])
        parts = {name: part for name, part in pipeline.components.items() if name in names}
        made = cls(**parts, add_watermarker=False)
        made.set_progress_bar_config(disable=True)
        images = made(
            prompt=one["prompt"],
            negative_prompt=one["negative_prompt"],
            generator=torch.Generator("cpu").manual_seed(seed),
            **arguments,
        ).images
    return torch.from_numpy(np.stack([np.array(image) for image in images]))
