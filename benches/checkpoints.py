"""The checkpoints of the benches, each with DPM++: the tiny one of the tests, and one of full size (2.6 GB)."""

import json
import pathlib
import shutil
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tools"))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tools" / "gpu_check"))
import full_size
import seeded_checkpoints
from linked_components import files
from server import ROOT

FOLDER = ROOT / "target" / "bench" / "checkpoints"
# `make gpu-check` uses the same folder.
FULL_SIZE = ROOT / "target" / "gpu_check" / "sd21"
SCHEDULER = "DPMSolverMultistepScheduler"
NAMES = ("tiny", "full_size")
DESCRIPTIONS = {
    "tiny": "`sd2_base` of the tests",
    "full_size": "shapes of Stable Diffusion 2.1",
}


def get(name: str) -> pathlib.Path:
    """Returns the folder of a checkpoint, `tiny` or `full_size`. Makes it if it is missing.

    The weights are float16 noise, the same each time. Noise takes as long as trained weights.
    """
    tiny = seeded_checkpoints.write() / "sd2_base"
    if name == "tiny":
        return with_scheduler(tiny, FOLDER / "tiny")
    full_size.write(FULL_SIZE, tiny)
    return with_scheduler(FULL_SIZE, FOLDER / "full_size")


def tiny_decoder() -> pathlib.Path:
    """Returns the folder of the tests' tiny decoder."""
    return seeded_checkpoints.write() / "sd1_tiny" / "vae_tiny"


def with_scheduler(checkpoint: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Makes a folder with links to the files of a checkpoint, and with DPM++ as its scheduler. Returns the folder."""
    shutil.rmtree(folder, ignore_errors=True)
    for path in files(checkpoint):
        link = folder / path.relative_to(checkpoint)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    change_json(folder / "model_index.json", {"scheduler": ["diffusers", SCHEDULER]})
    solver = {"_class_name": SCHEDULER, "algorithm_type": "dpmsolver++", "solver_order": 2}
    change_json(folder / "scheduler" / "scheduler_config.json", solver)
    return folder


def change_json(link: pathlib.Path, changes: dict) -> None:
    """Replaces a link to a JSON file with a file that has other values."""
    values = json.loads(link.read_text()) | changes
    link.unlink()
    link.write_text(json.dumps(values, indent=2) + "\n")
