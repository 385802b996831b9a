"""Programs that the tests run in place of the command triton-diffusion, for the fixture `script`."""

# `generate` writes the golden that has the `gen_args`. `change` is a number that is XORed with each byte.
GENERATE = """
import json, sys
sys.path[:0] = [{tools!r}, {gpu_check!r}]
import cases, images
if sys.argv[1] == "--version":
    print("fake 1")
    sys.exit()
options = dict(zip(sys.argv[4::2], sys.argv[5::2]))
args = json.loads(options["--gen-args"])
for _, case, tensors in cases.load():
    if case["elements"][0]["gen_args"] == args and sys.argv[2].endswith("/" + case["checkpoint"]):
        images.write(options["--out"], cases.expected(case, tensors) ^ {change})
"""

# `benchmark` prints the runs that the contract names; more than two images do not fit into memory.
BENCHMARK = """
import json, sys
options = dict(zip(sys.argv[3::2], sys.argv[4::2]))
counts = [int(count) for count in options["--images"].split(",")]
if max(counts) > 2:
    print("error: out of memory: UNet call", file=sys.stderr)
    sys.exit(1)
times = {"prepare_ms": 3.5, "first_step_ms": 40, "step_ms": 20.0, "finish_ms": 12.25}
runs = [{"images": count, **times, "memory_used_bytes": 1 << 30} for count in counts]
result = {"device": options["--device"], "dtype": options["--dtype"], "load_seconds": 1.2, "weights_bytes": 1 << 20}
print(json.dumps(result | {"runs": runs}))
"""
