"""Trains everything and writes the four folders: one command, one seed. Stopped, it goes on where it was.

    python demo/train/run.py --work target/train --out demo/models

After the text encoder two lanes run beside each other, a core each: the f8 VAE and the UNets in its latents, and the f4
VAE, the upscaler and the depth estimator.
"""

import argparse
import json
import multiprocessing
import platform
import warnings
from pathlib import Path

import diffusers
import numpy
import torch
import transformers

import autoencoders
import depth
import folders
import latents
import training
import unets
import upscaler
import words


def text_encoder(work):
    tokenizer = words.write_tokenizer(work / "tokenizer")
    return tokenizer, words.train(work, tokenizer)


def pictures(work):
    """The f8 VAE and the three UNets in its latents."""
    tokenizer, encoder = text_encoder(work)
    vae = autoencoders.train(work, "vae_f8")
    cached = latents.joined(
        latents.cached(work, "pictures", lambda: latents.pictures(vae, 0, latents.SCENES)),
        latents.cached(work, "pairs", lambda: latents.pictures(vae, latents.SCENES, latents.SCENES + latents.PAIRS)),
    )
    base = unets.train(work, "text", tokenizer, encoder, cached)
    to_depth = unets.train(work, "depth", tokenizer, encoder, cached, base=base)
    masked = latents.cached(work, "masked", lambda: latents.masked(vae))
    inpaint = unets.train(work, "inpaint", tokenizer, encoder, cached, masked, base=base)
    return dict(vae=vae, unet_text=base, unet_depth=to_depth, unet_inpaint=inpaint)


def enlargement(work):
    """The f4 VAE, the upscaler's UNet and the depth estimator."""
    tokenizer, encoder = text_encoder(work)
    vae = autoencoders.train(work, "vae_f4")
    upscaler.fix_scaling(vae)
    crops = latents.cached(work, "crops", lambda: upscaler.crops(vae))
    return dict(
        vae_f4=vae, unet_upscale=upscaler.train(work, tokenizer, encoder, crops), depth_estimator=depth.train(work)
    )


def lane(parts, work):
    prepare()
    parts(work)


def prepare():
    """One thread a lane: over such small layers two threads wait for each other more than they help."""
    warnings.filterwarnings("ignore", category=UserWarning)
    torch.set_num_threads(1)


def report(work):
    """What was trained with what, how long it took, and how the losses went: ten lines of each training's log."""
    logs = [json.loads(file.read_text()) for file in sorted(work.glob("*.json"))]
    for log in logs:
        log["losses"] = [
            log["losses"][n] for n in numpy.unique(numpy.linspace(0, len(log["losses"]) - 1, 10).round().astype(int))
        ]
    versions = {module.__name__: module.__version__ for module in (torch, diffusers, transformers, numpy)}
    return {"seed": training.SEED, "python": platform.python_version(), "versions": versions, "trainings": logs}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="checkpoints, losses and cached latents")
    parser.add_argument("--out", type=Path, required=True, help="the four folders, and training.json")
    arguments = parser.parse_args()
    work = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    prepare()

    tokenizer, encoder = text_encoder(work)
    context = multiprocessing.get_context("spawn")
    lanes = [context.Process(target=lane, args=(parts, work)) for parts in (pictures, enlargement)]
    for each in lanes:
        each.start()
    for each in lanes:
        each.join()
    if any(each.exitcode for each in lanes):
        raise SystemExit("a lane failed; what it has done is kept")

    # All is trained: this only loads it.
    parts = dict(tokenizer=tokenizer, text_encoder=encoder) | pictures(work) | enlargement(work)
    with torch.no_grad():
        folders.write(arguments.out, parts)
    (arguments.out / "training.json").write_text(json.dumps(report(work), indent=1) + "\n")


if __name__ == "__main__":
    main()
