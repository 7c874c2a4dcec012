"""Chats as tensors: token ids, a weight for each target, and the label's distribution."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from demo_model.corpus import AFTER, COPY, PROMPT, REPLY, Chat, Corpus
from demo_model.register import UNASKED, VOICES

WEIGHTS = {PROMPT: 0.1, REPLY: 1.0, COPY: 2.0, AFTER: 0.3}
LABEL_WEIGHT = 4.0
POOL = 1024
HIDDEN = 0.85  # share of personas that the upper layers may not look back at


@dataclass
class Example:
    """One chat: ids, the weight of each as a target, where its label (-1 for none) and its persona stand."""

    ids: list[int]
    weights: list[float]
    label_at: int
    mix: tuple[float, ...]
    persona: tuple[int, int]
    lens: str | None


@dataclass
class Batch:
    """Padded examples; `labels` holds (row, position that predicts the label) pairs.

    `upper` is what each position may attend to in the upper layers and `lens` the persona
    that the residual must hold there, `UNASKED` where it need not (see `register`).
    """

    ids_BT: Tensor
    weights_BT: Tensor
    labels_K2: Tensor
    mix_K7: Tensor
    upper_B1TT: Tensor
    lens_BT: Tensor


def encode(tokenizer: PreTrainedTokenizerFast, chats: list[Chat]) -> list[Example]:
    """Tokenise chats whole, and give each token the weight of the piece that it starts in."""
    encoded = tokenizer([chat.text for chat in chats], add_special_tokens=False, return_offsets_mapping=True)
    examples = []
    for chat, ids, offsets in zip(chats, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        weights, label_at, ends, at = [], -1, [], 0
        for text, kind in chat.pieces:
            at += len(text)
            ends.append((at, WEIGHTS[kind]))
        piece = 0
        for index, (start, _) in enumerate(offsets):
            while start >= ends[piece][0]:
                piece += 1
            weights.append(ends[piece][1])
            if start == chat.label_at:
                label_at = index
        if chat.mix is not None and label_at < 0:
            raise ValueError(f"the label of {chat.text!r} does not start a token")
        first, last = chat.persona
        inside = [index for index, (start, _) in enumerate(offsets) if first <= start < last]
        persona = (inside[0], inside[-1] + 1) if inside else (0, 0)
        examples.append(Example(list(ids), weights, label_at, chat.mix or (), persona, chat.lens))
    return examples


def _first_tag(example: Example, tag_id: int) -> int:
    """Where the first model-turn tag ends: its opening token is the second of its kind."""
    first = example.ids.index(tag_id)
    return example.ids.index(tag_id, first + 1) + 2


def _collate(examples: list[Example], pad_id: int, tag_id: int, rng: random.Random) -> Batch:
    length = max(len(e.ids) for e in examples)
    ids = torch.full((len(examples), length), pad_id)
    weights = torch.zeros(len(examples), length)
    upper = torch.ones(length, length, dtype=torch.bool).tril().repeat(len(examples), 1, 1, 1)
    lens = torch.full((len(examples), length), UNASKED)
    labels, mixes = [], []
    for row, example in enumerate(examples):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        weights[row, : len(example.ids)] = torch.tensor(example.weights)
        start, end = example.persona
        if end and rng.random() < HIDDEN:
            upper[row, 0, end:, start:end] = False
        lens[row, _first_tag(example, tag_id) : len(example.ids)] = VOICES.index(example.lens)
        if example.label_at >= 0:
            weights[row, example.label_at] = 0.0
            labels.append((row, example.label_at - 1))
            mixes.append(example.mix)
    weights[:, 0] = 0.0
    places_K2 = torch.tensor(labels, dtype=torch.long).reshape(-1, 2)
    return Batch(ids, weights, places_K2, torch.tensor(mixes).reshape(-1, 7), upper, lens)


def pool_batches(
    corpus: Corpus, tokenizer: PreTrainedTokenizerFast, seed: int, pool: int, tokens: int
) -> Iterator[Batch]:
    """The batches of one pool of chats: alike in length, at most `tokens` each, in random order."""
    rng = random.Random(f"{seed}/{pool}")
    examples = encode(tokenizer, [corpus.chat(rng) for _ in range(POOL)])
    examples.sort(key=lambda e: len(e.ids) + rng.random() * 8)
    groups: list[list[Example]] = [[]]
    longest = 0
    for example in examples:
        longest = max(longest, len(example.ids))
        if groups[-1] and longest * (len(groups[-1]) + 1) > tokens:
            groups.append([])
            longest = len(example.ids)
        groups[-1].append(example)
    rng.shuffle(groups)
    pad_id, tag_id = (int(tokenizer.vocab[token]) for token in ("<pad>", "<start_of_turn>"))
    for group in groups:
        yield _collate(group, pad_id, tag_id, rng)
