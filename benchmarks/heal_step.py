"""A training step at gemma-3-1b-it's shape against the straightforward way: `python -m benchmarks.heal_step`.

Random weights, one thread unless told otherwise, each way in a process of its own (for its peak of memory),
both on the same model, adapter and examples, by the loss and with as many rows and learned tokens as a round
has by default (`--rows 1 --completion 512`: one long answer, learned whole). The straightforward way:
transformers' logits at every position in float32, the reference run again at every step. Steps are timed by
CPU time. The first is apart: an example's first epoch, in which ours keeps what later ones use again; a round
is one first step and the others of the default's epochs. Memory is the process's peak above what it held with
the model loaded.

`--sizes` shows instead how far one step at the default learning rate moves the weights of three models, from
3 M to 1 B parameters: the rule that the rate is given by.
"""

import argparse
import ctypes
import gc
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Self

import psutil
import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear
from torch import Tensor

from steer_heal.config import DEMO, SMOLLM2, TrainSettings
from steer_heal.heal import Example, Objective, loss_of, needed_bytes
from steer_heal.heal.adapters import AdapterStack
from steer_heal.heal.examples import LEARNED
from steer_heal.heal.schedule import trained_layers
from steer_heal.models import LanguageModel, band_layers, load
from tests.tiny import gemma_shape

MIB = 2**20
BAND = (0.4, 0.6)
EPOCHS = TrainSettings().epochs
WAYS = ("straightforward", "ours")


class Peak:
    """The most resident memory of this process while the context lasts, in bytes above its start."""

    def __enter__(self) -> Self:
        _give_back()
        self._process = psutil.Process()
        self._begun = self._most = self._process.memory_info().rss
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            self._most = max(self._most, self._process.memory_info().rss)

    @property
    def n_bytes(self) -> int:
        return self._most - self._begun


def _give_back() -> None:
    """Freed memory that the C library keeps goes back to the system, where it can (glibc)."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def example(lm: LanguageModel, n_prompt: int, n_completion: int, seed: int = 3) -> Example:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(10, lm.config.vocab_size, (n_prompt + n_completion,), generator=generator).tolist()
    return Example(tuple(ids[:n_prompt]), tuple(ids[n_prompt:]))


def adapted(lm: LanguageModel, settings: TrainSettings) -> tuple[AdapterStack, list[int]]:
    """An adapter on the blocks that a round trains, moved off zero."""
    near = trained_layers(lm.n_layers, BAND)
    stack, generator = AdapterStack(lm), torch.Generator().manual_seed(4)
    stack.fresh(1, settings, seed=0, layers=near)
    with torch.no_grad():
        for parameter in stack.trainable():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return stack, near


def straightforward(
    lm: LanguageModel, stack: AdapterStack, rows: Sequence[Example], settings: TrainSettings
) -> Tensor:
    """The loss as one would write it first. All rows are equally long."""
    ids_BT, n = torch.tensor([row.ids for row in rows]), len(rows[0].completion_ids)
    logp_BTV = _logp(lm, ids_BT)
    loss = torch.zeros(())
    if settings.nll_weight:
        nll = F.nll_loss(logp_BTV[:, -n:].flatten(0, 1), ids_BT[:, -n:].flatten())
        loss = settings.nll_weight * nll
    if settings.divergence == "nll":
        return loss
    with torch.no_grad(), stack.previous():
        logq_BTV = _logp(lm, ids_BT)
    if settings.divergence == "kl_rev":
        kl_BT = (logp_BTV.exp() * (logp_BTV - logq_BTV)).sum(-1)
    else:
        kl_BT = (logq_BTV.exp() * (logq_BTV - logp_BTV)).sum(-1)
    return loss + settings.lam * F.relu(kl_BT[:, -n:].mean() - settings.tau)


def _logp(lm: LanguageModel, ids_BT: Tensor) -> Tensor:
    logits_BTV = lm.model(input_ids=ids_BT, use_cache=False).logits.float()
    return F.log_softmax(logits_BTV[:, :-1], dim=-1)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """One way: seconds of each step, peak of memory, loss; gradients into `args.gradients`."""
    torch.set_num_threads(args.threads)
    lm = gemma_shape(getattr(torch, args.dtype), args.layers)
    settings = TrainSettings(
        divergence=args.divergence, likelihood=args.likelihood or None, tau=args.tau, batch_size=args.rows
    )
    stack, near = adapted(lm, settings)
    rows = [example(lm, args.prompt, args.completion, 3 + number) for number in range(args.rows)]
    objective = Objective.of(lm, stack, settings)
    seconds, loss = [], 0.0
    with Peak() as peak:
        for _ in range(args.steps):
            lm.model.zero_grad(set_to_none=True)
            begun = time.process_time()
            with torch.enable_grad():
                whole = (
                    straightforward(lm, stack, rows, settings)
                    if args.way == WAYS[0]
                    else loss_of(objective, rows)[0]
                )
                whole.backward()
            seconds.append(time.process_time() - begun)
            loss = float(whole.detach())
            del whole
    step = median(seconds[1:] or seconds)
    found = {"way": args.way, "first": seconds[0], "step": step, "loss": loss}
    found["epochs"] = (seconds[0] + (EPOCHS - 1) * step) / EPOCHS
    found |= {"mib": peak.n_bytes / MIB, "weights_mib": sum(p.nbytes for p in lm.model.parameters()) / MIB}
    asked = (settings, lm.n_layers - near[0], args.prompt, args.completion, args.rows)
    found["reckoned_mib"] = needed_bytes(lm, *asked) / MIB
    found["max_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    gradients = [parameter.grad.float() for parameter in stack.trainable() if parameter.grad is not None]
    torch.save(gradients, args.gradients)
    return found


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Both ways, one after the other, and what they differ by."""
    found: dict[str, Any] = {key: getattr(args, key) for key in _PASSED}
    with tempfile.TemporaryDirectory() as folder:
        files = {way: Path(folder) / way for way in WAYS}
        for way in WAYS:
            asked = [f"--{key}={getattr(args, key)}" for key in _PASSED]
            command = [
                sys.executable,
                "-m",
                "benchmarks.heal_step",
                f"--way={way}",
                f"--gradients={files[way]}",
            ]
            done = subprocess.run([*command, *asked], stdout=subprocess.PIPE, text=True, check=True,
                                  env=os.environ | {"OMP_NUM_THREADS": str(args.threads)})  # fmt: skip
            found[way] = json.loads(done.stdout.splitlines()[-1])
        theirs, ours = (torch.load(files[way], weights_only=True) for way in WAYS)
    flat_theirs, flat_ours = (torch.cat([g.flatten() for g in gradients]) for gradients in (theirs, ours))
    found["gradient_error"] = float((flat_ours - flat_theirs).norm() / flat_theirs.norm())
    found["loss_error"] = abs(found[WAYS[0]]["loss"] - found["ours"]["loss"])
    for name, key in (("faster", "step"), ("faster_first", "first"), ("faster_whole_round", "epochs")):
        found[name] = found[WAYS[0]][key] / found["ours"][key]
    found["memory"] = found["ours"]["mib"] / found[WAYS[0]]["mib"]
    return found


def update_sizes() -> None:
    """The size of AdamW's first step on the weights that the LoRA changes, relative to them, for each model.

    B starts at 0 and every entry of it moves by lr, A's entries have variance 1 / (3 width): so
    |dW| / |W| = 2 lr sqrt(rank / 3) / (|W| / sqrt(rows)), whatever the width: |W| / sqrt(rows), the norm
    of a row, is about 1 where the weights have variance 1 / width.
    """
    settings = TrainSettings()
    predicted = 2 * settings.lr * math.sqrt(settings.rank / 3)
    print(f"lr {settings.lr:g}, rank {settings.rank}: |dW| / sqrt(rows) should be {predicted:.2e}")
    for name, lm in (
        ("demo", load(DEMO)),
        ("smollm2", load(SMOLLM2)),
        ("gemma's shape, 5 layers", gemma_shape(torch.float32, 5)),
    ):
        stack, row = AdapterStack(lm), example(lm, 16, 16)
        layers = band_layers(lm.n_layers, BAND)
        stack.fresh(1, settings, seed=0, layers=layers)
        optimizer = torch.optim.AdamW(stack.trainable(), lr=settings.lr, weight_decay=settings.weight_decay)
        with torch.enable_grad():
            loss_of(
                Objective.of(lm, stack, settings.model_copy(update={"divergence": "nll"})),
                [row],
            )[0].backward()
        optimizer.step()
        changes, relative = [], []
        for module in lm.model.modules():
            if isinstance(module, Linear):
                weight, change = module.weight, module.get_delta_weight(module.active_adapters[0])
                changes.append(change.norm().item() / math.sqrt(len(weight)))
                relative.append((change.norm() / weight.norm()).item())
        stack.unload()
        print(f"{name}: |dW| / sqrt(rows) {median(changes):.2e}, |dW| / |W| {median(relative):.2e}")


_PASSED = (
    "dtype", "layers", "rows", "prompt", "completion", "steps", "divergence", "likelihood", "tau", "threads",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--layers", type=int, default=26)
    parser.add_argument("--rows", type=int, default=TrainSettings().batch_size)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--completion", type=int, default=LEARNED)
    parser.add_argument("--steps", type=int, default=3)
    default = TrainSettings()
    parser.add_argument("--divergence", choices=("nll", "kl_fwd", "kl_rev"), default=default.divergence)
    parser.add_argument("--likelihood", type=float, default=default.nll_weight)
    parser.add_argument("--tau", type=float, default=default.tau)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--gradients", help=argparse.SUPPRESS)
    parser.add_argument("--sizes", action="store_true", help="only how far a step moves the weights")
    args = parser.parse_args()
    if args.sizes:
        update_sizes()
        return 0
    if args.way:
        print(json.dumps(measure(args)))
        return 0
    found = compare(args)
    print(json.dumps(found, indent=2))
    held = found["faster"] >= 2.0 and found["memory"] <= 1 / 3
    print(f"{found['faster']:.2f}x faster a step (bar 2), {found['faster_first']:.2f}x in the first epoch, "
          f"{found['faster_whole_round']:.2f}x over a round of {EPOCHS} epochs, "
          f"{found['memory']:.2f} of the memory (bar 0.33), "
          f"gradient off by {found['gradient_error']:.1e}, loss by {found['loss_error']:.1e}")  # fmt: skip
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
