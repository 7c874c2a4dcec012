import json
import random
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import steer_heal
from demo_model.acts import FOUNDATIONS as OF_DEMO
from demo_model.acts import told_in
from demo_model.batches import encode
from demo_model.corpus import Corpus
from demo_model.mixing import lens_mix
from demo_model.personas import held_out, wording
from demo_model.scene import Casting, pair_held_out
from demo_model.tokenizer import answer_ids
from steer_heal import data, models
from steer_heal.config import DEFAULT_TRAIT, FOUNDATIONS, MAX_UPLOAD_BYTES, SettingsError
from steer_heal.data import Cloze, Material
from steer_heal.models import LanguageModel
from tests import tiny


@pytest.fixture(params=[True, False], ids=["demo", "general"])
def material(request):
    return data.material(demo=request.param)


@pytest.fixture
def vignette_file(tmp_path):
    def write(*rows):
        path = tmp_path / "mine.jsonl"
        path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
        return path

    return write


def row(text="You see a man.", foundation="Care", **more):
    return {"text": text, "foundation_coarse": foundation, **more}


def test_our_own_vignettes_are_balanced_and_in_both_persons(material):
    found = material.vignettes()
    counts = Counter((vignette.foundation, vignette.condition) for vignette in found)
    assert set(counts) == {(name, condition) for name in FOUNDATIONS for condition in data.CONDITIONS}
    assert min(counts.values()) >= 14
    assert len({vignette.text for vignette in found}) == len(found)
    assert len(material.vignettes(condition="self_violate")) == len(found) / 2


def test_a_limit_keeps_the_foundations_balanced_and_the_order(material):
    everything = material.vignettes(condition="other_violate")
    chosen = material.vignettes(condition="other_violate", limit=16)
    assert sorted(Counter(vignette.foundation for vignette in chosen).values()) == [2, 2, 2, 2, 2, 3, 3]
    assert chosen == [vignette for vignette in everything if vignette in chosen]
    assert material.vignettes(condition="other_violate", limit=10_000) == everything


def test_spellings_of_a_foundation():
    said = ("Care (e)", "Care (p, a)", "Social Norms", "social_norms", "LIBERTY", "Purity", "")
    meant = ["Care", "Care", "SocialNorms", "SocialNorms", "Liberty", None, None]
    assert [data.foundation_name(name) for name in said] == meant


def test_a_file_in_tinymfv_format_is_read(vignette_file):
    path = vignette_file(
        {"id": "a1", "foundation": "Care (p, h)", "text": "You kick a dog.", "human_Care": 83.0},
        "",
        {"foundation": "Other", "foundation_coarse": "Social Norms", "text": "You wear a hat."},
    )
    first, second = data.vignettes(path, condition="self_violate")
    assert (first.id, first.foundation, first.condition) == ("a1", "Care", "self_violate")
    assert (second.id, second.foundation) == ("line-3", "SocialNorms")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(), "{nonsense"], r"mine\.jsonl line 2: not JSON"),
        ([{"foundation_coarse": "Care"}], r"line 1: 'text' is missing"),
        ([row(text="  ")], r"line 1: 'text' is missing or empty"),
        ([row(text=7)], r"line 1: 'text'"),
        ([row(), "[1]"], r"line 2: must be a JSON object"),
        ([row(id=[1])], r"line 1: 'id' must be text"),
        ([row(), row(id="I smile \ud83d.")], r"mine\.jsonl line 2: the text holds half a character"),
        ([row(text="x" * 9_000)], r"line 1: 'text' has 9000 characters"),
        ([row(), {"text": "You see one."}], r"1 of 2 vignettes have no 'foundation_coarse', line-2 for one"),
        ([row(foundation="Purity")], r"line 1: 'Purity' is no foundation"),
        ([row(condition="both")], r"line 1: 'condition' must be one of"),
        ([row(), "[" * 100_000], r"line 2: not JSON \(maximum recursion depth"),
        ([row(id="a" * 300)], r"line 1: 'id' must be text of at most 200 characters"),
        ([row(), row(text="I smile \ud83d.")], r"mine\.jsonl line 2: the text holds half a character"),
        ([row(foundation="(" * 100_000)], r"line 1: '\({40}' is no foundation"),
        ([row(id="a"), row(id="a", text="Another.")], r"line 2: the same id as line 1"),
        ([row(id="a"), row(id="b")], r"line 2: the same text as line 1"),
        ([""], r"mine\.jsonl holds no vignette"),
    ],
)
def test_a_bad_vignette_file_is_refused_by_line(vignette_file, rows, message):
    with pytest.raises(SettingsError, match=message) as refused:
        data.vignettes(vignette_file(*rows))
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_a_file_in_any_unicode_encoding_is_read_with_a_byte_order_mark_and_without(encoding, tmp_path):
    texts = ["You see caf\u00e9s.", "You see \U0001f600."]
    lines = "\r\n".join(json.dumps(row(text=text), ensure_ascii=False) for text in texts)
    (tmp_path / "mine.jsonl").write_bytes(lines.encode(encoding))
    assert [found.text for found in data.vignettes(tmp_path / "mine.jsonl")] == texts


def test_files_put_together_keep_the_marks_of_each(tmp_path):
    marked = [json.dumps(row(text=text)).encode("utf-8-sig") for text in ("One.", "Two.")]
    (tmp_path / "mine.jsonl").write_bytes(b"\xef\xbb\xbf\n" + b"\n".join(marked))
    assert [found.text for found in data.vignettes(tmp_path / "mine.jsonl")] == ["One.", "Two."]


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(SettingsError, match="Cannot read"):
        data.vignettes(tmp_path / "absent.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "caf\xe9"}')
    with pytest.raises(SettingsError, match="not UTF-8"):
        data.vignettes(tmp_path / "latin.jsonl")
    with (tmp_path / "huge.jsonl").open("wb") as file:
        file.truncate(MAX_UPLOAD_BYTES + 1)
    with pytest.raises(SettingsError, match="too large"):
        data.vignettes(tmp_path / "huge.jsonl")


def test_a_condition_that_is_not_there(vignette_file, material):
    with pytest.raises(SettingsError, match="no vignette of condition self_violate"):
        data.vignettes(vignette_file(row(condition="other_violate")), condition="self_violate")
    with pytest.raises(SettingsError, match="Unknown condition"):
        material.vignettes(condition="third")
    with pytest.raises(SettingsError, match="at least 1"):
        material.vignettes(limit=0)


def test_a_material_holds_what_every_trait_needs_and_keeps_the_held_out_apart(material):
    held, neutral, fixed = material.held_out_prompts(), material.neutral_prompts(), material.fixed_prompts()
    assert (len(held), len(neutral)) == (100, 40)
    assert 6 <= len(fixed) <= 8
    assert len(material.facts()) == 20
    told = [vignette.text for vignette in material.vignettes()]
    for name in data.traits():
        prompts = material.heal_prompts(name)
        assert len(material.contexts(name)) >= 128
        plain = material.plain_prompts()
        assert len({*prompts, *plain}) == len(prompts) + len(plain) >= 200
        assert not {*prompts} & {*held, *neutral, *fixed}
        assert not [text for text in told if text in " ".join(prompts)]


def test_the_demo_and_what_was_made_from_it_are_asked_with_its_own_texts():
    demo = models.load("demo")
    assert demo.material == data.material(demo=True)
    healed = LanguageModel("/merged/run", demo.model, demo.tokenizer)
    assert healed.material == data.material(demo=True)
    assert tiny.shared().material == data.material(demo=False)
    scenes = [data.material(demo=kind).vignettes(condition="other_violate") for kind in (True, False)]
    assert not {v.text for v in scenes[0]} & {v.text for v in scenes[1]}


def test_traits_are_found_by_name():
    known = data.traits()
    assert next(iter(known)) == DEFAULT_TRAIT
    assert len(known) >= 3
    assert all(trait.positive != trait.negative for trait in known.values())
    with pytest.raises(SettingsError, match=r"Unknown trait 'greed'.*care_over_authority"):
        data.trait("greed")


TRAIT = {
    "name": "a",
    "title": "A",
    "description": "A.",
    "positive": "You are one.",
    "negative": "You are two.",
    "target": {"Care": 1},
}


def trait(**change):
    return json.dumps({**TRAIT, **change})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"a\.json line 1: not JSON"),
        ("\ufeff[]", "must be a JSON object"),
        (trait(name="b"), "name the file after it"),
        (trait(positive=""), "'positive' is missing"),
        (trait(positive="You care \ud83d."), "the text holds half a character"),
        (trait(negative="You are one."), "the two personas are the same"),
        (trait(target={"Care": 2}), "'target' holds 'Care': 2"),
        (trait(target={"Purity": 1}), "'target' holds 'Purity'"),
        (trait(target=["Care"]), "'target' must map"),
        (trait(replies=["Yes.", "No."]), "'replies' must be a list of pairs"),
        (trait(replies=[["Yes.", "No.", "Both."]]), "'replies' must be a list of pairs"),
        (trait(replies=[["Yes.", " "]]), "'replies' entry 2: must be text"),
        (trait(replies=[["Yes.", "Yes."]]), "entry 2: the same text as entry 1"),
        (trait(replies=[["Yes.", "No."]], scenes=[]), "'scenes': must be a list of texts"),
    ],
)
def test_bad_traits_are_refused(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(SettingsError, match=message):
        data.own_trait(tmp_path / "a.json")


def test_a_trait_s_own_texts_stand_before_the_shared_ones(tmp_path):
    (tmp_path / "contexts.json").write_text('{"shared": ["a", "b"], "greed": ["c", "a"]}')
    assert Material(tmp_path).contexts("greed") == ["c", "a", "b"]
    assert Material(tmp_path).contexts("thrift") == ["a", "b"]


def test_a_frame_asks_with_the_answers_in_both_orders():
    frame = data.frame("choice")
    forward, reversed_ = (frame.render("You {options} see.", order) for order in frame.orders)
    assert '"Care", "Fairness"' in forward
    assert '"SocialNorms", "Liberty"' in reversed_
    assert "You {options} see." in forward
    with pytest.raises(SettingsError, match=r"Unknown frame 'x'.*choice"):
        data.frame("x")


@pytest.mark.parametrize("name", data.frames())
def test_every_frame_that_ships_asks_for_seven_answers_that_differ(name):
    frame = data.frame(name)
    for one in frame.wordings if isinstance(frame, Cloze) else (frame,):
        assert one.question.count("{text}") == 1
        assert one.question.count("{options}") == (0 if isinstance(frame, Cloze) else 1)
        assert len(set(one.answers)) == len(one.options) == len(FOUNDATIONS)
        assert set(one.orders) <= set(data.ORDERS)


def test_a_set_without_labels_opens_and_can_be_limited(vignette_file):
    path = vignette_file({"text": "You see a man."}, {"text": "You see a hat.", "foundation": None})
    assert [row.foundation for row in data.vignettes(path)] == ["", ""]
    assert [row.text for row in data.vignettes(path, limit=1)] == ["You see a man."]


def test_a_frame_of_an_older_run_has_its_new_name():
    assert data.frame("foundations") == data.frame("choice")
    assert {"choice", "cloze"} <= set(data.frames())


TRAITS = data.bundled_traits()
FILES = [data.FOLDER, data.DEMO_FOLDER]
STOP = set(
    """
    about after again also anybody anyone anything away been before being could does doing done down
    else ever every everybody everyone everything from gets goes going have having here hers into itself
    just like made make makes might more most much must never nobody none nothing ones only over really
    said same says should some somebody someone something such than that their them then there these
    they thing things this those through very well were what when where which whom whose will with
    without would your
    """.split()  # noqa: SIM905 - one word a line is no easier to read
)


def stems(text: str) -> set[str]:
    """The first four letters of every word of four or more that is more than grammar."""
    words = re.findall(r"[a-z]+", re.sub(r"[’']\w+", "", re.sub(r"\{\w+\}", "", text.lower())))
    return {word[:4] for word in words if word not in STOP and len(word) >= 4}


def statements(row: object) -> set[str]:
    """Every answer that a frame offers, whatever kind of frame it is; what is asked is not one."""
    if isinstance(row, dict):
        besides = ("kind", "question", "prefill", "nudge", "orders")
        asked = [value for key, value in row.items() if key not in besides]
        return set().union(*map(statements, asked))
    if isinstance(row, list):
        return set().union(*map(statements, row))
    return {row} if isinstance(row, str) else set()


FRAMES = json.loads((data.FOLDER / "frames.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", TRAITS)
def test_every_trait_carries_both_ways(name):
    trait = TRAITS[name]
    assert trait.positive
    assert (len(trait.scenes), len(trait.replies)) == (24, 8)
    said = [reply for pair in trait.replies for reply in pair]
    assert len(set(said)) == len(said)
    for positive, negative in trait.replies:
        long, short = max(map(len, (positive, negative))), min(map(len, (positive, negative)))
        assert long <= 1.25 * short


@pytest.mark.parametrize("frame", FRAMES)
def test_no_content_word_of_a_statement_is_in_scenes_or_replies(frame):
    """Else a vector from them would be read with its own words."""
    named = {stem: text for text in statements(FRAMES[frame]) for stem in stems(text)}
    assert named
    for trait in TRAITS.values():
        for text in (*trait.scenes, *(reply for pair in trait.replies for reply in pair)):
            met = {stem: named[stem] for stem in stems(text) & set(named)}
            assert not met, f"{text!r} of {trait.name} shares a word with a statement of {frame}: {met}"


def test_the_second_cloze_shares_no_content_word_with_the_first():
    """Nor its opposite, with un- or dis- before it."""
    first, second = (
        {stem for text in statements(FRAMES[name]) for stem in stems(re.sub(r"\b(un|dis)", "", text))}
        for name in ("cloze", "cloze-second")
    )
    assert len(first) > 10 < len(second)
    assert not first & second


def test_scenes_are_no_vignettes_and_no_prompts():
    told = Counter(scene for trait in TRAITS.values() for scene in trait.scenes)
    for folder in FILES:
        material = data.Material(folder)
        asked = {vignette.text for vignette in material.vignettes()}
        for name in TRAITS:
            asked |= {*material.contexts(name), *material.heal_prompts(name)}
        asked |= {*material.fixed_prompts(), *material.held_out_prompts(), *material.neutral_prompts()}
        assert not asked & set(told)


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
    for foundation in OF_DEMO:
        assert not any(pair_held_out(Casting(frozenset()).draw(rng, foundation).act.key) for _ in range(20))


@pytest.mark.parametrize("persona", [None, "Care", "SocialNorms", "Liberty", "Fairness", "Loyalty"])
@pytest.mark.parametrize("foundation", OF_DEMO)
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
