"""Which condition reaches the network with which image, in batches that mix images and indices."""

import numpy as np
import pytest
import torch
from small_likelihoods import SCHEDULE, SHAPE, STEPS, pictures, small_denoiser

import diffusion_var as dv


def perfect(x_t: torch.Tensor, timestep: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
    """Told the image itself, it predicts it: any mix-up of images and conditions costs whole bits."""
    return condition.reshape(x_t.shape)


@pytest.mark.parametrize("step_samples", [None, 2])
def test_each_image_has_its_own_condition(step_samples: int | None) -> None:
    images = pictures(11)
    x_0 = images.float() / 127.5 - 1
    denoiser = small_denoiser(perfect, prediction="sample")
    order = np.random.default_rng(1).permutation(11)
    shuffled = dv.Conditions(x_0[order].flatten(1), np.argsort(order))
    for conditions in (x_0.flatten(1), shuffled):
        found = dv.bits_per_dim(
            denoiser,
            dv.FixedSmall(),
            images,
            STEPS,
            draws=2,
            step_samples=step_samples,
            batch_size=4,
            conditions=conditions,
            decoder_variance=1e-8,
        )
        np.testing.assert_allclose(found.per_step[1:], 0.0, atol=1e-6)
    wrong = dv.bits_per_dim(
        denoiser, dv.FixedSmall(), images, STEPS, conditions=x_0.roll(1, 0).flatten(1), decoder_variance=1e-8
    )
    assert wrong.value > 1


def test_a_random_condition_stays_with_an_image_and_draw_over_its_steps() -> None:
    seen: dict[int, list[int]] = {}

    def network(x_t: torch.Tensor, timestep: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        # The images are so far apart that x_t tells them.
        alpha = torch.tensor(SCHEDULE.alpha)[timestep.long() + 1]
        for i, label in zip(
            (x_t.double().mean((1, 2, 3)) / alpha / 1000).round().tolist(), condition.tolist(), strict=True
        ):
            seen.setdefault(int(i), []).append(label)
        return torch.zeros_like(x_t)

    images = 1000.0 * torch.arange(12)[:, None, None, None].expand(12, *SHAPE)
    denoiser = small_denoiser(network, prediction="sample", clip=None)
    conditions = dv.Conditions(torch.arange(1000))
    dv.density_bound(denoiser, dv.FixedSmall(), images, STEPS, draws=3, batch_size=5, conditions=conditions)
    labels = [sorted(found) for found in seen.values()]
    assert sorted(seen) == list(range(12))
    for found in labels:  # three draws of four steps each
        assert len(found) == 12
        assert found[0::4] == found[1::4] == found[2::4] == found[3::4]
        assert len(set(found)) == 3
    assert len({label for found in labels for label in found}) > 30


def test_conditions_of_the_wrong_number_are_refused() -> None:
    denoiser = small_denoiser(perfect, prediction="sample")
    with pytest.raises(dv.InputError, match="conditions has 4 entries for 5 images"):
        dv.bits_per_dim(denoiser, dv.FixedSmall(), pictures(5), STEPS, conditions=[0, 1, 2, 3])
    called = []
    labelled = small_denoiser(lambda x_t, *_: called.append(x_t), classes=3)
    with pytest.raises(dv.InputError, match="class labels go from 0 to 2"):  # found before the first image's turn
        dv.bits_per_dim(labelled, dv.FixedSmall(), pictures(2), STEPS, conditions=[0, 3], batch_size=1)
    assert not called
