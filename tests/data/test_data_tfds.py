"""TFDS: the real MNIST, sets built on the fly, and every message."""

import importlib.util
import io
import os
import subprocess
import sys

import numpy as np
import pytest

from nnkit.data import decoded, tfds


@pytest.fixture(scope="module")
def blobs(tmp_path_factory):
    """Three tiny builders: tensors, images given as PNG, and images that only TensorFlow makes."""
    import tensorflow_datasets as source
    from PIL import Image

    def png(i):
        file = io.BytesIO()
        Image.fromarray(np.full((4, 5, 3), i, np.uint8)).save(file, "PNG")
        file.seek(0)
        return file

    class Builder(source.core.GeneratorBasedBuilder):
        VERSION = source.core.Version("1.0.0")
        FEATURES: dict = {}  # noqa: RUF012
        KEYS = None
        one = staticmethod(lambda i: {})

        def _info(self):
            return source.core.DatasetInfo(
                builder=self,
                disable_shuffling=True,
                supervised_keys=self.KEYS,
                features=source.features.FeaturesDict(self.FEATURES),
            )

        def _split_generators(self, manager):
            return {"train": self._generate_examples(30), "test": self._generate_examples(7)}

        def _generate_examples(self, n):
            for i in range(n):
                yield i, self.one(i)

    label = source.features.ClassLabel(names=["even", "odd"])

    class NnkitBlobs(Builder):
        FEATURES = {  # noqa: RUF012
            "v": source.features.Tensor(shape=(2,), dtype=np.float32),
            "label": label,
            "text": source.features.Text(),
            "inner": {"n": source.features.Scalar(np.int64)},
        }
        one = staticmethod(
            lambda i: {
                "v": np.full(2, i, np.float32),
                "label": i % 2,
                "text": "a" * i,
                "inner": {"n": i},
            }
        )

    class NnkitPictures(Builder):
        FEATURES = {"image": source.features.Image(shape=(4, 5, 3)), "label": label}  # noqa: RUF012
        KEYS = ("image", "label")
        one = staticmethod(lambda i: {"image": png(i), "label": i % 2})

    class NnkitNeedy(Builder):
        FEATURES = {"image": source.features.Image(shape=(4, 5, 3))}  # noqa: RUF012
        one = staticmethod(lambda i: {"image": np.zeros((4, 5, 3), np.uint8)})

    return str(tmp_path_factory.mktemp("tfds"))


def load(blobs, name="nnkit_pictures", **options):
    return tfds(name, **{"split": "train", "batch_size": 10, "data_dir": blobs, **options})


def test_prepared_once_as_array_record_and_read_back(blobs, monkeypatch):
    train = load(blobs)
    files = [f for _, _, names in os.walk(blobs) for f in names]
    assert any("array_record" in f for f in files)
    assert (train.examples, train.classes, train.shuffle) == (30, ("even", "odd"), True)
    test = load(blobs, split="test", batch_size=4)
    first = next(iter(test))
    assert not test.shuffle
    assert first["x"].shape == (4, 4, 5, 3)
    assert first["x"].dtype == np.float32
    assert first["y"].tolist() == [0, 1, 0, 1]
    assert first["y"].dtype == np.int32
    np.testing.assert_array_equal(first["x"][3], np.full((4, 5, 3), np.float32(3) / 255))
    monkeypatch.delenv("NNKIT_DATA_DIR", raising=False)
    monkeypatch.setenv("TFDS_DATA_DIR", blobs)
    assert load(None, data_dir=None).fingerprint == train.fingerprint
    monkeypatch.setenv("NNKIT_DATA_DIR", blobs)
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert load(None, "nnkit_pictures:1.0.0", data_dir=None).fingerprint == train.fingerprint


def test_from_disk_is_the_same_as_from_memory(blobs):
    memory, disk = load(blobs, seed=4), load(blobs, seed=4, memory=0)
    assert disk.fingerprint == memory.fingerprint
    a, b = memory.stream(start=5), disk.stream(start=5)
    for _ in range(4):
        one, other = next(a), next(b)
        assert all(np.array_equal(one[k], other[k]) for k in one)
    assert disk.corners()["y"].tolist() == [0, 1]
    train, test = disk.split(0.5)
    assert (train.examples, test.examples) == (15, 15)


def test_map_and_choice_of_features(blobs):
    def numbers(batch):
        assert batch["inner/n"].dtype == np.int64
        return {"x": batch["v"], "y": np.array([len(t) for t in batch["text"]])}

    for memory in (0, 2**31):
        mapped = load(blobs, "nnkit_blobs", map=numbers, shuffle=False, memory=memory)
        assert next(iter(mapped))["y"].tolist() == list(range(10))
    chosen = load(blobs, "nnkit_blobs", x="v", y="label", shuffle=False)
    assert set(chosen.spec) == {"x", "y"}
    assert chosen.classes == ("even", "odd")
    nested = load(blobs, "nnkit_blobs", x="v", y="inner/n", shuffle=False)
    assert next(iter(nested))["y"].tolist() == list(range(10))
    part = load(blobs, "nnkit_blobs", x="v", split="train[10:20]", shuffle=False)
    assert next(iter(part))["x"][:, 0].tolist() == list(range(10, 20))


def test_declared_keys_after_map(blobs):
    def brighter(batch):
        return {**batch, "image": batch["image"].astype(np.float32) * 2}

    mapped = load(blobs, map=brighter, shuffle=False)
    assert next(iter(mapped))["x"][3, 0, 0, 0] == 6
    with pytest.raises(TypeError, match=r"image is uint8, range 0\.\.29.*image / 255"):
        load(blobs, map=lambda batch: {"image": batch["image"]})


def test_messages(blobs):
    cases = [
        ({"name": "nnkit_blob"}, ValueError, r"'nnkit_blob' is neither.*did you mean .*nnkit_b"),
        ({"name": "../x"}, ValueError, r"name is '\.\./x', expected the name of a data set"),
        ({"name": "a/.."}, ValueError, r"name is 'a/\.\.', expected the name"),
        ({"split": "valid"}, ValueError, r"no split 'valid'.*train \(30 ex.*test \(7.*\[:90%\]"),
        ({"split": None}, TypeError, r"split is None, expected a string such as 'train'"),
        ({"split": "train[:0]"}, ValueError, r"'train\[:0\]'.*0 examples.*at least 1"),
        ({"split": "test"}, ValueError, r"batch_size is 10, but nnkit_pictures test has only 7"),
        ({"name": "nnkit_blobs"}, TypeError, r"text is text \(first value b''\).*map="),
        ({"x": "pixels"}, KeyError, r"x='pixels' names no feature, expected one of image, label"),
        (
            {"map": lambda b: {"x": b["label"][:3]}},
            ValueError,
            r"map returned x of shape \(3,\) for 30 examples.*keep all",
        ),
        (
            {"name": "nnkit_blobs", "map": lambda b: {"x": b["text"]}},
            TypeError,
            r"x is text.*numbers of one shape.*map=",
        ),
        ({"memory": -1}, ValueError, r"memory is -1, expected a number of bytes >= 0"),
    ]
    for options, kind, message in cases:
        with pytest.raises(kind, match=message):
            load(blobs, **options)


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is installed"
)
def test_preparing_that_needs_tensorflow_says_so(blobs):
    with pytest.raises(
        RuntimeError, match=r"needs TensorFlow.*nnkit-jax\[tfds-prepare\].*data_dir"
    ):
        load(blobs, "nnkit_needy")


def test_a_failed_download_names_folders_cause_and_remedy(blobs, tmp_path, monkeypatch, capsys):
    import tensorflow_datasets as source

    def offline(self, **_):
        os.makedirs(self.data_dir)
        raise ConnectionError("Max retries exceeded\n  with url: /mnist")

    monkeypatch.setattr(source.core.DatasetBuilder, "download_and_prepare", offline)
    shared, own = tmp_path / "shared", tmp_path / "own"
    (shared / "nnkit_blobs").mkdir(parents=True)  # empty: not a data set
    monkeypatch.setenv("NNKIT_DATA_DIR", str(shared))
    monkeypatch.setenv("TFDS_DATA_DIR", str(own))
    with pytest.raises(
        RuntimeError,
        match=rf"nnkit_blobs is not in {shared}, {own}, and .* in {own} failed "
        r"\(ConnectionError: Max retries exceeded with url: /mnist\); "
        r"set NNKIT_DATA_DIR to .*data_dir=.*the connection",
    ) as caught:
        load(None, "nnkit_blobs", data_dir=None)
    assert isinstance(caught.value.__cause__, ConnectionError)
    said = f"nnkit_blobs is not in {shared}, {own}: downloading and preparing it once in {own}\n"
    assert capsys.readouterr().out == said
    assert not (own / "nnkit_blobs").exists()
    with pytest.raises(ValueError, match=r"nor known") as caught:
        load(None, "nnkit_blob", data_dir=None)
    assert f"prepared in {shared}, {own} nor known" in str(caught.value)  # lists no data sets
    monkeypatch.undo()
    load(blobs)
    with pytest.raises(ValueError, match=r"\((nnkit_blobs, )?nnkit_pictures\) nor known"):
        load(blobs, "nnkit_blob")


def test_a_data_folder_that_does_not_exist_is_an_error_at_once(blobs, tmp_path, monkeypatch):
    load(blobs)
    monkeypatch.setenv("TFDS_DATA_DIR", blobs)
    monkeypatch.setenv("NNKIT_DATA_DIR", str(tmp_path / "none"))
    message = r"NNKIT_DATA_DIR is '.*none', which is no folder; expected .*correct it, or unset it"
    with pytest.raises(FileNotFoundError, match=message):
        load(None, data_dir=None)
    assert load(blobs).examples == 30  # data_dir= does not ask it


FIRST = {"train": [4, 1, 0, 7, 8, 1, 2, 7, 1, 6], "test": [2, 0, 4, 8, 7, 6, 0, 6, 3, 1]}


@pytest.mark.parametrize("split", ["train", "test"])
def test_mnist_is_mnist(data_dir, split):
    batches = tfds("mnist", split=split, batch_size=1000, data_dir=data_dir, shuffle=False)
    batch = next(iter(batches))
    assert batches.examples == {"train": 60000, "test": 10000}[split]
    assert batch["y"][:10].tolist() == FIRST[split]
    assert batch["x"].shape == (1000, 28, 28, 1)
    assert batches.report["y"]["classes"] == 10
    assert (batches.report["x"]["min"], batches.report["x"]["max"]) == (0.0, 1.0)
    if split == "train":
        sums = np.zeros(2)
        for batch in batches:
            sums += batch["x"].mean(dtype=np.float64), (batch["x"] ** 2).mean(dtype=np.float64)
        mean = sums[0] / len(batches)
        assert mean == pytest.approx(0.13066, abs=1e-5)
        assert (sums[1] / len(batches) - mean**2) ** 0.5 == pytest.approx(0.30811, abs=1e-5)


@pytest.mark.parametrize("name", ["htru2", "ihdp", "etth1"])
def test_other_real_sets(data_dir, name):
    batches = tfds(name, split="train", batch_size=1, data_dir=data_dir)
    assert batches.examples == {"htru2": 12528, "ihdp": 10, "etth1": 1}[name]
    assert ("y" in batches.spec) == (name == "htru2")


def test_decoded_cache_is_used_renewed_and_not_trusted(tmp_path, monkeypatch):
    monkeypatch.setenv("NNKIT_CACHE", str(tmp_path))
    file = tmp_path / "records"
    file.write_bytes(b"1")
    name = decoded.key([file], split="train")
    x = {"x": np.arange(6, dtype=np.uint8).reshape(2, 3)}
    decoded.save(name, x)
    assert np.array_equal(decoded.load(name)["x"], x["x"])
    assert os.listdir(tmp_path / "data") == [f"{name}.npz"]
    kept = tmp_path / "data" / f"{name}.npz"
    whole = kept.read_bytes()
    place = whole.index(bytes(range(6)))
    kept.write_bytes(whole[:place] + b"\x09" + whole[place + 1 :])
    assert decoded.load(name) is None
    for end in (0, 10, len(whole) - 5):
        kept.write_bytes(whole[:end])
        assert decoded.load(name) is None
    file.write_bytes(b"22")
    assert decoded.key([file], split="train") != name
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NNKIT_CACHE", str(tmp_path / "file"))
    decoded.save(name, x)  # no folder can be made there: not an error


def test_importing_data_imports_nothing_heavy():
    code = (
        "import sys, nnkit.data\n"
        "heavy = ['tensorflow', 'tensorflow_datasets', 'PIL', 'pyarrow', 'sklearn', 'grain']\n"
        "print([m for m in heavy if m in sys.modules])\n"
        "print(type(nnkit.data.tfds).__name__, type(nnkit.data.arrays).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\nfunction function\n"


def test_nothing_is_kept_where_the_cache_is_off(tmp_path, monkeypatch):
    from nnkit.data import decoded

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NNKIT_CACHE", "0")
    decoded.save("x", {"x": np.ones(3)})
    assert decoded.load("x") is None
    assert not list(tmp_path.iterdir())
