"""Measures a UNet step with guidance and a decode of the VAE in diffusers, and prints one JSON object.

    .venv-bench/bin/python benches/peer_diffusers.py target/bench/checkpoints/full_size --side 256

`step_s` and `decode_s` are lists of seconds. A step is a UNet call with two batch entries and guidance. `parts.py` runs
this program.
"""

import argparse
import json
import pathlib
import time
from collections.abc import Callable

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

GUIDANCE = 7.5
TOKENS = 77


def inputs(checkpoint: pathlib.Path, part: str, side: int) -> dict[str, torch.Tensor]:
    """Returns seeded inputs of the part `unet` for one image with guidance, or of the part `vae`."""
    config = json.loads((checkpoint / part / "config.json").read_text())
    generator = torch.Generator().manual_seed(0)
    channels = config["latent_channels" if part == "vae" else "in_channels"]
    latents = torch.randn(1, channels, side // 8, side // 8, generator=generator)
    if part == "vae":
        return {"latents": latents}
    text = torch.randn(2, TOKENS, config["cross_attention_dim"], generator=generator)
    return {"sample": torch.cat([latents] * 2), "timestep": torch.tensor(500.0), "text": text}


class Unet(torch.nn.Module):
    """A UNet as a function of tensors."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return self.unet(sample, timestep, text, return_dict=False)[0]


class Decoder(torch.nn.Module):
    """The decoder of a VAE as a function of tensors."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False)[0]


def load(checkpoint: pathlib.Path, part: str) -> torch.nn.Module:
    """Loads the part `unet` or `vae` in float32."""
    if part == "unet":
        return Unet(UNet2DConditionModel.from_pretrained(checkpoint / "unet", torch_dtype=torch.float32)).eval()
    return Decoder(AutoencoderKL.from_pretrained(checkpoint / "vae", torch_dtype=torch.float32)).eval()


def guided(noise: torch.Tensor) -> torch.Tensor:
    """Returns the noise with guidance from that of both batch entries."""
    without, with_prompt = noise.chunk(2)
    return without + GUIDANCE * (with_prompt - without)


def seconds(call: Callable[[], object], repeat: int) -> list[float]:
    """Returns the seconds of each call after a first one, which does not count."""
    call()
    times = []
    for _ in range(repeat):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return times


def options(description: str) -> argparse.ArgumentParser:
    """Returns a parser with the options of the peers that measure parts."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("--side", type=int, default=512, help="height and width of the image in pixels")
    parser.add_argument("--steps", type=int, default=2, help="measured steps")
    parser.add_argument("--decodes", type=int, default=1, help="measured decodes")
    return parser


def measure(checkpoint: pathlib.Path, part: str, side: int, repeat: int) -> list[float]:
    """Returns the seconds of each run of a part."""
    module, tensors = load(checkpoint, part), inputs(checkpoint, part, side)
    if part == "unet":
        return seconds(lambda: guided(module(**tensors)), repeat)
    return seconds(lambda: module(**tensors), repeat)


@torch.inference_mode()
def main() -> None:
    arguments = options("Measures diffusers.").parse_args()
    step_s = measure(arguments.checkpoint, "unet", arguments.side, arguments.steps)
    decode_s = measure(arguments.checkpoint, "vae", arguments.side, arguments.decodes)
    print(json.dumps({"step_s": step_s, "decode_s": decode_s}))


if __name__ == "__main__":
    main()
