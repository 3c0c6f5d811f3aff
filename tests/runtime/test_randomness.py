import torch

from pipeline.runtime.randomness import permutation, standard_normal, standard_normal_columns


def test_an_address_always_gives_the_same_draw_whatever_came_before():
    first = standard_normal((100,), 3, "noise", epoch=2)
    torch.randn(1000), standard_normal((7,), 3, "noise", epoch=1)
    torch.manual_seed(0)
    assert torch.equal(first, standard_normal((100,), 3, "noise", epoch=2))


def test_every_part_of_the_address_counts():
    addresses = [(0, "noise", 1), (1, "noise", 1), (0, "shuffle", 1), (0, "noise", 2), (0, "noise", 11)]
    draws = [tuple(standard_normal((16,), *address).tolist()) for address in addresses]
    assert len(set(draws)) == len(draws)


def test_a_column_does_not_depend_on_how_many_there_are():
    wide = standard_normal_columns(64, 20, 0, "generate")
    assert wide.shape == (64, 20) and torch.equal(wide[:, :2], standard_normal_columns(64, 2, 0, "generate"))
    assert len({tuple(column.tolist()) for column in wide.T}) == 20


def test_a_permutation_holds_every_index_once():
    assert torch.equal(permutation(1000, 0, "shuffle").sort().values, torch.arange(1000))


def test_the_noise_is_standard_normal():
    noise = standard_normal((200_000,), 0, "noise")
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01
