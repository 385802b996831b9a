"""Prints what PyTorch knows about a GPU as one JSON object: `python3 gpu_facts.py cuda:0`. Memory is in bytes."""

import json
import sys

import torch


def main():
    device = torch.device(sys.argv[1])
    properties = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    facts = {
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": total,
        "memory_free_bytes": free,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
