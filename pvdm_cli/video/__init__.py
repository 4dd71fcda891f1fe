"""Video in and out; the only home of uint8 <-> [-1, 1] and of codecs."""
