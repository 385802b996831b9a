"""The UNets of text to image, depth to image and inpainting.

v-prediction with betas that end in pure noise (Salimans and Ho 2022; Lin et al. 2023, section 3.1): a small model that
never saw pure noise takes a picture's background from the noise instead of the words. The other two begin as copies of
the first, their further input channels at zero, as Stability AI began theirs.
"""

import torch
import words
from diffusers import DDPMScheduler, UNet2DConditionModel
from training import Training, rng

BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
CHANNELS = {"text": 4, "depth": 5, "inpaint": 9}
STEPS = {"text": 4200, "depth": 800, "inpaint": 900}
RATES = {"text": 2e-3, "depth": 5e-4, "inpaint": 5e-4}
MUON = {"text": 0.02, "depth": 0.005, "inpaint": 0.005}
BATCH, NO_CAPTION = 32, 0.1


def build(kind):
    torch.manual_seed(rng("unet").integers(2**31))
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=CHANNELS[kind],
        out_channels=4,
        block_out_channels=(48, 64, 80, 80),
        layers_per_block=1,
        cross_attention_dim=words.HIDDEN,
        norm_num_groups=16,
        attention_head_dim=[3, 4, 5, 5],
        use_linear_projection=True,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    )


def begin_with(unet, base):
    """Copies the base's weights; the further input channels begin at zero."""
    state = base.state_dict()
    first = torch.zeros_like(unet.conv_in.weight)
    first[:, :4] = state["conv_in.weight"]
    unet.load_state_dict({**state, "conv_in.weight": first})


def noise_schedule():
    return DDPMScheduler(**BETAS, prediction_type="v_prediction", rescale_betas_zero_snr=True)


def batches(kind, tokenizer, pictures, masked):
    """`make(step)`: token ids, latents, what stands beside them in the input."""
    empty = words.tokens(tokenizer, [""])
    ids = words.tokens(tokenizer, pictures["captions"])
    count = len(masked["mask"]) if kind == "inpaint" else len(ids)

    def make(step):
        generator = rng("unet", kind, step)
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
            "times": torch.randint(0, 1000, (BATCH,), generator=seed),
        }

    return make


def train(work, kind, tokenizer, encoder, pictures, masked=None, base=None):
    """Trains the UNet over the text encoder, which knows its words already and is the same for all of them."""
    unet = build(kind)
    if base is not None:
        begin_with(unet, base)
    schedule = noise_schedule()
    training = Training(work, f"unet_{kind}", {"unet": unet}, STEPS[kind], RATES[kind], muon=MUON[kind])

    def loss(batch, _):
        latents, noise, times = batch["latents"], batch["noise"], batch["times"]
        noisy = schedule.add_noise(latents, noise, times)
        wanted = schedule.get_velocity(latents, noise, times)
        with torch.no_grad():
            hidden = encoder(batch["ids"]).last_hidden_state
        told = unet(torch.cat([noisy, batch["beside"]], 1), times, hidden).sample
        return torch.nn.functional.mse_loss(told, wanted), {}

    training.run(batches(kind, tokenizer, pictures, masked), loss)
    return unet
