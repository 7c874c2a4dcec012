"""The tokenizer: byte-level BPE learnt from the corpus, with a Gemma-style turn format."""

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from steer_heal.config import FOUNDATIONS

SPECIALS = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
THINK = ("<think>", "</think>")
TEMPLATE = """\
{{- bos_token -}}
{%- set lead = '' -%}
{%- set turns = messages -%}
{%- if messages and messages[0]['role'] == 'system' -%}
  {%- set lead = messages[0]['content'] | trim ~ '\\n\\n' -%}
  {%- set turns = messages[1:] -%}
{%- endif -%}
{%- for message in turns -%}
  {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
  {{- '<start_of_turn>' ~ role ~ '\\n' ~ (lead if loop.first else '') ~ message['content'] | trim -}}
  {{- '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<start_of_turn>model\\n' -}}
{%- endif -%}
"""


def train_tokenizer(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of `size` tokens learnt from the texts, in which the seven answers are single tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(THINK),
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.add_tokens([AddedToken(token, special=False, normalized=False) for token in THINK])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    answer_ids(tokenizer)
    return tokenizer


def answer_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The ids of the seven answers as they follow the prefill's quote; a ValueError when one is split."""
    ids = []
    for name in FOUNDATIONS:
        plain = tokenizer.encode('{"answer": "', add_special_tokens=False)
        full = tokenizer.encode(f'{{"answer": "{name}"}}', add_special_tokens=False)
        rest = full[len(plain) :]
        if full[: len(plain)] != plain or tokenizer.decode(rest[:1]) != name:
            raise ValueError(f"{name} is not one token after the prefill")
        ids.append(rest[0])
    return ids
