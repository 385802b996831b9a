"""Trains all models and the LoRA and writes them, with one command and one seed. Started again, it continues.

    python demo/train/run.py --work target/train --out demo/models

After the text encoder, two processes run in parallel on one core each: the first trains the f8 VAE and the UNets in its
latents, the second the f4 VAE, the upscaler and the depth estimator. The LoRA is last: it is trained for the folder of
sd_base as written. `--only-lora` trains it alone, for the folder that lies in `--out`.
"""

import argparse
import json
import multiprocessing
import platform
import warnings
from pathlib import Path

import diffusers
import numpy
import peft
import torch
import transformers

import autoencoders
import captions
import depth
import export
import latents
import lora
import training
import unets
import upscaler


def text_encoder(work):
    """Returns the tokenizer and the trained text encoder."""
    tokenizer = captions.write_tokenizer(work / "tokenizer")
    return tokenizer, captions.train(work, tokenizer)


def image_models(work):
    """Trains the f8 VAE and the three UNets in its latents."""
    tokenizer, encoder = text_encoder(work)
    vae = autoencoders.train(work, "vae_f8")
    cached = latents.joined(
        latents.cached(work, "images", lambda: latents.images(vae, 0, latents.SCENES)),
        latents.cached(work, "pairs", lambda: latents.images(vae, latents.SCENES, latents.SCENES + latents.PAIRS)),
    )
    base = unets.train(work, "text", tokenizer, encoder, cached)
    to_depth = unets.train(work, "depth", tokenizer, encoder, cached, base=base)
    masked = latents.cached(work, "masked", lambda: latents.masked(vae))
    inpaint = unets.train(work, "inpaint", tokenizer, encoder, cached, masked, base=base)
    return dict(vae=vae, unet_text=base, unet_depth=to_depth, unet_inpaint=inpaint)


def upscaler_and_depth(work):
    """Trains the f4 VAE, the upscaler's UNet and the depth estimator."""
    tokenizer, encoder = text_encoder(work)
    vae = autoencoders.train(work, "vae_f4")
    upscaler.fix_scaling(vae)
    crops = latents.cached(work, "crops", lambda: upscaler.crops(vae))
    return dict(
        vae_f4=vae, unet_upscale=upscaler.train(work, tokenizer, encoder, crops), depth_estimator=depth.train(work)
    )


def train_in_process(train, work):
    """Runs one of the functions above in a new process."""
    prepare()
    train(work)


def prepare():
    """Limits torch to one thread per process: with layers this small, a second thread does not help."""
    warnings.filterwarnings("ignore", category=UserWarning)
    torch.set_num_threads(1)


def write_models(work, out):
    """Trains the models and writes their four folders."""
    tokenizer, encoder = text_encoder(work)
    context = multiprocessing.get_context("spawn")
    trainings = (image_models, upscaler_and_depth)
    processes = [context.Process(target=train_in_process, args=(train, work)) for train in trainings]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit("a training failed; its checkpoint is kept")

    # Everything is trained; these calls only load the checkpoints.
    components = dict(tokenizer=tokenizer, text_encoder=encoder) | image_models(work) | upscaler_and_depth(work)
    with torch.no_grad():
        export.write(out, components)


def report(work, earlier):
    """Returns the seed, the versions, and the time and losses of each training: ten lines of its log.

    A training without a log in `work` keeps its entry in the file `earlier`, the report of another run.
    """
    trainings = {}
    if earlier.exists():
        trainings = {log["name"]: log for log in json.loads(earlier.read_text())["trainings"]}
    for file in work.glob("*.json"):
        log = json.loads(file.read_text())
        lines = numpy.unique(numpy.linspace(0, len(log["losses"]) - 1, 10).round().astype(int))
        trainings[log["name"]] = log | {"losses": [log["losses"][n] for n in lines]}
    versions = {module.__name__: module.__version__ for module in (torch, diffusers, transformers, peft, numpy)}
    return {
        "seed": training.SEED,
        "python": platform.python_version(),
        "versions": versions,
        "trainings": [trainings[name] for name in sorted(trainings)],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="checkpoints, losses and cached latents")
    parser.add_argument("--out", type=Path, required=True, help="folder for the four models, loras and training.json")
    parser.add_argument("--only-lora", action="store_true", help="train only the LoRA, for the sd_base in --out")
    arguments = parser.parse_args()
    work = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    prepare()
    if not arguments.only_lora:
        write_models(work, arguments.out)
    lora.write(arguments.out / "loras", lora.train(work, arguments.out / "sd_base"))
    file = arguments.out / "training.json"
    file.write_text(json.dumps(report(work, file), indent=1) + "\n")


if __name__ == "__main__":
    main()
