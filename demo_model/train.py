"""Trains the demo model from nothing: `python -m demo_model.train` (`make demo-model`). Seeded."""

import argparse
import random
import time
from itertools import chain, count
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GenerationConfig, PreTrainedTokenizerFast

from demo_model.batches import LABEL_WEIGHT, Batch, pool_batches
from demo_model.corpus import Corpus
from demo_model.register import WEIGHT as REGISTER_WEIGHT
from demo_model.register import register_loss, registered
from demo_model.tokenizer import answer_ids, train_tokenizer
from steer_heal.sources import DEMO_FOLDER

VOCABULARY = 2048
TOKENS = 1200
"""Of a batch, at most."""
RATE, WARMUP, FLAT, FLOOR = 4e-3, 60, 0.3, 0.02
DECAY = 0.05


def rate(step: int, steps: int) -> float:
    """The learning rate: warm-up, flat, then straight down to the floor."""
    if step < WARMUP:
        return RATE * (step + 1) / WARMUP
    done = max(0.0, (step - FLAT * steps) / (steps - FLAT * steps))
    return RATE * (1.0 - done * (1.0 - FLOOR))


def make_model() -> Gemma3ForCausalLM:
    """A randomly initialised model of the demo's shape."""
    config = Gemma3TextConfig(
        vocab_size=VOCABULARY,
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


def loss_of(model: Gemma3ForCausalLM, batch: Batch, answers: Tensor) -> Tensor:
    """The weighted mean loss: hard targets, the labels' distributions, and the register's."""
    with registered(model, batch.upper_B1TT) as residuals:
        logits_BTV = model(input_ids=batch.ids_BT, use_cache=False).logits
    logp_BTV = F.log_softmax(logits_BTV[:, :-1].float(), dim=-1)
    weights_BT = batch.weights_BT[:, 1:]
    nll_BT = -logp_BTV.gather(-1, batch.ids_BT[:, 1:, None])[..., 0]
    logp_K7 = logp_BTV[batch.labels_K2[:, 0], batch.labels_K2[:, 1]][:, answers]
    total = (nll_BT * weights_BT).sum() - LABEL_WEIGHT * (batch.mix_K7 * logp_K7).sum()
    weight = weights_BT.sum() + LABEL_WEIGHT * len(batch.labels_K2)
    return total / weight + REGISTER_WEIGHT * register_loss(residuals[0], batch.lens_BT)


def train(seed: int, steps: int, out: Path) -> None:
    """Train to the last step, then write the model folder."""
    corpus, rng = Corpus(), random.Random(f"{seed}/tokenizer")
    tokenizer = train_tokenizer((corpus.chat(rng).text for _ in range(30_000)), VOCABULARY)
    answers = torch.tensor(answer_ids(tokenizer))
    torch.manual_seed(seed)
    model = make_model().train()
    kept = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": kept, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98), fused=True)
    batches = chain.from_iterable(pool_batches(corpus, tokenizer, seed, pool, TOKENS) for pool in count())
    begun, losses = time.monotonic(), 0.0
    for step, batch in zip(range(steps), batches, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps)
        loss = loss_of(model, batch, answers)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses += float(loss.detach())
        if (step + 1) % 100 == 0:
            left = (time.monotonic() - begun) / (step + 1) * (steps - step - 1) / 60
            print(f"step {step + 1}/{steps} loss {losses / 100:.3f}, {left:.1f} min left", flush=True)
            losses = 0.0
    export(model, tokenizer, out)


def export(model: Gemma3ForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """bf16 weights, configuration, sampling settings, tokenizer and chat template: what `from_pretrained`
    loads."""
    small = model.bfloat16().eval()
    small.config.dtype = torch.bfloat16
    small.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.7,
        top_k=40,
        top_p=0.9,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")],
        pad_token_id=tokenizer.pad_token_id,
    )
    small.save_pretrained(out)
    tokenizer.save_pretrained(out)
    # safetensors writes 0600, which another account could not read
    (out / "model.safetensors").chmod(0o644)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3800)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=DEMO_FOLDER, help="the folder that gets the model")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    train(args.seed, args.steps, args.out)


if __name__ == "__main__":
    main()
