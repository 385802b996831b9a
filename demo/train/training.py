"""What all trainings share: seeded data from a worker, Muon beside AdamW with warm-up and cosine decay, an average of
the weights, checkpoints, a log of losses.

A training is repeatable: batch n depends on the seed and n alone, so that one that was stopped goes on as if it had not
been.
"""

import json
import math
import time
from pathlib import Path

import numpy as np
import torch

SEED = 20261123


def rng(*key):
    """A generator that depends on the seed and the key (integers or words)."""
    words = [n if isinstance(n, int) else int.from_bytes(n.encode(), "little") % 2**31 for n in key]
    return np.random.default_rng([SEED, *words])


class Batches(torch.utils.data.Dataset):
    """`make(step)` for the steps from `first` on, for a DataLoader with workers."""

    def __init__(self, make, first, last):
        self.make, self.first, self.last = make, first, last

    def __len__(self):
        return self.last - self.first

    def __getitem__(self, index):
        return self.make(self.first + index)


def orthogonal(matrices):
    """About U Vᵀ of each matrix U S Vᵀ, (n, rows, columns) with no more rows than columns: five steps of Newton-Schulz with
    Jordan's coefficients.

    They are polynomials of the rows' products, so that all but the last multiplication are over that small square.
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
    """Momentum whose matrices are made orthogonal by a Newton-Schulz iteration (Jordan et al. 2024,
    github.com/KellerJordan/Muon).

    torch.optim.Muon takes matrices alone; here a convolution is the matrix of its output channels. On the VAE it needs
    half the steps of AdamW.
    """

    def __init__(self, parameters, lr, momentum=0.95):
        super().__init__(parameters, dict(lr=lr, momentum=momentum))

    @torch.no_grad()
    def step(self):
        alike = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue  # A layer that the forward pass goes round, as DPT has some.
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


# Layers at the edge of a network are no maps between features, and an embedding's rows are learned one by one: AdamW's.
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

    `loss(batch, step)` returns the loss and a dictionary of figures to log. After `steps` the rate begins once more, at
    half of its height, for `further` steps (Loshchilov and Hutter 2017, "SGDR").
    """

    def __init__(self, work, name, modules, steps, rate, average=0.999, muon=0.02, further=0):
        self.file = Path(work) / f"{name}.pt"
        self.name, self.modules, self.average = name, modules, average
        self.first, self.further, self.steps = steps, further, steps + further
        named = [(n, p) for module in modules.values() for n, p in module.named_parameters() if p.requires_grad]
        self.parameters = [p for _, p in named]
        inner = {n for n, (name, p) in enumerate(named) if p.ndim >= 2 and not any(word in name for word in NOT_MUON)}
        self.optimizers = [
            Muon([p for n, p in enumerate(self.parameters) if n in inner], muon),
            torch.optim.AdamW(
                [p for n, p in enumerate(self.parameters) if n not in inner], rate, (0.9, 0.99), weight_decay=0.0
            ),
        ]
        self.rates = [muon, rate]
        self.mean = [p.detach().clone() for p in self.parameters]
        self.step, self.log, self.seconds = 0, [], 0.0
        if self.file.exists():
            self.resume()

    def resume(self):
        state = torch.load(self.file, weights_only=True)
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        for optimizer, its in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(its)
        self.mean = state["mean"]
        self.step, self.log, self.seconds = state["step"], state["log"], state["seconds"]

    def save(self):
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

    def share_of_rate(self, step):
        """Linear warm-up over 50 steps, then half a cosine down to 2 %; and so again for the further steps."""
        height, steps = 1.0, self.first
        if step >= self.first:
            height, steps, step = 0.5, self.further, step - self.first
        if step < 50:
            return height * (step + 1) / 50
        return height * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - 50) / max(1, steps - 50))))

    def run(self, make, loss, workers=1, report=100, keep=300):
        """Trains to the end, then leaves the averaged weights in the modules."""
        loader = torch.utils.data.DataLoader(
            Batches(make, self.step, self.steps),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=2 if workers else None,
            # `make` is a closure over the data: a worker that is forked has it.
            multiprocessing_context="fork" if workers else None,
        )
        seen, started = [], time.monotonic()
        for batch in loader:
            for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
                optimizer.param_groups[0]["lr"] = rate * self.share_of_rate(self.step)
            value, figures = loss(batch, self.step)
            value.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad()
            follow = min(self.average, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(self.mean, [p.detach() for p in self.parameters], 1 - follow)
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
