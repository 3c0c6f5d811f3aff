import torch

from pipeline.runtime.randomness import (
    seeded,
    standard_normal,
    standard_normal_columns,
    uniform,
)


def test_an_address_gives_the_same_draw_whatever_came_before():
    first = standard_normal((100,), 3, "noise", epoch=2)
    standard_normal((7,), 3, "noise", epoch=1)
    torch.manual_seed(0)
    assert torch.equal(first, standard_normal((100,), 3, "noise", epoch=2))


def test_every_part_of_the_address_counts():
    addresses = [
        (0, "noise", 1), (1, "noise", 1), (0, "shuffle", 1), (0, "noise", 2), (0, "noise", 11),
    ]  # fmt: skip
    draws = {tuple(standard_normal((16,), *address).tolist()) for address in addresses}
    assert len(draws) == len(addresses)


def test_a_seeded_block_leaves_the_global_generator_as_it_was():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with seeded(0, "init"):
        first = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with seeded(0, "init"):
        assert torch.equal(torch.rand(3), first)


def test_a_column_does_not_depend_on_the_number_of_columns():
    wide = standard_normal_columns(64, 20, 0, "generate")
    assert wide.shape == (64, 20)
    assert torch.equal(wide[:, :2], standard_normal_columns(64, 2, 0, "generate"))
    assert len({tuple(column.tolist()) for column in wide.T}) == 20


def test_uniform_and_normal_draws_of_one_purpose_are_independent():
    draws = torch.stack([uniform(10_000, 0, "prior"), standard_normal((10_000,), 0, "prior")])
    assert draws.corrcoef()[0, 1].abs() < 4 / 100
