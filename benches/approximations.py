"""Measures what `deep_cache` and the tiny decoder save: the mean step and the decode of `fast`, with and without them.

    .venv/bin/python benches/approximations.py --side 512

The checkpoint is that of full size with a tiny decoder of TAESD's shapes in it; all weights are noise. In each
round every setting runs once, in a separate process. The mean step is that of --steps steps after two that do not
count. With 6 steps, the intervals 2, 3 and 6 have their whole share of full UNet calls. What the approximations cost in
quality is measured by psnr.py.
"""

import argparse
import json
import pathlib
import sys

import checkpoints
import comparison
import full_size
import process
import results
import shapes

# Those of madebyollin/taesd.
TINY = {
    "block_out_channels": [64] * 4,
    "encoder_block_out_channels": [64] * 4,
    "decoder_block_out_channels": [64] * 4,
    "num_encoder_blocks": [1, 3, 3, 3],
    "num_decoder_blocks": [3, 3, 3, 1],
}
SETTINGS = {
    "without": {},
    "deep_cache 2": {"deep_cache": 2},
    "deep_cache 3": {"deep_cache": 3},
    "deep_cache 6": {"deep_cache": 6},
    "decoder tiny": {"decoder": "tiny"},
}


def with_tiny_decoder() -> pathlib.Path:
    """Returns the folder of the full-size checkpoint, with `vae_tiny/` in it."""
    checkpoint = checkpoints.get("full_size")
    folder = checkpoints.FOLDER / "full_size_tiny"
    checkpoints.with_scheduler(checkpoint, folder)
    config = json.loads((checkpoints.tiny_decoder() / "config.json").read_text()) | TINY
    (folder / "vae_tiny").mkdir()
    (folder / "vae_tiny" / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    file = folder / "vae_tiny" / "diffusion_pytorch_model.safetensors"
    full_size.write_weights(file, "full_size/1/vae_tiny", shapes.vae_tiny(config))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    results.add_options(parser, "approximations", 2)
    parser.add_argument("--side", type=int, default=512, help="height and width in pixels [default: 512]")
    parser.add_argument("--steps", type=int, default=6, help="measured steps of a round [default: 6]")
    arguments = parser.parse_args()
    checkpoint = with_tiny_decoder()
    parts = {"mean UNet step": {}, "decode": {}}
    for number in range(arguments.rounds):
        for name, defaults in SETTINGS.items():
            run, _ = process.ours(
                "fast",
                checkpoint,
                side=arguments.side,
                steps=arguments.steps + 2,
                default_gen_args=json.dumps(defaults),
            )
            times = run["step_ms"] / 1000, run["finish_ms"] / 1000
            for samples, value in zip(parts.values(), times, strict=True):
                samples.setdefault(name, []).append(value)
            print(f"round {number + 1}, {name}: step {times[0]:.3f} s, decode {times[1]:.3f} s", file=sys.stderr)
    settings = {"checkpoint": "full_size", "side": arguments.side, "steps": arguments.steps}
    rows = [{"what": what, "samples": samples} for what, samples in parts.items()]
    for row in rows:
        print(row["what"])
        for name, values in row["samples"].items():
            share = comparison.spread(comparison.ratios(row["samples"], name, "without"))
            print(f"  {name:<14} {comparison.spread(values, comparison.digits_of(values))} s; {share} of without")
    results.save(arguments, "approximations", settings, rows)


if __name__ == "__main__":
    main()
