"""Compares the eager UNet and the shapes of tools/gpu_check with diffusers.

    .venv-reference/bin/python tests/gpu_check/eager_parity.py

The eager UNet must predict what UNet2DConditionModel predicts, in float32, up to 1e-4. The full-size checkpoint must
have the tensors of diffusers' and transformers' models with its configurations. The exit status is 1 if a check fails.
"""

import json
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools" / "gpu_check"))

import full_size
import seeded_checkpoints
from eager_unet import EagerUNet

LIMIT = 1e-4
# Latents: the size of training, one that is not square, and one that is no multiple of 8.
SIZES = [(8, 8), (16, 8), (9, 6)]


@torch.no_grad()
def differences(checkpoint):
    """(latents, largest difference, largest value) for each size."""
    theirs = UNet2DConditionModel.from_pretrained(checkpoint / "unet", torch_dtype=torch.float32)
    ours = EagerUNet.load(checkpoint / "unet")
    generator = torch.Generator().manual_seed(0)
    for height, width in SIZES:
        sample = torch.randn(4, theirs.config.in_channels, height, width, generator=generator)
        timesteps = torch.tensor([1, 250, 500, 999])
        text = torch.randn(4, 77, theirs.config.cross_attention_dim, generator=generator)
        expected = theirs(sample, timesteps, text).sample
        difference = (ours(sample, timesteps, text) - expected).abs().max().item()
        yield f"{height}x{width}", difference, expected.abs().max().item()


def reference_shapes(name, config):
    """The tensors of a component as diffusers and transformers make them, without memory for them."""
    with torch.device("meta"):
        if name == "text_encoder":
            model = CLIPTextModel(CLIPTextConfig(**config))
        else:
            model = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[name].from_config(config)
    return {key: list(value.shape) for key, value in model.state_dict().items() if value.is_floating_point()}


def main():
    checkpoints = seeded_checkpoints.write()
    failed = False
    for name in ("sd2_base", "sd1"):
        for latents, difference, largest in differences(checkpoints / name):
            good = difference < LIMIT
            failed |= not good
            print(f"{name} {latents}: differs by {difference:.1e} of {largest:.2f} {'ok' if good else 'FAILED'}")
    for name, (settings, tensors, _) in full_size.COMPONENTS.items():
        config = json.loads((checkpoints / "sd2_base" / name / "config.json").read_text()) | settings
        shapes = tensors(config)
        good = shapes == reference_shapes(name, config)
        failed |= not good
        parameters = sum(torch.Size(shape).numel() for shape in shapes.values())
        print(f"full size {name}: {len(shapes)} tensors, {parameters:,} parameters {'ok' if good else 'FAILED'}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
