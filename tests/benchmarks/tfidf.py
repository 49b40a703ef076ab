"""`python -m tests.benchmarks.tfidf FOLDER`: word counts and a linear model on a text tree.

TF-IDF and logistic regression by scikit-learn, trained on all of FOLDER/train and tested on
FOLDER/test: what a text sweep's winner has to beat.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sklearn.datasets import load_files
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from orchestrator.data.texts import decode_text
from orchestrator.tasks.metrics import wilson_interval


def main() -> None:
    """Print the test accuracy with its 95 % interval (Wilson)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    train, test = (load_files(folder / split) for split in ("train", "test"))
    model = make_pipeline(
        TfidfVectorizer(sublinear_tf=True, stop_words="english"),
        LogisticRegression(C=10, max_iter=1000),
    )
    model.fit(map(decode_text, train.data), train.target)
    right = int((model.predict(map(decode_text, test.data)) == test.target).sum())
    low, high = wilson_interval(right, len(test.target))
    print(
        f"TF-IDF + logistic regression: {right} of {len(test.target)} = "
        f"{right / len(test.target):.2%} on test ({low:.1%}–{high:.1%})"
    )


if __name__ == "__main__":
    main()
