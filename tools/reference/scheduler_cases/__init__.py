"""Cases of scheduler trajectories, and how diffusers runs one.

Each module holds one family's `cases()`, which yields `(num_inference_steps, config, extra)`. `extra` may hold `eta`,
`timesteps`, `sigmas`, and `begin`: the steps that `strength` below 1 skips.
"""

import inspect

import diffusers
import torch

from . import (
    ddim,
    ddpm,
    deis_multistep,
    dpm_solver_multistep,
    dpm_solver_singlestep,
    euler_ancestral_discrete,
    euler_discrete,
    heun_discrete,
    k_dpm_2_discrete,
    lcm,
    lms_discrete,
    pndm,
    tcd,
    unipc_multistep,
)

# Calls of the longest case: 25 steps, of which the first three have four Runge-Kutta calls each.
MAX_CALLS = 40
SEED = 77

FAMILIES = {
    "ddim": ("DDIMScheduler", ddim),
    "ddpm": ("DDPMScheduler", ddpm),
    "deis_multistep": ("DEISMultistepScheduler", deis_multistep),
    "dpm_solver_multistep": ("DPMSolverMultistepScheduler", dpm_solver_multistep),
    "dpm_solver_singlestep": ("DPMSolverSinglestepScheduler", dpm_solver_singlestep),
    "euler_ancestral_discrete": ("EulerAncestralDiscreteScheduler", euler_ancestral_discrete),
    "euler_discrete": ("EulerDiscreteScheduler", euler_discrete),
    "heun_discrete": ("HeunDiscreteScheduler", heun_discrete),
    "k_dpm_2_ancestral_discrete": ("KDPM2AncestralDiscreteScheduler", k_dpm_2_discrete),
    "k_dpm_2_discrete": ("KDPM2DiscreteScheduler", k_dpm_2_discrete),
    "lcm": ("LCMScheduler", lcm),
    "lms_discrete": ("LMSDiscreteScheduler", lms_discrete),
    "pndm": ("PNDMScheduler", pndm),
    "tcd": ("TCDScheduler", tcd),
    "unipc_multistep": ("UniPCMultistepScheduler", unipc_multistep),
}


def cases(family):
    """Returns every case of a family as plain data."""
    cls, module = FAMILIES[family]
    return [
        {
            "name": f"{number:03}",
            "class": cls,
            "config": config,
            "num_inference_steps": steps,
            "eta": extra.get("eta", 0.0),
            "timesteps": extra.get("timesteps"),
            "sigmas": extra.get("sigmas"),
            "begin": extra.get("begin"),
            "seed": SEED,
        }
        for number, (steps, config, extra) in enumerate(module.cases())
    ]


def run(case, model_outputs, sample, noise):
    """Runs a scheduler as a pipeline does.

    Returns the scheduler and tensors: the timesteps, and for each call the model input and the sample after it, both
    [calls, 1, 4, 4, 4]. A run with `begin` starts from `sample` with `noise` added; any other run uses `sample` as the
    initial noise.
    """
    scheduler = getattr(diffusers, case["class"]).from_config(case["config"])
    if case["timesteps"] is not None:
        scheduler.set_timesteps(timesteps=case["timesteps"])
    elif case["sigmas"] is not None:
        scheduler.set_timesteps(sigmas=case["sigmas"])
    else:
        scheduler.set_timesteps(case["num_inference_steps"])
    # The arguments that a pipeline passes to this scheduler.
    accepted = inspect.signature(scheduler.step).parameters
    arguments = {"eta": case["eta"], "generator": torch.Generator("cpu").manual_seed(case["seed"])}
    arguments = {key: value for key, value in arguments.items() if key in accepted}
    timesteps = scheduler.timesteps
    if case["begin"] is None:
        state = sample * scheduler.init_noise_sigma
    else:
        begin = case["begin"] * scheduler.order
        timesteps = timesteps[begin:]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin)
        state = scheduler.add_noise(sample, noise, timesteps[:1])
    noised, inputs, states = [], [], []
    for call, timestep in enumerate(timesteps):
        if case["begin"] is not None:
            # Inpainting with four channels calls this between steps, with the next timestep.
            noised.append(scheduler.add_noise(sample, noise, timesteps[call : call + 1]))
        inputs.append(scheduler.scale_model_input(state, timestep))
        state = scheduler.step(model_outputs[call], timestep, state, **arguments).prev_sample
        states.append(state)
    tensors = {"timesteps": timesteps, "samples": torch.stack(states)}
    if noised:
        tensors["noised"] = torch.stack(noised)
    inputs = torch.stack(inputs)
    started = [sample * scheduler.init_noise_sigma if case["begin"] is None else noised[0], *states[:-1]]
    if not torch.equal(inputs, torch.stack(started)):
        tensors["inputs"] = inputs
    return scheduler, tensors
