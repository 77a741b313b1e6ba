"""What train.py does."""

import os
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from captioning.build.compose import as_dict, as_given
from captioning.build.schema import TRAINING, check, why_closed
from captioning.errors import UserError

if TYPE_CHECKING:
    from captioning.training.settings import Progress


def train(config: DictConfig) -> None:
    """Train one run to its end, from where it was. The same command goes on. With `hparams_search=`, a whole search of such runs."""
    settings = training_settings(config)
    if search := settings.pop("hparams_search", None):
        from captioning.build.hparams import run_search

        run_search(search, settings, as_given(HydraConfig.get().overrides.task))
    else:
        Training(settings).start()


def training_settings(config: DictConfig) -> dict[str, Any]:
    settings = as_dict(config)
    if settings.get("hparams_search"):
        from captioning.build.hparams import need_optuna

        need_optuna()  # before its classes are looked up
    check(settings, needed=TRAINING)
    if settings["run"] is None:
        from captioning.build.runs import default_directory

        hydra = HydraConfig.get()
        settings["run"] = str(default_directory(dict(hydra.runtime.choices), list(hydra.overrides.task), settings["seed"]))
    return settings


def trained(config: DictConfig) -> tuple[Path, bool]:
    """The run directory, and whether the run is finished: known without the data."""
    from captioning.build.objects import make_settings
    from captioning.build.runs import ending, refuse_another

    settings = training_settings(config)
    if settings.pop("hparams_search", None):
        raise UserError("hparams_search: is many runs already; take it without -m")
    run = Path(settings["run"])
    refuse_another(run, settings)
    return run, ending(run, make_settings(settings))[1] is not None


class Training:
    """Puts a run together from its settings, cheap things first, so that a mistake shows before anything is read."""

    def __init__(self, config: dict[str, Any], gives_up: "Callable[[Progress], bool]" = lambda at: False):
        """gives_up: asked after each validation whether to end there."""
        from captioning.build.objects import make, make_data, make_optimizer, make_settings
        from captioning.build.runs import refuse_another
        from captioning.build.start import check_start
        from captioning.training import checkpoint
        from captioning.training.distributed import find_device

        self.config, self.run, self.gives_up = config, Path(config["run"]), gives_up
        refuse_another(self.run, config)
        self.start_from = None if config.get("start") is None else Path(config["start"])
        self.goes_on = checkpoint.find(self.run / "last") is not None
        if self.start_from and not self.goes_on:
            check_start(self.start_from, config)
        self.settings = make_settings(config)
        self.data = make_data(config)
        self.search, self.loss = make("search", config["search"]), make("loss", config["loss"])
        self.schedule, self.cache = make("scheduler", config["scheduler"]), make("cache", config["cache"])
        if self.settings.scheduled_sampling and not self.loss.reads_captions:
            share = self.settings.scheduled_sampling
            raise UserError(f"trainer.scheduled_sampling={share}: this loss reads no captions that words could be put into; allowed: 0.0")
        make_optimizer(config, None)
        find_device(config["device"])

    def start(self) -> None:
        from captioning.build.members import FAILURE
        from captioning.build.runs import alone, ending
        from captioning.training.console import say
        from captioning.training.distributed import open_world
        from captioning.training.memory import keep_freed_memory

        is_main = os.environ.get("RANK", "0") == "0"
        at, over = ending(self.run, self.settings)
        if over is None:
            keep_freed_memory()
            refusal = f"run={self.run}: another process is training there; wait for it, or end it"
            with alone(self.run / "training.lock", refusal) if is_main else nullcontext():
                world = open_world(self.config["device"])
                self.trainer(world).fit()
                world.close()
        elif is_main:
            say(f"{self.run} is finished, at epoch {at.epoch}, step {at.step}. To go on, raise {over}")
        if is_main:
            (self.run / FAILURE["train"]).unlink(missing_ok=True)
            say(f"next: python eval.py run={self.run}   or: captioning caption IMAGE --run {self.run}")

    def trainer(self, world: Any) -> Any:
        import torch

        from captioning.analysis.samples import SamplePictures
        from captioning.build.features import Features, copy_weights, open_features
        from captioning.build.objects import make, make_model, make_optimizer
        from captioning.build.pictures import read_splits
        from captioning.build.runs import flat, identity_of, prepare, save_weights
        from captioning.build.start import check_frozen, take_weights
        from captioning.data.dataset import ImageSource, ReferenceBatches, ReferenceImages, TrainingBatches, TrainingCaptions
        from captioning.data.vocabulary import Vocabulary
        from captioning.models.encoders import GivenFeatures
        from captioning.models.vectors import read_vectors
        from captioning.training.console import say
        from captioning.training.evaluate import Evaluator
        from captioning.training.logger import NoLogger
        from captioning.training.settings import autocast
        from captioning.training.trainer import Trainer

        config, data, settings, seed = self.config, self.data, self.settings, self.config["seed"]
        if settings.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for
        torch.use_deterministic_algorithms(settings.deterministic)
        splits, broken = read_splits(data, self.cache, world, "train", "val")
        texts = [caption for record in splits["train"] for caption in record.captions]
        begins_with = None if self.goes_on else self.start_from
        if self.start_from:
            vocabulary = Vocabulary.load((begins_with or self.run) / "vocabulary.json")
        else:
            vocabulary = Vocabulary.build(texts, data.min_count)
        self.loss.read(splits["train"], vocabulary)
        weights, found = open_features(config, data, self.cache, world)
        if begins_with:
            check_frozen(begins_with, weights)
        if isinstance(found, Features):
            stores = {split: found.store(splits[split]) for split in ("train", "val")}
            encoder, save_encoder = GivenFeatures(stores["train"].dims), partial(copy_weights, stores["train"])
        else:
            stores, encoder = {}, found
            save_encoder = partial(save_weights, encoder) if encoder.is_frozen else None
        model = make_model(config, encoder, vocabulary, seed)
        if config["vectors"] is not None:
            count = read_vectors(Path(config["vectors"]), vocabulary.words, model.decoder.words.vectors.weight)
            say(f"vectors: {count} of {len(vocabulary)} words have one")
        at = take_weights(begins_with, model) if begins_with else None
        if world.is_main:
            prepare(self.run, config, splits, vocabulary, weights, save_encoder, broken)
            unknown = vocabulary.unknown_rate(caption for record in splits["val"] for caption in record.captions)
            trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
            say(f"run {self.run} on {world.device}{f', {world.size} processes' if world.size > 1 else ''}")
            say(f"{len(splits['train'])} training images, {len(texts)} captions; {len(splits['val'])} validation images")
            if at:
                say(f"starting from {begins_with}: epoch {at['epoch']}, step {at['step']}, cider {at['metrics'].get('cider', 0):.3f}")
            elif not self.loss.reads_captions and self.start_from is None:
                say("warning: what an untrained model says earns next to nothing: train with loss=cross_entropy first, then give start=RUN")
            if closed := why_closed(self.config):
                say(f"warning: {closed}; so this run can be trained, and nothing will open it again")
            say(f"{len(vocabulary)} words; {unknown:.1%} of the validation words are not among them; {trained / 1e6:.1f} M parameters")
        model.to(world.device)
        if settings.compile:
            model.encoder.compile()
            model.decoder.compile_parts()
        sources: dict[str, Any] = dict.fromkeys(splits, ImageSource(data.transform))
        if isinstance(found, Features):
            sources = {split: found.source(store, model.decoder.uses_grid) for split, store in stores.items()}
        ranks = {"rank": world.rank, "world": world.size}
        together = data.captions_together if self.loss.reads_captions else max(len(record.captions) for record in splits["train"])
        captions = TrainingCaptions(splits["train"], vocabulary, data.max_length, sources["train"], together)
        batches = TrainingBatches(captions, data.batch_size, seed=seed, workers=data.workers, **ranks)
        images = ReferenceImages(splits["val"], vocabulary, data.max_length, sources["val"])
        if world.is_main:
            padding = f", {batches.padding():.1%} of them padding" if self.loss.reads_captions else ""
            say(f"{len(batches.order(0))} batches an epoch{padding}; {captions.source.about}")
        return Trainer(
            settings,
            model=model,
            loss=self.loss,
            optimizer=make_optimizer(config, model),
            schedule=self.schedule,
            batches=batches,
            evaluator=Evaluator(
                ReferenceBatches(images, data.batch_size, workers=data.workers, **ranks),
                vocabulary=vocabulary,
                search=self.search,
                world=world,
                autocast=lambda: autocast(world.device, settings.precision),
            ),
            logger=make("logger", config["logger"]) if world.is_main else NoLogger(),
            world=world,
            run=self.run,
            seed=seed,
            identity=identity_of(config, vocabulary, weights),
            show=SamplePictures(images, settings.samples, data.transform, vocabulary, self.search),
            hparams={key: value for key, value in flat(config).items() if not key.endswith("_target_")},
            gives_up=self.gives_up,
        )
