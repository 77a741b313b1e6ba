"""The records that a job uses: a data set's splits, less or with a stand-in for what `data.broken` finds unreadable."""

from captioning.cache.key import CacheSettings
from captioning.cache.survey import Broken, Survey, apply, in_words
from captioning.data.records import Splits
from captioning.data.settings import Data
from captioning.errors import UserError
from captioning.training.console import progress, say
from captioning.training.distributed import World


def read_splits(data: Data, settings: CacheSettings, world: World, *needed: str) -> tuple[Splits, dict[str, Broken]]:
    """The splits, and what was done to the needed ones: nothing where `data.broken` is `error`. With several processes the first looks
    at the pictures, the others wait."""
    splits = data.read(*needed)
    if data.broken == "error":
        return splits, {}
    survey, found, problem = Survey(data.transform, data.root, settings), {}, None
    try:
        if world.is_main:
            paths = [record.path for split in needed for record in splits[split]]
            found = survey.take(paths, workers=data.workers, say=say, progress=progress)
            if data.broken == "replace":
                survey.draw_grey()
    except UserError as error:
        problem = error
    answers = world.gather((problem, found))
    if problem := next((its for its, _ in answers if its), None):
        raise problem
    splits, broken = apply(data.broken, splits, needed, answers[0][1], survey.grey if data.broken == "replace" else None)
    if world.is_main:
        for split, its in broken.items():
            say(in_words(split, its))
    return splits, broken
