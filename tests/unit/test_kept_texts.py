"""Which answers a round is trained on: those that the filter kept, of prompts that nothing is measured on."""

import json

import pytest

from steer_heal import data
from steer_heal.heal.adapters import AdapterStack
from steer_heal.heal.measure import Measures
from steer_heal.models import LanguageModel
from tests import tiny
from tests.loop.test_loop import fast


@pytest.mark.parametrize("demo", [True, False])
@pytest.mark.parametrize("trait", data.bundled_traits())
def test_what_is_trained_is_never_what_is_measured(demo, trait, tmp_path, monkeypatch):
    material = data.material(demo=demo)
    mine = material.heal_prompts(trait)[3]
    rows = [{"text": mine, "foundation_coarse": "Care"}, {"text": "A man lies.", "foundation_coarse": "Care"}]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr(LanguageModel, "material", material)
    lm = tiny.language_model(n_layers=2)
    settings = fast(trait=trait, evaluate={"vignettes": str(tmp_path / "mine.jsonl")})
    measures = Measures(lm, AdapterStack(lm), settings, None, lambda: False)
    assert len(measures.prompts) > 100
    assert measures.plain_prompts
    trained = {*measures.prompts, *measures.plain_prompts}
    assert mine not in trained
    for measured in (
        material.held_out_prompts(),
        material.neutral_prompts(),
        [vignette.text for vignette in material.vignettes()],
        [fact.question for fact in material.facts()],
    ):
        assert len(measured) >= 20
        assert not trained & {*measured}
