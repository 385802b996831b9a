#!/usr/bin/env python3
"""Writes the goldens: the results of diffusers with the tiny checkpoints, for the tests of this backend.

Everything runs on the CPU in float32 with torch's defaults, like the program of a plain diffusers user. Each group is a
safetensors file and a JSON manifest (tokens: JSON only). README.md describes the formats.
"""

import argparse
import json
import sys
import tempfile
import warnings
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers
from diffusers import AutoencoderTiny, DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import save_file
from transformers.utils import logging as transformers_logging

import adapter_cases
import approximation_cases
import depth_cases
import embedding_cases
import image_cases
import pil_cases
import safety_cases
import scheduler_cases
import text_to_image_cases
import weighted_cases
import xl_cases
from text_cases import ENCODED_TEXTS, TOKENIZED_TEXTS

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import seeded_checkpoints  # noqa: E402

DEFAULT_OUT = ROOT / "tests" / "data" / "goldens"

FAMILIES = ("sd1", "sd2_base", "sd2_768v", "sd2_depth", "sd2_inpaint", "x4_upscaler", "lcm")
TEXT_FAMILIES = ("sd1", "sd2_base")
# One family for each distinct VAE: the sd2 families share theirs.
VAE_FAMILIES = ("sd1", "sd2_base", "x4_upscaler")
TINY_FAMILY = approximation_cases.CHECKPOINT


class Checkpoints:
    """Loads each folder once, in float32."""

    def __init__(self, folder):
        self.folder = folder
        self.loaded = {}

    def __getitem__(self, family):
        if family not in self.loaded:
            pipeline = DiffusionPipeline.from_pretrained(
                self.folder / family, torch_dtype=torch.float32, local_files_only=True
            )
            pipeline.set_progress_bar_config(disable=True)
            self.loaded[family] = pipeline
        return self.loaded[family]


def seeded(seed, *shape):
    """Returns standard normal numbers from a new generator."""
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))


def write_json(path, content):
    """Writes one case per line, for readable diffs."""
    lines = [f' "{key}": {json.dumps(value, sort_keys=True)}' for key, value in sorted(content.items())]
    text = "{\n" + ",\n".join(lines).replace("}, {", "},\n  {") + "\n}\n"
    path.write_text(text, encoding="utf-8")


def write_group(out, group, tensors, manifest):
    write_json(out / f"{group}.json", manifest)
    file = out / f"{group}.safetensors"
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, file)
    file.chmod(0o644)  # save_file makes it readable by its owner only


# ---------------------------------------------------------------------------------------------------------------
# Groups
# ---------------------------------------------------------------------------------------------------------------


def tokens(checkpoints, out):
    """Writes token ids as in the pipeline's `encode_prompt`: padded or cut to 77."""
    manifest = {}
    for family in TEXT_FAMILIES:
        tokenizer = checkpoints[family].tokenizer
        if type(tokenizer).__name__ != "CLIPTokenizer" or tokenizer.fix_text is not None:
            raise SystemExit("the reference is the slow CLIPTokenizer without ftfy")
        limit = tokenizer.model_max_length
        cases = []
        for text in TOKENIZED_TEXTS:
            ids = tokenizer(text, padding="max_length", max_length=limit, truncation=True).input_ids
            whole = tokenizer(text, padding="longest").input_ids
            cases.append({"text": text, "ids": ids, "truncated": len(whole) > limit})
        manifest[family] = cases
    write_json(out / "tokens.json", manifest)


def text(checkpoints, out):
    """Writes text embeddings, with one `encode_prompt` call for each text."""
    tensors, cases = {}, []
    for family in TEXT_FAMILIES:
        pipeline = checkpoints[family]
        for clip_skip in (None, 1, 2):
            embeddings = [
                pipeline.encode_prompt(one, torch.device("cpu"), 1, False, clip_skip=clip_skip)[0]
                for one in ENCODED_TEXTS
            ]
            name = f"{family}/" + ("last_hidden_state" if clip_skip is None else f"clip_skip_{clip_skip}")
            tensors[name] = torch.cat(embeddings)
            cases.append({"name": name, "checkpoint": family, "clip_skip": clip_skip, "texts": ENCODED_TEXTS})
    write_group(out, "text", tensors, {"cases": cases})


def weighted(checkpoints, out):
    """Writes text embeddings of weighted prompts."""
    tensors, cases = {}, []
    for case in weighted_cases.cases():
        prompt, negative, truncated = weighted_cases.encode(
            checkpoints[case["checkpoint"]], case["prompt"], case["negative_prompt"], case["clip_skip"]
        )
        tensors[f"{case['name']}/prompt"] = prompt
        if negative is not None:
            tensors[f"{case['name']}/negative"] = negative
        cases.append({**case, "truncated": truncated})
    write_group(out, "weighted", tensors, {"cases": cases})


def guidance_embeddings(pipeline, tensors):
    """Computes the guidance embeddings of a latent consistency model, in the size of its UNet and in other sizes."""
    weights = torch.tensor([scale - 1 for scale in (8.5, 1.0, 0.0, 7.3, 100.0)])
    tensors["guidance/weights"] = weights
    cases = []
    for dim in (pipeline.unet.config.time_cond_proj_dim, 33, 4):
        name = f"guidance/dim{dim}"
        tensors[name] = pipeline.get_guidance_scale_embedding(weights, embedding_dim=dim)
        cases.append({"embedding_dim": dim, "weights": "guidance/weights", "output": name})
    return cases


def unet(checkpoints, out):
    """Writes one UNet call for each family, latent size and batch size; the batch entries have different timesteps."""
    tensors, cases = {}, []
    guidance = guidance_embeddings(checkpoints["lcm"], tensors)
    for number, family in enumerate(FAMILIES):
        model = checkpoints[family].unet
        channels, width = model.config.in_channels, model.config.cross_attention_dim
        hidden, timestep = f"{family}/encoder_hidden_states", f"{family}/timestep"
        tensors[hidden] = seeded(100 + number, 2, 77, width)
        tensors[timestep] = torch.tensor([981, 41])
        labels = None
        if model.config.num_class_embeds is not None:
            labels = f"{family}/class_labels"
            tensors[labels] = torch.tensor([20, 350])
        cond = None
        if model.config.time_cond_proj_dim is not None:
            cond = f"guidance/dim{model.config.time_cond_proj_dim}"
        # 10 x 12 cannot be halved three times; the up blocks use the sizes of the skip connections.
        for height, width in ((8, 8), (8, 12), (10, 12)):
            size = f"{family}/{height}x{width}"
            tensors[f"{size}/sample"] = seeded(200 + number, 2, channels, height, width)
            for batch_size in (1, 2):
                output = f"{size}/batch{batch_size}"
                tensors[output] = model(
                    tensors[f"{size}/sample"][:batch_size],
                    tensors[timestep][:batch_size],
                    encoder_hidden_states=tensors[hidden][:batch_size],
                    class_labels=None if labels is None else tensors[labels][:batch_size],
                    timestep_cond=None if cond is None else tensors[cond][:batch_size],
                ).sample
                cases.append(
                    {
                        "name": output,
                        "checkpoint": family,
                        "batch_size": batch_size,
                        "sample": f"{size}/sample",
                        "timestep": timestep,
                        "encoder_hidden_states": hidden,
                        "class_labels": labels,
                        "timestep_cond": cond,
                        "output": output,
                    }
                )
    write_group(out, "unet", tensors, {"cases": cases, "guidance_embeddings": guidance})


def sdxl_networks(checkpoints, out):
    """Writes the states of both text encoders and UNet calls of Stable Diffusion XL."""
    pipeline, tensors, texts, cases = checkpoints["sdxl_base"], {}, [], []
    for clip_skip in (None, 1):
        for number, (tokenizer, encoder) in enumerate(
            [(pipeline.tokenizer, pipeline.text_encoder), (pipeline.tokenizer_2, pipeline.text_encoder_2)], 1
        ):
            name = f"text_{number}/clip_skip_{clip_skip or 0}"
            ids = [
                tokenizer(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
                for text in ENCODED_TEXTS
            ]
            outputs = [encoder(each, output_hidden_states=True) for each in ids]
            tensors[name] = torch.cat([output.hidden_states[-2 - (clip_skip or 0)] for output in outputs])
            if number == 2:
                tensors[f"{name}/pooled"] = torch.cat([output[0] for output in outputs])
            texts.append({"name": name, "encoder": number, "clip_skip": clip_skip or 0, "texts": ENCODED_TEXTS})
    model = pipeline.unet
    size = model.config.projection_class_embeddings_input_dim - 6 * model.config.addition_time_embed_dim
    tensors["unet/encoder_hidden_states"] = seeded(500, 2, 77, model.config.cross_attention_dim)
    tensors["unet/timestep"] = torch.tensor([981, 41])
    tensors["unet/text_embeds"] = seeded(501, 2, size)
    tensors["unet/time_ids"] = torch.tensor([[64.0, 64, 0, 0, 64, 64], [1024, 768, 16, 0, 512, 1024]])
    for height, width in ((8, 8), (10, 12)):
        tensors[f"unet/{height}x{width}/sample"] = seeded(502, 2, 4, height, width)
        for batch_size in (1, 2):
            output = f"unet/{height}x{width}/batch{batch_size}"
            added = {key: tensors[f"unet/{key}"][:batch_size] for key in ("text_embeds", "time_ids")}
            tensors[output] = model(
                tensors[f"unet/{height}x{width}/sample"][:batch_size],
                tensors["unet/timestep"][:batch_size],
                encoder_hidden_states=tensors["unet/encoder_hidden_states"][:batch_size],
                added_cond_kwargs=added,
            ).sample
            cases.append({"batch_size": batch_size, "sample": f"unet/{height}x{width}/sample", "output": output})
    write_group(out, "sdxl_networks", tensors, {"texts": texts, "cases": cases})


def vae(checkpoints, out):
    """Writes `vae.decode` of raw latents (not divided by scaling_factor), and the moments of `vae.encode`."""
    tensors, cases = {}, []
    for number, family in enumerate(VAE_FAMILIES):
        model = checkpoints[family].vae
        factor = 2 ** (len(model.config.block_out_channels) - 1)
        for batch_size, height, width in ((1, 8, 8), (2, 5, 6)):
            size = f"{family}/{batch_size}x{height}x{width}"
            pixels = (batch_size, 3, height * factor, width * factor)
            tensors[f"{size}/latents"] = seeded(300 + number, batch_size, 4, height, width) * 5
            tensors[f"{size}/decoded"] = model.decode(tensors[f"{size}/latents"]).sample
            tensors[f"{size}/image"] = seeded(400 + number, *pixels).mul(0.5).clamp(-1, 1)
            tensors[f"{size}/moments"] = model.encode(tensors[f"{size}/image"]).latent_dist.parameters
            for kind, source, output in (("decode", "latents", "decoded"), ("encode", "image", "moments")):
                cases.append(
                    {
                        "name": f"{size}/{kind}",
                        "checkpoint": family,
                        "kind": kind,
                        "input": f"{size}/{source}",
                        "output": f"{size}/{output}",
                    }
                )
    write_group(out, "vae", tensors, {"cases": cases})


def load_vae_tiny(checkpoints):
    return AutoencoderTiny.from_pretrained(checkpoints.folder / TINY_FAMILY / "vae_tiny", torch_dtype=torch.float32)


def vae_tiny(checkpoints, out):
    """Writes `AutoencoderTiny.decode` of latents that are divided by its scaling_factor, some beyond its range."""
    model = load_vae_tiny(checkpoints)
    tensors, cases = {}, []
    for batch_size, height, width in ((1, 8, 8), (2, 5, 6)):
        size = f"{TINY_FAMILY}/{batch_size}x{height}x{width}"
        tensors[f"{size}/latents"] = seeded(350, batch_size, 4, height, width) * 2
        tensors[f"{size}/decoded"] = model.decode(tensors[f"{size}/latents"]).sample
        cases.append({"checkpoint": TINY_FAMILY, "input": f"{size}/latents", "output": f"{size}/decoded"})
    write_group(out, "vae_tiny", tensors, {"cases": cases})


def schedulers(checkpoints, out):
    """Writes trajectories with fixed model outputs, which test only the scheduler."""
    del checkpoints
    outputs = seeded(500, scheduler_cases.MAX_CALLS, 1, 4, 4, 4)
    sample, noise = seeded(501, 1, 4, 4, 4), seeded(502, 1, 4, 4, 4)
    for family in scheduler_cases.FAMILIES:
        tensors = {"model_outputs": outputs, "sample": sample, "noise": noise}
        cases, refused = [], []
        for case in scheduler_cases.cases(family):
            try:
                scheduler, made = scheduler_cases.run(case, outputs, sample, noise)
            except Exception as error:  # the manifest lists what diffusers refuses
                refused.append({**case, "reason": type(error).__name__})
                continue
            if not torch.isfinite(made["samples"]).all():
                refused.append({**case, "reason": "not finite"})
                continue
            tensors.update({f"{case['name']}/{name}": tensor for name, tensor in made.items()})
            cases.append({**case, "init_noise_sigma": float(scheduler.init_noise_sigma)})
        write_group(out, f"schedulers/{family}", tensors, {"cases": cases, "refused": refused})
        for case in refused:
            print(f"  {family}: refused: steps {case['num_inference_steps']} ({case['reason']}): {case['config']}")


def safety(checkpoints, out):
    """Writes images, the output of the image processor, and their cosines with the safety checker's concepts."""
    write_group(out, "safety", *safety_cases.run(checkpoints[safety_cases.CHECKPOINT]))


def text_to_image(checkpoints, out):
    """Writes generated images, with one pipeline call for each batch element."""
    tensors = {}
    cases = text_to_image_cases.cases()
    for case in cases:
        for number, element in enumerate(case["elements"]):
            images, flags = text_to_image_cases.run(checkpoints[case["checkpoint"]], element)
            tensors[f"{case['name']}/{number}"] = images
            if flags is not None:
                element["nsfw_content_detected"] = flags
    write_group(out, "images", tensors, {"cases": cases})


def sdxl(checkpoints, out):
    """Writes images of Stable Diffusion XL, and the input images."""
    inputs, cases = image_cases.inputs(), xl_cases.cases()
    named = {one[key] for case in cases for one in case["elements"] for key in ("image", "mask_image") if one[key]}
    tensors = {f"inputs/{name}": torch.from_numpy(inputs[name]) for name in sorted(named)}
    for case in cases:
        for number, element in enumerate(case["elements"]):
            made = xl_cases.run(checkpoints[case["checkpoint"]], element, inputs)
            tensors[f"{case['name']}/{number}"] = made
    write_group(out, "sdxl", tensors, {"cases": cases})


def approximations(checkpoints, out):
    """Writes generated images with `deep_cache` and the tiny decoder."""
    tiny, tensors, cases = load_vae_tiny(checkpoints), {}, approximation_cases.cases()
    for case in cases:
        for number, element in enumerate(case["elements"]):
            made = approximation_cases.run(checkpoints[case["checkpoint"]], tiny, element)
            tensors[f"{case['name']}/{number}"] = made
    write_group(out, "approximations", tensors, {"cases": cases})


def adapters(checkpoints, out):
    """Writes generated images with LoRAs, and the recipes of the LoRAs."""
    files, cases, tensors = adapter_cases.adapters(checkpoints), adapter_cases.cases(), {}
    with tempfile.TemporaryDirectory() as folder:
        adapter_cases.write(files, Path(folder))
        for case in cases:
            for number, element in enumerate(case["elements"]):
                tensors[f"{case['name']}/{number}"] = adapter_cases.generate(
                    checkpoints[case["checkpoint"]], Path(folder), element
                )
    recipes = [{"path": path, "content": files[path]} for path in sorted(files)]
    write_group(out, "adapters", tensors, {"cases": cases, "files": recipes})


def textual_inversion(checkpoints, out):
    """Writes generated images with words of textual inversion, and the recipes of their files."""
    files, cases, tensors = embedding_cases.files(checkpoints), embedding_cases.cases(), {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        adapter_cases.write(files, folder)
        extended = {
            checkpoint: embedding_cases.with_embeddings(checkpoints[checkpoint], folder)
            for checkpoint in embedding_cases.CHECKPOINTS
        }
        for case in cases:
            for number, element in enumerate(case["elements"]):
                made = embedding_cases.generate(extended[case["checkpoint"]], folder, element)
                tensors[f"{case['name']}/{number}"] = made
    recipes = [{"path": path, "content": files[path]} for path in sorted(files)]
    write_group(out, "textual_inversion", tensors, {"cases": cases, "files": recipes})


def with_input_images(group):
    """Returns a function like `text_to_image` for a group with input images, which it stores under `inputs/`."""

    def make(checkpoints, out):
        cases, inputs = image_cases.cases(group), image_cases.inputs()
        tensors = {}
        for case in cases:
            for number, element in enumerate(case["elements"]):
                for name in filter(None, (element["image"], element["mask_image"], element["depth_map"])):
                    tensors[f"inputs/{name}"] = torch.from_numpy(inputs[name])
                tensors[f"{case['name']}/{number}"] = image_cases.run(
                    group, checkpoints[case["checkpoint"]], element, inputs
                )
        write_group(out, group, tensors, {"cases": cases})

    return make


def pil(checkpoints, out):
    """Writes results of decoding, resizing and compositing images, without a model."""
    del checkpoints
    write_group(out, "pil", *pil_cases.make())


def depth(checkpoints, out):
    """Writes each step from an image to the depth input of the UNet."""
    tensors, manifest = depth_cases.record(checkpoints[depth_cases.CHECKPOINT])
    write_group(out, "depth", tensors, manifest)


GROUPS = {
    "tokens": tokens,
    "text": text,
    "weighted": weighted,
    "unet": unet,
    "sdxl_networks": sdxl_networks,
    "sdxl": sdxl,
    "vae": vae,
    "vae_tiny": vae_tiny,
    "depth": depth,
    "schedulers": schedulers,
    "safety": safety,
    "images": text_to_image,
    "approximations": approximations,
    "adapters": adapters,
    "textual_inversion": textual_inversion,
    **{group: with_input_images(group) for group in image_cases.GROUPS},
    "pil": pil,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoints", type=Path, help="default: generated from the seeds")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    (arguments.out / "schedulers").mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(arguments.checkpoints or seeded_checkpoints.write())
    with torch.no_grad():
        for group in arguments.only:
            GROUPS[group](checkpoints, arguments.out)
            print(f"{group}: written", flush=True)
    write_json(
        arguments.out / "reference.json",
        {
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "diffusers": diffusers.__version__,
            "numpy": np.__version__,
            # Some of torch's kernels sum per thread: the number of threads changes the last bits.
            "threads": torch.get_num_threads(),
            "torch": torch.__version__.split("+")[0],
            "transformers": transformers.__version__,
        },
    )
    total = sum(path.stat().st_size for path in arguments.out.rglob("*") if path.is_file())
    print(f"{total:,} bytes in {arguments.out}")


if __name__ == "__main__":
    main()
