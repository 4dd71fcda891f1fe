"""The two networks: the triplane autoencoder and the denoiser."""
