"""SQuAD's rules: how answers are normalised and scored (Rajpurkar et al., EMNLP 2016; ACL 2018).

They are those of the official script of version 2.0, which for questions with answers are those of
version 1.1.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normal_answer(text: str) -> str:
    """An answer without case, punctuation, articles and extra white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, truth: Sequence[str]) -> float:
    """1 if an answer is one of the true ones once normalised, else 0."""
    return max(float(normal_answer(answer) == normal_answer(other)) for other in _counted(truth))


def f1_span(answer: str, truth: Sequence[str]) -> float:
    """The best F1 of an answer's words against those of a true one."""
    return max(_f1(answer, other) for other in _counted(truth))


def _counted(truth: Sequence[str]) -> list[str]:
    """The true answers that count: those of which something is left, else that there is none."""
    return [text for text in truth if normal_answer(text)] or [""]


def _f1(answer: str, truth: str) -> float:
    ours, theirs = normal_answer(answer).split(), normal_answer(truth).split()
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    if not common:
        return 0.0
    precision, recall = common / len(ours), common / len(theirs)
    return 2 * precision * recall / (precision + recall)
