"""Config to objects. The only package, beside the entry points, that knows Hydra and OmegaConf."""
