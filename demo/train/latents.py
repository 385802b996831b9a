"""The training data of the UNets, encoded once: captions, latents, depth, and masked latents for inpainting."""

import itertools
import time

import numpy as np
import torch

import scenes
from training import rng

SIDE, FACTOR = 128, 8
LATENT = SIDE // FACTOR
# First SCENES of all kinds, then PAIRS with two objects each, which have many more combinations and are harder.
SCENES, PAIRS, MASKED = 12000, 8000, 7000


def scene(index):
    """Returns scene number `index` of the training data."""
    draw = scenes.sample if index < SCENES else scenes.sample_pair
    return draw(rng("scene", index))


def mask_of(generator, drawn):
    """Draws a mask, bool [SIDE, SIDE], true where to paint: around an object, a box, a thick line, or everything."""
    kind = generator.uniform()
    y, x = (np.mgrid[:SIDE, :SIDE] + 0.5) / SIDE
    if drawn.objects and kind < 0.5:
        item = drawn.objects[generator.integers(len(drawn.objects))]
        grow = generator.uniform(1.05, 1.5)
        if generator.uniform() < 0.5:
            return np.hypot(x - item.x, y - item.y) < item.radius * grow
        return np.maximum(abs(x - item.x), abs(y - item.y)) < item.radius * grow
    if kind < 0.85:
        left, top = generator.uniform(0, 0.7, 2)
        width, height = generator.uniform(0.2, 0.75, 2)
        return (x > left) & (x < left + width) & (y > top) & (y < top + height)
    if kind < 0.95:
        from_x, from_y, to_x, to_y = generator.uniform(0, 1, 4)
        along = np.clip(
            ((x - from_x) * (to_x - from_x) + (y - from_y) * (to_y - from_y))
            / ((to_x - from_x) ** 2 + (to_y - from_y) ** 2 + 1e-6),
            0,
            1,
        )
        return np.hypot(x - from_x - along * (to_x - from_x), y - from_y - along * (to_y - from_y)) < generator.uniform(
            0.05, 0.15
        )
    return np.ones((SIDE, SIDE), bool)


def tensor(images):
    """Converts images from 0 to 1, channels last, to a tensor from -1 to 1, channels first."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) * 2 - 1


def encode(vae, images):
    """Returns the means and standard deviations of the latents, scaled, in float16."""
    posterior = vae.encode(tensor(images)).latent_dist
    scale = vae.config.scaling_factor
    return (posterior.mean * scale).half(), (posterior.std * scale).half()


def cached(work, name, make):
    """Returns the result of `make`, which is called once and stored in `work/name`.pt."""
    file = work / f"{name}.pt"
    if not file.exists():
        torch.save(make(), file)
    return torch.load(file, weights_only=True)


@torch.no_grad()
def images(vae, begin, end, size=32, change=None):
    """Encodes the scenes from `begin` to before `end`, `size` at a time; `change` changes each scene.

    Returns `captions`, latents `mean` and `std` [n, 4, 16, 16], and `depth` [n, 1, 16, 16] from -1 to 1.
    """
    means, stds, depths, captions = [], [], [], []
    started = time.monotonic()
    for first in range(begin, end, size):
        drawn = [scene(n) for n in range(first, min(first + size, end))]
        rendered = [scenes.render(change(s) if change else s, SIDE) for s in drawn]
        mean, std = encode(vae, [image for image, _ in rendered])
        depth = torch.from_numpy(np.stack([depth for _, depth in rendered]))[:, None]
        # As StableDiffusionDepth2ImgPipeline.prepare_depth_map does with the estimated depth.
        depth = torch.nn.functional.interpolate(depth, (LATENT, LATENT), mode="bicubic", align_corners=False)
        low, high = depth.amin((1, 2, 3), keepdim=True), depth.amax((1, 2, 3), keepdim=True)
        depths.append((2 * (depth - low) / (high - low) - 1).half())
        means.append(mean)
        stds.append(std)
        captions.extend(s.caption for s in drawn)
        if (first - begin) % (size * 50) == 0:
            print(f"encoded to {first + len(drawn)}/{end} scenes in {time.monotonic() - started:.0f} s", flush=True)
    return {"captions": captions, "mean": torch.cat(means), "std": torch.cat(stds), "depth": torch.cat(depths)}


def joined(*parts):
    """Joins the results of several calls of `images`."""
    return {
        key: list(itertools.chain.from_iterable(part[key] for part in parts))
        if key == "captions"
        else torch.cat([part[key] for part in parts])
        for key in parts[0]
    }


@torch.no_grad()
def masked(vae, size=32):
    """Masks the first MASKED scenes and encodes the rest of each.

    Returns `mask` [n, 1, 16, 16], 1 where to paint, and the latents `mean`.
    """
    masks, means = [], []
    for first in range(0, MASKED, size):
        seen = []
        for n in range(first, min(first + size, MASKED)):
            drawn = scene(n)
            mask = mask_of(rng("mask", n), drawn)
            image, _ = scenes.render(drawn, SIDE)
            # Masked pixels are 0.5, which is 0 in the range -1 to 1.
            seen.append(np.where(mask[..., None], np.float32(0.5), image))
            masks.append(torch.from_numpy(mask[None, None].astype(np.float32)))
        means.append(encode(vae, seen)[0])
    # Nearest neighbor, as the pipeline resizes a mask.
    small = torch.nn.functional.interpolate(torch.cat(masks), (LATENT, LATENT))
    return {"mask": small.half(), "mean": torch.cat(means)}
