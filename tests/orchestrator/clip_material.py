"""A tiny CLIP that knows coloured shapes, trained once a machine by open_clip's own loss.

No small pretrained CLIP installs from a package index, so the tests train one: an own architecture,
an own tokenizer of a few dozen words, captions such as "a photo of a red circle". Some combinations
of colour and shape are never seen in training: what the model says of them is zero-shot.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import tempfile
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

COLOURS = {
    "red": (210, 50, 40),
    "green": (50, 170, 60),
    "blue": (50, 70, 210),
    "yellow": (225, 205, 50),
    "white": (240, 240, 240),
    "purple": (150, 50, 170),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring", "bar")
HELD_OUT = frozenset(
    {("red", "circle"), ("green", "square"), ("blue", "triangle"), ("yellow", "cross")}
)
SEEN = tuple(pair for pair in product(COLOURS, SHAPES) if pair not in HELD_OUT)
SIZE = 32
CAPTIONS = (
    "a {}",
    "the {}.",
    "a photo of a {}.",
    "a photo of the {}.",
    "a close-up photo of a {}.",
    "a photo of a {} in the field.",
    "a drawing of a {}.",
)
WORDS = ("a", "an", "the", "of", "in", "and", "photo", "close", "up", "drawing", "field", "image")
SPECIAL = ("<pad>", "<start_of_text>", "<unk>")
END = "<end_of_text>"  # has the highest number: the text tower reads the state at the argmax
CONTEXT = 16  # tokens
NAME = "coloured-shapes"

STEPS = 700
RECIPE = {
    "model_cfg": {
        "embed_dim": 32,
        "vision_cfg": {
            "image_size": SIZE,
            "layers": 3,
            "width": 48,
            "head_width": 16,
            "patch_size": 8,
        },
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": 0,  # filled in
            "hf_tokenizer_name": NAME,
            "width": 32,
            "heads": 2,
            "layers": 2,
        },
    },
    "preprocess_cfg": {"mean": [0.4, 0.45, 0.5], "std": [0.25, 0.26, 0.27]},
}


def label_of(pair: tuple[str, str]) -> str:
    """A class's name: `red_circle`."""
    return "_".join(pair)


def draw(pair: tuple[str, str], rng: np.random.Generator, *, size: int = SIZE) -> Image.Image:
    """One shape of some size somewhere on dark noise."""
    colour, shape = pair
    noise = rng.normal(40, 12, (size, size, 3))
    image = Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    radius = size * rng.uniform(0.32, 0.44)
    x, y = rng.uniform(radius + 1, size - radius - 1, 2)
    fill = tuple(int(np.clip(c + rng.normal(0, 12), 0, 255)) for c in COLOURS[colour])
    box = (x - radius, y - radius, x + radius, y + radius)
    match shape:
        case "circle":
            pen.ellipse(box, fill=fill)
        case "square":
            pen.rectangle(box, fill=fill)
        case "triangle":
            pen.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill)
        case "cross":
            arm = radius / 3
            pen.rectangle((x - arm, y - radius, x + arm, y + radius), fill=fill)
            pen.rectangle((x - radius, y - arm, x + radius, y + arm), fill=fill)
        case "ring":
            pen.ellipse(box, outline=fill, width=max(2, int(radius / 3)))
        case "bar":
            pen.rectangle((x - radius, y - radius / 3, x + radius, y + radius / 3), fill=fill)
    return image


def unseen_file(pair: tuple[str, str]) -> bytes:
    """A PNG file of a combination that the tiny CLIP has never seen in training."""
    assert pair in HELD_OUT
    file = io.BytesIO()
    draw(pair, np.random.default_rng(0)).save(file, "PNG")
    return file.getvalue()


def write_shapes(
    root: Path, pairs: tuple[tuple[str, str], ...], n: int, *, seed: int, size: int = SIZE
) -> Path:
    """`n` pictures of each pair, one folder a class."""
    rng = np.random.default_rng(seed)
    for pair in pairs:
        folder = root / label_of(pair)
        folder.mkdir(parents=True)
        for i in range(n):
            draw(pair, rng, size=size).save(folder / f"{i:03d}.png")
    return root


def tiny_clip() -> Path:
    """The folder of the trained model, in the form that open_clip's `local-dir:` takes.

    It lies in the machine's temporary folder under the digest of this file: whoever comes first
    trains it, the others wait.
    """
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    root = Path(tempfile.gettempdir()) / f"orchestrator-tiny-clip-{os.getuid()}" / digest
    root.mkdir(parents=True, exist_ok=True)
    folder = root / NAME
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=root) as staging:
                made = Path(staging) / NAME
                _train(made)
                made.rename(folder)
    return folder


def write_tokenizer(folder: Path) -> int:
    """A word-level tokenizer that open_clip's HFTokenizer reads; how many tokens it knows."""
    words = dict.fromkeys([*SPECIAL, *WORDS, *COLOURS, *SHAPES, "-", "."])
    vocabulary = {word: i for i, word in enumerate([*words, END])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"<start_of_text> $A {END}",
        special_tokens=[("<start_of_text>", 1), (END, len(vocabulary) - 1)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "bos_token": "<start_of_text>",
        "eos_token": END,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return len(vocabulary)


def _train(folder: Path) -> None:
    import open_clip
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    recipe = json.loads(json.dumps(RECIPE))
    recipe["model_cfg"]["text_cfg"]["vocab_size"] = write_tokenizer(folder)
    (folder / "open_clip_config.json").write_text(json.dumps(recipe, indent=1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(**recipe["model_cfg"])
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
        loss_of = open_clip.ClipLoss()
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS)
        rng = np.random.default_rng(0)
        model.train()
        for _ in range(STEPS):
            pairs = [SEEN[i] for i in rng.permutation(len(SEEN))]  # no two captions mean the same
            images = _normalized([draw(pair, rng) for pair in pairs])
            texts = tokenizer([_caption(pair, rng) for pair in pairs])
            image, text, scale = model(images, texts)
            loss = loss_of(image, text, scale)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            model.logit_scale.data.clamp_(0, np.log(100))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")


def _caption(pair: tuple[str, str], rng: np.random.Generator) -> str:
    return CAPTIONS[int(rng.integers(len(CAPTIONS)))].format(" ".join(pair))


def _normalized(images: list[Image.Image]) -> torch.Tensor:
    config = RECIPE["preprocess_cfg"]
    pixels: npt.NDArray[np.float32] = np.stack([np.asarray(i, np.float32) for i in images]) / 255
    values = (pixels - np.float32(config["mean"])) / np.float32(config["std"])
    return torch.from_numpy(values.transpose(0, 3, 1, 2).copy())
