"""The engine's laws on the bundled model itself."""

import pytest

from steer_heal.config import SampleSettings
from steer_heal.generate import Row, complete
from steer_heal.models import LanguageModel, load, system, user
from steer_heal.vectors.steering import coefficients
from tests import tiny
from tests.close import assert_near, model_rounding, nats


@pytest.fixture(scope="module")
def demo() -> LanguageModel:
    return load("demo", device="cpu")


@pytest.fixture(scope="module")
def directions_LD(demo):
    return tiny.directions(demo)


@pytest.fixture(scope="module")
def rows(demo):
    texts = [vignette.text for vignette in demo.material.vignettes(limit=2)]
    first, second = (tuple(demo.encode_chat([user(text)])) for text in texts)
    at = [coefficients(demo.n_layers, (4, 5), c)[0] for c in (0.0, 20.0, -30.0)]
    return [
        Row(first),
        Row(first, at[0], shadow=True),
        Row(first, at[1], shadow=True),
        Row(second, at[2], shadow=True),
    ]


def test_its_prompts_are_the_templates_own(demo):
    for vignette in demo.material.vignettes(limit=7):
        for messages in ([user(vignette.text)], [system("Be kind."), user(vignette.text)]):
            expected = demo.tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
            assert demo.encode_chat(messages) == expected


@pytest.mark.parametrize("sample", [{"greedy": True}, {"temperature": 1.5, "seed": 3}, {}])
def test_alpha_zero_is_base_and_rows_are_as_if_alone(demo, directions_LD, rows, sample):
    how = SampleSettings(max_new_tokens=16, **sample)
    together = complete(demo, rows, directions_LD, how)
    assert [token.id for token in together[1].tokens] == [token.id for token in together[0].tokens]
    assert {token.kl for token in together[1].tokens} == {0.0}
    for row, found in zip(rows[2:], together[2:], strict=True):
        alone = complete(demo, [row], directions_LD, how)[0]
        assert [token.id for token in alone.tokens] == [token.id for token in found.tokens]
        kls, expected = ([token.kl for token in one.tokens] for one in (found, alone))
        assert_near(kls, expected, model_rounding(demo), nats(demo, row.prompt_ids))
        assert max(token.kl for token in found.tokens) > 0.01
