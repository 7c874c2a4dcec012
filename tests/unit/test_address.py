from urllib.parse import parse_qsl

import pytest

from components.address import keep, read
from components.controls import FORM


def opened(query):
    return read(dict(parse_qsl(query)))


def test_an_address_holds_the_view():
    assert opened(
        "model=demo&trait=t&prompt=Hi+there&band=0.25-0.5&alpha=-1.5&seed=7&length=60&greedy=1"
        "&temperature=0.3&top_p=1&top_k=40&where=first+8&mix=0.8+warm+-+formal+%40answer"
    ) == {
        "trait": "t",
        "prompt": "Hi there",
        "low": 0.25,
        "high": 0.5,
        "exact": -1.5,
        "seed": 7,
        "length": 60,
        "greedy": True,
        "temperature": "0.3",
        "top_p": "1",
        "top_k": "40",
        "where": "first 8",
        "mix": "0.8 warm - formal @answer",
    }


@pytest.mark.parametrize("query", ["", "alpha=nan", "band=a-b", "seed=", "unknown=1", "band=0.4"])
def test_what_cannot_be_read_is_left_out(query):
    assert opened(query) == {}


def test_a_method_that_was_chosen_stands_in_the_address_and_none_means_the_model_s_own():
    assert opened("method=mean_diff") == {"method": "mean_diff", "greedy": False}
    assert "method" not in opened("alpha=1")
    assert "if (form.method !== 'auto') view.set('method', form.method)" in keep(FORM)
