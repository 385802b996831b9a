"""A LoRA for sd_base: the same objects cut out, on the gray checkers that image editors show where nothing is.

It is trained as LoRAs of public models are: from the folder of the checkpoint, which stays as it is. So it can be
trained again without training a model.
"""

from dataclasses import replace

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

import latents
import unets
from training import Training, rng

NAME = "cutout"
SCENES, STEPS = 1200, 400
RANK, LAYERS = 8, ("to_q", "to_k", "to_v", "to_out.0")
# Muon trains the matrices A and B; nothing is left for AdamW.
RATE = 0.01


def cut_out(scene):
    """Returns the scene with gray checkers instead of its background; its caption still names the background."""
    return replace(scene, background="gray", texture="checkered")


def add_adapter(unet):
    """Adds matrices A with random weights and B with zeros to the attention layers; only these are trained."""
    torch.manual_seed(rng("lora").integers(2**31))
    unet.requires_grad_(False)
    # lora_alpha / RANK is the scale of the product B A; 1 is what a file without metadata means.
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(LAYERS)))


def train(work, checkpoint):
    """Trains the LoRA for the checkpoint of a StableDiffusionPipeline; returns the UNet with it."""
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint, torch_dtype=torch.float32)
    unet = pipeline.unet
    images = latents.cached(work, NAME, lambda: latents.images(pipeline.vae, 0, SCENES, change=cut_out))
    add_adapter(unet)
    normalizer = unets.LossNormalizer()
    training = Training(
        work, f"lora_{NAME}", {"unet": unet, "levels": normalizer}, STEPS, RATE, average=0.99, muon=RATE
    )
    loss = unets.velocity_loss(unet, pipeline.text_encoder, normalizer)
    training.run(unets.batches("lora", pipeline.tokenizer, images, None), loss)
    return unet


def write(folder, unet):
    """Writes `folder`/NAME.safetensors, float16, as diffusers does."""
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers={name: tensor.half().contiguous() for name, tensor in layers.items()},
        weight_name=f"{NAME}.safetensors",
    )
