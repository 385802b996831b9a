"""Triton's backend `diffusion`, and the command `triton-diffusion`.

`backends` is the folder for `tritonserver --backend-directory`; the command is `bin/triton-diffusion`. Both link the
libtorch of the package `torch`, which they expect next to this package.
"""
