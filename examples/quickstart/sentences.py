"""A small English: random sentences over about 600 words, with names, numbers, casing and punctuation.

The grammar is wide on purpose: after any word many others are possible, so that a model cannot predict the
next one without the audio. Numbers are written as words, as the human digit strings beside it are.
"""

import random

NAMES = """Alice Benjamin Clara Daniel Emma Frank Grace Henry Isabel Jacob Karen Leonard Martha Nathan Olivia Peter
Rachel Samuel Teresa Victor William Zoe Mister_Carter Doctor_Hughes Professor_Lang Captain_Morris""".split()
PLACES = """London Paris Berlin Boston Chicago Dublin Geneva Lisbon Madrid Norway Oxford Prague Rome Scotland Toronto
Vienna""".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
ONES = "one two three four five six seven eight nine".split()
TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth twelfth".split()
THINGS = """apple basket blanket book bottle box bridge camera candle carpet chair clock coat cup curtain door
engine flower garden glove guitar hammer hat jacket kettle key knife ladder lamp letter map mirror
needle newspaper painting paper pencil phone picture piano plate pocket ribbon ring rope shirt shoe
spoon stamp stone suitcase sweater table telephone ticket towel umbrella violin wallet watch window
wheel""".split()
PEOPLE = """artist baker captain carpenter child cousin dentist doctor driver engineer farmer father fisherman
friend gardener judge lawyer manager mother neighbour nurse officer painter pilot plumber sailor
sister singer soldier student tailor teacher uncle visitor waiter writer""".split()
SITES = """airport bakery beach castle church corner factory field forest harbour hospital hotel house island
kitchen library market meadow mountain museum office park river road school shop square station
theatre tower valley village""".split()
ADJECTIVES = """ancient beautiful blue broken bright brown careful cheap clean clever cold dark dirty dry empty
expensive famous fresh gentle golden green heavy hungry large little lonely long modern narrow new
old orange perfect plain purple quiet red round rusty sharp silver small soft strange strong tired
warm white wide wooden yellow young""".split()
TRANSITIVE = """borrowed bought brought built carried cleaned collected counted covered discovered dropped examined
finished fixed followed forgot found gathered hid lifted lost mended moved opened ordered packed
painted placed polished pulled repaired returned sold stole threw washed watched wrapped""".split()
MOTIONS = """arrived climbed danced drove hurried marched ran returned sailed slept stayed travelled waited
walked worked""".split()
ADVERBS = """again alone already carefully early finally gladly late loudly nearly never often quickly quietly seldom
silently slowly softly sometimes suddenly together usually yesterday""".split()
WEATHER = "rain snow thunder sunshine fog wind frost hail storms clouds".split()
PREPOSITIONS = "above across against behind below beside beyond inside near outside under".split()
TOPICS = """history music science money politics weather football breakfast dinner business medicine language
summer winter""".split()


def number(rng: random.Random) -> str:
    """A spoken number from two to nine hundred and ninety-nine."""
    kind = rng.random()
    if kind < 0.35:
        return rng.choice(ONES[1:])
    if kind < 0.55:
        return rng.choice(TEENS)
    tens = rng.choice(TENS) if rng.random() < 0.4 else f"{rng.choice(TENS)}-{rng.choice(ONES)}"
    return tens if kind < 0.85 else f"{rng.choice(ONES)} hundred and {tens}"


def _name(rng: random.Random) -> str:
    return rng.choice(NAMES).replace("_", " ")


def _article(rng: random.Random, noun: str) -> str:
    return rng.choice(["the", "the", "the", "this", "that", "my", "your", "his", "her", "our", "their"]) + " " + noun


def _noun_phrase(rng: random.Random, nouns: list[str]) -> str:
    noun = rng.choice(nouns)
    for _ in range(rng.choice([0, 1, 1, 1, 2])):
        noun = f"{rng.choice(ADJECTIVES)} {noun}"
    return _article(rng, noun)


def _subject(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.4:
        return _name(rng)
    if kind < 0.5:
        return f"{_name(rng)} and {_name(rng)}"
    if kind < 0.6:
        return rng.choice(["I", "you", "we", "they", "he", "she", "somebody", "nobody", "everybody"])
    return _noun_phrase(rng, PEOPLE)


def _where(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.3:
        return f"in {rng.choice(PLACES)}"
    if kind < 0.65:
        return f"at {_noun_phrase(rng, SITES)}"
    return f"{rng.choice(PREPOSITIONS)} {_noun_phrase(rng, SITES)}"


def _when(rng: random.Random) -> str:
    choices = [
        lambda: f"on {rng.choice(DAYS)}",
        lambda: f"in {rng.choice(MONTHS)}",
        lambda: f"on the {rng.choice(ORDINALS)} of {rng.choice(MONTHS)}",
        lambda: f"at {rng.choice(ONES + TEENS[:3])} o'clock",
        lambda: f"after {number(rng)} {rng.choice(['minutes', 'hours', 'days', 'weeks', 'years'])}",
        lambda: f"before {rng.choice(['breakfast', 'dinner', 'midnight', 'sunrise', 'summer', 'winter'])}",
    ]
    return rng.choice(choices)()


def _action(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.4:
        return f"{rng.choice(TRANSITIVE)} {_noun_phrase(rng, THINGS)}"
    if kind < 0.6:
        return f"{rng.choice(TRANSITIVE)} {number(rng)} {rng.choice(ADJECTIVES)} {rng.choice(THINGS)}s"
    verb = f"{rng.choice(MOTIONS)} {_where(rng)}"
    return f"{verb} {rng.choice(ADVERBS)}" if kind < 0.8 else verb


def _statement(rng: random.Random) -> str:
    text = f"{_subject(rng)} {_action(rng)}"
    tail = rng.random()
    if tail < 0.3:
        return f"{text} {_when(rng)}"
    if tail < 0.5:
        return f"{text} {_where(rng)}"
    if tail < 0.6:
        return f"{text}, {rng.choice(['but', 'and', 'because', 'while'])} {_subject(rng)} {_action(rng)}"
    return f"{_when(rng)}, {text}" if tail < 0.8 else text


def _other(rng: random.Random) -> str:
    choices = [
        lambda: (
            f"did {_name(rng)} really {rng.choice(['bring', 'buy', 'see', 'want', 'need'])} "
            f"{_noun_phrase(rng, THINGS)}?"
        ),
        lambda: f"where is {_noun_phrase(rng, THINGS)}?",
        lambda: f"who {_action(rng)}?",
        lambda: (
            f"please bring {number(rng)} {rng.choice(THINGS)}s and {number(rng)} {rng.choice(THINGS)}s "
            f"{rng.choice(['to', 'from'])} {rng.choice(PLACES)}."
        ),
        lambda: f"expect {rng.choice(WEATHER)} and {rng.choice(WEATHER)} in {rng.choice(PLACES)} {_when(rng)}.",
        lambda: f"the train to {rng.choice(PLACES)} leaves from platform {number(rng)} {_when(rng)}.",
        lambda: f"{_name(rng)} talked about {rng.choice(TOPICS)}, {rng.choice(TOPICS)} and {rng.choice(TOPICS)}.",
        lambda: f"what a {rng.choice(ADJECTIVES)} {rng.choice(THINGS)}!",
        lambda: f"{_noun_phrase(rng, THINGS)} was {rng.choice(ADJECTIVES)} and {rng.choice(ADJECTIVES)}.",
        lambda: f"there were {number(rng)} {rng.choice(PEOPLE)}s {_where(rng)}.",
    ]
    return rng.choice(choices)()


def _plural(text: str) -> str:
    """Mends the plurals and articles that the templates form by adding letters."""
    for wrong, right in (
        ("boxs", "boxes"),
        ("watchs", "watches"),
        ("knifes", "knives"),
        ("childs", "children"),
        ("fishermans", "fishermen"),
        ("a ancient", "an ancient"),
        ("a empty", "an empty"),
        ("a expensive", "an expensive"),
        ("a old", "an old"),
        ("a orange", "an orange"),
    ):
        text = text.replace(f" {wrong}", f" {right}")
    return text


def sentence(rng: random.Random) -> str:
    """One sentence of about 3 to 20 words, begun with a capital and closed with a full stop, `?` or `!`."""
    text = _other(rng) if rng.random() < 0.35 else _statement(rng) + "."
    return _plural(text[0].upper() + text[1:])
