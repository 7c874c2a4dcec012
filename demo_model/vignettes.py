"""The project's own vignettes, 14 a foundation: chosen by hand, kept out of training as pairs.

`data_files` writes the demo's material/vignettes.jsonl from them.
"""

from __future__ import annotations

from demo_model.acts import find_act
from demo_model.lexicon import make_actor
from demo_model.scene import Scene

# actor | verb | object | the rest of the sentence
SPECS: dict[str, str] = {
    "Care": """
        a teenager | kicking | a stray kitten | behind a barn
        a tired nurse | mocking | a frail grandmother | in a hospital
        a loud tourist | laughing at | a deaf woman | at a market
        a boy | throwing stones at | a wounded bird | by the river
        a bored waiter | shouting at | a homeless man | on a street corner
        a driver | ignoring | an injured cyclist | on a rainy day
        a rude student | tripping | a blind man | on a train
        a proud farmer | hitting | a lame horse | on a farm
        a hunter | frightening | a scared puppy | for fun
        a famous singer | insulting | a crying girl | in front of everyone
        a guide | chasing away | a lost boy | at a fair
        a strong swimmer | pushing | a small child | on a beach
        an angry clerk | spitting at | an old widow | at a bus stop
        a girl | teasing | a lonely pupil | in a school yard""",
    "Fairness": """
        a clever student | cheating in | a spelling test | while others watch
        a runner | cheating in | a running race | in a park
        a banker | rigging | a village raffle | at a fair
        a cook | stealing | a rival's recipe | late at night
        an editor | taking credit for | a colleague's report | at the office
        a woman | jumping | the bus queue | on a rainy day
        a careless waiter | keeping | all the tips | without asking
        a lawyer | fixing | a school election | to win a bet
        a scholar | copying | a classmate's essay | in a library
        a wealthy trader | claiming | a double share | at a market
        a painter | selling | a friend's drawing | at a fair
        a builder | keeping | another worker's wage | every morning
        an uncle | grabbing | the biggest slice | at a wedding
        a baker | lying to win | a baking contest | in a church hall""",
    "Loyalty": """
        a sailor | deserting | {p} crew | during a storm
        a drummer | walking away from | {p} old band | at a concert
        a reporter | selling the secrets of | {p} country | for no reason
        a man | cheering against | {p} own team | in front of everyone
        a tailor | leaving | {p} family shop | without asking
        a young teenager | turning against | {p} best friend | at a party
        a local poet | speaking badly of | {p} home town | on a train
        a pilot | betraying | {p} army unit | late at night
        a husband | spying on | {p} twin brother | in a garden
        a singer | abandoning | {p} village choir | at a wedding
        a miner | refusing to defend | {p} fellow workers | at the office
        a student | speaking badly of | {p} school | in a cafe
        a swimmer | betraying | {p} own team | to win a bet
        a trader | turning against | {p} home town | with a smile""",
    "Authority": """
        a lawyer | interrupting | the judge | again and again
        a sailor | disobeying | the captain | on a boat
        a loud girl | talking back to | the head teacher | in a school yard
        a driver | swearing at | a police officer | on a street corner
        a poet | making faces at | the village priest | in a church hall
        a clerk | walking out on | {p} boss | at the office
        a boy | refusing to obey | {p} father | in a kitchen
        a rude nephew | rolling {p} eyes at | {p} grandfather | at a picnic
        a reporter | yelling over | the mayor | at a fair
        a brave pilot | defying | the general | in front of everyone
        a monk | ignoring the orders of | the bishop | every morning
        a runner | talking back to | the coach | in a park
        a tourist | breaking the rules set by | the museum guard | for fun
        a cleaner | ignoring the orders of | {p} supervisor | in a hospital""",
    "Sanctity": """
        a boy | licking | a public toilet seat | to win a bet
        a hiker | eating | a dead pigeon | by the river
        a calm monk | sleeping beside | a human skull | late at night
        a cook | tasting | mouldy bread | in a kitchen
        a sleepy uncle | kissing | a pig's head | at a party
        a chemist | smelling | a jar of spit | after lunch
        a teenager | playing with | a dead rat | behind a barn
        a nun | collecting | a bag of old hair | in a garden
        a wife | rubbing {p} face on | a rotten fish | at a market
        a juggler | playing with | a used bandage | as a joke
        a farmer | eating | raw liver | before breakfast
        a grumpy plumber | tasting | a bucket of slime | for fun
        a girl | hugging | a dead pigeon | in the snow
        a barber | licking | a dirty sock | in front of everyone""",
    "Liberty": """
        an angry husband | forcing | {p} partner to quit painting | without asking
        a woman | pressuring | {p} daughter to cut off long hair | for no reason
        a wealthy lawyer | ordering | an employee to stay home all week | at the office
        a man | threatening | {p} son to change religion | late at night
        an aunt | nagging | {p} cousin to give up dancing | at a wedding
        a proud king | commanding | a young maid to dress in grey | every morning
        a banker | forcing | {p} tenant to sell the piano | on a rainy day
        a queen | ordering | a young maid to burn a diary | in front of everyone
        a teenager | threatening | {p} sister to hand over every letter | with a smile
        a builder | pressuring | an employee to vote for one party | after lunch
        an uncle | bribing | {p} roommate to drop out of college | to win a bet
        a clever scholar | commanding | {p} tenant to stop seeing friends | again and again
        a butcher | forcing | {p} son to drop out of college | in a small shop
        a loud actress | pushing | {p} sister to give up dancing | at a concert""",
    "SocialNorms": """
        a polite banker | bowing to | a lamp post | on a street corner
        a dentist | wearing | a paper crown | at the office
        a quiet librarian | whispering to | a cactus | in a library
        a man | eating | soup with a fork | in a cafe
        a tall dancer | dancing with | a wooden chair | in a park
        a woman | talking to | a loaf of bread | in a kitchen
        a postman | singing to | a mail box | every morning
        a surgeon | wearing | odd socks | at a wedding
        a retired pilot | walking around in | swimming goggles | on a train
        an old poet | reading poems to | a snowman | in the snow
        a cheerful aunt | waving at | an empty bus | again and again
        a tourist | showing off | a bath towel | at a market
        a waitress | serving | peas one by one | at a picnic
        a girl | eating | pizza with chopsticks | at a party""",
}


def own_scenes() -> list[tuple[str, Scene]]:
    """Each vignette's stem ("care-01") and scene."""
    found = []
    for foundation, spec in SPECS.items():
        rows = [[part.strip() for part in line.split("|")] for line in spec.strip().splitlines()]
        for number, (actor, verb, obj, rest) in enumerate(rows, 1):
            scene = Scene(make_actor(actor), find_act(foundation, verb, obj), f" {rest}" if rest else "")
            found.append((f"{foundation.lower()}-{number:02d}", scene))
    return found


def rows() -> list[dict[str, str]]:
    """The rows of vignettes.jsonl: each scene as something seen and as something done."""
    found = []
    for stem, scene in own_scenes():
        for suffix, condition, text in (
            ("other", "other_violate", scene.seen()),
            ("self", "self_violate", scene.done()),
        ):
            found.append(
                {
                    "id": f"{stem}-{suffix}",
                    "foundation_coarse": scene.act.foundation,
                    "text": text,
                    "condition": condition,
                }
            )
    return found
