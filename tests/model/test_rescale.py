from __future__ import annotations

import torch

from timm_collab.model.rescale import rescale_gradient


def test_values_are_unchanged_and_gradients_scaled() -> None:
    x, y = torch.randn(3, requires_grad=True), torch.randn(2, requires_grad=True, dtype=torch.float64)
    values = rescale_gradient((x, [y, None, 5], {'ids': torch.arange(3)}), 1 / 4)
    (x_, [y_, none, number], ids) = values
    assert torch.equal(x_, x) and torch.equal(y_, y)
    assert none is None and number == 5 and torch.equal(ids['ids'], torch.arange(3))
    (x_.sum() + 3 * y_.sum()).backward()
    assert torch.equal(x.grad, torch.full_like(x, 1 / 4))
    assert torch.equal(y.grad, torch.full_like(y, 3 / 4))


def test_no_copy() -> None:
    x = torch.randn(3, requires_grad=True)
    assert rescale_gradient(x, .5).data_ptr() == x.data_ptr()
