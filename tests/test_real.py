"""On real photographs: slow, and skipped with a reason where they are not. `make test-slow`."""

import tarfile

import pytest
from conftest import flickr8k_root, real_weights

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def flickr8k(tmp_path_factory):
    """300 training and 100 validation photographs, laid out as distributed."""
    shared, root = flickr8k_root(), tmp_path_factory.mktemp("flickr8k")
    (root / "Flicker8k_Dataset").mkdir()
    for split, tar, count in (("train", "train-0.tar", 300), ("dev", "val.tar", 100), ("test", "test.tar", 100)):
        lines = (shared / f"Flickr_8k.{split}Images.txt").read_text().split("\n")[:count]
        (root / f"Flickr_8k.{split}Images.txt").write_text("\n".join(lines))
        with tarfile.open(shared / tar) as archive:
            for member in archive.getmembers()[:count]:
                archive.extract(member, root / "Flicker8k_Dataset", filter="data")
    (root / "Flickr8k.token.txt").symlink_to(shared / "Flickr8k.token.txt")
    return root


@pytest.mark.parametrize("decoder", ["attention", "adaptive", "lstm"])
def test_from_a_few_photographs_something_is_learned_and_not_all_are_described_alike(train, flickr8k, decoder):
    weights = real_weights("mobilenet_v2.safetensors")
    data = ["data=flickr8k", f"data.root={flickr8k}", "data.min_count=2", "data.transform.size=224", "data.batch_size=64"]
    model = ["encoder=mobilenet_v2", f"encoder.weights={weights}", f"decoder={decoder}", "trainer.epochs=8", "optimizer.lr=1e-3"]
    trainer = train(*data, *model)
    evaluation = trainer.fit()
    assert evaluation.metrics["bleu1"] > 0.45 and evaluation.metrics["cider"] > 0.08
    # 200 steps: an LSTM that is told of the image once still says the same of every other picture, attention does not
    assert evaluation.metrics["most_common_share"] < (0.8 if decoder == "lstm" else 0.4)
    assert evaluation.metrics["distinct_captions"] > (2 if decoder == "lstm" else 20)
