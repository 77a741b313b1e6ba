"""What people mistype: exit code 2, one sentence that names the key or file, the value and what is allowed; no traceback."""

import json
import shutil
import sys

import pytest
from conftest import CNN, ROOT, SMALL, TINY
from hydra.core.global_hydra import GlobalHydra

from captioning.build.compose import entry_point
from captioning.cli import main as captioning_command

sys.path.insert(0, str(ROOT))
import eval as eval_program
import train as train_program


def run(program, arguments, monkeypatch, capsys):
    """(exit code, what stood on stderr) of the program with these arguments."""
    GlobalHydra.instance().clear()
    monkeypatch.delenv("CAPTIONING_DEBUG", raising=False)
    with pytest.raises(SystemExit) as exit:
        if program == "captioning":
            captioning_command(list(arguments))
        else:
            monkeypatch.setattr(sys, "argv", [f"{program}.py", *arguments])
            with entry_point(program):
                {"train": train_program, "eval": eval_program}[program].main()
    return exit.value.code, capsys.readouterr().err


TRAIN = {
    "a choice that is not there": (["encoder=resnet49"], ["encoder=resnet49", "Did you mean resnet", "vgg16"]),
    "another choice that is not there": (["data=flikr8k"], ["data=flikr8k", "Did you mean flickr8k"]),
    "a misspelt group": (["decodr=lstm"], ["decodr", "Did you mean decoder"]),
    "a misspelt key": (["decoder.hiden_size=3"], ["decoder.hiden_size", "Did you mean hidden_size", "dropout"]),
    "a misspelt key of another choice": (["decoder=gru", "decoder.injecton=pre"], ["decoder.injecton", "Did you mean injection"]),
    "a key of another decoder": (["decoder=attention", "decoder.injection=pre"], ["decoder.injection", "no such key in decoder"]),
    "a misspelt top key": (["sed=3"], ["sed", "Did you mean seed"]),
    "a misspelt trainer key": (["trainer.epoch=3"], ["trainer.epoch", "Did you mean epochs"]),
    "a key added by force": (["+decoder.colour=red"], ["decoder.colour=red", "no such key"]),
    "a word for a number": (["optimizer.lr=fast"], ["optimizer.lr=fast", "should be a valid number"]),
    "a negative learning rate": (["optimizer.lr=-1"], ["optimizer.lr=-1", "greater than 0"]),
    "a probability above one": (["decoder.dropout=2"], ["decoder.dropout=2", "less than 1"]),
    "a count of zero": (["data.batch_size=0"], ["data.batch_size=0", "greater than or equal to 1"]),
    "a fraction for a count": (["trainer.epochs=2.5"], ["trainer.epochs=2.5", "integer"]),
    "a word for a flag": (["trainer.compile=perhaps"], ["trainer.compile=perhaps", "boolean"]),
    "an unknown precision": (["trainer.precision=fp8"], ["trainer.precision=fp8", "'fp32', 'bf16' or 'fp16'"]),
    "an unknown injection": (["decoder=lstm", "decoder.injection=middle"], ["decoder.injection=middle", "'init', 'pre', 'par', 'merge', 'pre_par', 'add' or 'read'"]),
    "an unknown metric": (["trainer.monitor=blue4"], ["trainer.monitor=blue4", "Did you mean bleu4"]),
    "a beam of none": (["search.beam_size=0"], ["search.beam_size=0", "greater than or equal to 1"]),
    "a negative seed": (["seed=-1"], ["seed=-1", "greater than or equal to 0"]),
    "an unknown features policy": (["features=maybe"], ["features=maybe", "'on', 'off' or 'auto'"]),
    "a device that is not here": (["device=tpu"], ["device=tpu", "allowed: auto, cpu"]),
    "features of a trained encoder": (["features=on"], ["features=on", "the encoder is trained", "allowed: auto, off"]),
    "no equals sign": (["encoder"], ["encoder", "key=value"]),
    "a folder that is not there": (["data=flickr8k", "data.root=/nowhere"], ["data.root=/nowhere", "no such folder"]),
    "a folder without the data": (["data=flickr8k", "data.root=."], ["data.root=.", "holds none of", "Flickr8k.token.txt"]),
    "weights that are not there": (["encoder=resnet18", "encoder.weights=w.pth"], ["encoder.weights=w.pth", "no such file", "imagenet, none"]),
    "a layer that is not there": (["encoder=resnet18", "encoder.weights=none", "encoder.grid=layer5"], ["encoder.grid=layer5", "resnet18"]),
    "a stage that is not there": (["encoder=resnet18", "encoder.weights=none", "encoder.finetune=layer3"], ["encoder.finetune=layer3", "from STAGE"]),
    "a model that is not there": (["encoder=torchvision", "encoder.name=resnet19", "encoder.grid=x"], ["encoder.name=resnet19", "Did you mean"]),
    "a value that must be given": (["encoder=torchvision"], ["encoder.name", "must be given"]),
    "vectors that are not there": (["vectors=glove.txt"], ["vectors=glove.txt", "cannot be read"]),
    "a storage that is none": (["cache.dtype=int8"], ["cache.dtype=int8", "fp16"]),
    "more memory than there is": (["cache.memory=2"], ["cache.memory=2"]),
    "no cache settings": (["cache=null"], ["cache=None", "configs/train.yaml"]),
    "no features key": (["~features"], ["features: must be given"]),
    "more hypotheses than beams": (["search.n_best=4"], ["search", "n_best=4", "beam_size=3"]),
    "more captions of an image than a batch has": (["data.captions_together=99"], ["captions_together=99", "batch_size=16"]),
    "no decoder at all": (["decoder=null"], ["decoder=null", "configs/decoder/"]),
    "a decoder taken away": (["~decoder"], ["decoder=None", "configs/decoder/"]),
    "a device with a wrong number": (["device=cpu:foo"], ["device=cpu:foo", "allowed: auto, cpu"]),
    "a network that is no CNN": (["encoder=torchvision", "encoder.name=vit_b_16", "encoder.grid=encoder", "encoder.weights=none"], ["does not take pictures of any size"]),
    "a network that does not classify": (["encoder=torchvision", "encoder.name=fasterrcnn_resnet50_fpn", "encoder.grid=x"], ["torchvision has no such model"]),
    "a word count nobody reaches": (["data.min_count=100000"], ["data.min_count=100000", "no word"]),
}  # fmt: skip


@pytest.mark.parametrize("mistake", TRAIN)
def test_a_mistake_in_training_is_one_plain_sentence(mistake, drawings, tmp_path, monkeypatch, capsys):
    arguments, expected = TRAIN[mistake]
    tiny = [word for word in TINY if "reader" not in word] if any(word.startswith("data=") for word in arguments) else [*TINY]
    tiny += [] if any(word.startswith("encoder") and "=" in word for word in arguments) else CNN
    root = [] if any(word.startswith("data.root") for word in arguments) else [f"data.root={drawings}"]
    given = [word for word in tiny if word.partition("=")[0] not in {mine.partition("=")[0] for mine in arguments}]
    code, message = run("train", [*given, *root, f"run={tmp_path / 'run'}", *arguments], monkeypatch, capsys)
    assert code == 2
    assert message.startswith("error: ") and message.count("\n") == 1 and "Traceback" not in message, message
    for part in expected:
        assert part in message, message
    assert not (tmp_path / "run").exists()  # nothing was begun


def test_other_data_in_the_same_run_directory_is_refused(finished, tmp_path, monkeypatch, capsys):
    run_copy = copied(finished, tmp_path)
    edited(run_copy / "env.json", data="another")
    from captioning.build.runs import read_config

    overrides = [f"{key}={value}" for key, value in (("data.root", read_config(finished)["data"]["root"]), ("run", run_copy))]
    tiny = [*TINY, *CNN, *SMALL, "decoder.attention_size=8", "trainer=smoke", "trainer.max_steps=3", *overrides]  # it would go on
    code, message = run("train", tiny, monkeypatch, capsys)
    assert code == 2 and "was trained with other images or captions" in message


def test_another_setting_in_the_same_run_directory_is_refused(finished, drawings, monkeypatch, capsys):
    arguments = [
        *TINY,
        *CNN,
        *SMALL,
        "decoder.attention_size=8",
        f"data.root={drawings}",
        f"run={finished}",
        "optimizer.lr=0.5",
    ]
    code, message = run("train", arguments, monkeypatch, capsys)
    assert code == 2 and "was trained with optimizer.lr=0.0004, this is optimizer.lr=0.5" in message


def copied(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


def edited(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


EVAL = {
    "no run": (lambda run: [], ["run: must be given"]),
    "a folder that is no run": (lambda run: [f"run={run.parent}"], ["not a run directory"]),
    "an unknown split": (lambda run: [f"run={run}", "split=dev"], ["split=dev", "'train', 'val' or 'test'"]),
    "a misspelt search key": (lambda run: [f"run={run}", "search.beamsize=3"], ["search.beamsize", "Did you mean beam_size"]),
    "a moved data set": (lambda run: [f"run={run}", "data.root=/proc/nowhere"], ["/proc/nowhere"]),
    "another version": (lambda run: edited(run / "env.json", format=99) or [f"run={run}"], ["format 99", "reads format 4"]),
    "no checkpoint": (lambda run: shutil.rmtree(run / "best") or shutil.rmtree(run / "last") or [f"run={run}"], ["has no checkpoint yet"]),
    "a flipped byte": (
        lambda run: (run / "best" / "model.safetensors").write_bytes(bytes([1]) + (run / "best" / "model.safetensors").read_bytes()[1:]) and [f"run={run}"],
        ["damaged", "model.safetensors"],
    ),
    "another vocabulary": (lambda run: (run / "vocabulary.json").write_text('["a", "b"]') and [f"run={run}"], ["vocabulary.json: damaged"]),
    "no encoder": (
        lambda run: edited(run / "env.json", files={"encoder.safetensors": "0"}) or [f"run={run}"],
        ["encoder.safetensors: missing"],
    ),
    "another decoder": (
        lambda run: (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("hidden_size: 16", "hidden_size: 17")) and [f"run={run}"],
        ["best: is a checkpoint of decoder.hidden_size=16, this run is of decoder.hidden_size=17"],
    ),
    "a config of another time": (
        lambda run: (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("hidden_size:", "hidden_units:")) and [f"run={run}"],
        ["decoder.hidden_units=16", "no such key"],
    ),
    "a cache of no kind": (lambda run: [f"run={run}", "cache.memory=2"], ["cache.memory=2"]),
    "a batch of no kind": (lambda run: [f"run={run}", "data.batch_size=foo"], ["data.batch_size=foo"]),
    "results into a file": (lambda run: [f"run={run}", f"out={run / 'env.json'}"], ["env.json: is a file"]),
    "a vocabulary that is none": (lambda run: (run / "vocabulary.json").write_text("{}") and [f"run={run}"], ["vocabulary.json: damaged"]),
    "a config that is none": (lambda run: (run / "config.yaml").write_text("a: [") and [f"run={run}"], ["not a whole run directory"]),
    "a config that would run code": (
        lambda run: (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("captioning.models.encoders.SmallCNN", "os.system")) and [f"run={run}"],
        ["encoder._target_=os.system", "only targets under captioning. and torch.optim."],
    ),
    "code by another door": (
        lambda run: (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("captioning.models.encoders.SmallCNN", "captioning.build.schema.importlib.import_module")) and [f"run={run}"],
        ["no such class or function"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", EVAL)
def test_a_mistake_in_evaluation_is_one_plain_sentence(mistake, finished, tmp_path, monkeypatch, capsys):
    arrange, expected = EVAL[mistake]
    code, message = run("eval", arrange(copied(finished, tmp_path)), monkeypatch, capsys)
    assert code == 2 and message.startswith("error: ") and message.count("\n") == 1, message
    for part in expected:
        assert part in message, message


def test_only_our_own_things_and_torchs_optimizers_are_built_from_a_run_directory():
    from captioning.build.schema import check_targets
    from captioning.errors import UserError

    check_targets({"a": {"_target_": "captioning.search.Beam"}, "b": [{"_target_": "torch.optim.Adam"}]})
    for name in ("os.system", "captioning.cli.sys.exit", "captioning.build.runs.subprocess", "captioning.errors.contextmanager",
                 "torch.load", "torch.optim.optimizer.torch", "captioningx.y", 7):  # fmt: skip
        with pytest.raises(UserError):
            check_targets({"a": {"_target_": name}})
    with pytest.raises(UserError):
        check_targets({"a": {"_target_": "captioning.search.Beam", "_args_": [1]}})


COMMANDS = {
    "a picture into nowhere": (["caption", "x.jpg", "--run", "RUN", "--attention", "/nowhere/out.png"], ["--attention /nowhere/out.png"]),
    "a picture of no format": (["caption", "x.jpg", "--run", "RUN", "--attention", "out.xyz"], ["--attention out.xyz", ".png"]),
    "an image that is not there": (["caption", "none.jpg", "--run", "RUN"], ["none.jpg: no such file"]),
    "an image that is none": (["caption", "RUN/config.yaml", "--run", "RUN"], ["config.yaml: not an image"]),
    "a run that is none": (["caption", "x.jpg", "--run", "."], ["not a run directory"]),
    "a beam of none": (["caption", "x.jpg", "--run", "RUN", "--beam-size", "0"], ["--beam-size 0: at least 1"]),
    "data that is not there": (["check-data", "data=own", "data.root=/nowhere"], ["data.root=/nowhere"]),
    "features that are augmented": (
        ["extract", "encoder=resnet18", "encoder.weights=none", "data.transform.flip=0.5"],
        ["features=on", "augmented"],
    ),
    "features of a CNN that is trained": (["extract"], ["features=on", "the encoder is trained"]),
    "a cache in a file": (
        [
            "extract",
            "encoder=resnet18",
            "encoder.weights=none",
            "data.reader.train=8",
            "data.reader.val=2",
            "data.reader.test=2",
            "cache.dir=RUN/env.json",
        ],
        ["RUN/env.json", "cannot be written", "features=off"],
    ),
    "no cache to extract into": (["extract", "encoder=resnet18", "cache=null"], ["cache=None"]),
    "no data to extract": (["extract", "~data"], ["data=None"]),
    "nothing to remove": (["cache", "remove"], ["give KEYs"]),
    "a key that is none": (["cache", "remove", "x"], ["cache remove x", "no such features"]),
    "no command": (["captoin"], ["captoin", "caption"]),
}


@pytest.mark.parametrize("mistake", COMMANDS)
def test_a_mistake_in_a_command_is_one_plain_sentence(mistake, finished, monkeypatch, capsys):
    arguments, expected = COMMANDS[mistake]
    code, message = run("captioning", [word.replace("RUN", str(finished)) for word in arguments], monkeypatch, capsys)
    assert code == 2 and "Traceback" not in message
    for part in expected:
        assert part.replace("RUN", str(finished)) in message, message
