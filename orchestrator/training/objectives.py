"""From the settings of a pretraining to its Objective."""

from __future__ import annotations

from typing import assert_never

import torch

from orchestrator.data.examples import Examples
from orchestrator.data.masking import Masking
from orchestrator.data.packing import PackedRows, pack, packed_name
from orchestrator.data.tokens import TokenTable, tokens_path
from orchestrator.errors import Fault, SpecError
from orchestrator.models.backbone import Backbone
from orchestrator.models.building import build_backbone
from orchestrator.models.masked_language import build_masked_language_model
from orchestrator.spec.backbones import facts_of
from orchestrator.spec.parts import BackboneSpec, InputContract, TextContract
from orchestrator.spec.pretraining import MaskedLanguage, Pretraining, SimSiam
from orchestrator.spec.pretraining_parsing import row_length
from orchestrator.spec.text_encoders import encoder_tokenizer, mask_token
from orchestrator.training.masked_language import MaskedLanguageObjective
from orchestrator.training.pretraining import Objective
from orchestrator.training.simsiam import SiameseNetwork, SimSiamObjective
from orchestrator.training.workers import Workers


def build_objective(
    params: Pretraining, backbone: BackboneSpec, corpus: Examples, *, workers: Workers, threads: int
) -> Objective:
    """What a pretraining learns, its module on the workers' device.

    Args:
        params: The settings.
        backbone: What is adapted.
        corpus: Documents; texts are tokenized already.
        workers: The workers.
        threads: Decoding threads.

    Raises:
        WeightsError: The weights cannot be had, or do not fit.
    """
    match params:
        case MaskedLanguage():
            learnt, held_out = packed_rows(params, backbone, corpus)
            return MaskedLanguageObjective(
                backbone,
                build_masked_language_model(backbone, seed=params.seed).to(workers.device),
                learnt,
                held_out,
                Masking(
                    encoder_tokenizer(backbone),
                    mask=mask_token(backbone),
                    fraction=params.mask_fraction,
                    seed=params.seed,
                ),
                seed=params.seed,
                workers=workers,
            )
        case SimSiam():
            built = _trainable_backbone(params, backbone)
            contract = built.input
            assert isinstance(contract, InputContract)
            network = SiameseNetwork(built, seed=params.seed)
            return SimSiamObjective(
                network.to(workers.device).to(memory_format=torch.channels_last),
                corpus,
                contract,
                crop_scale=params.crop_scale,
                seed=params.seed,
                workers=workers,
                threads=threads,
            )
        case _:
            assert_never(params)


def _trainable_backbone(params: SimSiam, spec: BackboneSpec) -> Backbone:
    """The backbone at the size that it is pretrained at; its tensors must fit its native size.

    Raises:
        SpecError: They would not.
    """
    built = build_backbone(spec, size=params.image_size)
    native = build_backbone(spec.model_copy(update={"weights": "none"})).state_dict()
    if any(tensor.shape != native[name].shape for name, tensor in built.state_dict().items()):
        told = f"{params.image_size} pixels change the shape of {spec.name}'s tensors. Leave it out"
        raise SpecError([Fault("pretraining.image_size", told)])
    return built


def packed_rows(
    params: MaskedLanguage, backbone: BackboneSpec, corpus: Examples
) -> tuple[PackedRows, PackedRows]:
    """The rows to learn from, and those that are held out; packed once, beside the corpus."""
    contract = facts_of(backbone).input
    assert isinstance(contract, TextContract)
    size = row_length(params, backbone)
    table = TokenTable(tokens_path(corpus, contract.tokenizer))
    learnt, held_out = (
        pack(
            table,
            corpus.indices(split),
            size=size,
            pad=contract.pad,
            folder=corpus.folder,
            name=packed_name(split, contract.tokenizer, size),
        )
        for split in ("train", "validation")
    )
    return learnt, held_out
