"""One prompt's doses one after another through the store of prompts."""

from dataclasses import replace

from steer_heal.config import SampleSettings
from steer_heal.generate import PrefixStore, Row, decode
from steer_heal.models import user
from steer_heal.records import Completion
from steer_heal.vectors.steering import coefficients
from tests import tiny
from tests.property.test_steered_rows import assert_as_alone


def test_one_prompt_many_doses_through_the_store(lm):
    """The slider: the same prompt again and again, other doses and bands, the base read once."""
    store, prompt = PrefixStore(), tuple(lm.encode_chat([user("hi")]))
    directions_LD, sample = tiny.directions(lm), SampleSettings(max_new_tokens=8, greedy=True)
    for c, layers in ((2.0, (1, 2)), (5.0, (0,)), (-4.0, (3,))):
        row = Row(prompt, coefficients(4, layers, c)[0], shadow=True)
        tokens, unmeasured = (
            [step[0][1] for step in decode(lm, [one], directions_LD, sample, store=store)]
            for one in (row, replace(row, shadow=False))
        )
        added_LD = row.coefficients_L[:, None] * directions_LD
        written = Completion("", tuple(tokens), False)
        assert_as_alone(lm, row, lambda layer, _, added_LD=added_LD: added_LD[layer], written)
        assert [token.id for token in unmeasured] == [token.id for token in tokens]
    assert prompt in store
