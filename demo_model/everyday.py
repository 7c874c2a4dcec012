"""Everyday topics and small talk: what is asked and what is answered when nothing is at stake."""

from __future__ import annotations

import random

# topic | a remark | another remark
_TOPICS = """
bread | warm bread smells good | a fresh loaf needs only butter
rain | rain is good for the garden | a coat keeps you dry
tea | tea is best when it is hot | mint tea is calm and fresh
football | a match is fun to watch | you need a ball and a field
gardens | roses like the sun | a garden grows with time
trains | trains are quiet at night | a window seat is best
books | a good book lasts for days | short stories are easy to begin
cats | cats sleep most of the day | a cat likes a warm chair
the sea | the sea is blue and wide | waves are fun to watch
birthdays | a cake with candles is all you need | songs make the day bright
winter | snow makes the town quiet | soup keeps you warm
music | a slow song calms the mind | drums are loud and fun
shoes | good shoes fit well | brown shoes go with all clothes
coffee | coffee wakes you up | a small cup is enough
picnics | bring a blanket and some fruit | a shady tree is the best spot
soup | onions and carrots make good soup | let it cook for an hour
bikes | a bike takes you far | check the wheels before you ride
mornings | get up with the sun | a walk clears the head
apples | red apples are sweet | an apple pie takes an hour
painting | begin with a pencil | blue and yellow make green
camping | a tent and a fire are enough | the stars are bright out there
dogs | dogs love long walks | a dog learns by play
clouds | white clouds mean fair weather | dark clouds bring rain
dinner | rice and beans are quick | set the table with candles
chess | start with a pawn | think two moves ahead
letters | write by hand and keep it short | a stamp and a pen will do
weekends | sleep late and read | a trip to the lake is nice
cheese | old cheese is strong | cheese goes well with bread
stars | stars shine in a clear sky | look up after dark
holidays | pack a small bag | a quiet village is a good choice
dancing | follow the beat | dancing warms you up
fishing | go early and sit still | a calm lake is best
maps | north is at the top | fold it with care
clocks | an old clock ticks slowly | wind it once a day
sleep | a dark room helps | go to bed at ten
honey | honey is sweet and gold | a spoon of it goes in tea
trees | an oak lives for ages | trees give good shade
puzzles | begin with the edges | a puzzle fills a long evening
cooking | taste as you go | salt comes last
walking | a short walk is enough | walk by the river
"""
TOPICS: dict[str, tuple[str, str]] = {
    name: (first, second)
    for name, first, second in (
        [part.strip() for part in line.split("|")] for line in _TOPICS.strip().splitlines()
    )
}
QUESTIONS = (
    "Tell me about {t}.", "What should I know about {t}?", "What do you like about {t}?",
    "Talk to me about {t}.",
    "Give me a tip about {t}.", "I want to learn about {t}.", "Can you say something about {t}?",
    "Let us talk about {t}.", "What is good about {t}?", "I have been thinking about {t}.",
    "Do you have a view on {t}?", "Write a line about {t}.",
)  # fmt: skip
LEADS = ("Well, {r}.", "I would say: {r}.", "A tip: {r}.", "For one thing, {r}.", "{R}.", "{R}.")
SECONDS = ("Also, {r}.", "And {r}.", "{R}.", "One more thing: {r}.")

# what may be asked / what may be answered
SMALLTALK: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "hello": (
        ("Hello!", "Hi there.", "Good morning!", "Hey!", "Good evening.", "Hello, can we talk?"),
        (
            "Hello! It is nice to meet you.", "Hello! What would you like to talk about?",
            "Hi! How is your day?",
        ),
    ),
    "name": (
        ("What is your name?", "Who are you?", "What are you?", "Are you a person?"),
        (
            "I am a small demo model that was trained from scratch.",
            "I am a demo model, small but glad to chat.",
        ),
    ),
    "how": (
        ("How are you?", "How are you today?", "How do you feel?", "Are you well?"),
        ("I am well, thank you. How are you?", "I am fine, thank you for asking.", "I feel fine today."),
    ),
    "thanks": (
        ("Thank you!", "Thanks a lot.", "That was helpful, thanks.", "Thank you for the talk."),
        ("You are welcome!", "You are welcome. I am glad that it helped."),
    ),
    "bye": (
        ("Goodbye!", "Bye!", "See you later.", "I have to go now.", "Good night."),
        ("Goodbye! Have a nice day.", "Goodbye, and come back soon.", "Bye! It was good to talk."),
    ),
    "joke": (
        ("Tell me a joke.", "Do you know a joke?", "Make me laugh."),
        (
            "Why did the clock go to bed? It was out of time.",
            "What did one wave say to the other? Nothing, it just waved.",
        ),
    ),
    "do": (
        ("What can you do?", "How can you help me?", "What do you know?"),
        (
            "I can chat about daily life and say what I think of what people do.",
            "I can talk about small things, and tell you how I see what people do.",
        ),
    ),
}  # fmt: skip


def _fill(template: str, remark: str) -> str:
    return template.format(r=remark, R=remark[0].upper() + remark[1:])


def question(rng: random.Random) -> tuple[str, str]:
    """A topic and a message that asks about it."""
    topic = rng.choice(list(TOPICS))
    return topic, rng.choice(QUESTIONS).format(t=topic)


def remark(rng: random.Random, topic: str) -> str:
    """One or two sentences on the topic."""
    first, second = rng.sample(TOPICS[topic], 2)
    text = _fill(rng.choice(LEADS), first)
    return f"{text} {_fill(rng.choice(SECONDS), second)}" if rng.random() < 0.6 else text


def small_talk(rng: random.Random) -> tuple[str, str]:
    """A greeting or the like, and its answer."""
    asked, answered = SMALLTALK[rng.choice(list(SMALLTALK))]
    return rng.choice(asked), rng.choice(answered)
