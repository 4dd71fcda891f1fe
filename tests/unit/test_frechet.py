"""The Frechet distance: closed forms, scipy, the published features, gathering in pieces."""

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch

from pvdm_cli.evaluation.frechet import Ddof, Statistics, frechet_distance, square_root

RNG = np.random.default_rng(0)


def exact(covariance: np.ndarray, mean: np.ndarray) -> Statistics:
    """Statistics of a population: divided by n = 1."""
    return Statistics(len(mean), 1, mean, covariance)


def by_scipy(a: Statistics, b: Statistics, ddof: Ddof) -> float:
    s_a, s_b = a.covariance(ddof), b.covariance(ddof)
    root = scipy.linalg.sqrtm(s_a @ s_b).real
    return float(np.square(a.mean - b.mean).sum() + np.trace(s_a + s_b - 2 * root))


def test_of_independent_gaussians_it_is_the_squared_difference_of_means_and_deviations() -> None:
    mean_a, mean_b = RNG.normal(size=5), RNG.normal(size=5)
    std_a, std_b = RNG.uniform(0.5, 2, size=5), RNG.uniform(0.5, 2, size=5)
    a, b = exact(np.diag(std_a**2), mean_a), exact(np.diag(std_b**2), mean_b)
    expected = np.square(mean_a - mean_b).sum() + np.square(std_a - std_b).sum()
    assert frechet_distance(a, b, ddof=0) == pytest.approx(expected, rel=1e-12)


def test_a_rotation_of_both_changes_nothing_and_the_sides_are_alike() -> None:
    x, y = RNG.normal(size=(50, 6)) * np.arange(1, 7), RNG.normal(size=(40, 6)) + 1
    rotation, _ = np.linalg.qr(RNG.normal(size=(6, 6)))
    found = frechet_distance(Statistics.of(x), Statistics.of(y), ddof=1)
    turned = frechet_distance(Statistics.of(y @ rotation), Statistics.of(x @ rotation), ddof=1)
    assert found == pytest.approx(turned, rel=1e-10)


@pytest.mark.parametrize(
    ("count", "size", "tolerance"),
    [(1000, 50, 1e-10), (5, 3, 1e-10), (800, 400, 1e-9), (30, 100, 1e-6), (100, 400, 1e-6)],
)
@pytest.mark.parametrize("ddof", [0, 1])
def test_scipy_says_the_same(count: int, size: int, tolerance: float, ddof: Ddof) -> None:
    """With fewer clips than features the covariance lacks rank; there scipy is the rougher one."""
    a = Statistics.of(RNG.normal(size=(count, size)) * RNG.uniform(0.1, 3, size))
    b = Statistics.of(RNG.normal(size=(count, size)) + 1)
    found = frechet_distance(a, b, ddof=ddof)
    assert found == pytest.approx(by_scipy(a, b, ddof), rel=tolerance)


def test_without_rank_it_is_as_exact_as_the_features_themselves_allow() -> None:
    """tr (S_a S_b)^(1/2) is the nuclear norm of A B^T, where no root of a covariance is taken."""
    a, b = RNG.normal(size=(20, 60)), RNG.normal(size=(25, 60)) * 2
    centred_a, centred_b = (a - a.mean(0)) / np.sqrt(20), (b - b.mean(0)) / np.sqrt(25)
    cross = np.linalg.svd(centred_a @ centred_b.T, compute_uv=False).sum()
    means = np.square(a.mean(0) - b.mean(0)).sum()
    expected = means + np.square(centred_a).sum() + np.square(centred_b).sum() - 2 * cross
    found = frechet_distance(Statistics.of(a), Statistics.of(b), ddof=0)
    assert found == pytest.approx(expected, rel=1e-10)


def test_a_set_is_at_no_distance_from_itself() -> None:
    for count in (3, 50, 1000):
        a = Statistics.of(100 * RNG.normal(size=(count, 50)))
        assert frechet_distance(a, a, ddof=0) < 1e-6


def test_a_root_times_itself_is_the_matrix() -> None:
    x = RNG.normal(size=(4, 9))
    covariance = x.T @ x  # rank 4 of 9
    root = square_root(covariance)
    np.testing.assert_allclose(root @ root, covariance, atol=1e-12)
    np.testing.assert_array_equal(square_root(np.zeros((3, 3))), np.zeros((3, 3)))


@pytest.mark.parametrize("pieces", [[50], [1] * 50, [7, 0, 30, 13]])
def test_gathering_in_pieces_is_gathering_at_once(pieces: list[int]) -> None:
    x = RNG.normal(size=(50, 8)) + 1000  # a large mean: sums of squares would lose the variance
    gathered = Statistics(8)
    for piece in np.split(x, np.cumsum(pieces)[:-1]):
        gathered.add(piece)
    np.testing.assert_allclose(gathered.mean, x.mean(0), rtol=1e-13)
    for ddof in (0, 1):
        expected = np.cov(x, rowvar=False, ddof=ddof)
        np.testing.assert_allclose(gathered.covariance(ddof), expected, rtol=1e-8, atol=1e-10)


def test_halves_gathered_apart_are_merged() -> None:
    x = RNG.normal(size=(31, 4))
    left, right = Statistics.of(x[:10]), Statistics.of(x[10:])
    left.merge(right)
    assert left.count == 31
    np.testing.assert_allclose(left.scatter, Statistics.of(x).scatter, rtol=1e-12)


def test_features_of_others_are_at_the_published_distance(shared: Path) -> None:
    """Exactly 10.138093 (by the nuclear norm of A B^T); published with a float64 root: 10.138085."""
    features = np.load(shared / "reference" / "fvd" / "fvd_comparison_features.npz")
    fake, real = Statistics.of(features["fake"]), Statistics.of(features["real"])
    assert frechet_distance(fake, real, ddof=1) == pytest.approx(10.138087, rel=1e-6)
    assert frechet_distance(fake, real, ddof=0) == pytest.approx(10.062791, rel=1e-6)


def test_the_published_float32_code_gives_another_distance_for_each_order_of_features(
    shared: Path,
) -> None:
    """Its formula (roots by SVD) in its precision: 10.1528 was published for these features."""
    features = np.load(shared / "reference" / "fvd" / "fvd_comparison_features.npz")
    orders = [np.random.default_rng(seed).permutation(400) for seed in range(10)]

    def distances(dtype: torch.dtype, count: int) -> list[float]:
        """The same distance several times, but for rounding."""
        sides = [torch.from_numpy(features[side]).to(dtype) for side in ("fake", "real")]
        return [by_svd(*(side[:, order] for side in sides)) for order in orders[:count]]

    single = np.array(distances(torch.float32, 10))
    np.testing.assert_allclose(distances(torch.float64, 2), 10.138093, rtol=1e-7)
    assert np.ptp(single) > 2e-3
    assert abs(10.1528 - single.mean()) < 3 * single.std()


def by_svd(x: torch.Tensor, y: torch.Tensor) -> float:
    """Frechet distance by the formula of TF-GAN, which the PyTorch ports of FVD took over."""

    def root(matrix: torch.Tensor) -> torch.Tensor:
        u, s, vh = torch.linalg.svd(matrix)
        return u @ torch.diag(torch.where(s < 1e-10, s, s.sqrt())) @ vh

    s_x, s_y = torch.cov(x.T), torch.cov(y.T)
    root_x = root(s_x)
    cross = root(root_x @ s_y @ root_x)
    means = (x.mean(0) - y.mean(0)).square().sum()
    return float(means + torch.trace(s_x + s_y) - 2 * torch.trace(cross))
