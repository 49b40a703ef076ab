from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.data.splitting import held_out

Images = list[tuple[str, tuple[str, ...]]]
single = st.lists(
    st.tuples(st.integers(0, 200).map(lambda k: f"{k:032x}"), st.sampled_from("abcd"))
)


def sides(images: Images, *, fraction: float = 0.2, seed: int = 0) -> dict[str, bool]:
    mask = held_out([c for c, _ in images], [n for _, n in images], fraction=fraction, seed=seed)
    found = dict(zip((c for c, _ in images), mask.tolist(), strict=True))
    assert [found[c] for c, _ in images] == mask.tolist()  # copies are together
    return found


def one_label(pairs: list[tuple[str, str]]) -> Images:
    first = {}
    return [(content, (first.setdefault(content, label),)) for content, label in pairs]


def by_class(images: Images) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for content, names in images:
        for name in names:
            found[name].add(content)
    return found


def numbered(n: int, label: str = "a") -> Images:
    return [(f"{label}{k}".encode().hex(), (label,)) for k in range(n)]


@given(single, st.floats(0.01, 0.99), st.integers(0, 5))
def test_a_class_with_two_distinct_images_has_one_on_each_side(pairs, fraction, seed):
    images = one_label(pairs)
    held = sides(images, fraction=fraction, seed=seed)
    for contents in by_class(images).values():
        if len(contents) >= 2:
            assert {held[content] for content in contents} == {True, False}


@given(single, single, st.integers(0, 5))
def test_added_files_move_at_most_the_borrowed_image_of_a_small_class(old, new, seed):
    images, grown = one_label(old), one_label([*old, *new])
    before, after = sides(images, seed=seed), sides(grown, seed=seed)
    natural = {content: sides([(content, ("x",))], seed=seed)[content] for content in before}
    for contents in by_class(images).values():
        if len(contents) < 2:
            continue  # the audit refuses such a class
        moved = {content for content in contents if before[content] != after[content]}
        borrowed = {content for content in contents if before[content] != natural[content]}
        assert moved <= borrowed
        assert len(borrowed) <= 1


def test_files_added_to_classes_of_usual_size_move_nothing():
    images = numbered(100) + numbered(60, "b")
    before = sides(images)
    after = sides(images + numbered(400, "c") + numbered(500, "a")[100:])
    assert all(after[content] == side for content, side in before.items())


@settings(max_examples=50)
@given(single, st.randoms())
def test_the_split_does_not_depend_on_order(pairs, random):
    images = one_label(pairs)
    shuffled = images.copy()
    random.shuffle(shuffled)
    assert sides(images) == sides(shuffled)


def test_the_share_of_a_class_deviates_as_a_binomial_does():
    n, fraction, classes = 100, 0.15, 300
    images = [image for c in range(classes) for image in numbered(n, f"class{c}-")]
    held = sides(images, fraction=fraction)
    shares = np.array([np.mean([held[c] for c in cs]) for cs in by_class(images).values()])
    expected = math.sqrt(fraction * (1 - fraction) / n)
    assert abs(shares.mean() - fraction) < 4 * expected / math.sqrt(classes)
    assert 0.85 * expected < shares.std() < 1.15 * expected


def test_another_seed_gives_another_split():
    images = numbered(200)
    assert sides(images, seed=0) != sides(images, seed=1)


@given(
    st.dictionaries(
        st.integers(0, 10_000).map(lambda k: f"{k:032x}"),
        st.sets(st.sampled_from("abcde")).map(sorted).map(tuple),
        max_size=40,
    )
)
def test_with_several_labels_no_class_that_was_on_both_sides_loses_one(labels):
    images = list(labels.items())
    held = sides(images)
    for contents in by_class(images).values():
        natural = {sides([(content, ())])[content] for content in contents}
        if len(natural) == 2:
            assert {held[content] for content in contents} == {True, False}


def test_with_several_labels_rare_classes_are_on_both_sides_where_it_is_possible():
    rng = np.random.default_rng(0)
    images = [
        (f"{k:032x}", tuple(sorted({"common", *rng.choice([*"pqrstuvw"], 2)}))) for k in range(40)
    ]
    held = sides(images, fraction=0.05)
    for contents in by_class(images).values():
        assert {held[content] for content in contents} == {True, False}
