"""Long videos from a diffusion model you trained yourself (PVDM, CVPR 2023)."""
