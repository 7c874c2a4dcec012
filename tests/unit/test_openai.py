"""OpenAI's protocol as its own client speaks it, over real servers: on the fake engine and the demo."""

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import httpx
import openai
import pytest

from components import access, gate, openai_api, server
from steer_heal import models
from steer_heal.config import (
    MAX_CHAT_CHARS,
    MAX_NEW_TOKENS,
    MAX_SAMPLES,
    SampleSettings,
    SettingsError,
    SteerRequest,
    TalkRequest,
    build,
    heal_settings,
)
from steer_heal.engine import Engine
from steer_heal.records import Spoken, TalkFrame, Token
from tests.crowd import PATIENCE_S
from tests.fake_engine import FakeEngine
from tests.rounds import shaken_run

LOGIN = ("me", "correct horse")
HELLO = [{"role": "user", "content": "Hello there"}]


@contextmanager
def served(engine: Any, login: access.Login | None = None) -> Iterator[str]:
    """The address of the whole web application, for as long as it is needed."""
    ends: SimpleQueue[Callable[[], None]] = SimpleQueue()
    with access.bind("127.0.0.1", 0) as listening:
        given = (engine, listening, login)
        thread = threading.Thread(target=server.serve, args=given, kwargs={"begin": ends.put})
        thread.start()
        end = ends.get(timeout=PATIENCE_S)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        finally:
            end()
            thread.join(PATIENCE_S)


@contextmanager
def client_of(engine: Any, key: str = "none", login: access.Login | None = None) -> Iterator[openai.OpenAI]:
    with served(engine, login) as url, openai.OpenAI(base_url=url, api_key=key, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def fake() -> FakeEngine:
    engine = FakeEngine(delay=0.0)
    engine.runs.start(heal_settings("quick", model="demo", rounds=2), started=1.0)
    engine.runs.start(heal_settings("quick", model="other", rounds=2), started=1.0)
    return engine


@pytest.fixture(scope="module")
def client(fake: FakeEngine) -> Iterator[openai.OpenAI]:
    with client_of(fake) as made:
        yield made


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, measured: Path) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("openai")
    made = Engine("demo", runs_dir=folder / "runs", db=folder / "runs.duckdb", cache_dir=measured)
    yield made
    made.close()


@pytest.fixture(scope="module")
def real(engine: Engine) -> Iterator[openai.OpenAI]:
    with client_of(engine) as made:
        yield made


def ask(client: openai.OpenAI, **more: Any) -> Any:
    values = {"model": "demo", "messages": HELLO, "max_tokens": 8, "seed": 3, **more}
    return client.chat.completions.create(**values)


def test_the_model_and_its_healed_rounds_are_listed(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert names == ["demo", "demo:run-001-s0/2", "demo:run-001-s0/1"]
    assert client.models.retrieve("demo:run-001-s0/2").owned_by == openai_api.OWNER
    with pytest.raises(openai.NotFoundError, match="/v1/models"):
        client.models.retrieve("gpt-9")


def test_an_answer_whole_and_streamed_is_the_same(client: openai.OpenAI) -> None:
    whole = ask(client, extra_body={"steering": "1.5 candour_over_tact"})
    chunks = list(
        ask(
            client, extra_body={"steering": "1.5 candour_over_tact"}, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    text = "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)
    assert text == whole.choices[0].message.content != ""
    assert [one.choices[0].finish_reason for one in chunks if one.choices][-1] == "length"
    assert chunks[-1].usage == whole.usage
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (2, 8)


def test_what_is_asked_of_the_engine(client: openai.OpenAI, fake: FakeEngine) -> None:
    """One trait alone is the page's own request; a mix is said as one; without steering it is base."""
    turns = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]},
        {"role": "assistant", "content": "Hi.", "refusal": None, "annotations": []},
        *HELLO,
    ]
    said = {"temperature": 0.5, "top_p": 0.9, "messages": turns, "presence_penalty": 0, "user": "me"}
    ask(client, **said, n=3, extra_body={"steering": "-0.5 candour_over_tact @first 4"})
    one = fake.talks[-1]
    steered = (one.trait, one.voices[0].alpha, one.where, one.mix)
    assert steered == ("candour_over_tact", -0.5, "first 4", "")
    assert [(turn.role, turn.content) for turn in one.voices[0].messages] == [
        ("system", "Be brief."),
        ("user", "Hello"),
        ("assistant", "Hi."),
        ("user", "Hello there"),
    ]
    drawn = one.sample
    assert (drawn.temperature, drawn.top_p, drawn.seed, drawn.max_new_tokens) == (0.5, 0.9, 3, 8)
    assert one.n == 3
    mix = "candour_over_tact + 0.5 care_over_authority @answer"
    ask(client, extra_body={"steering": mix}, model="demo:run-001-s0/2", seed=-1)
    one = fake.talks[-1]
    assert (one.mix, one.voices[0].alpha, one.steering().gate) == (mix, 1.0, "answer")
    assert (one.voices[0].run, one.voices[0].round, one.sample.seed) == ("run-001-s0", 2, 2**31 - 1)
    ask(client, model="demo:run-001-s0/1 + -0.5 candour_over_tact")
    assert (fake.talks[-1].voices[0].round, fake.talks[-1].voices[0].alpha) == (1, -0.5)
    ask(client, seed=None)
    assert not fake.talks[-1].is_steered


def test_several_choices_come_side_by_side(client: openai.OpenAI) -> None:
    chunks = list(ask(client, n=3, max_tokens=60, stream=True))
    for index in range(3):
        own = [one.choices[0] for one in chunks if one.choices[0].index == index]
        assert f"sample {index} of" in "".join(one.delta.content or "" for one in own)
        assert own[-1].finish_reason == "stop"


def test_an_answer_ends_before_a_stop(client: openai.OpenAI) -> None:
    whole = ask(client, max_tokens=12).choices[0].message.content
    for stop in ("there<", ["never", "there<"]):
        answer = ask(client, max_tokens=12, stop=stop).choices[0]
        chunks = list(ask(client, max_tokens=12, stop=stop, stream=True))
        assert answer.message.content == whole[: whole.index("there<")]
        assert answer.finish_reason == "stop"
        assert "".join(one.choices[0].delta.content or "" for one in chunks) == answer.message.content


def test_what_may_become_a_stop_is_held_back() -> None:
    class Spelling(FakeEngine):
        def talk(self, request: TalkRequest, *, session: str) -> Iterator[TalkFrame]:
            tokens = tuple(Token(i, text, 0.5) for i, text in enumerate(("a", "b<", "E", "N", "x", "")))
            for n in range(1, len(tokens) + 1):
                finish = "stop" if n == len(tokens) else ""
                yield TalkFrame(((Spoken(tokens[:n], finish=finish),),))

    voice = {"messages": HELLO}
    asked = build(TalkRequest, voices=(voice,))
    pieces = [piece for _, piece in openai_api.written(Spelling(), asked, ("<END>", "zz"), "spelling")]
    assert [piece.text for piece in pieces] == ["a", "b<ENx", ""]
    assert [piece.finish for piece in pieces] == ["", "", "stop"]
    assert [len(piece.tokens) for piece in pieces] == [1, 4, 1]


def test_log_probs_are_those_of_the_tokens(real: openai.OpenAI, engine: Engine) -> None:
    found = ask(real, model=engine.info.name, logprobs=True).choices[0]
    entries = found.logprobs.content
    assert 0 < len(entries) <= 8
    assert "".join(entry.token for entry in entries) == found.message.content
    assert all(entry.logprob <= 0.0 and bytes(entry.bytes).decode() == entry.token for entry in entries)


def test_the_same_seed_gives_the_page_s_own_answer(real: openai.OpenAI, engine: Engine) -> None:
    trait = engine.traits()[0].name
    asked = build(
        SteerRequest, prompt="Hello there", alpha=1.5, sample=build(SampleSettings, max_new_tokens=8, seed=3)
    )
    *_, last = engine.steer(asked, session="page")
    text = ["".join(token.text for token in tokens) for tokens in (last.base, last.steered)]
    said = {"model": engine.info.name}
    assert ask(real, **said).choices[0].message.content == text[0]
    found = ask(real, **said, extra_body={"steering": f"1.5 {trait}"})
    assert found.choices[0].message.content == text[1]
    assert found.usage.completion_tokens == len(last.steered)


def test_a_healed_round_answers_until_its_run_is_deleted(real: openai.OpenAI, engine: Engine) -> None:
    """As on the page: whole and streamed, several, steered too; and a run of another model is no model."""
    runs = engine.runs.launcher.runs_dir
    run, foreign = (shaken_run(models.load("demo"), runs, model=name) for name in ("demo", "smollm2"))
    name = f"demo:{run}/2"
    base, healed, again = (ask(real, model=one, n=2, max_tokens=20) for one in ("demo", name, name))
    voice = {"messages": HELLO, "run": run, "round": 2}
    asked = build(TalkRequest, voices=(voice,), n=2, sample={"max_new_tokens": 20, "seed": 3})
    *_, last = engine.talk(asked, session="page")
    texts = [choice.message.content for choice in healed.choices]
    assert texts == [choice.message.content for choice in again.choices]
    assert texts == [one.text for one in last.voices[0]]
    assert texts != [choice.message.content for choice in base.choices]
    steered = ask(real, model=name, max_tokens=20, extra_body={"steering": f"2 {engine.traits()[0].name}"})
    assert steered.choices[0].message.content != texts[0]
    chunks = ask(real, model=name, max_tokens=20, stream=True, logprobs=True, stop=texts[0][-6:])
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert said == texts[0][: texts[0].index(texts[0][-6:])]
    shutil.rmtree(runs / run)
    for gone, said in ((run, "There is no run"), (foreign, "healed smollm2, and here demo answers")):
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError, match=said):
                ask(real, model=f"demo:{gone}/1", stream=stream)


@pytest.mark.parametrize(
    ("more", "param", "said"),
    [
        ({"extra_body": {"steering": "0.8 candour_over_tact +"}}, "steering", "expected a number or a trait"),
        ({"extra_body": {"steering": "candor_over_tact"}}, "steering", "candour_over_tact"),
        ({"extra_body": {"steering": 3}}, "steering", "string"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "Hi"}]}, "messages", "end with a user's"),
        ({"messages": [{"role": "tool", "content": "4", "tool_call_id": "a"}]}, "messages", "role"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages", "empty"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "Hi"}] * 5 + HELLO}, None, "begin a new"),
        ({"messages": [{"role": "user", "content": "a" * (MAX_CHAT_CHARS + 1)}]}, "messages", "characters"),
        ({"max_tokens": MAX_NEW_TOKENS + 1}, "max_tokens", "at most"),
        ({"temperature": -1}, "temperature", "at least"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "fewer"),
        ({"stop": "a" * 1000}, "stop", "fewer"),
        ({"messages": []}, "messages", "at least 1"),
        ({"n": MAX_SAMPLES + 1}, "n", "at most"),
        ({"logprobs": True, "top_logprobs": 5}, "top_logprobs", "0"),
        ({"presence_penalty": 0.5}, "presence_penalty", "leave it out"),
        ({"tools": [{"type": "function"}]}, "tools", "leave it out"),
    ],
)  # fmt: skip
def test_a_refusal_is_openai_s_own_form(
    client: openai.OpenAI, more: Any, param: str | None, said: str
) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, **more, stream=stream)
        error = caught.value
        assert (error.param, error.type) == (param, "invalid_request_error")
        assert said in error.body["message"]


def test_other_refusals(client: openai.OpenAI, fake: FakeEngine) -> None:
    for name in ("gpt-4", "demo:run-001-s0", "demo:base", "other:run-002-s0/1", "base"):
        with pytest.raises(openai.NotFoundError, match="/v1/models") as caught:
            ask(client, model=name)
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    url = str(client.base_url)
    for reply, status in (
        (httpx.get(f"{url}chat/completions"), 405),
        (httpx.get(f"{url}embeddings"), 404),
        (httpx.post(f"{url}chat/completions", content=b"{"), 400),
        (httpx.post(f"{url}chat/completions", content=b"[]"), 400),
        (httpx.post(f"{url}chat/completions", content=b"[" * 100_000), 400),
        (httpx.post(f"{url}chat/completions", content=b" " * (gate.MAX_BODY_BYTES + 1)), 413),
    ):
        assert reply.status_code == status
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


def test_what_ends_an_answer_on_the_way_is_told_in_the_stream() -> None:
    class Failing(FakeEngine):
        def talk(self, request: TalkRequest, *, session: str) -> Iterator[TalkFrame]:
            yield TalkFrame(((Spoken((Token(0, "Well ", 0.5),)),),))
            raise SettingsError("The vector cannot be had: /home/me/cache/v.gguf is damaged.")

    with client_of(Failing()) as client:
        with pytest.raises(openai.APIError, match=r"had: v\.gguf is damaged"):
            list(ask(client, stream=True))
        with pytest.raises(openai.BadRequestError):
            ask(client)


def test_a_client_that_leaves_ends_its_answer() -> None:
    class Endless(FakeEngine):
        stopped = threading.Event()

        def talk(self, request: TalkRequest, *, session: str) -> Iterator[TalkFrame]:
            try:
                while not self.stopped.wait(0.01):
                    yield TalkFrame(((Spoken((Token(0, "Well ", 0.5),)),),))
            finally:
                self.stopped.set()

        def stop(self, session: str) -> None:
            self.stopped.set()

    with client_of(engine := Endless()) as client:
        with ask(client, stream=True) as stream:
            next(iter(stream))
        assert engine.stopped.wait(PATIENCE_S)
    with client_of(engine := Endless()) as client:
        engine.stopped.clear()
        with pytest.raises(openai.APITimeoutError):
            ask(client, timeout=0.5)
        assert engine.stopped.wait(PATIENCE_S)


def test_no_more_answers_at_once_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_api, "CHOICES_AT_ONCE", 2)
    with client_of(FakeEngine(delay=0.05)) as client:
        with ask(client, n=2, stream=True, extra_body={"steering": "candour_over_tact"}) as stream:
            next(iter(stream))
            with pytest.raises(openai.RateLimitError) as caught:
                ask(client)
            assert caught.value.code == "rate_limit_exceeded"
            list(stream)
        assert ask(client).choices


def test_with_a_login_the_key_is_the_login() -> None:
    with client_of(FakeEngine(delay=0.0), key=":".join(LOGIN), login=LOGIN) as client:
        assert ask(client).choices[0].message.content
        assert httpx.get(f"{client.base_url}models").status_code == 401
        headers = {"Authorization": f"Bearer {':'.join(LOGIN)}"}
        assert httpx.get(str(client.base_url).replace("/v1", "/config"), headers=headers).status_code == 401
        wrong = client.with_options(api_key="me:wrong horse")
        for _ in range(gate.FAILURES):
            with pytest.raises(openai.AuthenticationError, match="name:password"):
                wrong.models.list()
        with pytest.raises(openai.RateLimitError):
            wrong.models.list()
