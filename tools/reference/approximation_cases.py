"""Cases of `deep_cache` and of the tiny decoder, and how diffusers generates one batch element of them.

deep_cache does what `DeepCacheSDHelper` of https://github.com/horseee/DeepCache (Ma et al., 2023) does with
`cache_branch_id=0`, but it counts UNet calls. The helper looks for the timestep in the scheduler's list, which has some
timesteps twice (PNDM, Heun).
"""

import contextlib

import text_to_image_cases
from text_to_image_cases import CAT, CITY, SEA, UGLY, element

CHECKPOINT = "sd1_tiny"


@contextlib.contextmanager
def deep_cache(unet, interval):
    """Lets the whole UNet run at each multiple of `interval` calls.

    The other calls reuse the results of all modules but conv_in, the last layer of the last up block, and the output.
    """
    last = unet.up_blocks[-1]
    modules = [*unet.down_blocks, unet.mid_block, *unet.up_blocks[:-1], *last.resnets[:-1]]
    modules += list(getattr(last, "attentions", []))[:-1]
    calls, cached, forwards = 0, {}, {module: module.forward for module in [unet, *modules]}

    def call(*arguments, **named):
        nonlocal calls
        if calls % interval == 0:
            cached.clear()
        calls += 1
        return forwards[unet](*arguments, **named)

    def cache(module):
        def forward(*arguments, **named):
            if module not in cached:
                cached[module] = forwards[module](*arguments, **named)
            return cached[module]

        return forward

    unet.forward = call
    for module in modules:
        module.forward = cache(module)
    try:
        yield
    finally:
        for module, forward in forwards.items():
            module.forward = forward


def cases():
    """Returns every case as plain data."""

    def short(scheduler, steps, **more):
        return dict(scheduler=scheduler, num_inference_steps=steps, **more)

    cached = [
        element(CAT, **short("DDIMScheduler", 6), seed=201, deep_cache=2),
        element(SEA, UGLY, **short("DPMSolverMultistepScheduler", 7), seed=202, deep_cache=3),
        element(CITY, **short("EulerDiscreteScheduler", 9), seed=203, deep_cache=5, guidance_scale=1.0),
        element(CAT, **short("PNDMScheduler", 6), seed=204, deep_cache=2, num_images_per_prompt=2),
        element(SEA, **short("HeunDiscreteScheduler", 4), seed=205, deep_cache=3),
        element(CAT, **short("DDIMScheduler", 6), seed=201),
    ]
    tiny = [
        element(CAT, **short("DDIMScheduler", 4), seed=206, decoder="tiny", num_images_per_prompt=2),
        element(SEA, **short("DDIMScheduler", 5), seed=207, decoder="tiny", deep_cache=2, height=72, width=48),
        element(SEA, **short("DDIMScheduler", 4), seed=206, decoder="vae", deep_cache=1),
    ]
    other = [
        element(CAT, **short("DDIMScheduler", 5), seed=208, deep_cache=2, height=72, width=48),
        element(SEA, **short("UniPCMultistepScheduler", 6), seed=209, deep_cache=3, height=72, width=48),
    ]
    return text_to_image_cases.named(
        [(CHECKPOINT, "deep-cache", cached), (CHECKPOINT, "tiny-decoder", tiny), ("sd2_base", "deep-cache", other)]
    )


def run(pipeline, tiny, one):
    """Makes one call of diffusers, with `tiny` as the VAE if the element wants it.

    Returns bytes, [images, height, width, 3].
    """
    arguments = dict(one["gen_args"])
    interval, decoder = arguments.pop("deep_cache", 1), arguments.pop("decoder", "vae")
    saved = pipeline.vae
    if decoder == "tiny":
        pipeline.vae = tiny
    try:
        with deep_cache(pipeline.unet, interval):
            return text_to_image_cases.run(pipeline, {**one, "gen_args": arguments})[0]
    finally:
        pipeline.vae = saved
