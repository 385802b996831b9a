"""The UNets of text to image, depth to image and inpainting.

They predict v, and their betas end in pure noise (Salimans and Ho 2022; Lin et al. 2023, section 3.1). A small model
that never saw pure noise takes the background from the noise and not from the prompt. The other two start as copies of
the first, with their additional input channels at zero, as Stability AI's models did.
"""

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

import latents
import scenes
from captions import HIDDEN, tokenize
from training import Training, rng

BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
CHANNELS = {"text": 4, "depth": 5, "inpaint": 9}
STEPS = {"text": 9000, "depth": 600, "inpaint": 900}
# The second cycle of the base adds the PAIRS: the model learns late which of two objects has which color and shape.
FURTHER = {"text": 4200, "depth": 0, "inpaint": 0}
# Latents at outlines have a larger weight. Shapes depend on a tenth of the latents; most of the loss would come from
# textures, whose phase is unpredictable.
OUTLINE_WEIGHT, OUTLINE_WIDTH = 8, 0.07
RATES = {"text": 2e-3, "depth": 1e-3, "inpaint": 1e-3}
MUON = {"text": 0.02, "depth": 0.005, "inpaint": 0.005}
BATCH, NO_CAPTION = 32, 0.1


def build(kind):
    """Makes a UNet with random weights; `kind` is "text", "depth" or "inpaint"."""
    torch.manual_seed(rng("unet").integers(2**31))
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=CHANNELS[kind],
        out_channels=4,
        block_out_channels=(48, 96, 96),
        layers_per_block=1,
        cross_attention_dim=HIDDEN,
        norm_num_groups=16,
        attention_head_dim=[3, 6, 6],
        use_linear_projection=True,
        # No attention at 16 x 16, which would take half of the time.
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )


def begin_with(unet, base):
    """Copies the weights of the base; additional input channels start at zero."""
    state = base.state_dict()
    first = torch.zeros_like(unet.conv_in.weight)
    first[:, :4] = state["conv_in.weight"]
    unet.load_state_dict({**state, "conv_in.weight": first})


class LossNormalizer(torch.nn.Module):
    """Divides losses by the running mean of their noise level, so every level counts the same.

    Source: Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models", section 2.2, which
    learns the mean instead. Near pure noise the loss is seven times as high as in the middle and cannot be lowered;
    without weights, its noise hides the error at outlines.
    """

    LEVELS, RATE = 20, 0.02

    def __init__(self):
        super().__init__()
        # Checkpoints of a training contain this name.
        self.register_buffer("usual", torch.full((self.LEVELS,), 0.3))

    def forward(self, losses, times):
        """Returns the weights of a batch's losses, [BATCH], and adds the losses to the means."""
        level = times * self.LEVELS // 1000
        weights = 1 / self.usual[level]
        for n, loss in zip(level.tolist(), losses.tolist(), strict=True):
            self.usual[n] += self.RATE * (loss - self.usual[n])
        return weights


def outline_weights(indices):
    """Returns weights [n, 1, 16, 16]: OUTLINE_WEIGHT near outlines and 1 elsewhere, scaled to the mean 1 per scene."""
    x = (np.arange(latents.LATENT) + 0.5) / latents.LATENT
    x, y = np.meshgrid(x, x)
    weights = np.ones((len(indices), 1, *x.shape), np.float32)
    for weight, index in zip(weights, indices.tolist(), strict=True):
        for item in latents.scene(index).objects:
            weight[0][abs(scenes.distance(item, x, y)) < OUTLINE_WIDTH] = OUTLINE_WEIGHT
    return torch.from_numpy(weights / weights.mean((1, 2, 3), keepdims=True))


def draw_times(seed):
    """Draws timesteps: 40 % uniform, the others logit-normal around 500 (Esser et al. 2024, section 3.1)."""
    uniform = torch.randint(0, 1000, (BATCH,), generator=seed)
    middle = torch.sigmoid(torch.randn(BATCH, generator=seed)) * 1000
    return torch.where(torch.rand(BATCH, generator=seed) < 0.6, middle.long(), uniform)


def noise_schedule():
    """Makes the scheduler that adds the noise."""
    return DDPMScheduler(**BETAS, prediction_type="v_prediction", rescale_betas_zero_snr=True)


def batches(kind, tokenizer, images, masked):
    """Returns a function that makes the batch of a step: token ids, latents, noise, conditioning, weights, times."""
    empty = tokenize(tokenizer, [""])
    ids = tokenize(tokenizer, images["captions"])
    total = len(masked["mask"]) if kind == "inpaint" else len(ids)

    def make(step):
        generator = rng("unet", kind, step)
        count = latents.SCENES if kind == "text" and step < STEPS["text"] else total
        chosen = torch.from_numpy(generator.choice(count, BATCH, replace=False))
        seed = torch.Generator().manual_seed(int(generator.integers(2**31)))
        mean, std = images["mean"][chosen].float(), images["std"][chosen].float()
        clean = mean + std * torch.randn(mean.shape, generator=seed)
        dropped = torch.rand(BATCH, 1, generator=seed) < NO_CAPTION
        conditioning = clean[:, :0]
        if kind == "depth":
            conditioning = images["depth"][chosen].float()
        if kind == "inpaint":
            conditioning = torch.cat([masked["mask"][chosen].float(), masked["mean"][chosen].float()], 1)
        return {
            "ids": torch.where(dropped, empty, ids[chosen]),
            "latents": clean,
            "conditioning": conditioning,
            "noise": torch.randn(mean.shape, generator=seed),
            "weight": outline_weights(chosen),
            "times": draw_times(seed),
        }

    return make


def velocity_loss(unet, encoder, normalizer):
    """Returns the loss of a batch: the squared error of v, with the weights of the batch and of the noise levels."""
    schedule = noise_schedule()

    def loss(batch, _):
        clean, noise, times = batch["latents"], batch["noise"], batch["times"]
        noisy = schedule.add_noise(clean, noise, times)
        velocity = schedule.get_velocity(clean, noise, times)
        with torch.no_grad():
            hidden = encoder(batch["ids"]).last_hidden_state
        predicted = unet(torch.cat([noisy, batch["conditioning"]], 1), times, hidden).sample
        errors = (predicted - velocity).square()
        losses = (errors * batch["weight"]).mean((1, 2, 3))
        weights = normalizer(losses.detach(), times)
        return (losses * weights).mean(), {"mse": errors.mean().item()}

    return loss


def train(work, kind, tokenizer, encoder, images, masked=None, base=None):
    """Trains a UNet with the text encoder, which stays as it is and is the same for all UNets."""
    unet = build(kind)
    if base is not None:
        begin_with(unet, base)
    normalizer = LossNormalizer()
    training = Training(
        work,
        f"unet_{kind}",
        {"unet": unet, "levels": normalizer},
        STEPS[kind],
        RATES[kind],
        muon=MUON[kind],
        further=FURTHER[kind],
    )

    training.run(batches(kind, tokenizer, images, masked), velocity_loss(unet, encoder, normalizer))
    return unet
