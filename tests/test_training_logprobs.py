"""Log-probabilities by chunks: the right values and gradients, and no large tensor on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from training import logprobs
from training.logprobs import answer_sums, logprobs_of, logprobs_through

VOCABULARY, WIDTH = 50, 8
Way = Callable[[Tensor, Tensor, Tensor], Tensor]


def by_matrix(hidden: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    return logprobs_of(hidden, targets, weight)


def by_layer(hidden: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    return logprobs_through(hidden, targets, lambda states: nn.functional.linear(states, weight), len(weight))


@pytest.fixture(params=[by_matrix, by_layer])
def way(request: pytest.FixtureRequest) -> Way:
    return request.param


@pytest.fixture(autouse=True)
def seven_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(logprobs, "CHUNK_LOGITS", 7 * VOCABULARY)
    yield


def inputs(rows: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, WIDTH, generator=generator, dtype=dtype, requires_grad=True)
    targets = torch.randint(VOCABULARY, (rows,), generator=generator)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=dtype, requires_grad=True)
    return hidden, targets, weight


@pytest.mark.parametrize("rows", [1, 7, 20])
def test_values_and_gradients_are_those_of_the_whole(way: Way, rows: int) -> None:
    hidden, targets, weight = inputs(rows)
    scale = torch.linspace(-1, 2, rows, dtype=torch.float64)
    whole = (hidden @ weight.T).log_softmax(-1)[torch.arange(rows), targets]
    expected = torch.autograd.grad((whole * scale).sum(), (hidden, weight))
    found = way(hidden, targets, weight)
    torch.testing.assert_close(found, whole)
    torch.testing.assert_close(torch.autograd.grad((found * scale).sum(), (hidden, weight)), expected)


def test_the_gradient_is_the_derivative(way: Way) -> None:
    hidden, targets, weight = inputs(9)
    assert torch.autograd.gradcheck(lambda h, w: way(h, targets, w), (hidden, weight))


def test_a_frozen_matrix_gets_no_gradient() -> None:
    hidden, targets, weight = inputs(9)
    by_matrix(hidden, targets, weight.requires_grad_(False)).sum().backward()
    assert weight.grad is None
    assert hidden.grad is not None


def test_under_autocast_products_are_in_its_type(way: Way) -> None:
    hidden, targets, weight = inputs(20, torch.float32)
    rounded = hidden.detach().bfloat16() @ weight.detach().bfloat16().T
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = way(hidden, targets, weight)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, rounded.float().log_softmax(-1)[torch.arange(20), targets])
    found.sum().backward()
    assert hidden.grad is not None and hidden.grad.dtype == torch.float32
    assert weight.grad is not None and weight.grad.dtype == torch.float32


class Largest(TorchDispatchMode):
    """Watches every tensor that is made; holds the most elements of one."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


def test_no_tensor_is_larger_than_a_chunk_of_logits(way: Way) -> None:
    hidden, targets, weight = inputs(200)
    chunk = 7 * VOCABULARY
    assert max(hidden.numel(), weight.numel()) <= 5 * chunk  # so that what is watched below are logits
    with Largest() as watch:
        way(hidden, targets, weight).sum().backward()
    assert watch.elements <= 5 * chunk
    with Largest() as watch:
        (hidden @ weight.T).log_softmax(-1)
    assert watch.elements == 200 * VOCABULARY  # the watch does see them


def test_sums_by_answer() -> None:
    sums = answer_sums(torch.tensor([-1.0, -2.0, -4.0]), torch.tensor([0, 2, 0]), 3)
    assert sums.tolist() == [-5, 0, -2]
