"""The two VAEs: f8 for images of 128 x 128 pixels, f4 for the upscaler's images of 512 x 512.

First, both learn from windows of 64 x 64 pixels. The loss is the absolute and the squared error, and a small
Kullback-Leibler term (Rombach et al. 2022, section 3.1, without its adversary).

Then the decoder alone learns from larger windows and whole images. Its group norms and its attention depend on the
whole input: without this training, the colors of a whole image were off by up to 25 of 255. The encoder and the
meaning of the latents do not change.
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
# The decoder's training: its steps, and (side, number) of the images of a step, in turn.
DECODER_STEPS = {"vae_f8": 700, "vae_f4": 320}
DECODER_IMAGES = {"vae_f8": [(128, 4)], "vae_f4": [(256, 1), (256, 1), (512, 1)]}
# The upscaler's training data are encoded in crops of this side.
CROP = 128
# Steps that the training does not reach: their images are for measuring, and for the decoder.
HELD_OUT, FOR_DECODER = 10**6, 2 * 10**6


def build(name):
    """Makes a VAE with random weights."""
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
    """Renders images [count, 3, pixels, pixels] from -1 to 1, each a window of another scene, most with an outline."""
    generator = rng(name, step)
    side = pixels / SIZES[name]
    images = []
    for _ in range(count):
        scene = scenes.sample(generator)
        left, top = generator.uniform(0, 1 - side, 2)
        if scene.objects and generator.uniform() < 0.75:
            item = scene.objects[generator.integers(len(scene.objects))]
            turn = generator.uniform(0, 2 * np.pi)
            left = item.x + 0.7 * item.radius * np.cos(turn) - side * generator.uniform(0.2, 0.8)
            top = item.y + 0.7 * item.radius * np.sin(turn) - side * generator.uniform(0.2, 0.8)
            left, top = np.clip((left, top), 0, 1 - side)
        image, _ = scenes.render(scene, pixels, (left, top, side))
        images.append(image)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) * 2 - 1


def difference(restored, images):
    """Returns the loss, and the figures to log."""
    error = restored - images
    squared = error.square().mean()
    return error.abs().mean() + 2 * squared, {"psnr": -10 * float(np.log10(squared.item() / 4))}


def train_decoder(work, name, vae):
    """Trains the decoder with larger images; the encoder stays as it is."""
    decoder = {"decoder": vae.decoder.requires_grad_(True), "post_quant_conv": vae.post_quant_conv.requires_grad_(True)}
    training = Training(work, f"{name}_decoder", decoder, DECODER_STEPS[name], 1e-3, average=0.99, muon=0.005)
    sizes = DECODER_IMAGES[name]

    def batch(step):
        pixels, count = sizes[step % len(sizes)]
        return windows(name, FOR_DECODER + step, pixels, count)

    def loss(images, step):
        with torch.no_grad():
            # Half of the steps encode crops, half the whole image: the latents of a UNet resemble both.
            crop = CROP if step % 2 else images.shape[-1]
            latents = in_crops(vae, images, crop, torch.Generator().manual_seed(step))
        return difference(vae.decode(latents).sample, images)

    training.run(batch, loss)


def in_crops(vae, images, crop, generator):
    """Encodes images in squares of `crop` pixels."""
    bands = [
        torch.cat([vae.encode(square).latent_dist.sample(generator) for square in band.split(crop, 3)], 3)
        for band in images.split(crop, 2)
    ]
    return torch.cat(bands, 2)


def train(work, name):
    """Trains a VAE and sets `scaling_factor` to one over the standard deviation of the latents."""
    vae = build(name)
    training = Training(work, name, {"vae": vae}, STEPS[name], 2e-3, average=0.995)

    def loss(images, step):
        posterior = vae.encode(images).latent_dist
        restored = vae.decode(posterior.sample(torch.Generator().manual_seed(step))).sample
        total, figures = difference(restored, images)
        divergence = posterior.kl().mean() / (4 * (images[0].numel() / 3) / (8 if name == "vae_f8" else 4) ** 2)
        return total + 1e-4 * divergence, {**figures, "kl": divergence.item()}

    training.run(lambda step: windows(name, step), loss)
    train_decoder(work, name, vae)
    with torch.no_grad():
        latents = torch.cat([vae.encode(windows(name, HELD_OUT + n)).latent_dist.mean for n in range(20)])
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    return vae
