"""Seeded random weights for tiny models.

They come from numpy's PCG64, one stream for each parameter name, so that neither the order of construction nor the
processor changes a byte.
"""

import hashlib

import numpy as np
import torch


def is_norm(module):
    return isinstance(module, (torch.nn.GroupNorm, torch.nn.LayerNorm, torch.nn.BatchNorm2d))


def fill(model, seed, gains):
    """Sets every parameter of `model` to seeded noise and returns the model in float16.

    A weight has the standard deviation gain / sqrt(fan_in), where gain is the value of the last key in `gains`
    that is part of the parameter's name, else 1. Norms get 1 + 0.1 noise, embeddings gain x noise, biases 0.1 noise: a
    test must notice when any of them is left out.
    """
    for module_name, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            name = f"{module_name}.{leaf}"
            digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
            noise = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "little")))
            values = noise.standard_normal(tuple(parameter.shape)).astype(np.float32)
            gain = 1.0
            for key, value in gains.items():
                if key in name:
                    gain = value
            if is_norm(module):
                values = values * 0.1 + (1.0 if leaf == "weight" else 0.0)
            elif leaf == "bias":
                values = values * 0.1
            elif isinstance(module, torch.nn.Embedding) or leaf in ("cls_token", "position_embeddings"):
                values = values * gain
            else:
                values = values * (gain / np.sqrt(max(1, int(np.prod(parameter.shape[1:])))))
            parameter.data = torch.from_numpy(values.astype(np.float32)).to(torch.float16)
    return model.half().eval()
