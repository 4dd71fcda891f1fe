"""What the paper reports: tables 1 and 2, at 256 x 256 pixels."""

from dataclasses import dataclass
from typing import Literal

SOURCE = "Yu et al., CVPR 2023 (arXiv 2302.07685)"

Dataset = Literal["ucf101", "sky"]


@dataclass(frozen=True)
class FvdRow:
    """A row of table 1: FVD of 16 and of 128 frames, lower is better."""

    method: str
    ucf101: tuple[float, float | None]
    sky: tuple[float, float | None]

    def of(self, dataset: Dataset) -> dict[str, float | None]:
        """Its figures by the names of our columns."""
        return dict(zip(("16f", "128f"), getattr(self, dataset), strict=True))


TABLE_1 = (
    FvdRow("VideoGPT", (2880.6, None), (222.7, None)),
    FvdRow("MoCoGAN", (2886.8, 3679.0), (206.6, 575.9)),
    FvdRow("MoCoGAN + StyleGAN2", (1821.4, 2311.3), (85.88, 272.8)),
    FvdRow("MoCoGAN-HD", (1729.6, 2606.5), (164.1, 878.1)),
    FvdRow("DIGAN", (1630.2, 2293.7), (83.11, 196.7)),
    FvdRow("StyleGAN-V", (1431.0, 1773.4), (79.52, 197.0)),
    FvdRow("PVDM-S, 100/20 steps", (457.4, 902.2), (71.46, 159.9)),
    FvdRow("PVDM-L, 200/200 steps", (398.9, 639.7), (61.70, 137.2)),
    FvdRow("PVDM-L, 400/400 steps", (343.6, 648.4), (55.41, 125.2)),
)


@dataclass(frozen=True)
class InceptionRow:
    """A row of table 2: inception score on UCF-101, higher is better."""

    method: str
    mean: float
    std: float
    on_all: bool = False  # trained on the training and the test split


TABLE_2 = (
    InceptionRow("MoCoGAN", 12.42, 0.07),
    InceptionRow("ProgressiveVGAN", 14.56, 0.05),
    InceptionRow("LDVD-GAN", 22.91, 0.19),
    InceptionRow("VideoGPT", 24.69, 0.30),
    InceptionRow("TGANv2", 28.87, 0.67),
    InceptionRow("StyleGAN-V", 23.94, 0.73, on_all=True),
    InceptionRow("DIGAN", 29.71, 0.53),
    InceptionRow("VDM", 57.00, 0.62, on_all=True),
    InceptionRow("TATS", 57.63, 0.24),
    InceptionRow("PVDM-L", 74.40, 1.25),
)
