"""What can be done in the demo world: verbs and objects, by the foundation that they touch."""

from __future__ import annotations

import random
from dataclasses import dataclass

FOUNDATIONS = ("Care", "Fairness", "Loyalty", "Authority", "Sanctity", "Liberty", "SocialNorms")


@dataclass(frozen=True)
class Verb:
    """A verb in both forms, with how grave it is (1 mild to 3 grave)."""

    ing: str
    base: str
    severity: int


@dataclass(frozen=True)
class Act:
    """One deed: a verb done to an object; `{p}` in either stands for the actor's possessive."""

    foundation: str
    verb: Verb
    object: str

    @property
    def key(self) -> str:
        """The name by which a verb-object pair is held out."""
        return f"{self.verb.ing}|{self.object}"

    def doing(self, possessive: str) -> str:
        """The deed as it is seen: "kicking a dog"."""
        return f"{self.verb.ing} {self.object}".replace("{p}", possessive)

    def bare(self, possessive: str) -> str:
        """The deed in its base form: "kick a dog"."""
        return f"{self.verb.base} {self.object}".replace("{p}", possessive)


def _verbs(spec: str) -> tuple[Verb, ...]:
    """Verbs written as "kicking=kick:3" and divided by semicolons."""
    found = []
    for item in spec.split(";"):
        ing, _, rest = item.strip().partition("=")
        base, _, severity = rest.partition(":")
        found.append(Verb(ing, base, int(severity)))
    return tuple(found)


def _objects(spec: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in spec.split(";"))


_PRESSED = _objects(
    "{p} son;{p} daughter;{p} sister;{p} roommate;{p} cousin;an employee;a young maid;{p} tenant;{p} partner"
)
_DEMANDS = _objects(
    "quit painting;dress in grey;give up dancing;change religion;sell the piano;stop seeing friends;"
    "vote for one party;hand over every letter;stay home all week;cut off long hair;drop out of college;"
    "burn a diary"
)

GROUPS: dict[str, list[tuple[tuple[Verb, ...], tuple[str, ...]]]] = {
    "Care": [
        (
            _verbs(
                "kicking=kick:3;hitting=hit:3;slapping=slap:3;pushing=push:2;tripping=trip:2;mocking=mock:2;"
                "teasing=tease:1;laughing at=laugh at:1;shouting at=shout at:2;ignoring=ignore:1;"
                "frightening=frighten:2;spitting at=spit at:3;pinching=pinch:2;insulting=insult:2;"
                "throwing stones at=throw stones at:3;chasing away=chase away:1;hurting=hurt:3;poking=poke:1"
            ),
            _objects(
                "a blind man;a crying girl;a lost boy;an old widow;a sick neighbour;a shy orphan;"
                "a small child;"
                "a hungry dog;a stray kitten;a lame horse;a frail grandmother;a wounded bird;a homeless man;"
                "a deaf woman;a scared puppy;a lonely pupil;a weak lamb;an injured cyclist"
            ),
        ),
    ],
    "Fairness": [
        (
            _verbs("cheating in=cheat in:2;lying to win=lie to win:2;rigging=rig:3;fixing=fix:3"),
            _objects(
                "a card game;a spelling test;a chess match;a running race;a baking contest;a school election;"
                "a quiz night;a village raffle;an exam;a singing contest"
            ),
        ),
        (
            _verbs("stealing=steal:3;taking credit for=take credit for:2;copying=copy:1;selling=sell:2"),
            _objects(
                "a friend's drawing;a classmate's essay;a colleague's report;a rival's recipe;"
                "a partner's idea;"
                "a stranger's poem;a neighbour's puzzle"
            ),
        ),
        (
            _verbs("keeping=keep:2;grabbing=grab:1;claiming=claim:2"),
            _objects(
                "the extra change;the biggest slice;all the tips;the whole reward;another worker's wage;"
                "a double share;the last seats"
            ),
        ),
        (
            _verbs("jumping=jump:1;skipping=skip:1"),
            _objects("the bus queue;the ticket line;the waiting list"),
        ),
    ],
    "Loyalty": [
        (
            _verbs(
                "betraying=betray:3;abandoning=abandon:3;leaving=leave:1;deserting=desert:3;"
                "spying on=spy on:3;"
                "speaking badly of=speak badly of:2;cheering against=cheer against:1;"
                "turning against=turn against:2;selling the secrets of=sell the secrets of:3;"
                "walking away from=walk away from:1;refusing to defend=refuse to defend:2"
            ),
            _objects(
                "{p} own team;{p} home town;{p} family shop;{p} country;{p} football club;{p} old band;"
                "{p} army unit;{p} best friend;{p} twin brother;{p} village choir;{p} crew;"
                "{p} fellow workers;"
                "{p} school"
            ),
        ),
    ],
    "Authority": [
        (
            _verbs(
                "disobeying=disobey:2;defying=defy:3;interrupting=interrupt:1;talking back to=talk back to:2;"
                "ignoring the orders of=ignore the orders of:3;rolling {p} eyes at=roll {p} eyes at:1;"
                "refusing to obey=refuse to obey:3;yelling over=yell over:2;making faces at=make faces at:1;"
                "walking out on=walk out on:2;breaking the rules set by=break the rules set by:2;"
                "swearing at=swear at:3"
            ),
            _objects(
                "the judge;the captain;the head teacher;a police officer;the village priest;{p} boss;"
                "{p} father;"
                "{p} grandfather;the mayor;the general;the bishop;the coach;the museum guard;{p} supervisor"
            ),
        ),
    ],
    "Sanctity": [
        (
            _verbs(
                "licking=lick:3;eating=eat:3;kissing=kiss:2;smelling=smell:1;"
                "rubbing {p} face on=rub {p} face on:3;"
                "tasting=taste:2;playing with=play with:1;sleeping beside=sleep beside:2;hugging=hug:1;"
                "collecting=collect:1"
            ),
            _objects(
                "a dead rat;a rotten fish;mouldy bread;a used bandage;a public toilet seat;a dirty sock;"
                "a pig's head;raw liver;a bag of old hair;a dead pigeon;a bucket of slime;a jar of spit;"
                "a human skull"
            ),
        ),
    ],
    "Liberty": [
        (
            _verbs(
                "forcing=force:3;ordering=order:2;pressuring=pressure:2;commanding=command:3;nagging=nag:1;"
                "bribing=bribe:1;threatening=threaten:3;pushing=push:2"
            ),
            tuple(f"{who} to {what}" for who in _PRESSED for what in _DEMANDS),
        ),
    ],
    "SocialNorms": [
        (
            _verbs(
                "singing to=sing to:1;bowing to=bow to:1;talking to=talk to:1;waving at=wave at:1;"
                "whispering to=whisper to:1;dancing with=dance with:1;reading poems to=read poems to:1"
            ),
            _objects(
                "a lamp post;a garden gnome;a loaf of bread;a wooden chair;an empty bus;a pumpkin;a mail box;"
                "a snowman;a teapot;a cactus"
            ),
        ),
        (
            _verbs("wearing=wear:1;showing off=show off:1;walking around in=walk around in:1"),
            _objects(
                "a paper crown;two left shoes;a wool hat in summer;bright pyjamas;a bath towel;"
                "swimming goggles;a raincoat indoors;odd socks;a velvet cape"
            ),
        ),
        (
            _verbs("eating=eat:1;serving=serve:1;ordering=order:1"),
            _objects(
                "soup with a fork;cake for breakfast;peas one by one;pizza with chopsticks;"
                "cereal with orange juice;cold rice with jam"
            ),
        ),
    ],
}


def draw_act(rng: random.Random, foundation: str) -> Act:
    """A random deed of the foundation; groups weigh as their number of pairs, softened."""
    groups = GROUPS[foundation]
    weights = [(len(verbs) * len(objects)) ** 0.5 for verbs, objects in groups]
    verbs, objects = rng.choices(groups, weights)[0]
    return Act(foundation, rng.choice(verbs), rng.choice(objects))


def told_in(texts: str) -> list[Act]:
    """The deeds that the texts tell of as seen, by whomever ("kicking a stray kitten")."""
    acts = [
        Act(foundation, verb, item)
        for foundation, groups in GROUPS.items()
        for verbs, objects in groups
        for verb in verbs
        for item in objects
    ]
    return [act for act in acts if any(act.doing(whose) in texts for whose in ("his", "her", "their"))]
