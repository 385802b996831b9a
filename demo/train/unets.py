"""The UNets of text to image, depth to image and inpainting.

v-prediction with betas that end in pure noise (Salimans and Ho 2022; Lin et al. 2023, section 3.1): a small model that
never saw pure noise takes a picture's background from the noise instead of the words. The other two begin as copies of
the first, their further input channels at zero, as Stability AI began theirs.
"""

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

import latents
import scenes
import words
from training import Training, rng

BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
CHANNELS = {"text": 4, "depth": 5, "inpaint": 9}
STEPS = {"text": 9000, "depth": 600, "inpaint": 900}
# The base's second cycle, which sees the further pairs too: which of two things has which colour and shape comes late.
FURTHER = {"text": 4200, "depth": 0, "inpaint": 0}
# The latents at outlines count more than the rest: a shape is told by a tenth of them, and the textures about it, whose
# phase nobody can guess, would have most of the loss.
OUTLINE_WEIGHT, OUTLINE_WIDTH = 8, 0.07
RATES = {"text": 2e-3, "depth": 1e-3, "inpaint": 1e-3}
MUON = {"text": 0.02, "depth": 0.005, "inpaint": 0.005}
BATCH, NO_CAPTION = 32, 0.1


def build(kind):
    torch.manual_seed(rng("unet").integers(2**31))
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=CHANNELS[kind],
        out_channels=4,
        block_out_channels=(48, 96, 96),
        layers_per_block=1,
        cross_attention_dim=words.HIDDEN,
        norm_num_groups=16,
        attention_head_dim=[3, 6, 6],
        use_linear_projection=True,
        # No attention at 16 x 16: it would take half of the time.
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )


def begin_with(unet, base):
    """Copies the base's weights; the further input channels begin at zero."""
    state = base.state_dict()
    first = torch.zeros_like(unet.conv_in.weight)
    first[:, :4] = state["conv_in.weight"]
    unet.load_state_dict({**state, "conv_in.weight": first})


class Levels(torch.nn.Module):
    """What the loss usually is at each level of noise, to weigh all levels alike (Karras et al. 2024, "Analyzing and
    improving the training dynamics of diffusion models", section 2.2, which learns it instead of keeping a mean).

    Near pure noise the loss is seven times that of the middle and nobody can lower it: unweighed, its chance drowns
    what is to be learned about outlines.
    """

    COUNT, FOLLOW = 20, 0.02

    def __init__(self):
        super().__init__()
        self.register_buffer("usual", torch.full((self.COUNT,), 0.3))

    def forward(self, losses, times):
        """The weights of a batch's losses, (BATCH,); the losses then count among what is usual."""
        level = times * self.COUNT // 1000
        weights = 1 / self.usual[level]
        for n, loss in zip(level.tolist(), losses.tolist(), strict=True):
            self.usual[n] += self.FOLLOW * (loss - self.usual[n])
        return weights


def outline_weights(indices):
    """(n, 1, 16, 16): 1, and OUTLINE_WEIGHT within OUTLINE_WIDTH of an outline; of mean 1 for each scene."""
    x = (np.arange(latents.LATENT) + 0.5) / latents.LATENT
    x, y = np.meshgrid(x, x)
    weights = np.ones((len(indices), 1, *x.shape), np.float32)
    for weight, index in zip(weights, indices.tolist(), strict=True):
        for item in latents.scene(index).things:
            weight[0][abs(scenes.distance(item, x, y)) < OUTLINE_WIDTH] = OUTLINE_WEIGHT
    return torch.from_numpy(weights / weights.mean((1, 2, 3), keepdims=True))


def draw_times(seed):
    """Timesteps: two of five evenly, the others from a logit-normal distribution about 500 (Esser et al. 2024, section
    3.1)."""
    evenly = torch.randint(0, 1000, (BATCH,), generator=seed)
    middle = torch.sigmoid(torch.randn(BATCH, generator=seed)) * 1000
    return torch.where(torch.rand(BATCH, generator=seed) < 0.6, middle.long(), evenly)


def noise_schedule():
    return DDPMScheduler(**BETAS, prediction_type="v_prediction", rescale_betas_zero_snr=True)


def batches(kind, tokenizer, pictures, masked):
    """`make(step)`: token ids, latents, what stands beside them in the input."""
    empty = words.tokens(tokenizer, [""])
    ids = words.tokens(tokenizer, pictures["captions"])
    mixed, every = latents.SCENES, len(masked["mask"]) if kind == "inpaint" else len(ids)

    def make(step):
        generator = rng("unet", kind, step)
        count = mixed if kind == "text" and step < STEPS["text"] else every
        chosen = torch.from_numpy(generator.choice(count, BATCH, replace=False))
        seed = torch.Generator().manual_seed(int(generator.integers(2**31)))
        mean, std = pictures["mean"][chosen].float(), pictures["std"][chosen].float()
        latents = mean + std * torch.randn(mean.shape, generator=seed)
        dropped = torch.rand(BATCH, 1, generator=seed) < NO_CAPTION
        beside = latents[:, :0]
        if kind == "depth":
            beside = pictures["depth"][chosen].float()
        if kind == "inpaint":
            beside = torch.cat([masked["mask"][chosen].float(), masked["mean"][chosen].float()], 1)
        return {
            "ids": torch.where(dropped, empty, ids[chosen]),
            "latents": latents,
            "beside": beside,
            "noise": torch.randn(mean.shape, generator=seed),
            "weight": outline_weights(chosen),
            "times": draw_times(seed),
        }

    return make


def train(work, kind, tokenizer, encoder, pictures, masked=None, base=None):
    """Trains the UNet over the text encoder, which knows its words already and is the same for all of them."""
    unet = build(kind)
    if base is not None:
        begin_with(unet, base)
    schedule = noise_schedule()
    levels = Levels()
    training = Training(
        work,
        f"unet_{kind}",
        {"unet": unet, "levels": levels},
        STEPS[kind],
        RATES[kind],
        muon=MUON[kind],
        further=FURTHER[kind],
    )

    def loss(batch, _):
        clean, noise, times = batch["latents"], batch["noise"], batch["times"]
        noisy = schedule.add_noise(clean, noise, times)
        wanted = schedule.get_velocity(clean, noise, times)
        with torch.no_grad():
            hidden = encoder(batch["ids"]).last_hidden_state
        told = unet(torch.cat([noisy, batch["beside"]], 1), times, hidden).sample
        errors = (told - wanted).square()
        losses = (errors * batch["weight"]).mean((1, 2, 3))
        weights = levels(losses.detach(), times)
        return (losses * weights).mean(), {"mse": errors.mean().item()}

    training.run(batches(kind, tokenizer, pictures, masked), loss)
    return unet
