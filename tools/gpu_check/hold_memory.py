"""Holds memory of a GPU: `python3 hold_memory.py cuda:0`.

Each line of standard input is a number of bytes that shall stay free. The answer is the number of bytes that are free,
with the memory that other programs hold as it is. The memory is given back at the end of the input.
"""

import sys

import torch

# The unit in which CUDA gives out memory.
UNIT = 2 << 20


def hold(device, free):
    """Takes memory until `free` bytes are left; returns the tensors that hold it."""
    held = []
    while (excess := torch.cuda.mem_get_info(device)[0] - free) >= UNIT:
        try:
            held.append(torch.empty(excess, dtype=torch.uint8, device=device))
        except torch.OutOfMemoryError:
            break
    return held


def main():
    device = torch.device(sys.argv[1])
    held = []
    for line in sys.stdin:
        held.clear()
        torch.cuda.empty_cache()
        held = hold(device, int(line))
        print(torch.cuda.mem_get_info(device)[0], flush=True)


if __name__ == "__main__":
    main()
