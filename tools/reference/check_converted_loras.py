#!/usr/bin/env python3
"""Checks `triton-diffusion convert` with diffusers: a converted LoRA has the layers, scales and images of its original.

Also converts LoRAs for all layers of Stable Diffusion 1 and 2 as published, whose names and shapes the command has.
"""

import copy
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel
from transformers.utils import logging as transformers_logging

import adapter_cases

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import seeded_checkpoints  # noqa: E402

# The settings of stable-diffusion-v1-5 and stable-diffusion-2-1 that differ from the defaults of the classes.
PUBLISHED = {
    "Stable Diffusion 1": (
        {"cross_attention_dim": 768},
        {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    ),
    "Stable Diffusion 2": (
        {"cross_attention_dim": 1024, "use_linear_projection": True, "attention_head_dim": [5, 10, 20, 20]},
        {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16},
    ),
}


def convert(command, path, out, *options):
    subprocess.run([command, "convert", path, "--out", out, *options], check=True, stdout=subprocess.DEVNULL)


def adapted(pipeline, name):
    """Returns the scale and the matrices of each layer that the LoRA changes."""
    found = {}
    for component in ("unet", "text_encoder"):
        for layer, module in getattr(pipeline, component).named_modules():
            if name in getattr(module, "lora_A", ()):
                # As each request does: from the alpha of the layer, which `restore_alphas` may have set.
                module.set_scale(name, 1.0)
                found[component, layer] = module.scaling[name], module.lora_A[name].weight, module.lora_B[name].weight
    return found


def same_layers(original, converted):
    return original.keys() == converted.keys() and all(
        scale == converted[layer][0] and all(map(torch.equal, matrices, converted[layer][1:]))
        for layer, (scale, *matrices) in original.items()
    )


def check_adapters(command, checkpoints, folder):
    """Converts each LoRA of the goldens; returns whether all are as before."""
    good = True
    pipelines = {}
    for name in adapter_cases.CHECKPOINTS:
        pipelines[name] = DiffusionPipeline.from_pretrained(checkpoints / name, torch_dtype=torch.float32)
        pipelines[name].set_progress_bar_config(disable=True)
    before, after = folder / "before", folder / "after"
    adapter_cases.write(adapter_cases.adapters(pipelines), before)
    for case in adapter_cases.cases():
        family, name = case["name"].split("/")
        if name not in adapter_cases.SINGLE:
            continue
        lora, pipeline = f"{family}-{name}", pipelines[family]
        path = before / f"{lora}.safetensors"
        out = after / f"{lora}.safetensors"
        convert(command, path if path.exists() else before / lora, out, "--base", checkpoints / family)
        layers = []
        for files in (before, after):
            loaded = copy.deepcopy(pipeline)
            adapter_cases.load(loaded, files, lora)
            layers.append(adapted(loaded, lora))
        images = [adapter_cases.generate(pipeline, files, case["elements"][0]) for files in (before, after)]
        equal = layers[0] and same_layers(*layers) and torch.equal(*images)
        good &= bool(equal)
        print(f"{lora}: {len(layers[0])} layers {'ok' if equal else 'FAILED'}", flush=True)
    return good


def check_published(command, folder):
    """Converts LoRAs for all layers of the published models; returns whether all have their names and shapes."""
    good = True
    for family, (unet, text) in PUBLISHED.items():
        with torch.device("meta"):
            models = {"unet": UNet2DConditionModel(**unet), "text_encoder": CLIPTextModel(CLIPTextConfig(**text))}
        tensors, expected = {}, {}
        for component, model in models.items():
            for name, weight in adapter_cases.layers(model, ""):
                shapes = adapter_cases.shapes(weight, 1)
                old, new = (adapter_cases.FORMATS[form](component, name) for form in ("kohya", "peft"))
                tensors |= {key: torch.ones(shape) for key, shape in zip(old, shapes, strict=True)}
                expected |= dict(zip(new, shapes, strict=True))
        path, out = folder / "old.safetensors", folder / f"{family}.safetensors"
        save_file(tensors, path)
        convert(command, path, out)
        equal = {name: list(tensor.shape) for name, tensor in load_file(out).items()} == expected
        good &= equal
        print(f"{family}: {len(expected) // 2} layers {'ok' if equal else 'FAILED'}", flush=True)
    return good


def main():
    command = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "dist" / "bin" / "triton-diffusion"
    warnings.filterwarnings("ignore")
    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        good = check_published(command, Path(folder))
        good &= check_adapters(command, seeded_checkpoints.write(), Path(folder))
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
