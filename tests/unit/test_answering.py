"""Whose answer is in view: what can be read stays until the next can be; the last value asked for wins."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from components import answering, view
from components.answering import Newest, draw
from components.controls import FORM
from steer_heal.config import SettingsError, SteerRequest
from steer_heal.records import SteerFrame, Token
from tests.fake_engine import FORM_VALUES, FakeEngine

WORDS = tuple(Token(i, f"w{i} ", 0.5, kl=0.1) for i in range(12))
BEFORE = (Token(0, "what stood there", 0.5, kl=0.2),)
ASKED = FORM_VALUES | {"band": (0.4, 0.6)}
REQUEST = SteerRequest(prompt="hello")


def frame(n: int, **more: Any) -> SteerFrame:
    return replace(SteerFrame((), WORDS[:n], False, False), **more)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pause between two answers: only the words of the one before count."""
    monkeypatch.setattr(answering, "STEP_S", 0.0)
    monkeypatch.setattr(answering, "LONGEST_S", 60.0)


def waiting(newest: Newest, stamp: float) -> tuple[threading.Thread, list[bool]]:
    newest.take("me", stamp)
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(newest.begins("me", stamp)))
    thread.start()
    return thread, found


def test_a_newer_request_waits_for_the_words_in_view_and_only_the_newest_begins() -> None:
    newest = Newest()
    assert newest.take("me", 1.0)
    assert newest.begins("me", 1.0)
    second, dropped = waiting(newest, 2.0)
    third, begun = waiting(newest, 3.0)
    second.join(30)
    assert dropped == [False]
    assert newest.shows("me", 1.0)
    assert begun == []
    newest.view("me").ripe = True
    third.join(30)
    assert begun == [True]
    assert newest.shows("me", 3.0)
    assert newest.take("you", 0.5)
    assert newest.begins("you", 0.5)
    assert not newest.take("me", 2.0)
    newest.forget("me")
    assert newest.take("me", 0.5)


@pytest.mark.parametrize("stopped", [False, True])
def test_one_that_ended_lets_the_next_begin_and_stop_drops_what_waits(stopped: bool) -> None:
    newest = Newest()
    newest.take("me", 1.0)
    newest.begins("me", 1.0)
    thread, begun = waiting(newest, 2.0)
    newest.halt("me", 2.0) if stopped else newest.ended("me", 1.0)
    thread.join(30)
    assert begun == [not stopped]
    assert newest.shows("me", 1.0) == stopped
    assert newest.take("me", 3.0)


def test_stop_counts_for_what_was_asked_before_it_and_arrives_after() -> None:
    newest = Newest()
    newest.halt("me", 2.0)
    newest.take("me", 1.5)
    assert not newest.begins("me", 1.5)
    newest.take("me", 2.5)
    assert newest.begins("me", 2.5)


def test_the_text_before_stays_dimmed_until_the_new_one_can_be_read() -> None:
    for n in range(answering.WORDS):
        _, steered, _, _, *judged, _ = draw(frame(n), REQUEST, None, True, BEFORE)
        assert steered == view.stale(BEFORE)
        assert "what stood there" in steered
        assert not any(isinstance(one, str) for one in judged)
    _, steered, *_ = draw(frame(answering.WORDS), REQUEST, None, True, BEFORE)
    assert steered == view.answer(WORDS[: answering.WORDS], done=False)


def test_a_short_answer_that_is_done_takes_its_place_and_a_stopped_one_without_words_does_not() -> None:
    assert "w0" in draw(frame(1, done=True), REQUEST, None, True, BEFORE)[1]
    assert draw(frame(0, done=True, message="Stopped."), REQUEST, None, True, BEFORE)[1] == view.stale(BEFORE)
    assert "Stopped." in draw(frame(0, done=True, message="Stopped."), REQUEST, None, True)[1]


def test_what_is_measured_meanwhile_is_said() -> None:
    said = "Measuring the direction of Care, 40 of 128 prompts"
    for before in ((), BEFORE):
        _, steered, status, *_ = draw(frame(0, message=said), REQUEST, None, True, before)
        assert before or said in steered
        assert said in status


def test_base_in_view_stays_for_another_dose_or_method_and_goes_for_another_prompt_or_model() -> None:
    newest, asked = Newest(), REQUEST
    assert newest.grows("me", asked, 0, "one")
    assert newest.grows("me", asked, 5, "one")
    for same in ({"alpha": 3.0}, {"method": "pca"}):
        assert not newest.grows("me", asked.model_copy(update=same), 0, "one")
        assert not newest.grows("me", asked.model_copy(update=same), 4, "one")
    assert newest.grows("me", asked, 6, "one")
    assert newest.grows("me", asked.model_copy(update={"prompt": "else"}), 0, "one")
    assert newest.grows("me", asked, 0, "other")


class Dragged(FakeEngine):
    """Asks for something else once the first answer has some words."""

    def __init__(self, move: Callable[[], None]) -> None:
        super().__init__(delay=0.0)
        self.move = move

    def steer(self, request: SteerRequest, *, session: str) -> Any:
        for found in super().steer(request, session=session):
            if request.alpha == 1.0 and len(found.steered) == 2:
                self.move()
            yield found


def test_a_drag_shows_words_of_every_answer_that_begins() -> None:
    """The newer value comes after two words: the older goes on to its fourth, then the newer is answered."""
    newest, others = Newest(), []
    me: Any = SimpleNamespace(session_hash="me")

    def form(alpha: float) -> list[Any]:
        return [{**FORM_VALUES, "exact": alpha}[name] for name in FORM]

    def move() -> None:
        newest.take("me", 2.0)
        others.append(threading.Thread(target=lambda: second.extend(stream(me, *form(2.0), 2.0))))
        others[0].start()

    second: list[Any] = []
    with ThreadPoolExecutor(1) as pool:
        stream = answering.answering(Dragged(move), newest, pool)
        first = list(stream(me, *form(1.0), 1.0))
        others[0].join(30)
    texts = [shown[1] for shown in first if isinstance(shown[1], str)]
    assert any(text.count("sh-t ") >= answering.WORDS for text in texts)
    later = [shown[1] for shown in second if isinstance(shown[1], str)]
    assert "sh-stale" in later[0]
    assert "sh-stale" not in later[-1]
    assert newest.shows("me", 2.0)


def test_an_empty_box_is_the_model_s_own_setting_and_nonsense_is_told() -> None:
    own = answering.asked_for(ASKED).sample
    assert (own.temperature, own.top_p, own.top_k) == (None, None, None)
    typed = {"temperature": " 0 ", "top_p": "0.5", "top_k": "-1"}
    told = answering.asked_for(ASKED | typed).sample
    assert (told.temperature, told.top_p, told.top_k) == (0.0, 0.5, 0)
    with pytest.raises(SettingsError, match="temperature must be a number, not 'hot'"):
        answering.asked_for(ASKED | {"temperature": "hot"})
