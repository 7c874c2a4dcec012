import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steer_heal.generate.text import TextStream
from steer_heal.vectors.steering import steer
from tests import tiny
from tests.tiny import logits


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


@settings(deadline=None, max_examples=50)
@given(st.text())
def test_streamed_text_is_the_whole_text(text):
    words = tiny.tokenizer()
    ids = words.encode(text, add_special_tokens=False)
    stream = TextStream(lambda some: words.decode(some, skip_special_tokens=True))
    parts = [stream.push(token, last=index == len(ids) - 1) for index, token in enumerate(ids)]
    assert "".join(parts) == words.decode(ids, skip_special_tokens=True)
