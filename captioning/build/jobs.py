"""What train.py and eval.py do."""

import os
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from captioning.build.compose import as_dict
from captioning.build.schema import TRAINING, check
from captioning.errors import UserError


def train(config: DictConfig) -> None:
    """Train one run to its end, from where it was. The same command goes on."""
    settings = as_dict(config)
    check(settings, needed=TRAINING)
    if settings["run"] is None:
        from captioning.build.runs import default_directory

        hydra = HydraConfig.get()
        settings["run"] = str(default_directory(dict(hydra.runtime.choices), list(hydra.overrides.task), settings["seed"]))
    Training(settings).start()


class Training:
    """Puts a run together from its settings, cheap things first, so that a mistake shows before anything is read."""

    def __init__(self, config: dict[str, Any]):
        from captioning.build.objects import make, make_data, make_optimizer, make_settings
        from captioning.build.runs import refuse_another
        from captioning.build.start import check_start
        from captioning.training import checkpoint
        from captioning.training.distributed import find_device

        self.config, self.run = config, Path(config["run"])
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
        from captioning.training.console import say
        from captioning.training.distributed import open_world
        from captioning.training.memory import keep_freed_memory

        keep_freed_memory()
        world = open_world(self.config["device"])
        trainer = self.trainer(world)
        evaluation = trainer.fit()
        if world.is_main:
            if evaluation is None:
                at = trainer.progress
                say(f"{self.run} is finished, at epoch {at.epoch}, step {at.step}. To go on, raise {trainer.ended_by}")
            say(f"next: python eval.py run={self.run}   or: captioning caption IMAGE --run {self.run}")
        world.close()

    def trainer(self, world: Any) -> Any:
        import torch

        from captioning.analysis.samples import SamplePictures
        from captioning.build.features import Features, copy_weights, open_features
        from captioning.build.objects import make, make_model, make_optimizer
        from captioning.build.runs import flat, prepare, save_weights
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
        splits = data.read("train", "val")
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
            prepare(self.run, config, splits, vocabulary, weights, save_encoder)
            unknown = vocabulary.unknown_rate(caption for record in splits["val"] for caption in record.captions)
            trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
            say(f"run {self.run} on {world.device}{f', {world.size} processes' if world.size > 1 else ''}")
            say(f"{len(splits['train'])} training images, {len(texts)} captions; {len(splits['val'])} validation images")
            if at:
                say(f"starting from {begins_with}: epoch {at['epoch']}, step {at['step']}, cider {at['metrics'].get('cider', 0):.3f}")
            elif not self.loss.reads_captions and self.start_from is None:
                say("warning: what an untrained model says earns next to nothing: train with loss=cross_entropy first, then give start=RUN")
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
            show=SamplePictures(images, settings.samples, data.transform, vocabulary, self.search),
            hparams={key: value for key, value in flat(config).items() if not key.endswith("_target_")},
        )


def evaluate(config: DictConfig) -> None:
    """Caption a split with a trained run, score it, and write metrics.json and captions.json."""
    settings = as_dict(config)
    check(settings, needed=("search", "run", "split", "device", "features", "precision", "out", "show", "java"))
    import torch

    from captioning.analysis import results
    from captioning.analysis.samples import captioned_pictures
    from captioning.build.features import evaluated_run
    from captioning.build.objects import make
    from captioning.build.runs import read_config
    from captioning.data.dataset import ReferenceBatches, ReferenceImages
    from captioning.training.console import progress, say
    from captioning.training.distributed import World, find_device
    from captioning.training.evaluate import Evaluator, warning_of_collapse, with_more
    from captioning.training.memory import keep_freed_memory
    from captioning.training.settings import autocast

    keep_freed_memory()
    search = make("search", settings["search"])
    if settings["out"] and Path(settings["out"]).is_file():
        raise UserError(f"out={settings['out']}: is a file; a folder is needed")
    device, path = find_device(settings["device"]), Path(settings["run"])
    trained = read_config(path)
    changes = {key: value for key, value in (settings.get("data") or {}).items() if value is not None}
    node = trained["data"] | changes
    if "root" in changes and "root" in node["reader"]:
        node["reader"] = node["reader"] | {"root": changes["root"]}
    kept = trained["cache"] | {key: value for key, value in (settings.get("cache") or {}).items() if value is not None}
    check({"data": node, "cache": kept})
    data = make("data", node)
    records = data.read(settings["split"])[settings["split"]]
    run, source = evaluated_run(path, records, data, make("cache", kept), settings["features"], World(device))
    images = ReferenceImages(records, run.vocabulary, data.max_length, source)
    evaluator = Evaluator(
        ReferenceBatches(images, data.batch_size, workers=data.workers),
        vocabulary=run.vocabulary,
        search=search,
        world=World(device),
        autocast=lambda: autocast(device, settings["precision"]),
    )
    with progress(f"captioning {settings['split']}", len(records)) as advance:
        evaluation = evaluator(run.model, advance)
    evaluation, notes = with_more(evaluation, evaluator.prepared, data.read("train")["train"], settings["java"])
    folder = Path(settings["out"] or run.path)
    about = {"split": settings["split"], "images": len(records), "search": settings["search"], "precision": settings["precision"]}
    results.write(folder, evaluation, evaluator.references, about)
    if settings["show"]:
        with torch.inference_mode():
            page, lines = captioned_pictures(run.model, images, settings["show"], data.transform, run.vocabulary, search)
        say("\n".join(lines))
        page.save(folder / "samples.png")
        say(f"\n{folder / 'samples.png'} shows them{' and where attention looked' if run.model.decoder.attends else ''}\n")
    for name, value in evaluation.metrics.items():
        say(f"{name:18} {value:.4f}" if isinstance(value, float) else f"{name:18} {value}")
    say(f"\n{len(records)} images of {settings['split']}; written to {folder / 'metrics.json'} and {folder / 'captions.json'}")
    for note in notes:
        say(f"note: {note}")
    if warning := warning_of_collapse(evaluation.metrics):
        say(f"warning: {warning}")
