"""Checkpoints with the shapes of public models and noise for weights, in float16.

Shapes and settings are those of stabilityai/stable-diffusion-2-1-base (512x512, 2.6 GB), and of
stabilityai/stable-diffusion-xl-base-1.0 (1024x1024, 7 GB). The rest comes from a tiny checkpoint
of the tests. The scale of the noise keeps the activations below 100, which is far below float16's limit of 65504.
"""

import concurrent.futures
import json
import os
import shutil
import struct
import tempfile
from pathlib import Path

import seeded_checkpoints
import shapes

UNET = {
    "attention_head_dim": [5, 10, 20, 20],
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 1024,
    "norm_num_groups": 32,
    "sample_size": 64,
}
VAE = {"block_out_channels": [128, 256, 512, 512], "norm_num_groups": 32, "sample_size": 512}
TEXT_ENCODER = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "projection_dim": 512,
    "vocab_size": 49408,
}
# Each component: its new settings, its tensors, its file.
COMPONENTS = {
    "unet": (UNET, shapes.unet, "diffusion_pytorch_model.safetensors"),
    "vae": (VAE, shapes.vae, "diffusion_pytorch_model.safetensors"),
    "text_encoder": (TEXT_ENCODER, shapes.text_encoder, "model.safetensors"),
}
XL_UNET = {
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "norm_num_groups": 32,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
}
XL_TEXT_ENCODER = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "projection_dim": 768,
    "vocab_size": 49408,
}
XL_TEXT_ENCODER_2 = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
    "vocab_size": 49408,
}
XL_COMPONENTS = {
    "unet": (XL_UNET, shapes.unet, "diffusion_pytorch_model.safetensors"),
    "vae": (VAE | {"sample_size": 1024}, shapes.vae, "diffusion_pytorch_model.safetensors"),
    "text_encoder": (XL_TEXT_ENCODER, shapes.text_encoder, "model.safetensors"),
    "text_encoder_2": (XL_TEXT_ENCODER_2, shapes.text_encoder_with_projection, "model.safetensors"),
}
SEED = "full_size/1"


def rule(name, shape):
    """The rule of seeded_checkpoints for a tensor."""
    if name.endswith(".bias"):
        return "bias"
    if len(shape) == 1:
        return "norm"
    if "embeddings." in name:
        return {"embedding": 0.3 if "position" in name else 1}
    return {"weight": 1}


def write_weights(file, seed, tensors):
    """Writes a safetensors file with seeded noise; `tensors` maps names to shapes. Returns the bytes of the tensors."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name in sorted(tensors):
        elements = 1
        for size in tensors[name]:
            elements *= size
        header[name] = {"dtype": "F16", "shape": tensors[name], "data_offsets": [end, end + 2 * elements]}
        end += 2 * elements
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)

    def fill(descriptor, name):
        values = seeded_checkpoints.tensor(seed, name, tensors[name], rule(name, tensors[name]))
        data, offset = memoryview(values).cast("B"), start + header[name]["data_offsets"][0]
        while data:
            written = os.pwrite(descriptor, data, offset)
            data, offset = data[written:], offset + written

    with open(file, "wb") as output:
        output.write(struct.pack("<Q", len(text)) + text)
        output.flush()
        output.truncate(start + end)
        # numpy lets other threads run while it draws numbers.
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda name: fill(output.fileno(), name), sorted(tensors)))
    return end


def write(out, tiny, components=None):
    """Writes the checkpoint to the folder `out`, unless it is there. Returns the bytes of its weights.

    `tiny` is the checkpoint with the remaining files. `components` replaces COMPONENTS. The folder gets its name when
    it is complete.
    """
    components = components or COMPONENTS
    files = [out / name / file for name, (_, _, file) in components.items()]
    if not all(file.is_file() for file in files):
        shutil.rmtree(out, ignore_errors=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{out.name}.", dir=out.parent) as work:
            complete = Path(work, "new")
            shutil.copytree(tiny, complete, ignore=shutil.ignore_patterns("*.safetensors"))
            for name, (settings, tensors, file) in components.items():
                config = json.loads((tiny / name / "config.json").read_text()) | settings
                (complete / name / "config.json").write_text(json.dumps(config, indent=2) + "\n")
                write_weights(complete / name / file, f"{SEED}/{name}", tensors(config))
            complete.rename(out)
    return sum(file.stat().st_size for file in files)
