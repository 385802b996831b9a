"""Seeded random weights for tiny models, and the recipes for tools/seeded_checkpoints.py."""

import hashlib
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import seeded_checkpoints


def is_norm(module):
    return isinstance(module, (torch.nn.GroupNorm, torch.nn.LayerNorm, torch.nn.BatchNorm2d))


def rule_of(module, leaf, gain):
    """The rule of seeded_checkpoints for a parameter."""
    if leaf == "bias":
        return "bias"
    if is_norm(module):
        return "norm"
    if isinstance(module, torch.nn.Embedding) or leaf in ("cls_token", "position_embeddings"):
        return {"embedding": gain}
    return {"weight": gain}


def fill(model, seed, gains, values=None):
    """Sets every parameter of `model` to seeded noise and returns the model in float16.

    A weight has the standard deviation gain / sqrt(fan_in), where gain is the value of the last key in `gains`
    that is part of the parameter's name, else 1. Norms get 1 + 0.1 noise, embeddings gain x noise, biases 0.1 noise: a
    test must notice when any of them is left out. `values` are those of parameters that get no noise.
    """
    rules = {}
    for module_name, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            name = f"{module_name}.{leaf}".removeprefix(".")
            gain = 1
            for key, value in gains.items():
                if key in name:
                    gain = value
            rules[name] = {"values": values[name]} if name in (values or {}) else rule_of(module, leaf, gain)
            array = seeded_checkpoints.tensor(seed, name, parameter.shape, rules[name])
            parameter.data = torch.from_numpy(array)
    model.seeded_weights = (seed, rules)
    return model.half().eval()


def in_lines(value, indent=""):
    """Compact JSON, in which each module of a tree that holds no other modules is one line."""
    if not isinstance(value, dict) or not any(isinstance(inner, dict) for inner in value.values()):
        return json.dumps(value, separators=(",", ":"))
    lines = [f"{indent} {json.dumps(key)}:{in_lines(inner, indent + ' ')}" for key, inner in value.items()]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


def replace_by_recipe(file, model):
    """Puts the recipe of the weights of `model` in the place of `file`, to which they were saved."""
    seed, rules = model.seeded_weights
    content = file.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    tensors = {}
    for name in sorted(header.keys() - {"__metadata__"}):
        *modules, leaf = name.split(".")
        tree = tensors
        for module in modules:
            tree = tree.setdefault(module, {})
        tree[leaf] = [header[name]["shape"], rules[name]]
    recipe = {
        "file": file.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "seed": seed,
        "tensors": tensors,
    }
    seeded_checkpoints.weights(recipe)  # fails unless the recipe gives these bytes
    file.with_name(seeded_checkpoints.RECIPE).write_text(in_lines(recipe) + "\n")
    file.unlink()
