"""Scores that several processes share out: those of one process."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks_together import together
from scoring import noise, use_quick_classifier, use_quick_detector, write_noise
from tiny import tiny_model

from pvdm_cli.evaluation import reconstruction
from pvdm_cli.evaluation.detector import Detector
from pvdm_cli.evaluation.features import features_folder
from pvdm_cli.evaluation.frechet import Statistics
from pvdm_cli.evaluation.fvd import FvdResult, measure_fvd
from pvdm_cli.evaluation.inception import measure_inception
from pvdm_cli.evaluation.protocol import FvdRequest
from pvdm_cli.evaluation.reconstruction import measure_reconstruction
from pvdm_cli.ranks import here
from pvdm_cli.video.write import write_video

CPU = torch.device("cpu")


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Videos of many lengths, some too short, broken, or of another size."""
    folder = write_noise(tmp_path / "videos", 40, 16, 9, 50, 16, 33, 16, 90, 12, 16, 16)
    (folder / "00.mp4").write_bytes(b"no video")
    write_video(folder / "wide.npz", noise(0, 20, 16, 32), 8)
    return folder


def fvd(folder: Path, real: Path, fake: Path, request: FvdRequest) -> tuple[FvdResult, int]:
    """A score, and how many features were computed here."""
    with pytest.MonkeyPatch.context() as patch:
        use_quick_detector(patch, folder)
        looked: list[int] = []
        stream = Detector.stream

        def counted(self: Detector, clips: Any) -> Any:
            for batch in stream(self, clips):
                looked.append(len(batch))
                yield batch

        patch.setattr(Detector, "stream", counted)
        return measure_fvd(real, fake, request, CPU), sum(looked)


@pytest.mark.parametrize(
    "settings",
    [
        {"real_clips": "all", "repeats": 2, "bootstrap": 1, "counts": [4], "yardsticks": True},
        {"num": 5, "more_starts": [16]},
        {"real_clips": "all", "num": 7, "size": (16, 24)},
    ],
    ids=["everything", "fewer than there are", "some resized"],
)
def test_an_fvd_of_two_processes_is_that_of_one(
    tmp_path: Path, videos: Path, settings: dict[str, Any]
) -> None:
    fake = write_noise(tmp_path / "fake", 40, 16, 33, 5, 16, 32, 16, first=30)
    saved = [tmp_path / f"{name}.npz" for name in ("one", "two")]
    requests = [FvdRequest(save_features=path, keep=False, **settings) for path in saved]
    one, all_clips = fvd(tmp_path, videos, fake, requests[0])
    parts = together(2, fvd, tmp_path, videos, fake, requests[1])
    assert asdict(parts[0][0]) == asdict(parts[1][0])
    ours, theirs = asdict(parts[0][0]), asdict(one)
    scores = ("fvd", "repeats", "by_start", "bootstrap", "counts", "extrapolated", "yardsticks")
    for name in scores:
        found, wanted = (np.array(flat(scores.pop(name)), dtype=float) for scores in (ours, theirs))
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6, err_msg=name)
    assert ours == theirs  # clips, videos, what was resized and what was left out
    for side in ("real", "fake"):
        wanted, found = (np.load(path)[side] for path in saved)
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
        found, wanted = (Statistics.of(features) for features in (found, wanted))
        np.testing.assert_allclose(found.mean, wanted.mean, rtol=1e-10)
        scale = np.abs(wanted.covariance(0)).max()
        np.testing.assert_allclose(
            found.covariance(0), wanted.covariance(0), rtol=1e-10, atol=1e-10 * scale
        )
    shares = [looked for _, looked in parts]
    assert min(shares) > 0
    assert sum(shares) < 2 * all_clips


def flat(value: Any) -> list[float]:
    if isinstance(value, dict):
        value = list(value.values())
    return value if isinstance(value, list) else [value]


def test_features_are_kept_once_and_found_by_all(tmp_path: Path, videos: Path) -> None:
    fake = write_noise(tmp_path / "fake", 16, 16, 16, first=30)
    first, again = (together(2, fvd, tmp_path, videos, fake, FvdRequest()) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        use_quick_detector(patch, tmp_path)
        assert len(list(features_folder().glob("*.npz"))) == 1
    assert [result.real.kept for result, _ in first] == [False, False]
    assert [result.real.kept for result, _ in again] == [True, True]
    assert sum(looked for _, looked in again) == 3  # the fake ones
    assert again[0][0].fvd == pytest.approx(first[0][0].fvd)


def inception(folder: Path, fake: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        use_quick_classifier(patch, folder)
        return measure_inception(fake, CPU, num=11)


def test_an_inception_score_of_two_processes_is_that_of_one(tmp_path: Path) -> None:
    fake = write_noise(tmp_path / "fake", *(16 for _ in range(7)), 3, *(16 for _ in range(6)))
    one, parts = inception(tmp_path, fake), together(2, inception, tmp_path, fake)
    for part in parts:
        assert part.splits == pytest.approx(one.splits, rel=1e-10)
        assert (part.clips, part.skipped) == (11, one.skipped)


def rebuilt(folder: Path, data: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        use_quick_detector(patch, folder)
        patch.setattr(reconstruction, "FEWEST_FRAMES", 4)
        place = here()
        result = measure_reconstruction(tiny_model(), "tiny", data, split_name="all")
        assert here() == place
        return result


def test_a_reconstruction_of_two_processes_is_that_of_one(tmp_path: Path) -> None:
    data = write_noise(tmp_path / "data", 4, 6, 3, 7, 8, 9, 5, suffix="mp4")
    one, parts = rebuilt(tmp_path, data), together(2, rebuilt, tmp_path, data)
    for part in parts:
        assert [clip.video for clip in part.clips] == [clip.video for clip in one.clips]
        assert part.psnr == pytest.approx(one.psnr, rel=1e-6)
        assert part.ssim == pytest.approx(one.ssim, rel=1e-4)
        assert part.rfvd == pytest.approx(one.rfvd, rel=1e-4)
        assert part.skipped == one.skipped
