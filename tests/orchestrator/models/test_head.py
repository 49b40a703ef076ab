"""The head standardises as scikit-learn does and is a function of its seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler
from torch import nn

from orchestrator.models.head import Standardize, build_head
from orchestrator.spec.strategy import FeatureExtraction


def test_standardize_is_scikit_learns_scaler() -> None:
    random = np.random.default_rng(0)
    features = random.normal(3.0, [0.1, 1.0, 50.0, 1e4], size=(10_001, 4)).astype(np.float32)
    reference = StandardScaler().fit(features.astype(np.float64))
    standardize = Standardize(4)
    standardize.fit(torch.from_numpy(features))

    expected = reference.transform(features.astype(np.float64))
    actual = standardize(torch.from_numpy(features)).numpy()
    np.testing.assert_allclose(standardize.mean.numpy(), reference.mean_, rtol=1e-6)
    np.testing.assert_allclose(standardize.scale.numpy(), reference.scale_, rtol=1e-6)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.1, -7e4, 1e-12])
def test_a_constant_column_gets_scale_one(value: float) -> None:
    features = torch.tensor([[value, 1.0], [value, 2.0], [value, 4.0]])
    standardize = Standardize(2)
    standardize.fit(features)

    assert standardize.scale[0] == 1.0
    assert torch.equal(standardize(features)[:, 0], torch.zeros(3))


def test_standardize_is_the_identity_until_it_is_fitted() -> None:
    features = torch.randn(3, 5)

    assert torch.equal(Standardize(5)(features), features)


def test_statistics_travel_with_the_state_dict() -> None:
    params = FeatureExtraction()
    head = build_head(params, n_features=6, n_outputs=3, seed=0)
    head.standardize.fit(torch.randn(20, 6) * 4 + 2)
    twin = build_head(params, n_features=6, n_outputs=3, seed=1)
    twin.load_state_dict(head.state_dict())
    features = torch.randn(4, 6)

    assert {"standardize.mean", "standardize.scale"} <= head.state_dict().keys()
    assert torch.equal(twin(features), head(features))


def test_a_linear_head_is_dropout_and_one_layer() -> None:
    head = build_head(FeatureExtraction(dropout=0.3), n_features=6, n_outputs=3, seed=0)
    dropout, linear = head.layers

    assert isinstance(dropout, nn.Dropout)
    assert dropout.p == 0.3
    assert isinstance(linear, nn.Linear)
    assert head(torch.randn(2, 6)).shape == (2, 3)


def test_an_mlp_head_has_one_hidden_layer_and_drops_out_before_both() -> None:
    params = FeatureExtraction(head="mlp", hidden=7, feature_dropout=0.2, dropout=0.4)
    head = build_head(params, n_features=6, n_outputs=3, seed=0)

    kinds = [type(layer) for layer in head.layers]
    assert kinds == [nn.Dropout, nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    assert [layer.p for layer in head.layers if isinstance(layer, nn.Dropout)] == [0.2, 0.4]
    assert sum(p.numel() for p in head.parameters()) == 6 * 7 + 7 + 7 * 3 + 3
    assert head(torch.randn(2, 6)).shape == (2, 3)


def test_the_seed_alone_decides_a_head_and_the_global_state_stays() -> None:
    params = FeatureExtraction()
    torch.manual_seed(5)
    first = build_head(params, n_features=6, n_outputs=3, seed=0)
    torch.manual_seed(6)
    state = torch.get_rng_state()
    second = build_head(params, n_features=6, n_outputs=3, seed=0)
    other = build_head(params, n_features=6, n_outputs=3, seed=1)

    assert torch.equal(first.layers[1].weight, second.layers[1].weight)
    assert not torch.equal(first.layers[1].weight, other.layers[1].weight)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_dead_column_gets_scale_one_and_gradients_stay_finite() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(64, 3, generator=generator)
    features[:, 1] *= 1e-33
    features[:, 2] *= 1e-2  # small, and informative all the same
    standardize = Standardize(3)
    standardize.fit(features)

    assert standardize.scale[1] == 1
    assert standardize.scale[2] < 0.02
    inputs = features.clone().requires_grad_()
    standardize(inputs).square().sum().backward()
    assert inputs.grad is not None
    assert float(inputs.grad.abs().max()) < 1e4
