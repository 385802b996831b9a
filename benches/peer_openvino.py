"""Measures a UNet step with guidance and a decode of the VAE in OpenVINO, and prints one JSON object.

    .venv-bench/bin/python benches/peer_openvino.py target/bench/checkpoints/full_size --side 256

`step_s` and `decode_s` are lists of seconds. The models are those of diffusers, converted with static shapes and with
float32 weights, and kept in target/bench/openvino (4 GB for full size). `--convert` only converts them; it also prints
the largest difference from diffusers. `parts.py` runs this program.
"""

import json
import os
import pathlib

import numpy as np
import openvino
import torch

from peer_diffusers import guided, inputs, load, options, seconds

CACHE = pathlib.Path(__file__).resolve().parents[1] / "target" / "bench" / "openvino"
PARTS = ("unet", "vae")
SETTINGS = {
    "PERFORMANCE_HINT": "LATENCY",
    "INFERENCE_PRECISION_HINT": "f32",
    "INFERENCE_NUM_THREADS": len(os.sched_getaffinity(0)),
}


def file_of(checkpoint: pathlib.Path, part: str, side: int) -> pathlib.Path:
    """Returns the file of a converted model. Its name has the versions that made it."""
    versions = f"{openvino.__version__.split('-')[0]}_{torch.__version__.split('+')[0]}"
    return CACHE / f"{checkpoint.name}_{part}_{side}_{versions}.xml"


def compiled(file: pathlib.Path) -> openvino.InferRequest:
    """Compiles a converted model for this processor."""
    return openvino.Core().compile_model(file, "CPU", SETTINGS).create_infer_request()


def convert(checkpoint: pathlib.Path, part: str, side: int) -> float:
    """Converts a part; returns the largest difference from diffusers, relative to the largest value."""
    module, tensors = load(checkpoint, part), inputs(checkpoint, part, side)
    shapes = [(name, list(tensor.shape)) for name, tensor in tensors.items()]
    model = openvino.convert_model(module, example_input=tensors, input=shapes)
    file = file_of(checkpoint, part, side)
    file.parent.mkdir(parents=True, exist_ok=True)
    # OpenVINO compresses to float16 by default.
    partial = file.with_name(f"partial_{file.name}")
    openvino.save_model(model, partial, compress_to_fp16=False)
    del model
    partial.with_suffix(".bin").rename(file.with_suffix(".bin"))
    partial.rename(file)
    expected = module(**tensors).numpy()
    got = run(compiled(file), tensors)
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def run(request: openvino.InferRequest, tensors: dict[str, torch.Tensor]) -> np.ndarray:
    """Runs a compiled model on tensors of PyTorch."""
    return request.infer({name: tensor.numpy() for name, tensor in tensors.items()}, share_inputs=True)[0]


def measure(checkpoint: pathlib.Path, part: str, side: int, repeat: int) -> list[float]:
    """Returns the seconds of each run of a part."""
    request = compiled(file_of(checkpoint, part, side))
    tensors = inputs(checkpoint, part, side)
    if part == "unet":
        return seconds(lambda: guided(torch.from_numpy(run(request, tensors))), repeat)
    return seconds(lambda: run(request, tensors), repeat)


@torch.inference_mode()
def main() -> None:
    parser = options("Measures OpenVINO.")
    parser.add_argument("--convert", action="store_true", help="only convert what is missing")
    arguments = parser.parse_args()
    checkpoint, side = arguments.checkpoint, arguments.side
    if arguments.convert:
        missing = [part for part in PARTS if not file_of(checkpoint, part, side).exists()]
        print(json.dumps({part: convert(checkpoint, part, side) for part in missing}))
        return
    step_s = measure(checkpoint, "unet", side, arguments.steps)
    decode_s = measure(checkpoint, "vae", side, arguments.decodes)
    print(json.dumps({"step_s": step_s, "decode_s": decode_s}))


if __name__ == "__main__":
    main()
