"""Cases with input images, and how diffusers generates their results.

Formulas make the input images; the goldens contain them too.
"""

import diffusers
import numpy as np
import torch
from PIL import Image

from text_to_image_cases import CAT, CITY, SCHEDULERS, SEA, UGLY, new_scheduler

# Width and height of the input images. None is a multiple of 64, some are not even a multiple of 8.
SIZES = ((72, 48), (53, 83))


def waves(width, height, phase=0.0):
    """Makes a smooth RGB image that contains all values."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    channels = [np.sin(x * (0.11 + 0.05 * c) + phase) + np.cos(y * (0.13 - 0.03 * c) + c + phase) for c in range(3)]
    return ((np.stack(channels, axis=-1) + 2) / 4 * 255).round().astype(np.uint8)


def spot(width, height, soft=False):
    """Makes a mask: a white ellipse, not centered, with a hard or a soft edge."""
    x, y = np.meshgrid(np.arange(width) / width, np.arange(height) / height)
    distance = np.hypot((x - 0.6) / 0.3, (y - 0.45) / 0.35)
    value = np.clip((1.5 - distance) if soft else (distance < 1), 0, 1)
    return (value * 255).round().astype(np.uint8)


def slope(width, height):
    """Makes a depth map of 8 bits."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return ((x * 2 + y * 3) % 256).astype(np.uint8)


def inputs():
    """Returns every image that a case names."""
    made = {f"waves-{width}x{height}": waves(width, height) for width, height in SIZES}
    made["waves-40x40"] = waves(40, 40, 1.0)
    made["waves-96x64"] = waves(96, 64, 2.0)
    made["waves-20x28"] = waves(20, 28, 0.5)
    made["waves-27x18"] = waves(27, 18, 1.5)
    made |= {f"spot-{width}x{height}": spot(width, height) for width, height in SIZES}
    made["soft-72x48"] = spot(72, 48, soft=True)
    made["small-96x64"] = np.pad(spot(24, 20), ((30, 14), (50, 22)))
    made["slope-30x44"] = slope(30, 44)
    return made


def element(prompt, negative_prompt=None, image=None, mask_image=None, depth_map=None, **gen_args):
    """Returns a batch element as plain data."""
    return {
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "image": image,
        "mask_image": mask_image,
        "depth_map": depth_map,
        "gen_args": gen_args,
    }


def short(scheduler):
    return scheduler.removesuffix("Scheduler").lower()


def strengths(checkpoint, **more):
    """Yields a grid over scheduler, guidance, size and strength; steps, prompts and seeds vary too."""
    number = 0
    for scheduler in SCHEDULERS:
        for guidance_scale in (7.5, 1.0):
            for width, height in SIZES:
                for strength in (0.3, 0.8, 1.0):
                    masked = {"mask_image": f"spot-{width}x{height}"} if more.get("masked") else {}
                    sized = {"height": 56, "width": 72} if masked and number % 3 else {}
                    one = element(
                        (CAT, SEA, CITY)[number % 3],
                        UGLY if number % 2 else None,
                        image=f"waves-{width}x{height}",
                        scheduler=scheduler,
                        guidance_scale=guidance_scale,
                        num_inference_steps=4 + number % 3,
                        strength=strength,
                        seed=2000 + number,
                        **masked,
                        **sized,
                        **({"keep_unmasked": False} if masked else {}),
                    )
                    name = f"{short(scheduler)}-guidance{guidance_scale}-{width}x{height}-strength{strength}"
                    yield f"{checkpoint}/{name}", checkpoint, [one]
                    number += 1


def image_to_image():
    yield from strengths("sd2_base")
    image = "waves-72x48"
    yield (
        "sd2_base/elements",
        "sd2_base",
        [
            element(CAT, UGLY, image=image, num_inference_steps=5, strength=0.5, seed=1),
            element(SEA, image="waves-40x40", num_inference_steps=7, strength=0.9, seed=2, guidance_scale=1.0),
            element(CITY, image=image, num_inference_steps=4, seed=3, scheduler="DDIMScheduler", eta=0.6),
        ],
    )
    yield (
        "sd2_base/two-images",
        "sd2_base",
        [element(CAT, UGLY, image=image, num_inference_steps=5, num_images_per_prompt=2, seed=4)],
    )
    yield (
        "sd2_base/timesteps",
        "sd2_base",
        [
            element(
                CAT,
                image=image,
                timesteps=[990, 750, 500, 250, 20],
                scheduler="DPMSolverMultistepScheduler",
                strength=0.7,
                clip_skip=1,
                seed=5,
            )
        ],
    )
    yield "sd1/plain", "sd1", [element(CAT, UGLY, image=image, num_inference_steps=5, seed=6)]
    yield "sd2_768v/plain", "sd2_768v", [element(CAT, UGLY, image=image, num_inference_steps=5, seed=7)]
    yield "sd2_base/default", "sd2_base", [element(SEA, image="waves-53x83", seed=8)]


def depth_to_image():
    yield from strengths("sd2_depth")
    image = "waves-72x48"
    yield (
        "sd2_depth/elements",
        "sd2_depth",
        [
            element(CAT, UGLY, image=image, num_inference_steps=5, strength=0.5, seed=11),
            element(SEA, image="waves-40x40", num_inference_steps=7, strength=0.9, seed=12, guidance_scale=1.0),
        ],
    )
    yield (
        "sd2_depth/two-images",
        "sd2_depth",
        [element(CAT, UGLY, image=image, num_inference_steps=5, num_images_per_prompt=2, seed=13)],
    )
    yield (
        "sd2_depth/own-depth-map",
        "sd2_depth",
        [element(CAT, UGLY, image=image, depth_map="slope-30x44", num_inference_steps=5, seed=14)],
    )
    yield "sd2_depth/default", "sd2_depth", [element(SEA, image="waves-53x83", seed=15)]


def inpaint():
    for checkpoint in ("sd2_inpaint", "sd2_base"):
        yield from strengths(checkpoint, masked=True)
        pair = dict(image="waves-72x48", mask_image="soft-72x48", keep_unmasked=False, height=48, width=72)
        yield (
            f"{checkpoint}/elements",
            checkpoint,
            [
                element(CAT, UGLY, num_inference_steps=5, strength=0.5, seed=21, **pair),
                element(SEA, num_inference_steps=3, seed=22, guidance_scale=1.0, **pair),
            ],
        )
        yield (
            f"{checkpoint}/two-images",
            checkpoint,
            [element(CAT, UGLY, num_inference_steps=4, num_images_per_prompt=2, strength=0.8, seed=23, **pair)],
        )
        yield (
            f"{checkpoint}/eta",
            checkpoint,
            [element(CAT, scheduler="DDIMScheduler", eta=0.7, num_inference_steps=4, strength=0.8, seed=24, **pair)],
        )
        crop = dict(image="waves-96x64", mask_image="small-96x64", keep_unmasked=False)
        for pad in (0, 8, 40):
            yield (
                f"{checkpoint}/crop-{pad}",
                checkpoint,
                [element(CITY, num_inference_steps=4, seed=25, padding_mask_crop=pad, height=64, width=64, **crop)],
            )
        yield f"{checkpoint}/default", checkpoint, [element(SEA, seed=26, **pair)]


def upscale():
    number = 0
    for scheduler in SCHEDULERS:
        for guidance_scale in (9.0, 1.0):
            for image in ("waves-20x28", "waves-27x18"):
                one = element(
                    (CAT, SEA, CITY)[number % 3],
                    UGLY if number % 2 else None,
                    image=image,
                    scheduler=scheduler,
                    guidance_scale=guidance_scale,
                    num_inference_steps=3 + number % 3,
                    noise_level=(20, 0, 350)[number % 3],
                    seed=3000 + number,
                )
                name = f"{short(scheduler)}-guidance{guidance_scale}-{image}"
                yield f"x4_upscaler/{name}", "x4_upscaler", [one]
                number += 1
    image = "waves-20x28"
    yield (
        "x4_upscaler/elements",
        "x4_upscaler",
        [
            element(CAT, UGLY, image=image, num_inference_steps=3, noise_level=100, seed=31),
            element(SEA, image=image, num_inference_steps=4, guidance_scale=1.0, seed=32),
        ],
    )
    yield (
        "x4_upscaler/two-images",
        "x4_upscaler",
        [element(CAT, UGLY, image=image, num_inference_steps=3, num_images_per_prompt=2, seed=33)],
    )


# The golden groups: the diffusers class, and the cases.
GROUPS = {
    "image_to_image": (diffusers.StableDiffusionImg2ImgPipeline, image_to_image),
    "depth_to_image": (diffusers.StableDiffusionDepth2ImgPipeline, depth_to_image),
    "inpaint": (diffusers.StableDiffusionInpaintPipeline, inpaint),
    "upscale": (diffusers.StableDiffusionUpscalePipeline, upscale),
}


def cases(group):
    """Returns every case of a group as plain data."""
    return [
        {"name": name, "checkpoint": checkpoint, "elements": elements}
        for name, checkpoint, elements in GROUPS[group][1]()
    ]


def run(group, pipeline, one, inputs):
    """Makes one call of diffusers; returns u8 [images, height, width, 3]."""
    cls = GROUPS[group][0]
    if not isinstance(pipeline, cls):
        pipeline = cls(**pipeline.components, requires_safety_checker=False)
        pipeline.set_progress_bar_config(disable=True)
    arguments = dict(one["gen_args"])
    # An argument of this backend; without it, the result is that of diffusers.
    if arguments.pop("keep_unmasked", False):
        raise SystemExit("diffusers does not keep the pixels outside the mask")
    for name in ("image", "mask_image"):
        if one[name]:
            arguments[name] = Image.fromarray(inputs[one[name]])
    if one["depth_map"]:
        arguments["depth_map"] = torch.from_numpy(inputs[one["depth_map"]].astype(np.float32)).unsqueeze(0)
    seed = arguments.pop("seed")
    with new_scheduler(pipeline, arguments.pop("scheduler", None)):
        images = pipeline(
            prompt=one["prompt"],
            negative_prompt=one["negative_prompt"],
            generator=torch.Generator("cpu").manual_seed(seed),
            **arguments,
        ).images
    return torch.from_numpy(np.stack([np.array(image.convert("RGB")) for image in images]))
