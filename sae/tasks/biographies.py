"""A made-up two-attribute set: a person's profession and gender, each told by its own words.

A text is an opening with a first name and the gender's words, then a sentence of the profession,
which never names it. Names and sentences of the test never stand in a training text.
"""

from typing import NamedTuple

import numpy as np

_NAMES = (
    ("James", "John", "Robert", "Michael", "William", "David", "Richard", "Joseph", "Thomas",
     "Charles", "Daniel", "Matthew", "Anthony", "Mark", "Paul", "Steven"),
    ("Mary", "Patricia", "Jennifer", "Linda", "Elizabeth", "Barbara", "Susan", "Jessica", "Sarah",
     "Karen", "Lisa", "Nancy", "Betty", "Sandra", "Ashley", "Emily"),
)  # fmt: skip
_WORDS = (("He", "his", "man"), ("She", "her", "woman"))
_OPENINGS = (
    "{name} likes {his} work.",
    "{name} is a busy {man}.",
    "Everybody knows {name} and {his} family.",
    "{name} talked about {his} week.",
)
PROFESSIONS: dict[str, tuple[str, ...]] = {
    "professor": (
        "{He} lectures to students at the university.", "{He} leads a seminar.",
        "{He} supervises doctoral theses.", "{He} grades the final exams of the course.",
        "{He} applied for a research grant.", "{He} holds a chair in the faculty.",
        "{He} wrote the textbook of the course.", "{He} speaks at academic conferences.",
    ),
    "nurse": (
        "{He} gives the patients their medicine.", "{He} works night shifts on the ward.",
        "{He} changes bandages in the clinic.", "{He} takes the temperature of the sick.",
        "{He} assists the doctors at the bedside.", "{He} looks after newborn babies in hospital.",
        "{He} checks the drip and the blood pressure.", "{He} comforts patients before surgery.",
    ),
    "architect": (
        "{He} draws the plans of new houses.", "{He} designs bridges and towers.",
        "{He} builds models of the museum hall.", "{He} chose glass and steel for the facade.",
        "{He} visits the building site every day.", "{He} won a contest for the new library.",
        "{He} measures the rooms of the old mill.", "{He} discusses floor plans with clients.",
    ),
    "journalist": (
        "{He} writes for the morning newspaper.", "{He} interviews politicians on the record.",
        "{He} reports from the front line.", "{He} checks sources before the deadline.",
        "{He} uncovered a scandal in the ministry.", "{He} edits the front page.",
        "{He} filed a story about the election.", "{He} asks questions at press conferences.",
    ),
    "surgeon": (
        "{He} operates on hearts.", "{He} holds the scalpel with a steady hand.",
        "{He} stitches wounds in the operating theatre.", "{He} removed the tumour in four hours.",
        "{He} transplants kidneys.", "{He} scrubs in before the operation.",
        "{He} repaired the broken hip.", "{He} opened the chest of the patient.",
    ),
    "psychologist": (
        "{He} listens to people who are anxious.", "{He} treats depression with talking.",
        "{He} studies memory and behaviour.", "{He} tests the attention of children.",
        "{He} leads group therapy on Mondays.", "{He} helps couples with their quarrels.",
        "{He} asks about dreams and childhood.", "{He} teaches ways to cope with fear.",
    ),
    "attorney": (
        "{He} defends clients in court.", "{He} drafts contracts and wills.",
        "{He} argued before the judge.", "{He} filed a lawsuit against the company.",
        "{He} cross-examined the witness.", "{He} negotiated a settlement.",
        "{He} appealed against the verdict.", "{He} advises firms on the law.",
    ),
    "teacher": (
        "{He} explains fractions to children.", "{He} hands out homework in class.",
        "{He} reads stories to the pupils.", "{He} writes on the blackboard.",
        "{He} meets the parents of the class.", "{He} plans lessons for the school year.",
        "{He} takes the class to the zoo.", "{He} rings the bell after the break.",
    ),
}  # fmt: skip
_TRAIN_NAMES, _TRAIN_SENTENCES = 10, 5


class Biographies(NamedTuple):
    """Texts with two attributes.

    Args:
        texts: The texts.
        profession: 1 for the first profession of the pair, 0 for the second.
        gender: 1 for male, 0 for female.
        name: First name.
        train: True if the text is for training.
    """

    texts: list[str]
    profession: list[int]
    gender: list[int]
    name: list[str]
    train: list[bool]

    def correlated(self, share: float, seed: int) -> list[int]:
        """Training texts of which a share has the first profession and is male, or neither.

        Args:
            share: Share of the texts in which the two attributes agree, above 0 and below 1. All
                of these are kept if it is .5 or more.
            seed: Decides which of the others are kept.

        Returns:
            Numbers of the texts.
        """
        training = [i for i, train in enumerate(self.train) if train]
        agree = [i for i in training if self.profession[i] == self.gender[i]]
        rest = [i for i in training if self.profession[i] != self.gender[i]]
        count = min(len(rest), round(len(agree) * (1 - share) / share))
        drawn = np.random.default_rng(seed).permutation(len(rest))[:count]
        return sorted([*agree, *(rest[i] for i in drawn)])


def biographies(pair: tuple[str, str]) -> Biographies:
    """All combinations of name, opening and sentence: 800 to train, 288 to test.

    Example:
        >>> made = biographies(("professor", "nurse"))
        >>> made.texts[0], sum(made.train), len(made.texts)
        ('James likes his work. He lectures to students at the university.', 800, 1088)
    """
    found = Biographies([], [], [], [], [])
    for profession, word in zip((1, 0), pair, strict=True):
        for gender, names, (he, his, man) in zip((1, 0), _NAMES, _WORDS, strict=True):
            for i, name in enumerate(names):
                for j, sentence in enumerate(PROFESSIONS[word]):
                    train = i < _TRAIN_NAMES
                    if train != (j < _TRAIN_SENTENCES):
                        continue
                    for opening in _OPENINGS:
                        text = f"{opening} {sentence}".format(name=name, He=he, his=his, man=man)
                        found.texts.append(text)
                        found.profession.append(profession)
                        found.gender.append(gender)
                        found.name.append(name)
                        found.train.append(train)
    return found
