"""Matrix products of some work, recorded."""

import torch
from torch import nn

from benchmarks import products


def work():
    with torch.inference_mode():
        layer, plain = nn.Linear(8, 5), nn.Linear(8, 5, bias=False)
        x = torch.randn(3, 8)
        for _ in range(4):
            plain(layer(x) @ torch.randn(5, 8))
        torch.bmm(torch.randn(2, 3, 4), torch.randn(2, 4, 6), out=torch.empty(2, 3, 6))


def test_every_product_is_counted_by_its_shapes():
    assert products.shapes(work) == {
        ((3, 8), (8, 5)): 8,
        ((3, 5), (5, 8)): 4,
        ((2, 3, 4), (2, 4, 6)): 1,
    }


def test_they_are_done_again_as_often():
    counted = products.shapes(work)
    again = products.shapes(products.alone(counted))
    assert again == counted
