"""Cases of textual inversion, their files in both layouts, and how diffusers generates the images.

A file is a recipe as those of the tiny checkpoints (tools/seeded_checkpoints.py). Every case has all files of the
folder `embeddings`, in the order of their names; some have a LoRA from the folder `loras` too.
"""

import copy
import sys
from pathlib import Path

import adapter_cases
import text_to_image_cases
from text_cases import LONG
from text_to_image_cases import CAT, SEA, UGLY, element
from weighted_cases import TWO_CHUNKS

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import seeded_checkpoints

CHECKPOINTS = ("sd1", "sd2_base")
# The tensor of stable-diffusion-webui; the word is the file's name.
WEBUI = "emb_params"
# File, tensor and shape without the size of a vector.
FILES = (
    ("a-toy", "<cat-toy>", []),
    ("b-style", "<Style>", [1]),
    ("c-multi", "<multi>", [4]),
    ("easyneg", WEBUI, [8]),
    ("longword", WEBUI, [75]),
    ("two words", WEBUI, [2]),
    ("webui-one", WEBUI, [1]),
    ("zażółć", WEBUI, [3]),
)
LORA = "text"


def recipe(seed, tensor, shape):
    made = {"file": "", "seed": seed, "sha256": "", "tensors": {tensor: [shape, {"embedding": 0.7}]}}
    try:
        seeded_checkpoints.weights(made)
    except ValueError as error:
        made["sha256"] = str(error).rsplit(" ", 1)[1]
    return made


def files(pipelines):
    """Returns the recipes of all files by their paths. Both checkpoints have vectors of one size."""
    sizes = {pipelines[name].text_encoder.config.hidden_size for name in CHECKPOINTS}
    (size,) = sizes
    made = {
        f"embeddings/{name}.safetensors": recipe(f"embedding/{name}", tensor, [*shape, size])
        for name, tensor, shape in FILES
    }
    text = adapter_cases.recipe(
        pipelines[CHECKPOINTS[0]], "embedding/lora", "kohya", 4, None, adapter_cases.TEXT, alpha=4.0
    )
    return made | {f"loras/{LORA}.safetensors": text}


def named_elements():
    """Yields the name and the element of each case of a checkpoint."""
    yield "start", element("<cat-toy> on a red chair")
    yield "middle", element("a photo of <cat-toy> sitting on a chair", UGLY)
    yield "end", element("a photo of <cat-toy>")
    yield "alone", element("<multi>")
    yield "one-vector", element("a <Style> painting of webui-one")
    yield "vectors", element("an oil painting, <multi>, at night", UGLY)
    yield "punctuation", element("a photo,<cat-toy>!wow!,(<Style>).<multi>!!")
    yield "attached", element("a redeasynegcar and<cat-toy>a")
    yield "upper-case", element("a <CAT-TOY> and Easyneg, <style>, EASYNEG")
    yield "twice", element("<cat-toy> and <cat-toy>, <multi> and <multi><multi>")
    yield "negative", element(CAT, "easyneg, blurry")
    yield "both", element("a <multi> on <cat-toy>", "easyneg, webui-one")
    yield "no-guidance", element("a <multi> cat", "easyneg", guidance_scale=1.0)
    yield "written-out", element("easyneg easyneg_1 easyneg_2 cat")
    yield "third-vector", element("a easyneg_2 cat", "easyneg_9")
    yield "all-tokens", element("a cat longword")
    yield "cut", element("a " * 72 + "<multi> cat", LONG + " easyneg")
    yield (
        "characters",
        element("Caf\u00e9 <cat-toy>\u732b<multi>\n za\u017c\u00f3\u0142\u0107 it's two words", "two  words"),
    )
    yield "special", element("a <|endoftext|><cat-toy> <|STARTOFTEXT|> cat")
    yield "two-images", element("a <multi> cat", num_images_per_prompt=2)
    yield "clip-skip", element("a <multi> cat", "easyneg", clip_skip=1)
    lora = [adapter_cases.lora(LORA, 0.8)]
    yield "lora", element("a <multi> on <cat-toy>", "easyneg", loras=lora)
    weighted = {"prompt_syntax": "weighted"}
    yield "weighted", element("a (<multi>:1.4) on [<cat-toy>], \\(<Style>\\)", "(easyneg:1.2), text", **weighted)
    yield "weighted-clip-skip", element("((<multi>)) (cat <cat-toy>:0.5)", "easyneg", clip_skip=1, **weighted)
    yield "weighted-written-out", element("(easyneg:1.2) easyneg_1", **weighted)
    yield "weighted-long", element(TWO_CHUNKS + "(<multi>:1.3) easyneg", "blurry", **weighted)
    yield "weighted-between-chunks", element("a " * 72 + "(<multi>:1.5) cat", "(longword:0.8) longword", **weighted)
    yield "weighted-cut", element("(longword) <multi> longword (longword:0.9)", SEA, **weighted)
    yield "weighted-lora", element("a (<multi>:1.4) cat", "easyneg", loras=lora, **weighted)


def cases():
    """Returns the cases."""
    found = []
    for checkpoint in CHECKPOINTS:
        for name, one in named_elements():
            arguments = {"num_inference_steps": 2, "height": 32, "width": 32, "seed": 400 + len(found)}
            one = {**one, "gen_args": {**arguments, **one["gen_args"]}}
            found.append({"name": f"{checkpoint}/{name}", "checkpoint": checkpoint, "elements": [one]})
    together = [copy.deepcopy(one["elements"][0]) for one in found if one["checkpoint"] == "sd1"]
    together = [one for one in together if "prompt_syntax" not in one["gen_args"]]
    found.append({"name": "sd1/together", "checkpoint": "sd1", "elements": together[::3][:8]})
    return found


def with_embeddings(pipeline, folder):
    """Returns a copy of a pipeline with all files of the folder `embeddings`, as a user of diffusers loads them."""
    pipeline = copy.deepcopy(pipeline)
    for name, tensor, _ in FILES:
        file = folder / "embeddings" / f"{name}.safetensors"
        pipeline.load_textual_inversion(file, token=name if tensor == WEBUI else None)
    return pipeline


def generate(pipeline, folder, one):
    """Returns the images of a batch element, u8 [images, height, width, 3]."""
    if "loras" in one["gen_args"]:
        return adapter_cases.generate(pipeline, folder / "loras", one)
    return text_to_image_cases.run(pipeline, one)[0]
