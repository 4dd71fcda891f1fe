"""Which timesteps a sampler visits, against diffusers and by their properties."""

from itertools import pairwise

import pytest
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from pvdm_cli.config import DiffusionConfig
from pvdm_cli.diffusion.schedule import Schedule
from pvdm_cli.diffusion.steps import SPACINGS, Spacing, karras_timesteps, plan, timesteps

SCHEDULE = Schedule.from_config(DiffusionConfig())
EVERY = [SCHEDULE, SCHEDULE.without_terminal_signal(), Schedule.flow(1000)]


def visited(schedule: Schedule, num_steps: int, spacing: Spacing) -> list[int]:
    """The timesteps that steps start from."""
    return [step.t for step in plan(schedule, num_steps, spacing)]


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("schedule", EVERY)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 26, 100, 333, 999, 1000])
def test_every_spacing_falls_to_z0_in_as_many_steps_as_asked(
    schedule: Schedule, num_steps: int, spacing: Spacing
) -> None:
    steps = plan(schedule, num_steps, spacing)
    found = [step.t for step in steps]
    assert len(found) == num_steps
    assert all(a > b for a, b in pairwise([*found, -1]))
    assert steps[-1].abar_next == 1
    if spacing != "leading":
        assert found[0] == 999
    if num_steps == 1000:
        assert found == list(range(999, -1, -1))


@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("num_steps", [1, 3, 7, 10, 26, 50, 120, 333, 1000])
def test_trailing_and_leading_are_those_of_diffusers(num_steps: int, spacing: Spacing) -> None:
    theirs = DDIMScheduler(1000, timestep_spacing=spacing, steps_offset=0)
    theirs.set_timesteps(num_steps)
    if spacing == "leading" and 1000 % num_steps:
        # Theirs round the stride T/N down and leave more of the noisy end out; ours round each.
        assert theirs.timesteps[0] <= timesteps(1000, num_steps, spacing)[0]
    else:
        assert theirs.timesteps.tolist() == timesteps(1000, num_steps, spacing)[:-1]


@pytest.mark.parametrize("num_steps", [1, 2, 5, 8, 20, 100, 250, 1000])
def test_the_published_spacing_is_trailing_where_the_count_divides(num_steps: int) -> None:
    assert timesteps(1000, num_steps) == timesteps(1000, num_steps, "trailing")


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers with numpy 2
@pytest.mark.parametrize("num_steps", [2, 5, 10, 20])
def test_karras_spacing_is_that_of_diffusers_rounded_to_timesteps(num_steps: int) -> None:
    theirs = DPMSolverMultistepScheduler(
        1000, trained_betas=SCHEDULE.betas.numpy(), use_karras_sigmas=True
    )
    theirs.set_timesteps(num_steps)
    ours = visited(SCHEDULE, num_steps, "karras")
    # They keep sigma between the timesteps and round t alone; a collision moves ours by one.
    assert ours == pytest.approx(theirs.timesteps.tolist(), abs=2)


def test_karras_spacing_starts_at_no_signal_and_ends_at_the_first_timestep() -> None:
    for schedule in EVERY:
        found = visited(schedule, 12, "karras")
        assert (found[0], found[-1]) == (999, 0)


def test_an_unknown_spacing_or_count_is_refused() -> None:
    with pytest.raises(ValueError, match="choose published, leading, trailing, karras"):
        plan(SCHEDULE, 5, "linear")  # type: ignore[arg-type]
    for count in (0, 1001):
        with pytest.raises(ValueError, match=r"not in 1\.\.1000"):
            karras_timesteps(SCHEDULE.alphas_cumprod.tolist(), count)
