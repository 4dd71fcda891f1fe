"""From folders of videos to clips and to the triplane latent cache."""
