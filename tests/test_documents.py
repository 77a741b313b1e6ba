"""What the documents show: their files, their scripts and their links. Their commands are in test_programs.py."""

import os
import re
import shlex
import subprocess

import pytest
import torch
from conftest import CNN, ROOT, SMALL, TINY
from test_programs import understand

from captioning.build.compose import as_dict, composed
from captioning.build.jobs import Training
from captioning.build.runs import load_run
from captioning.build.schema import check
from captioning.errors import UserError
from captioning.training.distributed import World

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = {
    f"{page.stem}-{number}": script
    for page in PAGES
    for number, script in enumerate(re.findall(r"```sh\n(#!/bin/bash\n.*?)```", page.read_text(), flags=re.DOTALL))
}
DOT = ["hydra.searchpath=[file://mine]", "decoder=dot"]


class Counted:
    """A plugin that notes which tests passed."""

    def __init__(self):
        self.outcomes = []

    def pytest_runtest_logreport(self, report):
        if report.when == "call":
            self.outcomes.append((report.nodeid.partition("::")[2], report.outcome))


def test_the_decoder_of_the_page_keeps_the_laws_with_the_pages_own_test_file(mine):
    counted = Counted()
    code = pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:faulthandler", str(mine / "test_dot.py")], plugins=[counted])
    assert code == 0 and len(counted.outcomes) == 14, counted.outcomes  # six laws, one of them for two types; two classes


@pytest.mark.parametrize("name", ["DotDecoder", "FastDotDecoder"])
def test_the_decoder_of_the_page_trains_from_outside_the_package_and_its_run_stays_closed(name, mine, drawings, tmp_path, capsys):
    words = [*TINY, *CNN, *SMALL, *DOT, f"decoder._target_=dot.{name}", f"data.root={drawings}", f"run={tmp_path / 'run'}"]
    config = as_dict(composed("train", [*words, "trainer=smoke"]))
    check(config)
    trainer = Training(config).trainer(World(torch.device("cpu")))
    before = [parameter.detach().clone() for parameter in trainer.model.decoder.parameters()]
    assert "nothing will open it again" in capsys.readouterr().out
    trainer.fit()
    moved = [not torch.equal(old, new) for old, new in zip(before, trainer.model.decoder.parameters())]
    assert trainer.progress.step == 2 and all(moved)
    refusal = rf"decoder._target_=dot.{name}: a run directory may name only targets under captioning. and torch.optim."
    for opened in (lambda: Training(config), lambda: load_run(tmp_path / "run", torch.device("cpu"))):
        with pytest.raises(UserError, match=refusal):
            opened()


def test_a_key_that_the_decoder_of_the_page_lacks_is_refused(mine):
    with pytest.raises(UserError, match="decoder.heads=2: decoder has no such key"):
        check(as_dict(composed("train", [*DOT, "+decoder.heads=2"])))
    with pytest.raises(UserError, match="decoder.dropout=2: should be less than 1"):
        check(as_dict(composed("train", [*DOT, "decoder.dropout=2"])))


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_scripts_for_slurm_start_what_they_should_and_requeue(name, tmp_path, monkeypatch):
    """With stand-ins: `srun` runs its command; `python` and `torchrun` note theirs, and end as a run does that was told to."""
    stand_ins = {
        "srun": 'exec "$@"',
        "python": f'printf "%s\\n" "python $*" >> {tmp_path}/calls; exit 75',
        "torchrun": f'printf "%s\\n" "torchrun $*" >> {tmp_path}/calls; exit 1',
        "scontrol": f'if [ "$1" = show ]; then printf "node7\\nnode8\\n"; else printf "%s\\n" "scontrol $*" >> {tmp_path}/calls; fi',
    }
    for program, body in stand_ins.items():
        (tmp_path / program).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / program).chmod(0o755)
    (tmp_path / "job.sh").write_text(SCRIPTS[name])
    slurm = {
        "SLURM_ARRAY_TASK_ID": "5",
        "SLURM_ARRAY_JOB_ID": "40",
        "SLURM_NNODES": "2",
        "SLURM_JOB_ID": "41",
        "SLURM_JOB_NODELIST": "node[7-8]",
    }
    environment = os.environ | slurm | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-u", tmp_path / "job.sh"], env=environment, timeout=60)
    run, *others = (tmp_path / "calls").read_text().splitlines()
    understand(shlex.split(run), monkeypatch)
    if run.startswith("torchrun"):
        assert "--nnodes=2 " in run and "--rdzv_endpoint=node7:29500" in run and not others
    else:
        assert run.endswith("decoder=gru seed=3") and others == ["scontrol requeue 40_5"]


def test_there_are_scripts_for_one_machine_and_for_several():
    assert {name.partition("-")[0] for name in SCRIPTS} >= {"sweeps", "scaling"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_of_the_documents_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        name, _, anchor = target.partition("#")
        if name.startswith("http"):
            continue
        file = (page.parent / name) if name else page
        assert file.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", file.read_text(), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, target


def test_every_page_stands_in_the_readmes_index():
    index = (ROOT / "README.md").read_text().partition("## Documentation")[2]
    assert all(f"(docs/{page.name})" in index for page in (ROOT / "docs").glob("*.md"))
