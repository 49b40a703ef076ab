"""`python -m jobs.templated FOLDER`: small realistic sets of names to tag and questions to answer.

Sentences and passages are drawn from templates by a seed, with names that are hard: places that
are people's names too, organisations named after both, numbers like years. The names of test do not
occur in train, so that they cannot be learnt by heart. A CoNLL file each for
`token-classification`, a SQuAD file each for `question-answering`, and a text encoder to start
from, all-MiniLM-L6-v2 (extra `demo`).
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.bbc_news import write_encoder

Sentence = list[tuple[str, str]]  # words with their tags

FIRST = [
    "Anna",
    "Boris",
    "Carla",
    "David",
    "Elena",
    "Felix",
    "Greta",
    "Hugo",
    "Irene",
    "Jonas",
    "Karin",
    "Louis",
    "Maria",
    "Nils",
    "Olga",
    "Paul",
    "Rosa",
    "Simon",
    "Tanja",
    "Viktor",
    "Wanda",
    "Yusuf",
    "Zora",
    "Amir",
    "Bela",
    "Chen",
    "Dana",
    "Emil",
    "Farah",
    "Goran",
]
# Surnames that are places as well, and places that are surnames as well.
BOTH = [
    "Lincoln",
    "Jackson",
    "Austin",
    "Houston",
    "Madison",
    "Carson",
    "Preston",
    "Milton",
    "Clifton",
    "Burton",
    "Hamilton",
    "Warren",
    "Marshall",
    "Clinton",
    "Sheffield",
    "Lancaster",
    "Bradford",
    "Kent",
    "Derby",
    "Wells",
]
LAST = [
    "Novak",
    "Okafor",
    "Petrov",
    "Quinn",
    "Rossi",
    "Schmidt",
    "Tanaka",
    "Ueda",
    "Varga",
    "Weber",
    "Young",
    "Zimmer",
    "Adler",
    "Brandt",
    "Costa",
    "Dubois",
    "Eriksen",
    "Fischer",
    "Garcia",
    "Hansen",
]
PLACES = [
    "Berlin",
    "Oslo",
    "Lima",
    "Kyoto",
    "Cairo",
    "Delhi",
    "Porto",
    "Riga",
    "Seville",
    "Turin",
    "Utrecht",
    "Vienna",
    "Zagreb",
    "Accra",
    "Bergen",
    "Cusco",
    "Dakar",
    "Exeter",
    "Fargo",
    "Geneva",
]
TRADES = [
    "Bank",
    "Press",
    "Foods",
    "Motors",
    "Airways",
    "Textiles",
    "Institute",
    "Shipping",
    "Energy",
    "Records",
]
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]

TAGGED = """{PER} was born in {LOC} on {DATE} .
{PER} left {ORG} in {DATE} and moved to {LOC} .
On {DATE} , {ORG} opened an office in {LOC} .
{ORG} , based in {LOC} , hired {PER} as its director .
The road from {LOC} to {LOC} was closed until {DATE} .
{PER} and {PER} met in {LOC} .
According to {PER} of {ORG} , sales rose by {NUM} units .
{LOC} lies north of {LOC} and has {NUM} inhabitants .
" I will stay with {ORG} , " said {PER} .
Critics in {LOC} liked the book that {PER} wrote about {LOC} .
{ORG} bought {ORG} in {DATE} .
She told {PER} that {LOC} is lovely in {DATE} .
Shares of {ORG} fell after {PER} resigned on {DATE} .
Nobody in the office knew when train {NUM} would leave .
The May report lists {NUM} items , none of them new .
{PER} , who lives near {LOC} , works for {ORG} .""".splitlines()

FACTS = (
    ("{thing} was founded by {person}", "Who founded {thing}?", "person"),
    ("{thing} opened in {year}", "When did {thing} open?", "year"),
    ("{thing} stands in {place}", "Where does {thing} stand?", "place"),
    ("{thing} is led by {person}", "Who leads {thing}?", "person"),
    ("{thing} employs {number} people", "How many people does {thing} employ?", "number"),
    ("{thing} was paid for by {sponsor}", "Who paid for {thing}?", "sponsor"),
)
THINGS = [
    "museum",
    "library",
    "theatre",
    "hospital",
    "school",
    "bridge",
    "market",
    "harbour",
    "garden",
    "factory",
]
ADJECTIVES = ["old", "new", "northern", "southern", "royal", "central", "little", "grand"]
LINKS = ("", "By all accounts , ", "As the town records show , ", "Few know that ")
CLOSING = (
    "It is closed on Mondays .",
    "Visitors come from far away .",
    "A fire in 1931 left few traces .",
    "The roof was repaired twice .",
)


class Names:
    """Names of one split: half of each list."""

    def __init__(self, rng: random.Random, *, second_half: bool) -> None:
        self._rng = rng
        self._half = int(second_half)

    def pick(self, words: Sequence[str]) -> str:
        """One of this split's words."""
        return self._rng.choice(words[self._half :: 2])

    def person(self) -> str:
        first = "" if self._rng.random() < 0.2 else f"{self.pick(FIRST)} "
        return first + self.pick(BOTH if self._rng.random() < 0.4 else LAST)

    def place(self) -> str:
        return self.pick(BOTH if self._rng.random() < 0.4 else PLACES)

    def organisation(self) -> str:
        trade = self._rng.choice(TRADES)
        match self._rng.randrange(4):
            case 0:
                return f"{trade} of {self.place()}"
            case 1:
                return f"{self.pick(LAST)} and Sons"
            case 2:
                return f"University of {self.place()}"
            case _:
                return f"{self.pick(BOTH if self._rng.random() < 0.5 else LAST)} {trade}"

    def date(self) -> str:
        year, month = self._rng.randrange(1950, 2020), self._rng.choice(MONTHS)
        match self._rng.randrange(3):
            case 0:
                return f"{self._rng.randrange(1, 29)} {month} {year}"
            case 1:
                return f"{month} {year}"
            case _:
                return f"{month}"


def tagged_sentences(n: int, *, seed: int, second_half: bool) -> list[Sentence]:
    """Sentences with persons, places, organisations and dates, tagged in IOB2."""
    rng = random.Random(f"tags {seed} {second_half}")
    names = Names(rng, second_half=second_half)
    kinds = {
        "{PER}": names.person,
        "{LOC}": names.place,
        "{ORG}": names.organisation,
        "{DATE}": names.date,
    }
    sentences = []
    for _ in range(n):
        sentence: Sentence = []
        for word in rng.choice(TAGGED).split():
            if word not in kinds:
                number = str(rng.randrange(1000, 3000))
                sentence.append((word.replace("{NUM}", number), "O"))
                continue
            for place, part in enumerate(kinds[word]().split()):
                sentence.append((part, f"{'I' if place else 'B'}-{word[1:-1]}"))
        sentences.append(sentence)
    return sentences


def passages(
    n: int, *, seed: int, second_half: bool, none: float = 0.0, n_things: int = 2
) -> dict[str, Any]:
    """A SQuAD file of passages on some things each, with questions on every one.

    Args:
        n: Passages.
        seed: Of the draws.
        second_half: Which half of the names.
        none: Share of questions on what the passage does not say.
        n_things: That a passage tells of; with one, the question's first word tells the answer.
    """
    rng = random.Random(f"questions {seed} {second_half}")
    names = Names(rng, second_half=second_half)
    paragraphs = []
    for number in range(n):
        things = rng.sample([f"the {a} {t}" for a in ADJECTIVES for t in THINGS], n_things)
        told, asked = [], []
        for thing in things:
            facts = rng.sample(FACTS, 4)
            for claim, question, kind in facts[:3]:
                value = _value(names, rng, kind)
                told.append((claim.replace("{thing}", thing), kind, value))
                asked.append((question.replace("{thing}", thing), value))
            if rng.random() < 3 * none:
                asked.append((facts[3][1].replace("{thing}", thing), ""))
        paragraphs.append(_paragraph(rng, number, told, asked))
    return {"version": "2.0" if none else "1.1", "data": [{"title": "", "paragraphs": paragraphs}]}


def conll(sentences: Sequence[Sentence]) -> str:
    """Sentences as a CoNLL file."""
    lines = ["\n".join(f"{word} {tag}" for word, tag in sentence) for sentence in sentences]
    return "-DOCSTART- O\n\n" + "\n\n".join(lines) + "\n"


def _value(names: Names, rng: random.Random, kind: str) -> str:
    match kind:
        case "person":
            return names.person()
        case "place":
            return names.place()
        case "sponsor":
            return f"the {names.organisation()}"
        case "year":
            return str(rng.randrange(1700, 2000))
        case _:
            return str(rng.randrange(20, 900))


def _paragraph(
    rng: random.Random,
    number: int,
    told: list[tuple[str, str, str]],
    asked: list[tuple[str, str]],
) -> dict[str, Any]:
    rng.shuffle(told)
    parts, places = [rng.choice(CLOSING)], {}
    for claim, kind, value in told:
        before, after = claim.split("{" + kind + "}")
        sentence = rng.choice(LINKS) + before
        sentence = sentence[0].upper() + sentence[1:]
        places[claim] = (sum(len(part) + 1 for part in parts) + len(sentence), value)
        parts.append(f"{sentence}{value}{after} .")
    context = " ".join(parts)
    starts = {value: start for start, value in places.values()}
    return {
        "context": context,
        "qas": [
            {
                "id": f"{number}-{position}",
                "question": question,
                "is_impossible": not value,
                "answers": [{"text": value, "answer_start": starts[value]}] if value else [],
            }
            for position, (question, value) in enumerate(asked)
        ],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Write the files; existing ones are replaced by the same."""
    parser = argparse.ArgumentParser(prog="python -m jobs.templated", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: %(default)s)")
    args = parser.parse_args(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    for split, n in (("train", 1_200), ("test", 300)):
        sentences = tagged_sentences(n, seed=args.seed, second_half=split == "test")
        _write(args.folder / f"names-{split}.conll", conll(sentences))
        asked = passages(n // 3, seed=args.seed, second_half=split == "test", none=0.15)
        _write(args.folder / f"questions-{split}.json", json.dumps(asked, indent=1) + "\n")
    print(f"{write_encoder(args.folder)}: a text encoder with its tokenizer")
    return 0


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    print(f"{path}: {len(text):,} characters")


if __name__ == "__main__":
    raise SystemExit(main())
