"""The programs in examples/ run unchanged against the models of the demo."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from support import ROOT

DEMO, EXAMPLES = ROOT / "demo", ROOT / "examples"
MODELS = ("sd_base", "sd_depth", "sd_inpaint", "sd_upscale")


@pytest.fixture(scope="module")
def demo(client, repository):
    """Loads the demo's models."""
    for name in MODELS:
        repository.add(name, (DEMO / "config.pbtxt").read_text(), checkpoint=DEMO / "models" / name)
    client.load(*MODELS)


def run(*command, **environment):
    """Runs a command that must succeed; returns its output."""
    done = subprocess.run(
        [str(part) for part in command], env=os.environ | environment, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def size(path):
    with Image.open(path) as image:
        image.load()
        return image.size


def test_the_notebook_runs_from_start_to_end(demo, server, monkeypatch, capsys):
    notebook = json.loads((EXAMPLES / "demo.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    # The committed notebook contains its images.
    assert sum("image/jpeg" in output.get("data", {}) for cell in cells for output in cell["outputs"]) >= 4
    monkeypatch.setenv("TRITON_URL", server.grpc_address)
    shown = []
    names = {"display": shown.append}
    for cell in cells:
        exec("".join(cell["source"]), names)
    output = capsys.readouterr().out
    assert output.count(" ready") == len(MODELS) and "kept pixels equal: True" in output
    assert names["first"].size == (128, 128) and names["fourth"].size == (512, 512)
    assert len(shown) == 4


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_text_to_image(demo, server, tmp_path, protocol):
    url = server.grpc_address if protocol == "grpc" else server.http_address
    script = [sys.executable, EXAMPLES / "text_to_image.py", "a red circle on a blue background"]
    run(*script, "--protocol", protocol, "--url", url, "--steps", 4, "--seed", 1, "--out", tmp_path / "image.png")
    assert size(tmp_path / "image.png") == (128, 128)


def test_from_image(demo, server, tmp_path):
    image, mask = Image.new("RGB", (128, 128), "gray"), Image.new("L", (128, 128), 0)
    mask.paste(255, (32, 32, 96, 96))
    image.save(tmp_path / "input.png")
    mask.save(tmp_path / "mask.png")
    for command, extra, expected in (
        ("image", ["--strength", 0.5], 128),
        ("depth", [], 128),
        ("inpaint", ["--mask-image", tmp_path / "mask.png"], 128),
        ("upscale", ["--noise-level", 20], 512),
    ):
        out = tmp_path / f"{command}.png"
        script = [sys.executable, EXAMPLES / "from_image.py", command, "a red circle on a gray background"]
        run(
            *script,
            "--image",
            tmp_path / "input.png",
            "--url",
            server.grpc_address,
            "--steps",
            2,
            "--out",
            out,
            *extra,
        )
        assert size(out) == (expected, expected)


def test_cancel_asyncio(demo, server, tmp_path):
    script = [sys.executable, EXAMPLES / "cancel_asyncio.py", "--prompts", "a red circle", "a blue star"]
    output = run(*script, "--cancel", "a green square", "--after", 0.2, "--url", server.grpc_address, "--out", tmp_path)
    assert b"cancelled" in output
    assert {path.name for path in tmp_path.iterdir()} == {"image-1.png", "image-2.png"}


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("jq")), reason="curl.sh needs curl and jq")
def test_curl(demo, server, tmp_path):
    url = f"http://{server.http_address}"
    arguments = json.dumps({"num_inference_steps": 2, "seed": 1})
    script = ["bash", EXAMPLES / "curl.sh", "a red circle on a blue background"]
    first = tmp_path / "first.png"
    first.write_bytes(run(*script, URL=url, GEN_ARGS=arguments))
    (tmp_path / "second.png").write_bytes(run(*script, first, URL=url, GEN_ARGS=arguments))
    images = [np.asarray(Image.open(tmp_path / name)) for name in ("first.png", "second.png")]
    assert images[0].shape == images[1].shape == (128, 128, 3)
    assert not np.array_equal(*images)
