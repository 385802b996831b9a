"""Cases of LoRAs, their files in every format, and how diffusers and peft generate the images.

A LoRA is a recipe as those of the tiny checkpoints (tools/seeded_checkpoints.py), so that its file is made from a seed
wherever it is needed. The goldens hold the recipes, the further files of a LoRA and the images.
"""

import copy
import json
import re
import sys
from pathlib import Path

import torch
from diffusers.utils import set_weights_and_activate_adapters
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors.torch import load_file

import text_to_image_cases
from text_to_image_cases import CAT, SEA, UGLY, element

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import seeded_checkpoints

CHECKPOINTS = ("sd1", "sd2_base")

ATTENTION = r"\.attn\d\.(to_q|to_k|to_v|to_out\.0)$"
SELF_ATTENTION = r"\.attn1\.(to_q|to_k|to_v|to_out\.0)$"
ALL_LINEAR = r"(\.attn\d\.(to_q|to_k|to_v|to_out\.0)|\.ff\.net\.(0\.proj|2)|\.proj_in|\.proj_out)$"
CONVOLUTIONS = r"\.(conv1|conv2|conv_shortcut|downsamplers\.0\.conv|upsamplers\.0\.conv|time_emb_proj)$"
TEXT = r"\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)$"


def layers(model, pattern):
    """Returns name and weight of each linear layer and convolution whose name matches."""
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    return [
        (name, tuple(module.weight.shape))
        for name, module in model.named_modules()
        if isinstance(module, kinds) and re.search(pattern, "." + name)
    ]


def shapes(weight, rank):
    """Returns the shapes of the two matrices of a layer."""
    outputs, inputs, *kernel = weight
    return [rank, inputs, *kernel], [outputs, rank, *(1 for _ in kernel)]


def old_processor(name):
    """Returns the name of an attention's layer before diffusers 0.18: attn1.processor.to_out_lora."""
    path, layer = name.removesuffix(".0").rsplit(".", 1)
    return f"{path}.processor.{layer}_lora"


FORMATS = {
    "peft": lambda component, name: (f"{component}.{name}.lora_A.weight", f"{component}.{name}.lora_B.weight"),
    "peft_folder": lambda component, name: (
        f"base_model.model.{name}.lora_A.weight",
        f"base_model.model.{name}.lora_B.weight",
    ),
    "diffusers": lambda component, name: (
        (f"{component}.{name}.lora.down.weight", f"{component}.{name}.lora.up.weight")
        if component == "unet"
        else (
            f"{component}.{name}.lora_linear_layer.down.weight",
            f"{component}.{name}.lora_linear_layer.up.weight",
        )
    ),
    "processors": lambda component, name: (
        f"{component}.{old_processor(name)}.down.weight",
        f"{component}.{old_processor(name)}.up.weight",
    ),
    "kohya": lambda component, name: tuple(
        f"lora_{'unet' if component == 'unet' else 'te'}_{name.replace('.', '_')}.{part}.weight"
        for part in ("lora_down", "lora_up")
    ),
}


def recipe(pipeline, seed, form, rank, unet, text=None, alpha=None):
    """Returns the recipe of a LoRA; `alpha` is a number, or a function of a layer's number."""
    tensors = {}
    named = [("unet", *layer) for layer in (layers(pipeline.unet, unet) if unet else [])]
    named += [("text_encoder", *layer) for layer in (layers(pipeline.text_encoder, text) if text else [])]
    for number, (component, name, weight) in enumerate(named):
        down, up = FORMATS[form](component, name)
        down_shape, up_shape = shapes(weight, rank)
        tensors[down] = [down_shape, {"weight": 1.0}]
        tensors[up] = [up_shape, {"weight": 0.7}]
        if alpha is not None:
            value = alpha(number) if callable(alpha) else alpha
            tensors[down.split(".")[0] + ".alpha"] = [[], {"values": [value]}]
    made = {"file": "", "seed": seed, "sha256": "", "tensors": tensors}
    try:
        seeded_checkpoints.weights(made)
    except ValueError as error:
        made["sha256"] = str(error).rsplit(" ", 1)[1]
    return made


def write(files, folder):
    """Writes the files of LoRAs."""
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        if "tensors" in content:
            (folder / path).write_bytes(seeded_checkpoints.weights(content))
        else:
            (folder / path).write_text(json.dumps(content))


def adapters(pipelines):
    """Returns the files of each LoRA by their paths: recipes, and the contents of JSON files."""
    made = {}
    for checkpoint in CHECKPOINTS:
        files = adapters_of(pipelines[checkpoint], checkpoint)
        made |= {f"{checkpoint}-{path}": content for path, content in files.items()}
    return made


def adapters_of(pipeline, checkpoint):
    """Returns the files of the LoRAs of a checkpoint."""
    made = {}

    def add(name, form, rank, unet, text=None, alpha=None):
        made[f"{name}.safetensors"] = recipe(pipeline, f"lora/{checkpoint}/{name}", form, rank, unet, text, alpha)

    for rank in (1, 16, 64):
        add(f"peft-{rank}", "peft", rank, SELF_ATTENTION)
    add("peft-4", "peft", 4, ATTENTION)
    add("peft-all", "peft", 8, ALL_LINEAR, TEXT)
    add("diffusers", "diffusers", 4, ALL_LINEAR, TEXT)
    add("processors", "processors", 4, ATTENTION)
    add("kohya", "kohya", 4, ALL_LINEAR, TEXT, alpha=2.0)
    add("kohya-alphas", "kohya", 8, ATTENTION, alpha=lambda number: 1.0 + number % 3)
    add("locon", "kohya", 4, f"{ALL_LINEAR}|{CONVOLUTIONS}", alpha=4.0)
    add("text", "kohya", 4, None, TEXT, alpha=4.0)
    for name, rslora in (("folder", False), ("rslora", True)):
        one = recipe(pipeline, f"lora/{checkpoint}/{name}", "peft_folder", 4, ATTENTION)
        config = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "use_rslora": rslora, "target_modules": ["to_q"]}
        made[f"{name}/adapter_model.safetensors"] = one
        made[f"{name}/adapter_config.json"] = config
    return made


def lora(name, scale=1.0, text_encoder_scale=None):
    one = {"name": name, "scale": scale}
    return one if text_encoder_scale is None else {**one, "text_encoder_scale": text_encoder_scale}


SINGLE = (
    *(f"peft-{rank}" for rank in (1, 4, 16, 64)),
    "peft-all",
    "diffusers",
    "processors",
    "kohya",
    "kohya-alphas",
    "locon",
    "text",
    "folder",
    "rslora",
)


def named_loras():
    """Yields the name, the LoRAs and the further arguments of each case of a checkpoint."""
    for name in SINGLE:
        yield name, [lora(name)], {}
    for name in ("peft-all", "kohya", "locon"):
        for scale in (0.0, 0.7, -1.0, 2.0):
            yield f"{name}-{scale}", [lora(name, scale)], {}
    yield "text-scale", [lora("peft-all", 1.0, 0.3)], {}
    yield "text-scale-0", [lora("kohya", 0.8, 0.0)], {}
    yield "three", [lora("peft-4", 0.5), lora("kohya", 0.8), lora("locon", -0.3)], {}
    yield "no-guidance", [lora("peft-all")], {"guidance_scale": 1.0}
    yield "two-images", [lora("peft-all")], {"num_images_per_prompt": 2}
    lcm = {"scheduler": "LCMScheduler", "num_inference_steps": 4, "guidance_scale": 1.0}
    yield "lcm", [lora("kohya")], lcm
    yield "tcd", [lora("kohya")], {**lcm, "scheduler": "TCDScheduler", "guidance_scale": 0.0, "eta": 0.3}
    yield "size", [lora("locon")], {"height": 72, "width": 48}


def cases():
    """Returns the cases; the LoRAs of a case have its checkpoint's name before their own."""
    found = []
    for checkpoint in CHECKPOINTS:
        for name, loras, more in named_loras():
            number = len(found)
            made = [{**one, "name": f"{checkpoint}-{one['name']}"} for one in loras]
            arguments = {"num_inference_steps": 2, "height": 40, "width": 40, "seed": 200 + number, "loras": made}
            one = element(CAT if number % 2 else SEA, UGLY if number % 3 else None, **{**arguments, **more})
            found.append({"name": f"{checkpoint}/{name}", "checkpoint": checkpoint, "elements": [one]})
    together = [one["elements"][0] for one in found if one["checkpoint"] == "sd1"]
    # Of one size, so that they share their UNet calls.
    together = [dict(one) for one in together if one["gen_args"]["height"] == 40]
    found.append({"name": "sd1/together", "checkpoint": "sd1", "elements": together[::3][:8]})
    return found


def restore_alphas(unet, state, name):
    """Gives each layer the alpha of a kohya file. diffusers 0.36 gives attention layers the most frequent one."""
    for layer, module in unet.named_modules():
        alpha = state.get(f"lora_unet_{layer.replace('.', '_')}.alpha")
        if alpha is not None:
            module.lora_alpha[name] = alpha.item()


def load(pipeline, folder, name):
    """Loads a LoRA as a user of diffusers does, or as peft does if it is in a folder of peft."""
    file, config = folder / f"{name}.safetensors", folder / name / "adapter_config.json"
    if file.exists():
        pipeline.load_lora_weights(file, adapter_name=name)
        restore_alphas(pipeline.unet, load_file(file), name)
        return
    text = json.loads(config.read_text())
    state = load_file(folder / name / "adapter_model.safetensors")
    targets = sorted({key.removeprefix("base_model.model.").split(".lora_")[0] for key in state})
    settings = LoraConfig(
        r=text["r"], lora_alpha=text["lora_alpha"], use_rslora=text["use_rslora"], target_modules=targets
    )
    inject_adapter_in_model(settings, pipeline.unet, name)
    state = {key.removeprefix("base_model.model."): value for key, value in state.items()}
    set_peft_model_state_dict(pipeline.unet, state, adapter_name=name)


def generate(pipeline, folder, one):
    """Returns the images of a batch element, u8 [images, height, width, 3]."""
    # Layers stay wrapped when their adapters are deleted.
    pipeline = copy.deepcopy(pipeline)
    loras = one["gen_args"]["loras"]
    rest = {key: value for key, value in one["gen_args"].items() if key != "loras"}
    names = [lora["name"] for lora in loras]
    for name in names:
        load(pipeline, folder, name)
    scales = [lora["scale"] for lora in loras]
    text_scales = [lora.get("text_encoder_scale", lora["scale"]) for lora in loras]
    for model, weights in ((pipeline.unet, scales), (pipeline.text_encoder, text_scales)):
        set_weights_and_activate_adapters(model, names, weights)
    return text_to_image_cases.run(pipeline, {**one, "gen_args": rest})[0]
