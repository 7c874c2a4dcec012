"""The bundled model's folder, the data files and the corpus that it was trained on."""

import json
import random
import re
from functools import cache
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import steer_heal
from demo_model.acts import FOUNDATIONS, told_in
from demo_model.batches import encode
from demo_model.corpus import Corpus
from demo_model.mixing import lens_mix
from demo_model.personas import held_out, wording
from demo_model.scene import Casting, pair_held_out
from demo_model.tokenizer import answer_ids

PACKAGE = Path(steer_heal.__file__).parent
DEMO = PACKAGE / "models" / "demo"
DATA, MATERIAL = PACKAGE / "data", DEMO / "material"


@cache
def tokenizer():
    return AutoTokenizer.from_pretrained(DEMO)


@cache
def chats(seed: int = 3, count: int = 1500):
    corpus, rng = Corpus(), random.Random(seed)
    return [corpus.chat(rng) for _ in range(count)]


def test_folder_loads_and_is_small_and_readable():
    model = AutoModelForCausalLM.from_pretrained(DEMO)
    weights = DEMO / "model.safetensors"
    assert weights.stat().st_size <= 12 * 1024 * 1024
    assert weights.stat().st_mode & 0o777 == 0o644
    assert model.config.vocab_size == len(tokenizer())
    ends = model.generation_config.eos_token_id
    assert tokenizer().convert_tokens_to_ids("<end_of_turn>") in ends
    assert model.generation_config.temperature
    assert model.generation_config.top_k
    assert model.generation_config.top_p


def test_template_writes_bos_once_and_folds_the_system_text():
    said = {"system": "Be kind.", "user": "Hello!", "assistant": "Hi there."}
    messages = [{"role": role, "content": content} for role, content in said.items()]
    text = tokenizer().apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    asked, answered = "user\nBe kind.\n\nHello!", "model\nHi there."
    turns = f"<start_of_turn>{asked}<end_of_turn>\n<start_of_turn>{answered}<end_of_turn>\n"
    assert text == f"<bos>{turns}<start_of_turn>model\n"
    ids = tokenizer().encode(text, add_special_tokens=False)
    assert ids.count(tokenizer().bos_token_id) == 1
    assert None not in (tokenizer().pad_token, tokenizer().unk_token)


def vignettes():
    lines = (MATERIAL / "vignettes.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_corpus_is_seeded():
    corpus = Corpus()
    generators = (random.Random(1), random.Random(1), random.Random(2))
    first, again, other = ([corpus.chat(rng).text for _ in range(40)] for rng in generators)
    assert first == again != other


def test_held_out_material_never_appears():
    texts = [chat.text for chat in chats()]
    text = "\n".join(texts)
    deeds = told_in("\n".join(row["text"] for row in vignettes()))
    assert len(deeds) == 98
    for deed in deeds:
        assert not any(deed.doing(whose) in text for whose in ("his", "her", "their"))
        # a deed may be met as somebody's order, which is held out by pairs of its own; never as a scene
        bare = "|".join(re.escape(deed.bare(whose)) for whose in ("your", "my"))
        assert not {"You", "you", "I"} & set(re.findall(rf"(\w+) (?:{bare})", text)), deed
    traits = json.loads((DATA / "traits.json").read_text(encoding="utf-8"))
    assert not any(trait[pole] in text for trait in traits for pole in ("positive", "negative"))
    asks = json.loads((MATERIAL / "contexts.json").read_text(encoding="utf-8"))["shared"]
    assert not any(ask in text for ask in asks)
    rng = random.Random(0)
    assert not any(held_out(wording(rng, "Care", frozenset())) for _ in range(50))


def test_a_casting_draws_no_pair_that_is_held_out():
    rng = random.Random(4)
    for foundation in FOUNDATIONS:
        assert not any(pair_held_out(Casting(frozenset()).draw(rng, foundation).act.key) for _ in range(20))


@pytest.mark.parametrize("persona", [None, "Care", "SocialNorms", "Liberty", "Fairness", "Loyalty"])
@pytest.mark.parametrize("foundation", FOUNDATIONS)
@pytest.mark.parametrize("severity", [1, 2, 3])
def test_lens_mixes_are_distributions(foundation: str, severity: int, persona: str | None):
    mix = lens_mix(foundation, severity, persona)
    assert abs(sum(mix) - 1) < 1e-9
    assert min(mix) >= 0


def test_examples_keep_label_and_weights():
    examples = encode(tokenizer(), chats(count=200))
    labelled = [e for e in examples if e.label_at >= 0]
    assert labelled
    answers = set(answer_ids(tokenizer()))
    assert all(e.ids[e.label_at] in answers and len(e.mix) == 7 for e in labelled)
    assert all(len(e.ids) == len(e.weights) for e in examples)
