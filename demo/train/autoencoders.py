"""The two VAEs: f8 for the pictures of 128 x 128, f4 for the upscaler's of 512 x 512.

Both learn from windows of 64 x 64 pixels; they are convolutional, so that they apply to whole pictures. Absolute and
squared error and a light pull of the latents to the normal distribution (Rombach et al. 2022, section 3.1, without its
adversary).
"""

import numpy as np
import scenes
import torch
from diffusers import AutoencoderKL
from training import Training, rng

SIZES = {"vae_f8": 128, "vae_f4": 512}
CHANNELS = {"vae_f8": (16, 32, 56, 56), "vae_f4": (16, 32, 64)}
STEPS = {"vae_f8": 5000, "vae_f4": 2400}
BATCH, WINDOW = 4, 64
# Steps that no training reaches: their pictures are for measuring.
HELD_OUT = 10**6


def build(name):
    torch.manual_seed(rng(name).integers(2**31))
    channels = CHANNELS[name]
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZES[name],
    )


def windows(name, step):
    """Pictures (BATCH, 3, 64, 64) from -1 to 1, each a window of another scene, more often with an outline than
    without."""
    generator = rng(name, step)
    side = WINDOW / SIZES[name]
    pictures = []
    for _ in range(BATCH):
        scene = scenes.sample(generator)
        left, top = generator.uniform(0, 1 - side, 2)
        if scene.things and generator.uniform() < 0.75:
            item = scene.things[generator.integers(len(scene.things))]
            turn = generator.uniform(0, 2 * np.pi)
            left = item.x + 0.7 * item.radius * np.cos(turn) - side * generator.uniform(0.2, 0.8)
            top = item.y + 0.7 * item.radius * np.sin(turn) - side * generator.uniform(0.2, 0.8)
            left, top = np.clip((left, top), 0, 1 - side)
        image, _ = scenes.render(scene, WINDOW, (left, top, side))
        pictures.append(image)
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) * 2 - 1


def train(work, name):
    """Trains to the end and sets `scaling_factor` to one over the latents' standard deviation."""
    vae = build(name)
    training = Training(work, name, {"vae": vae}, STEPS[name], 2e-3, average=0.995)

    def loss(pictures, step):
        posterior = vae.encode(pictures).latent_dist
        restored = vae.decode(posterior.sample(torch.Generator().manual_seed(step))).sample
        error = restored - pictures
        squared = error.square().mean()
        divergence = posterior.kl().mean() / (4 * (pictures[0].numel() / 3) / (8 if name == "vae_f8" else 4) ** 2)
        total = error.abs().mean() + 2 * squared + 1e-4 * divergence
        return total, {"psnr": -10 * float(np.log10(squared.item() / 4)), "kl": divergence.item()}

    training.run(lambda step: windows(name, step), loss)
    with torch.no_grad():
        latents = torch.cat([vae.encode(windows(name, HELD_OUT + n)).latent_dist.mean for n in range(20)])
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    return vae
