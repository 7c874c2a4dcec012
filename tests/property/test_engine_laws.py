import tempfile
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steer_heal.generate.divergence import diverge
from steer_heal.generate.text import TextStream
from steer_heal.models import user
from steer_heal.vectors import vector as vectors
from steer_heal.vectors.steering import steer
from steer_heal.vectors.vector import SteeringVector
from tests import tiny
from tests.close import assert_near, rounding

IDS = torch.tensor([[2, 4, 30, 41, 7]])
FINITE = st.floats(-50, 50, width=32)
SPECIAL = set(range(len(tiny.SPECIAL)))


def logits(lm):
    with torch.no_grad():
        return lm.model(input_ids=IDS).logits


@settings(deadline=None, max_examples=20)
@given(
    st.sampled_from(tiny.ARCHS),
    st.lists(st.sampled_from([0.0, 0.0, 1.0, -3.0, 1e4]), min_size=4, max_size=4),
)
def test_leaving_undoes_exactly_and_zero_is_base(arch, row):
    lm = tiny.shared(arch)
    before = logits(lm)
    with steer(lm.blocks, torch.ones(4, 32), torch.tensor([row])):
        inside = logits(lm)
    assert torch.equal(logits(lm), before)
    if not any(row):
        assert torch.equal(inside, before)


@settings(deadline=None)
@given(st.lists(FINITE, min_size=6, max_size=6), st.lists(FINITE, min_size=6, max_size=6))
def test_kl_is_what_the_sum_says_never_negative_and_zero_on_itself(a, b):
    first, second = torch.tensor([a]), torch.tensor([b])

    def kl(logits_1V, base_1V):
        return float(diverge(logits_1V, base_1V, [0], torch.tensor([0])).kl_B)

    p, q = first.double().log_softmax(-1), second.double().log_softmax(-1)
    expected = float((p.exp() * (p - q)).sum())
    found = kl(first, second)
    assert found >= 0.0
    assert_near(found, max(expected, 0.0), rounding(len(a)), torch.cat([p, q]))
    assert kl(first, first) == 0.0


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.lists(st.floats(-9, 9, width=32), min_size=3, max_size=3), min_size=1, max_size=4),
    st.dictionaries(st.text(min_size=1).filter(lambda key: key != "format"), st.text(), max_size=3),
)
def test_a_saved_vector_comes_back(rows, meta):
    directions = torch.tensor(rows)
    made = SteeringVector(directions, directions.norm(dim=-1), directions.abs().sum(dim=-1), meta)
    with tempfile.TemporaryDirectory() as folder:
        back = vectors.load(vectors.save(made, Path(folder) / "v.safetensors"))
    assert torch.equal(back.directions_LD, made.directions_LD)
    assert torch.equal(back.norms_L, made.norms_L)
    assert torch.equal(back.residual_norms_L, made.residual_norms_L)
    assert back.meta == meta


@settings(deadline=None, max_examples=50)
@given(st.text())
def test_streamed_text_is_the_whole_text(text):
    words = tiny.tokenizer()
    ids = words.encode(text, add_special_tokens=False)
    stream = TextStream(lambda some: words.decode(some, skip_special_tokens=True))
    parts = [stream.push(token, last=index == len(ids) - 1) for index, token in enumerate(ids)]
    assert "".join(parts) == words.decode(ids, skip_special_tokens=True)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.one_of(st.text(max_size=5), st.sampled_from(tiny.SPECIAL)), max_size=6).map("".join))
def test_no_text_becomes_a_control_token(text):
    lm = tiny.shared("gemma3")
    control = [token for token in lm.encode_chat([user(text)]) if token in SPECIAL]
    assert control == [token for token in lm.encode_chat([user("x")]) if token in SPECIAL]
