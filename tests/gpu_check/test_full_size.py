"""The checkpoint of full size has the right shapes, and float16 weights from a seed."""

import json
import math

import numpy as np
import pytest
from safetensors.numpy import load_file

import full_size
import seeded_checkpoints
import shapes


@pytest.mark.parametrize("checkpoint", ["sd2_base", "sd2_depth", "sd2_inpaint"])
@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_shapes_are_those_of_the_recipes(checkpoint, component):
    folder = seeded_checkpoints.DATA / checkpoint / component
    recipe = json.loads((folder / seeded_checkpoints.RECIPE).read_text())
    expected = {name: shape for name, shape, _ in seeded_checkpoints.flat(recipe["tensors"])}
    assert getattr(shapes, component)(json.loads((folder / "config.json").read_text())) == expected


def test_full_size_has_the_parameters_of_stable_diffusion_2():
    counts = {}
    for name, (settings, tensors, _) in full_size.COMPONENTS.items():
        config = json.loads((seeded_checkpoints.DATA / "sd2_base" / name / "config.json").read_text())
        counts[name] = sum(math.prod(shape) for shape in tensors(config | settings).values())
    assert counts == {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840}


def test_written_weights_are_seeded_and_finite(tmp_path):
    tiny = seeded_checkpoints.write() / "sd2_base"
    components = {name: ({}, tensors, file) for name, (_, tensors, file) in full_size.COMPONENTS.items()}
    size = full_size.write(tmp_path / "one", tiny, components)
    full_size.write(tmp_path / "two", tiny, components)
    total = 0
    for name, (_, tensors, file) in components.items():
        data = (tmp_path / "one" / name / file).read_bytes()
        total += len(data)
        assert data == (tmp_path / "two" / name / file).read_bytes()
        written = load_file(tmp_path / "one" / name / file)
        config = json.loads((tiny / name / "config.json").read_text())
        assert {key: list(value.shape) for key, value in written.items()} == tensors(config)
        assert all(value.dtype == np.float16 and np.isfinite(value).all() for value in written.values())
    assert size == total
    # Weights keep the size of what they multiply.
    unet = load_file(tmp_path / "one" / "unet" / "diffusion_pytorch_model.safetensors")
    weight = unet["mid_block.resnets.0.conv1.weight"].astype(np.float32)
    assert weight.std() * math.sqrt(24 * 9) == pytest.approx(1, rel=0.05)
