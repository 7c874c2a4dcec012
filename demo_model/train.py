"""Trains the demo model from nothing: `python -m demo_model.train` (`make demo-model`).

Seeded and resumable: it goes on from the last checkpoint in the build folder, with the same batches.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import AutoTokenizer, Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

from demo_model.barrier import barrier
from demo_model.batches import LABEL_WEIGHT, Batch, pool_batches
from demo_model.corpus import Corpus
from demo_model.export import export
from demo_model.register import WEIGHT as REGISTER_WEIGHT
from demo_model.register import directions, register_loss, tapped
from demo_model.tokenizer import answer_ids, train_tokenizer
from steer_heal.sources import DEMO_FOLDER


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome."""

    seed: int = 0
    steps: int = 3800
    tokens: int = 1200
    lr: float = 4e-3
    warmup: int = 60
    flat: float = 0.3
    floor: float = 0.02
    decay: float = 0.05
    vocabulary: int = 2048

    def rate(self, step: int) -> float:
        """The learning rate: warm-up, flat, then straight down to the floor."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        start = self.flat * self.steps
        done = max(0.0, (step - start) / (self.steps - start))
        return self.lr * (1.0 - done * (1.0 - self.floor))


def make_model(vocabulary: int) -> Gemma3ForCausalLM:
    """A randomly initialised model of the demo's shape."""
    config = Gemma3TextConfig(
        vocab_size=vocabulary,
        hidden_size=160,
        intermediate_size=448,
        num_hidden_layers=10,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=40,
        query_pre_attn_scalar=40,
        max_position_embeddings=2048,
        sliding_window=512,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    return Gemma3ForCausalLM(config)


def loss_of(model: Gemma3ForCausalLM, batch: Batch, answers: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The weighted mean loss (hard targets and the labels' distributions), and that of replies alone."""
    with barrier(model, batch.upper_B1TT), tapped(model) as residuals:
        logits_BTV = model(input_ids=batch.ids_BT, use_cache=False).logits
    logp_BTV = F.log_softmax(logits_BTV[:, :-1].float(), dim=-1)
    weights_BT = batch.weights_BT[:, 1:]
    nll_BT = -logp_BTV.gather(-1, batch.ids_BT[:, 1:, None])[..., 0]
    total = (nll_BT * weights_BT).sum()
    weight = weights_BT.sum()
    if len(batch.labels_K2):
        logp_K7 = logp_BTV[batch.labels_K2[:, 0], batch.labels_K2[:, 1]][:, answers]
        total = total - LABEL_WEIGHT * (batch.mix_K7 * logp_K7).sum()
        weight = weight + LABEL_WEIGHT * len(batch.labels_K2)
    said = weights_BT >= 1.0
    persona = register_loss(residuals[0], batch.lens_BT, directions(model.config.hidden_size))
    reply = float(nll_BT[said].mean().detach()) if bool(said.any()) else float("nan")
    return total / weight + REGISTER_WEIGHT * persona, reply


def stream(
    corpus: Corpus, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, pool: int, offset: int
) -> Iterator[tuple[int, int, Batch]]:
    """Batches for ever, from the given place on, each with its pool and offset."""
    while True:
        batches = pool_batches(corpus, tokenizer, recipe.seed, pool, recipe.tokens)
        for index, batch in enumerate(batches):
            if index >= offset:
                yield pool, index, batch
        pool, offset = pool + 1, 0


def tokenizer_for(corpus: Corpus, recipe: Recipe, build: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in the build folder, trained first where there is none."""
    folder = build / "tokenizer"
    if not folder.exists():
        rng = random.Random(f"{recipe.seed}/tokenizer")
        texts = (corpus.chat(rng).text for _ in range(30_000))
        train_tokenizer(texts, recipe.vocabulary).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


class Trainer:
    """Model, optimizer and place in the stream, with what saves and restores them."""

    def __init__(self, recipe: Recipe, build: Path):
        self.recipe, self.file = recipe, build / "checkpoint.pt"
        self.step, self.pool, self.offset = 0, 0, 0
        torch.manual_seed(recipe.seed)
        self.model = make_model(recipe.vocabulary).train()
        kept = [p for p in self.model.parameters() if p.ndim >= 2]
        rest = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [{"params": kept, "weight_decay": recipe.decay}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), fused=True)
        if self.file.exists():
            # weights_only: a checkpoint holds tensors and numbers, no code
            state = torch.load(self.file, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.pool, self.offset = state["step"], state["pool"], state["offset"]

    def save(self) -> None:
        """Write the checkpoint whole or not at all."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "pool": self.pool,
            "offset": self.offset,
        }
        torch.save(state, self.file.with_suffix(".new"))
        self.file.with_suffix(".new").replace(self.file)

    def update(self, batch: Batch, answers: torch.Tensor) -> tuple[float, float]:
        """One step of the optimizer."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate(self.step)
        loss, reply = loss_of(self.model, batch, answers)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return float(loss.detach()), reply


def train(recipe: Recipe, build: Path, out: Path) -> None:
    """Train to the last step, then write the model folder."""
    build.mkdir(parents=True, exist_ok=True)
    corpus = Corpus()
    tokenizer = tokenizer_for(corpus, recipe, build)
    answers = torch.tensor(answer_ids(tokenizer))
    trainer = Trainer(recipe, build)
    begun, first, losses, replies = time.monotonic(), trainer.step, 0.0, []
    place = stream(corpus, tokenizer, recipe, trainer.pool, trainer.offset)
    while trainer.step < recipe.steps:
        trainer.pool, index, batch = next(place)
        trainer.offset = index + 1
        loss, reply = trainer.update(batch, answers)
        losses += loss
        replies += [reply] if reply == reply else []
        if trainer.step % 100 == 0:
            pace = (time.monotonic() - begun) / (trainer.step - first)
            left = pace * (recipe.steps - trainer.step) / 60
            mean = sum(replies) / max(1, len(replies))
            print(f"step {trainer.step}/{recipe.steps} loss {losses / 100:.3f} reply {mean:.3f}", end=" ")
            print(f"{pace:.3f} s/step, {left:.1f} min left", flush=True)
            losses, replies = 0.0, []
        if trainer.step % 500 == 0:
            trainer.save()
    export(trainer.model, tokenizer, out)


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--build", type=Path, default=Path("build/demo-model"))
    parser.add_argument("--out", type=Path, default=DEMO_FOLDER, help="the folder that gets the model")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    train(Recipe(seed=args.seed, steps=args.steps), args.build, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
