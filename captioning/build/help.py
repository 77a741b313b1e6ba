"""What train.py and eval.py answer to --help. Without Hydra: importing it takes ten times longer than the answer."""

from pathlib import Path
from string import Template

import yaml

PACKAGE = Path(__file__).resolve().parents[1]
CONFIGS = next((path for path in (PACKAGE.parent / "configs", PACKAGE / "configs") if path.is_dir()), PACKAGE.parent / "configs")


def help_text(name: str) -> str:
    """The help that stands in configs/NAME.yaml, with the choices filled in: word for word what Hydra would print."""
    template = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))["hydra"]["help"]["template"]
    return Template(template).substitute(APP_CONFIG_GROUPS=choices())


def choices() -> str:
    """One line for each config group."""
    groups = {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in CONFIGS.iterdir() if folder.is_dir()}
    return "".join(f"{group}: {', '.join(groups[group])}\n" for group in sorted(groups))
