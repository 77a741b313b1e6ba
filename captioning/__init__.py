"""Image captioning: encoders, decoders, search, training and honest evaluation."""

__version__ = "0.1.0"
