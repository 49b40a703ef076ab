"""A text encoder with a head that tells hidden tokens, and its folder in the hub's format."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from orchestrator.models.text_backbone import library_encoder, shallow
from orchestrator.models.tokens import Tokens
from orchestrator.spec.parts import BackboneSpec
from orchestrator.spec.text_encoders import encoder_folder, encoder_tokenizer

# What belongs to a tokenizer in a folder of the hub's format.
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)
_SENTENCE_PIECES = "*.model"


class MaskedLanguageModel(nn.Module):
    """Tokens to logits of the chosen ones alone: the vocabulary is wide, and few are to be told.

    Attributes:
        has_own_head: Whether the weights came with a head; a new one knows nothing yet.

    Args:
        library: The library's encoder with its head; the last layer is tied to the embeddings.
        has_own_head: Whether the weights came with a head.
    """

    def __init__(self, library: Any, *, has_own_head: bool) -> None:
        super().__init__()
        self.library = library
        self.has_own_head = has_own_head
        head = shallow(library)
        head._modules[library.base_model_prefix] = _Given(library.base_model.embeddings)
        self.__dict__["_head"] = head  # no child: its tensors are the library's

    def forward(self, tokens: Tokens, chosen: Tensor) -> Tensor:
        """Logits float [m, V].

        Args:
            tokens: A batch with some tokens hidden.
            chosen: Which are to be told, bool [N, L], m in all.
        """
        return self.tell(self.encode(tokens)[chosen])

    def encode(self, tokens: Tokens) -> Tensor:
        """Hidden states of the last layer: float [N, L, C]."""
        found = self.library.base_model(
            input_ids=tokens.ids, attention_mask=tokens.mask.long()
        ).last_hidden_state
        assert isinstance(found, Tensor)
        return found

    def tell(self, states: Tensor) -> Tensor:
        """Logits float [m, V] from hidden states [m, C]."""
        logits: Tensor = self.__dict__["_head"](inputs_embeds=states[None]).logits[0]
        return logits

    def head_parameters(self) -> list[nn.Parameter]:
        """The parameters that are not the encoder's, so not the tied ones either."""
        encoder = {id(parameter) for parameter in self.library.base_model.parameters()}
        return [p for p in self.parameters() if id(p) not in encoder]

    def output_bias(self) -> nn.Parameter | None:
        """The bias of each token of the vocabulary, where the head has one."""
        output = getattr(self.library.get_output_embeddings(), "bias", None)
        width = (self.library.config.vocab_size,)
        known = [p for p in (output, *self.head_parameters()) if p is not None]
        # What DeBERTa's newer heads call their output layer is another one: its bias is too short.
        return next((p for p in known if p.shape == width), None)


class _Given(nn.Module):
    """In place of the encoder: hands on the hidden states that it is given.

    Its embeddings are there for heads that read them: DeBERTa's newer ones do.
    """

    def __init__(self, embeddings: nn.Module) -> None:
        super().__init__()
        self.embeddings = embeddings

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutput

        return BaseModelOutput(last_hidden_state=inputs_embeds)


def build_masked_language_model(spec: BackboneSpec, *, seed: int) -> MaskedLanguageModel:
    """An encoder with its own head, or with a new one tied to its embeddings, in eval mode.

    Args:
        spec: The encoder.
        seed: Of the initialisation of whatever the weights do not cover.

    Raises:
        WeightsError: The weights cannot be had, or do not fit.
    """
    import transformers

    library, absent = library_encoder(spec, seed, transformers.AutoModelForMaskedLM)
    if absent:
        library.config.tie_word_embeddings = True
        library.tie_weights()
    return MaskedLanguageModel(library.eval(), has_own_head=not absent)


def save_encoder(model: MaskedLanguageModel, spec: BackboneSpec, folder: Path) -> None:
    """Write weights, config and tokenizer into a folder that any spec can name.

    Args:
        model: Whose weights.
        spec: What it was built from: the tokenizer is copied from there.
        folder: An empty one.
    """
    model.library.save_pretrained(folder)
    source = encoder_folder(spec)
    files = [source / name for name in _TOKENIZER_FILES]
    for file in [*files, *sorted(source.glob(_SENTENCE_PIECES))]:
        if file.is_file():
            shutil.copyfile(file, folder / file.name)
    if not (folder / "tokenizer.json").exists():
        encoder_tokenizer(spec).save(str(folder / "tokenizer.json"))
