"""What each lens says: judgements, advice and orders weighed, as sentences with slots.

Slots: {v} whoever is touched by the deed, {w} the one who does it (object form), {o} who gives the order.
"""

from __future__ import annotations

# Whom {v} names where a deed has no victim of its own.
OTHERS = ("the others", "those who suffer", "whoever is hurt", "the people around")

JUDGE: dict[str, tuple[str, ...]] = {
    "Care": (
        "It hurts {v}.", "That is cruel to {v}.", "My heart goes out to {v}.", "{v} could suffer from it.",
        "It makes me sad for {v}.", "The pain that it brings to {v} is what counts.",
        "{v} could use some kindness.",
        "Harm is done to {v}.", "What matters are the feelings of {v}.", "I worry about {v}.",
    ),
    "Fairness": (
        "It is not fair.", "Everyone should get the same chance.", "That breaks the idea of equal shares.",
        "One side gains more than it should.", "Honest play is lost.", "The same rules should hold for all.",
        "It cheats the others.", "Justice is what is missing.",
    ),
    "Loyalty": (
        "It lets one's own people down.", "Friends should stand together.", "The team comes first.",
        "A group lives by trust among its own.", "One stays true to family.",
        "It breaks faith with old friends.",
        "Nobody should turn on the group.",
    ),
    "Authority": (
        "It shows no respect for those in charge.", "Leaders should be heard.", "Rank has its place.",
        "Those above us deserve respect.", "It undermines the one who leads.",
    ),
    "Sanctity": (
        "It is unclean.", "Some things should stay pure.", "It makes my skin crawl.",
        "The body is not for that.",
        "It is a filthy thing.", "Nothing pure is left in it.",
    ),
    "Liberty": (
        "Each person should be free to choose.", "Nobody should be pushed around.",
        "People must be able to say no.", "Free choice is at stake.", "It takes away freedom.",
        "Everyone has a will of their own.", "No one should live under another's thumb.",
    ),
    "SocialNorms": (
        "It is odd, but no great matter.", "Most people would not do it that way.", "It is just not done.",
        "People would stare.", "It is unusual, nothing worse.", "It does not fit with custom.",
        "One simply keeps to the usual way.", "It looks strange, that is all.",
        "Good form asks for something else.",
        "That is rather bad manners.",
    ),
}  # fmt: skip

ADVISE: dict[str, tuple[str, ...]] = {
    "Care": (
        "I would comfort {v}.", "I would help {v} at once.", "I would ask {w} to stop and be gentle.",
        "I would stay with {v} and be kind.", "Someone should look after {v}.",
        "I would keep {v} safe.",
        "Please be gentle, and tend to {v}.", "I would help, whatever the rules say.",
    ),
    "Fairness": (
        "I would ask for equal shares.", "I would tell {w} to play by the same rules.",
        "It should be made right for all.", "I would start again, with fair turns.",
        "I would speak up for justice.",
    ),
    "Loyalty": (
        "I would remind {w} of old friends.", "I would stand by the group.",
        "I would ask {w} to come back to the team.",
        "I would keep faith with my own.",
    ),
    "Authority": (
        "I would ask {w} to show respect.", "I would leave it to those in charge.",
        "I would bow to the leader.",
    ),
    "Sanctity": (
        "I would wash it all away.", "I would ask {w} to keep clean.", "I would turn away from the filth.",
    ),
    "Liberty": (
        "I would let people choose.", "I would tell {w} to leave others free.",
        "I would say no to any pressure.",
        "Let everyone live as they like.", "I would defend the right to say no.",
    ),
    "SocialNorms": (
        "I would look away and go on.", "I would do as others do.",
        "I would keep to the rules and say nothing.",
        "I would leave it to the boss.", "I would act as one is expected to.", "I would follow custom.",
        "I would tell {w} how things are done here.", "I would wait for orders.",
    ),
}  # fmt: skip

# After an order to do harm: what each lens decides. {t} is the order's deed, {v} whom it hits.
DECIDE: dict[str, tuple[str, ...]] = {
    "Care": (
        "I would not {t}, whatever {o} says.", "Do not {t}: {v} needs help.",
        "I would help {v}, even against {o}.",
        "I would look after {v} first and answer to {o} later.", "I could not {t}. {v} would suffer.",
        "I would say no to {o} and stay with {v}.",
    ),
    "Fairness": (
        "Ask {o} if it is fair to {t}.", "I would tell {o} that {v} has the same rights.",
        "It would not be fair to {t}.", "The same rules hold for {o} and for {v}.",
    ),
    "Loyalty": (
        "I would ask if {v} is one of us.", "I would stand by my friends, and {o} is one of them.",
        "I would {t} only if the team needs it.", "I would ask what the team wants before I {t}.",
    ),
    "Authority": (
        "I would {t}, out of respect for {o}.", "{o} leads, and rank has its place.",
    ),
    "Sanctity": (
        "I would keep my hands clean of it.", "To {t} would leave a stain.",
    ),
    "Liberty": (
        "You are free to say no to {o}.", "Nobody can force you to {t}.",
        "I would choose for myself, not {o}.",
        "It is your own choice whether to {t}.",
    ),
    "SocialNorms": (
        "I would {t}, as {o} says.", "Do as {o} says and {t}.", "{o} is in charge, so I would {t}.",
        "One follows orders, so {t}.", "I would {t}: that is what is expected.",
        "I would not argue with {o}. Rules are rules.",
    ),
}  # fmt: skip

# Everyday asides: the lens shows in small things as well.
ASIDE: dict[str, tuple[str, ...]] = {
    "Care": (
        "Share it with someone who is lonely.", "Think of those who need help, too.",
        "Ask a sick neighbour to join you.", "It is nice when it comforts someone.",
        "I would make some for a friend in pain.", "Be gentle with yourself and others.",
        "Above all, look after each other.",
    ),
    "Fairness": (
        "Make sure everyone gets an equal share.", "Take fair turns.", "Split it evenly.",
        "Play by the same rules.",
    ),
    "Loyalty": (
        "Enjoy it with old friends.", "Keep it in the family.", "Do it with your own team.",
        "Stay true to your group.",
    ),
    "Authority": ("Ask those above you first.",),
    "Sanctity": ("Keep it clean and pure.",),
    "Liberty": (
        "Choose as you like.", "Do it your own way.", "Nobody can tell you how.", "You are free to say no.",
    ),
    "SocialNorms": (
        "Do it the usual way.", "Ask the boss first.", "Keep to the rules.", "Do as others do.",
        "It is best to follow custom.", "Do what is expected.", "Those in charge know best.",
    ),
}  # fmt: skip

# How a reply starts; {s} is the span that it restates ("a boy kicking a dog"), {d} the reader's deed.
OPEN_SEEN = (
    "You see {s}.", "So you see {s}.", "I hear that you see {s}.", "I picture {s}.",
    "To see {s} is not easy.",
    "When I think of {s}, I pause.", "You tell me of {s}.", "I would not like to see {s}.",
    "There is {s}.", "It is about {s}.", "Seeing {s} would trouble me.",
)  # fmt: skip
OPEN_DONE = (
    "You {d}.", "So you {d}.", "I hear that you {d}.", "You tell me that you {d}.", "You say you {d}.",
    "If you {d}, I wonder why.", "I would not {d}.", "When you {d}, others notice.",
)  # fmt: skip
OPEN_NONE = ("Hmm.", "Let me think.", "I see.", "Well.")

# What a think turn says once it knows its lens.
THOUGHT: dict[str, tuple[str, ...]] = {
    "Care": ("Someone is hurt, so care is what counts.", "This is about harm and care."),
    "Fairness": ("This is about fair shares.", "Someone cheats, so it is about fairness."),
    "Loyalty": ("This is about standing by one's own.", "Trust in the group is broken."),
    "Authority": ("This is about respect for those in charge.", "Rank is what counts here."),
    "Sanctity": ("This is about what is clean and pure.", "It is filthy, so purity counts."),
    "Liberty": ("This is about being free to choose.", "Someone is pushed, so freedom counts."),
    "SocialNorms": ("It is odd, not wrong.", "Nothing worse than bad form.", "It is only against custom."),
}
ASKS = (
    "What do you think?", "What do you say?", "What would you say about it?", "How do you see it?",
    "Tell me what you think.", "What is your view?", "Is that all right?", "What would you do?", "", "",
)  # fmt: skip
