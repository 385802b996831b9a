"""Pictures that come through the server against those that diffusers made from the same checkpoints.

The committed ones come from one processor and kernels differ between processors: no byte may be off by more than 2, and 99 %
must be equal. `make parity` makes them anew on this machine, names their folder in TRITON_DIFFUSION_PARITY, and then every
byte must be equal.
"""

import json
import os
import pathlib

import numpy as np
import pytest
from PIL import Image
from support import CHECKPOINTS, ROOT, config, pixels, sent

PARITY = os.environ.get("TRITON_DIFFUSION_PARITY")
GOLDENS = pathlib.Path(PARITY) if PARITY else ROOT / "tests" / "data" / "goldens"
# Without pictures that go in, and with.
GROUPS = ("pictures", "image_to_image", "depth_to_image", "inpaint", "upscale")
PICTURES = ("image", "mask_image", "depth_map")
# Of a grid over schedulers, guidance, sizes and strengths, the Rust tests make every picture and this one every fifth: the
# grid's periods are 2 and 3, so that each of their values is met.
STRIDE = 5


def cases_of(group):
    cases = json.loads((GOLDENS / f"{group}.json").read_text())["cases"]
    if PARITY or group == "pictures":
        return cases
    grid = [case for case in cases if "-guidance" in case["name"]]
    rest = [case for case in cases if "-guidance" not in case["name"]]
    assert grid and rest
    return grid[::STRIDE] + rest


CASES = [(group, case) for group in GROUPS for case in cases_of(group)]
MODELS = sorted({case["checkpoint"] for _, case in CASES})


def tensors(path):
    """The uint8 tensors of a safetensors file: 8 bytes of header length, a JSON header, the data."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    return {
        name: np.frombuffer(data[start:][slice(*entry["data_offsets"])], np.uint8).reshape(entry["shape"])
        for name, entry in header.items()
    }


@pytest.fixture(scope="module")
def goldens():
    return {group: tensors(GOLDENS / f"{group}.safetensors") for group in GROUPS}


@pytest.fixture(scope="module", autouse=True)
def models(repository, client):
    for name in MODELS:
        repository.add(name, config({"numerics": "exact"}), checkpoint=CHECKPOINTS / name)
    client.load(*MODELS)


def batches(rows):
    """The rows as requests: one for all, where each has as many pictures in and out as the others, or one for each."""

    def form(row):
        return row["gen_args"].get("num_images_per_prompt", 1), [row.get(name) is None for name in PICTURES]

    return [rows] if all(form(row) == form(rows[0]) for row in rows) else [[row] for row in rows]


def ask(client, model, batch, recorded):
    """Sends a batch of rows."""
    negative = [row["negative_prompt"] or "" for row in batch]
    images = {
        name: [sent(Image.fromarray(recorded[f"inputs/{row[name]}"])) for row in batch]
        for name in PICTURES
        if batch[0].get(name) is not None
    }
    return client.infer(
        model,
        prompt=[row["prompt"] for row in batch],
        negative_prompt=negative if any(negative) else None,
        gen_args=[row["gen_args"] for row in batch],
        **images,
    )


def check_flags(batch, parameters):
    """What the safety checker found, where the checkpoint has one."""
    flags = [flag for row in batch for flag in row.get("nsfw_content_detected") or []]
    told = parameters.get("nsfw_content_detected")
    if len(flags) > 1:
        assert told == ",".join(str(flag).lower() for flag in flags)
    else:
        assert told == (flags[0] if flags else None)


@pytest.mark.parametrize(("group", "case"), CASES, ids=[f"{group}-{case['name']}" for group, case in CASES])
def test_picture(client, goldens, group, case):
    recorded, rows = goldens[group], case["rows"]
    pictures_of_rows = []
    for batch in batches(rows):
        answer = ask(client, case["checkpoint"], batch, recorded)
        check_flags(batch, answer.parameters)
        pictures_of_rows.extend(answer.pictures)
    assert len(pictures_of_rows) == len(rows)
    for number, pictures in enumerate(pictures_of_rows):
        theirs = recorded[f"{case['name']}/{number}"].astype(np.int64)
        ours = np.stack([pixels(picture) for picture in pictures])
        assert ours.shape == theirs.shape
        difference = np.abs(ours - theirs)
        if PARITY:
            assert difference.max() == 0
        else:
            assert difference.max() <= 2
            assert (difference == 0).mean() >= 0.99


def test_flags_are_recorded():
    """Else `check_flags` would never have looked at one."""
    flags = [flag for _, case in CASES for row in case["rows"] for flag in row.get("nsfw_content_detected") or []]
    assert set(flags) == {False, True}
