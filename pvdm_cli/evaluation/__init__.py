"""How good videos are: Frechet video distance, inception score, reconstruction."""
