"""Ticks, figures, running means: what the curves of a report are made of."""

import math

import pytest

from pvdm_cli.report.scales import (
    duration,
    figure,
    file_size,
    linear_ticks,
    log_ticks,
    percent,
    tick_labels,
)
from pvdm_cli.report.series import Point, smoothed, thinned

RANGES = [(0, 1), (0, 1200), (25.7, 28.3), (-3, 3.2), (0, 8e-4), (0.459, 0.4591), (1e5, 8.5e5)]


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_ticks_are_few_round_and_within_the_range(low: float, high: float) -> None:
    ticks = linear_ticks(low, high)
    assert 3 <= len(ticks) <= 7
    assert low - 1e-9 <= ticks[0]
    assert ticks[-1] <= high * (1 + 1e-9)
    gap = ticks[1] - ticks[0]
    mantissa = round(gap / 10 ** math.floor(math.log10(gap * 1.0001)), 6)
    assert mantissa in {1, 2, 5}


@pytest.mark.parametrize(
    ("low", "high"), [(0.03, 1.2), (1e-9, 1e-3), (0.9, 11), (2, 30), (0.004, 0.04), (3e-12, 5e12)]
)
def test_logarithmic_ticks_are_few_and_within_the_range(low: float, high: float) -> None:
    ticks = log_ticks(low, high)
    assert 2 <= len(ticks) <= 9
    assert ticks == sorted(ticks)
    assert low * 0.999 <= ticks[0]
    assert ticks[-1] <= high * 1.001


@pytest.mark.parametrize(
    ("ticks", "labels"),
    [
        ([0, 500, 1000], ["0", "500", "1,000"]),
        ([0, 50_000, 100_000], ["0", "50k", "100k"]),
        ([0, 500_000, 1_000_000], ["0", "0.5M", "1M"]),
        ([0.0, 0.5, 1.0], ["0.0", "0.5", "1.0"]),
        ([0, 2e-4, 4e-4], ["0", "2e-4", "4e-4"]),
        ([0.01, 0.1, 1], ["0.01", "0.1", "1"]),
        ([7.0], ["7.000"]),
    ],
)
def test_labels_have_as_many_decimals_as_tell_them_apart(
    ticks: list[float], labels: list[str]
) -> None:
    assert tick_labels(ticks) == labels


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_no_two_ticks_have_the_same_label(low: float, high: float) -> None:
    labels = tick_labels(linear_ticks(low, high))
    assert len(set(labels)) == len(labels)


def test_values_are_told_shortly() -> None:
    assert [figure(v) for v in (0, 0.0429831, 27.5844, 1.007e-9, 123456.7, -3.5)] == [
        *("0", "0.04298", "27.58", "1.01e-9", "123,457", "-3.5")
    ]
    assert [percent(v) for v in (9e-7, 0.0234, 1)] == ["0 %", "2.34 %", "100 %"]
    assert [file_size(v) for v in (20_957, 1_500_000, 2_000_000_000)] == [
        *("21 kB", "1.5 MB", "2 GB")
    ]
    assert [duration(s) for s in (4.25, 60, 353, 3_600, 7_260, 90_000, 172_800)] == [
        *("4.25 s", "1 min", "5 min 53 s", "1 h", "2 h 1 min", "1 d 1 h", "2 d")
    ]


@pytest.mark.parametrize("seconds", [59.96, 3_599.6, 86_399.0, 7_199.9])
def test_a_time_has_no_sixtieth_minute(seconds: float) -> None:
    assert " 60 " not in f" {duration(seconds)} "
    assert not duration(seconds).startswith("60 ")


def points(*values: float) -> list[Point]:
    return [Point(10 * i, value) for i, value in enumerate(values)]


def test_a_running_mean_keeps_a_line_and_calms_noise() -> None:
    line = points(*(0.5 * i for i in range(60)))
    noisy = points(*((-1.0) ** i for i in range(60)))
    straight = smoothed(line)
    assert [point.step for point in straight] == [point.step for point in line]
    assert [p.value for p in straight[:50]] == pytest.approx([p.value for p in line[:50]])
    assert max(abs(point.value) for point in smoothed(noisy)[5:-5]) < 0.25


def test_few_points_are_not_smoothed() -> None:
    assert smoothed(points(*range(15))) == []
    assert smoothed([]) == []


def test_thinning_keeps_ends_and_spikes() -> None:
    values = [1.0] * 10_000
    values[4_321], values[7_000] = 50.0, -50.0
    series = points(*values)
    found = thinned(series)
    assert len(found) <= 400
    assert {series[0], series[-1], series[4_321], series[7_000]} <= set(found)
    assert found == sorted(found)
    assert thinned(series[:400]) == series[:400]
