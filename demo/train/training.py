"""Shared by all trainings: seeded data from a worker process, Muon and AdamW with warm-up and cosine decay, an average
of the weights, checkpoints, and a log of losses.

A training is repeatable: batch n depends only on the seed and n, so a training that was stopped continues as if it had
not been.
"""

import json
import math
import time
from pathlib import Path

import numpy as np
import torch

SEED = 20261123


def rng(*key):
    """Returns a generator that depends on the seed and a key of integers and words."""
    words = [n if isinstance(n, int) else int.from_bytes(n.encode(), "little") % 2**31 for n in key]
    return np.random.default_rng([SEED, *words])


class Batches(torch.utils.data.Dataset):
    """Gives a DataLoader `make(step)` for the steps from `first` to before `last`."""

    def __init__(self, make, first, last):
        self.make, self.first, self.last = make, first, last

    def __len__(self):
        return self.last - self.first

    def __getitem__(self, index):
        return self.make(self.first + index)


def orthogonal(matrices):
    """Approximates U Vᵀ of each matrix U S Vᵀ, with five steps of Newton-Schulz and Jordan's coefficients.

    `matrices` is [n, rows, columns] with at most as many rows as columns. The steps are polynomials of the small square
    matrix of the rows' products; only the last multiplication has the full size.
    """
    matrices = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    square, product = matrices @ matrices.mT, None
    for _ in range(5):
        step = 2.0315 * square @ square - 4.775 * square
        step.diagonal(dim1=1, dim2=2).add_(3.4445)
        square = step @ square @ step
        product = step if product is None else step @ product
    return product @ matrices


class Muon(torch.optim.Optimizer):
    """Momentum with updates made orthogonal by Newton-Schulz (Jordan et al. 2024, github.com/KellerJordan/Muon).

    torch.optim.Muon takes only matrices; this class flattens a convolution to the matrix of its output channels. The
    VAE needs half as many steps as with AdamW.
    """

    def __init__(self, parameters, lr, momentum=0.95):
        super().__init__(parameters, dict(lr=lr, momentum=momentum))

    @torch.no_grad()
    def step(self):
        # Updates of equal shape are stacked and processed together.
        alike = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue  # A layer that the forward pass skips; DPT has some.
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                mean = state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(mean, group["momentum"]).flatten(1)
                alike.setdefault((update.shape, group["lr"]), []).append((parameter, update))
        for ((rows, columns), rate), pairs in alike.items():
            updates = torch.stack([update for _, update in pairs])
            updates = orthogonal(updates.mT).mT if rows > columns else orthogonal(updates)
            for (parameter, _), update in zip(pairs, updates, strict=True):
                parameter.add_(update.reshape(parameter.shape), alpha=-rate * max(1, rows / columns) ** 0.5)


# AdamW trains these parameters: the first and last layers do not map features to features, and each row of an
# embedding is learned separately.
NOT_MUON = (
    "embedding.",
    "position_embeddings",
    "embedder",
    "cls_token",
    "conv_in",
    "conv_out",
    "quant_conv",
    "head.head.4",
    "queries",
    "answers",
)


class Training:
    """One training of `modules`, with its checkpoint and losses in `work/name`.*.

    After `steps`, the schedule of the learning rate starts again at half of its height, for `further` steps (Loshchilov
    and Hutter 2017, "SGDR").
    """

    def __init__(self, work, name, modules, steps, rate, average=0.999, muon=0.02, further=0):
        self.file = Path(work) / f"{name}.pt"
        self.name, self.modules, self.average = name, modules, average
        self.first, self.further, self.steps = steps, further, steps + further
        named = [(n, p) for module in modules.values() for n, p in module.named_parameters() if p.requires_grad]
        self.parameters = [p for _, p in named]
        inner = {n for n, (name, p) in enumerate(named) if p.ndim >= 2 and not any(word in name for word in NOT_MUON)}
        matrices = [p for n, p in enumerate(self.parameters) if n in inner]
        others = [p for n, p in enumerate(self.parameters) if n not in inner]
        self.optimizers, self.rates = [], []
        if matrices:
            self.optimizers.append(Muon(matrices, muon))
            self.rates.append(muon)
        if others:
            self.optimizers.append(torch.optim.AdamW(others, rate, (0.9, 0.99), weight_decay=0.0))
            self.rates.append(rate)
        self.mean = [p.detach().clone() for p in self.parameters]
        self.step, self.log, self.seconds = 0, [], 0.0
        if self.file.exists():
            self.resume()

    def resume(self):
        """Loads the checkpoint."""
        state = torch.load(self.file, weights_only=True)
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.mean = state["mean"]
        self.step, self.log, self.seconds = state["step"], state["log"], state["seconds"]

    def save(self):
        """Writes the checkpoint and the log."""
        state = {
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "mean": self.mean,
            "step": self.step,
            "log": self.log,
            "seconds": self.seconds,
        }
        part = self.file.with_suffix(".part")
        torch.save(state, part)
        part.rename(self.file)
        self.file.with_suffix(".json").write_text(
            json.dumps(
                {"name": self.name, "steps": self.step, "seconds": round(self.seconds), "losses": self.log}, indent=1
            )
        )

    def lr_multiplier(self, step):
        """Returns the factor of the learning rate: linear warm-up over 50 steps, then half a cosine down to 2 %."""
        height, steps = 1.0, self.first
        if step >= self.first:
            height, steps, step = 0.5, self.further, step - self.first
        if step < 50:
            return height * (step + 1) / 50
        return height * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - 50) / max(1, steps - 50))))

    def run(self, make, loss, workers=1, report=100, keep=300):
        """Trains to the end and puts the averaged weights into the modules.

        `make(step)` returns a batch. `loss(batch, step)` returns the loss and a dictionary of figures to log.
        """
        loader = torch.utils.data.DataLoader(
            Batches(make, self.step, self.steps),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=2 if workers else None,
            # `make` is a closure over the data, which only a forked worker inherits.
            multiprocessing_context="fork" if workers else None,
        )
        seen, started = [], time.monotonic()
        for batch in loader:
            for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
                optimizer.param_groups[0]["lr"] = rate * self.lr_multiplier(self.step)
            value, figures = loss(batch, self.step)
            value.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad()
            decay = min(self.average, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(self.mean, [p.detach() for p in self.parameters], 1 - decay)
            self.step += 1
            seen.append({"loss": value.item(), **figures})
            if self.step % report == 0 or self.step == self.steps:
                means = {key: round(float(np.mean([s[key] for s in seen])), 5) for key in seen[0]}
                self.seconds += time.monotonic() - started
                started = time.monotonic()
                self.log.append({"step": self.step, **means})
                print(f"{self.name} {self.step}/{self.steps} {self.seconds / self.step:.2f} s/step {means}", flush=True)
                seen = []
            if self.step % keep == 0 or self.step == self.steps:
                self.save()
        for parameter, mean in zip(self.parameters, self.mean, strict=True):
            parameter.data.copy_(mean)
        for module in self.modules.values():
            module.eval().requires_grad_(False)
