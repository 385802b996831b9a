"""The x4 upscaler's UNet: 7 channels, the noise level as a class, in the latents of the f4 VAE."""

import time

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

import scenes
from autoencoders import CROP
from captions import HIDDEN, tokenize
from latents import encode
from training import Training, rng
from unets import NO_CAPTION

# The betas of the public x4 upscaler, for the latents and for the noise on the small image.
BETAS = dict(beta_start=0.0001, beta_end=0.02, beta_schedule="scaled_linear", num_train_timesteps=1000)
MAX_NOISE_LEVEL = 350
# StableDiffusionUpscalePipeline accepts only this scaling factor.
SCALING_FACTOR = 0.08333
CROPS, SIDE = 6000, 512
# In the FURTHER steps, half of the small images are blurred by a Gaussian of at most BLUR pixels (standard deviation).
# Images of a VAE of factor 8 are not sharper; a model that only saw sharp images draws wobbly outlines for them.
STEPS, FURTHER, BATCH, BLUR = 4500, 2400, 16, 1.8


def build():
    """Makes the UNet with random weights."""
    torch.manual_seed(rng("upscaler").integers(2**31))
    return UNet2DConditionModel(
        sample_size=128,
        in_channels=7,
        out_channels=4,
        block_out_channels=(32, 48, 64, 64),
        layers_per_block=1,
        cross_attention_dim=HIDDEN,
        norm_num_groups=16,
        attention_head_dim=[2, 3, 4, 4],
        use_linear_projection=True,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3 + ("UpBlock2D",),
        only_cross_attention=(True, True, True, False),
        num_class_embeds=1000,
    )


def fix_scaling(vae):
    """Changes the f4 VAE's weights: its latents times SCALING_FACTOR have the variance one."""
    factor = vae.config.scaling_factor / SCALING_FACTOR
    with torch.no_grad():
        means = vae.config.latent_channels
        vae.quant_conv.weight[:means] *= factor
        vae.quant_conv.bias[:means] *= factor
        vae.quant_conv.bias[means:] += 2 * float(np.log(factor))
        vae.post_quant_conv.weight /= factor
    vae.register_to_config(scaling_factor=SCALING_FACTOR)


def crop(index):
    """Returns a scene, a crop of its image of 512 x 512 pixels, and the crop at a quarter of its side."""
    generator = rng("crop", index)
    scene = scenes.sample(generator)
    side = CROP / SIDE
    left, top = generator.uniform(0, 1 - side, 2)
    if scene.objects and generator.uniform() < 0.7:
        item = scene.objects[generator.integers(len(scene.objects))]
        turn = generator.uniform(0, 2 * np.pi)
        left = np.clip(item.x + 0.7 * item.radius * np.cos(turn) - side / 2, 0, 1 - side)
        top = np.clip(item.y + 0.7 * item.radius * np.sin(turn) - side / 2, 0, 1 - side)
    image, _ = scenes.render(scene, CROP, (left, top, side))
    small = image.reshape(CROP // 4, 4, CROP // 4, 4, 3).mean((1, 3))
    return scene, image, small


@torch.no_grad()
def crops(vae, size=32):
    """Encodes all crops, `size` at a time.

    Returns `captions`, latents `mean` and `std` [n, 4, 32, 32], and the `small` images [n, 3, 32, 32] from -1 to 1.
    """
    means, stds, smalls, captions = [], [], [], []
    started = time.monotonic()
    for first in range(0, CROPS, size):
        drawn = [crop(n) for n in range(first, min(first + size, CROPS))]
        mean, std = encode(vae, [image for _, image, _ in drawn])
        means.append(mean)
        stds.append(std)
        captions.extend(scene.caption for scene, _, _ in drawn)
        smalls.append((torch.from_numpy(np.stack([small for _, _, small in drawn])).permute(0, 3, 1, 2) * 2 - 1).half())
    print(f"encoded {CROPS} crops in {time.monotonic() - started:.0f} s", flush=True)
    return {"captions": captions, "mean": torch.cat(means), "std": torch.cat(stds), "small": torch.cat(smalls)}


def blurred(images, widths):
    """Blurs each image with a Gaussian; `widths` [n] are standard deviations in pixels, 0 leaves an image as it is."""
    offsets = torch.arange(-5.0, 6.0)
    kernels = torch.exp(-0.5 * (offsets / widths.clamp(min=1e-3)[:, None]) ** 2)
    kernels = kernels / kernels.sum(1, keepdim=True)
    # All images become the channels of one image: a grouped convolution gives each a separate kernel.
    kernels = kernels.repeat_interleave(images.shape[1], 0)[:, None, :, None]
    folded = images.flatten(0, 1)[None]
    for kernel, pad in ((kernels, (0, 0, 5, 5)), (kernels.mT, (5, 5, 0, 0))):
        padded = torch.nn.functional.pad(folded, pad, mode="replicate")
        folded = torch.nn.functional.conv2d(padded, kernel, groups=len(kernel))
    return folded[0].unflatten(0, images.shape[:2])


def train(work, tokenizer, encoder, data):
    """Trains the UNet on the result of `crops`."""
    unet = build()
    schedule = DDPMScheduler(**BETAS, prediction_type="v_prediction")
    low_res = DDPMScheduler(**BETAS)
    empty, ids = tokenize(tokenizer, [""]), tokenize(tokenizer, data["captions"])

    def batch(step):
        generator = rng("upscaler", step)
        chosen = torch.from_numpy(generator.choice(CROPS, BATCH, replace=False))
        seed = torch.Generator().manual_seed(int(generator.integers(2**31)))
        mean, std = data["mean"][chosen].float(), data["std"][chosen].float()
        small = data["small"][chosen].float()
        if step >= STEPS:
            width = torch.from_numpy(generator.uniform(0, BLUR, BATCH) * (generator.uniform(size=BATCH) < 0.5)).float()
            small = blurred(small, width)
        return {
            "ids": torch.where(torch.rand(BATCH, 1, generator=seed) < NO_CAPTION, empty, ids[chosen]),
            "latents": mean + std * torch.randn(mean.shape, generator=seed),
            "small": small,
            "noise": torch.randn(mean.shape, generator=seed),
            "grain": torch.randn(BATCH, 3, *mean.shape[2:], generator=seed),
            "times": torch.randint(0, 1000, (BATCH,), generator=seed),
            "levels": torch.randint(0, MAX_NOISE_LEVEL, (BATCH,), generator=seed),
        }

    def loss(batch, _):
        noisy = schedule.add_noise(batch["latents"], batch["noise"], batch["times"])
        small = low_res.add_noise(batch["small"], batch["grain"], batch["levels"])
        velocity = schedule.get_velocity(batch["latents"], batch["noise"], batch["times"])
        with torch.no_grad():
            hidden = encoder(batch["ids"]).last_hidden_state
        predicted = unet(torch.cat([noisy, small], 1), batch["times"], hidden, class_labels=batch["levels"]).sample
        return torch.nn.functional.mse_loss(predicted, velocity), {}

    Training(work, "unet_upscale", {"unet": unet}, STEPS, 1e-3, further=FURTHER).run(batch, loss)
    return unet
