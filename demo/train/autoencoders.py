"""The two VAEs: f8 for the pictures of 128 x 128, f4 for the upscaler's of 512 x 512.

Both learn from windows of 64 x 64 pixels: absolute and squared error and a light pull of the latents to the normal
distribution (Rombach et al. 2022, section 3.1, without its adversary). Then the decoder alone learns from larger windows
and whole pictures: its group norms and its attention see all that it draws, and as the windows left it a whole picture's
colours were off by up to 25 of 255. The encoder stays, so that latents mean the same.
"""

import numpy as np
import torch
from diffusers import AutoencoderKL

import scenes
from training import Training, rng

SIZES = {"vae_f8": 128, "vae_f4": 512}
CHANNELS = {"vae_f8": (16, 32, 56, 56), "vae_f4": (16, 32, 64)}
STEPS = {"vae_f8": 5000, "vae_f4": 2400}
BATCH, WINDOW = 4, 64
# Of the decoder's steps: how many, and the sides and number of their pictures in turn.
DECODER_STEPS = {"vae_f8": 700, "vae_f4": 320}
DECODER_PICTURES = {"vae_f8": [(128, 4)], "vae_f4": [(256, 1), (256, 1), (512, 1)]}
# What the upscaler learns latents from is encoded in crops of this side.
CROP = 128
# Steps that no training reaches: their pictures are for measuring, and for the decoder.
HELD_OUT, FOR_DECODER = 10**6, 2 * 10**6


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


def windows(name, step, pixels=WINDOW, count=BATCH):
    """Pictures (count, 3, pixels, pixels) from -1 to 1, each a window of another scene, more often with an outline than
    without."""
    generator = rng(name, step)
    side = pixels / SIZES[name]
    pictures = []
    for _ in range(count):
        scene = scenes.sample(generator)
        left, top = generator.uniform(0, 1 - side, 2)
        if scene.things and generator.uniform() < 0.75:
            item = scene.things[generator.integers(len(scene.things))]
            turn = generator.uniform(0, 2 * np.pi)
            left = item.x + 0.7 * item.radius * np.cos(turn) - side * generator.uniform(0.2, 0.8)
            top = item.y + 0.7 * item.radius * np.sin(turn) - side * generator.uniform(0.2, 0.8)
            left, top = np.clip((left, top), 0, 1 - side)
        image, _ = scenes.render(scene, pixels, (left, top, side))
        pictures.append(image)
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) * 2 - 1


def difference(restored, pictures):
    """The loss, and the decibels."""
    error = restored - pictures
    squared = error.square().mean()
    return error.abs().mean() + 2 * squared, {"psnr": -10 * float(np.log10(squared.item() / 4))}


def train_decoder(work, name, vae):
    """Trains the decoder over what the encoder makes of larger pictures."""
    decoder = {"decoder": vae.decoder.requires_grad_(True), "post_quant_conv": vae.post_quant_conv.requires_grad_(True)}
    training = Training(work, f"{name}_decoder", decoder, DECODER_STEPS[name], 1e-3, average=0.99, muon=0.005)
    sizes = DECODER_PICTURES[name]

    def batch(step):
        pixels, count = sizes[step % len(sizes)]
        return windows(name, FOR_DECODER + step, pixels, count)

    def loss(pictures, step):
        with torch.no_grad():
            # Each crop for itself as often as the whole: what a UNet makes is like one here and like the other there.
            crop = CROP if step % 2 else pictures.shape[-1]
            latents = in_crops(vae, pictures, crop, torch.Generator().manual_seed(step))
        return difference(vae.decode(latents).sample, pictures)

    training.run(batch, loss)


def in_crops(vae, pictures, crop, generator):
    """Latents of pictures, each square of `crop` pixels encoded for itself."""
    rows = [
        torch.cat([vae.encode(square).latent_dist.sample(generator) for square in row.split(crop, 3)], 3)
        for row in pictures.split(crop, 2)
    ]
    return torch.cat(rows, 2)


def train(work, name):
    """Trains to the end and sets `scaling_factor` to one over the latents' standard deviation."""
    vae = build(name)
    training = Training(work, name, {"vae": vae}, STEPS[name], 2e-3, average=0.995)

    def loss(pictures, step):
        posterior = vae.encode(pictures).latent_dist
        restored = vae.decode(posterior.sample(torch.Generator().manual_seed(step))).sample
        total, figures = difference(restored, pictures)
        divergence = posterior.kl().mean() / (4 * (pictures[0].numel() / 3) / (8 if name == "vae_f8" else 4) ** 2)
        return total + 1e-4 * divergence, {**figures, "kl": divergence.item()}

    training.run(lambda step: windows(name, step), loss)
    train_decoder(work, name, vae)
    with torch.no_grad():
        latents = torch.cat([vae.encode(windows(name, HELD_OUT + n)).latent_dist.mean for n in range(20)])
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    return vae
