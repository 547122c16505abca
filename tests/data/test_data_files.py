"""Folders of images and tables."""

import numpy as np
import pytest
from PIL import Image

from nnkit.data import folder, table


def picture(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(path)


@pytest.fixture
def animals(tmp_path):
    for i in range(3):
        picture(tmp_path / "dog" / f"{i}.png", np.full((6, 8, 3), (200, 0, 10 * i)))
    for i in range(2):
        picture(tmp_path / "cat" / "deep" / f"{i}.PNG", np.full((4, 4), 51))
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden").mkdir()
    return tmp_path


@pytest.mark.parametrize("memory", [0, 2**31])
def test_folder_reads_classes_in_order(animals, memory):
    batches = folder(animals, size=(4, 6), batch_size=2, shuffle=False, memory=memory)
    assert batches.classes == ("cat", "dog")
    assert (batches.examples, len(batches)) == (5, 3)
    rows = list(batches)
    assert np.concatenate([b["y"] for b in rows]).tolist() == [0, 0, 1, 1, 1, 0]
    assert rows[0]["x"].shape == (2, 4, 6, 3)
    assert np.allclose(rows[0]["x"], 51 / 255)
    assert np.allclose(rows[2]["x"][0, 0, 0], [200 / 255, 0, 20 / 255])
    assert rows[2]["mask"].tolist() == [1, 0]
    assert batches.report["y"]["classes"] == 2
    assert batches.corners()["y"].tolist() == [0, 1]


def test_folder_in_grey_and_turned_upright(tmp_path):
    picture(tmp_path / "a" / "x.png", np.full((2, 2, 3), 90))
    batch = next(iter(folder(tmp_path, size=2, batch_size=1, channels=1)))
    assert batch["x"].shape == (1, 2, 2, 1)
    assert np.allclose(batch["x"], 90 / 255)
    turned = Image.fromarray(np.array([[0, 255]], np.uint8))
    exif = turned.getexif()
    exif[0x0112] = 6
    (tmp_path / "b" / "c").mkdir(parents=True)
    turned.save(tmp_path / "b" / "c" / "x.png", exif=exif)
    batch = next(iter(folder(tmp_path / "b", size=(2, 1), batch_size=1, channels=1)))
    assert batch["x"][0, :, 0, 0].tolist() == [0, 1]


def test_folder_messages(tmp_path, animals):
    with pytest.raises(FileNotFoundError, match=r"path is '.*none', which is no folder; expected"):
        folder(tmp_path / "none", size=4, batch_size=1)
    with pytest.raises(
        ValueError, match=r"deep has no subfolders.*move the images to deep/<class>"
    ):
        folder(animals / "cat" / "deep", size=4, batch_size=1)
    for size in (0, (4,), "4", 4.0, (4, -1), None):
        with pytest.raises(
            (ValueError, TypeError), match=r"size is .*, expected a positive int or"
        ):
            folder(animals, size=size, batch_size=1)
    with pytest.raises(ValueError, match=r"channels is 2, expected 1 \(grey\) or 3"):
        folder(animals, size=4, batch_size=1, channels=2)
    (animals / "emu").mkdir()
    with pytest.raises(ValueError, match=r"emu has no images.*\.png.*add some or remove"):
        folder(animals, size=4, batch_size=1)
    (animals / "emu" / "bad.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"bad\.png cannot be read.*remove or convert"):
        folder(animals, size=4, batch_size=1)
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(animals / "emu" / "bad.png")
    with pytest.raises(ValueError, match=r"bad\.png cannot be read.*more than 8 bits"):
        folder(animals, size=4, batch_size=1)


CSV = "a,b,name,kind,price\n1,2.5,u,7,1.5\n2,3,v,9,2\n3,-1,w,7,0.25\n"


def write(tmp_path, text=CSV):
    file = tmp_path / "t.csv"
    file.write_text(text)
    return file


def test_table_targets(tmp_path):
    file = write(tmp_path)
    options = {"batch_size": 3, "columns": ["b", "a"], "shuffle": False}
    batch = next(iter(table(file, target="kind", **options)))
    assert batch["x"].tolist() == [[2.5, 1], [3, 2], [-1, 3]]
    assert batch["x"].dtype == np.float32
    assert batch["y"].tolist() == [7, 9, 7]
    assert batch["y"].dtype == np.int32
    words = table(file, target="name", **options)
    assert words.classes == ("u", "v", "w")
    assert next(iter(words))["y"].tolist() == [0, 1, 2]
    price = next(iter(table(file, target="price", **options)))["y"]
    assert price.tolist() == [1.5, 2, 0.25]
    assert price.dtype == np.float32
    yes = write(tmp_path, "x,ok\n1,true\n2,false\n")
    flags = table(yes, target="ok", batch_size=2, shuffle=False)
    assert next(iter(flags))["y"].tolist() == [1, 0]
    assert flags.classes == ("false", "true")
    train, test = table(yes, target="ok", batch_size=1).split(0.5)
    assert (train.examples, test.examples, test.classes) == (1, 1, ("false", "true"))


def test_table_messages(tmp_path):
    cases = [
        (CSV, {"target": "kinds"}, KeyError, r"no column 'kinds'.*did you mean 'kind'\?"),
        (CSV, {"columns": ["a", "bb"]}, KeyError, r"no column 'bb', expected one of a, b"),
        (CSV, {}, TypeError, r"not numbers: 'name' \(string\).*columns=\['a', 'b', 'price'\]"),
        (CSV, {"columns": ["a", "kind"]}, ValueError, r"hold the target 'kind'.*drop it"),
        ("kind\n1\n", {}, ValueError, r"no column beside the target 'kind'"),
        ("a,kind\n", {}, ValueError, r"0 rows, expected at least 1"),
        ("a,a,kind\n1,2,3\n", {}, ValueError, r"'a' twice; rename"),
        ("a,kind\n1,1\n,2\nNaN,3\n", {}, ValueError, r"'a' .*2 missing of 3.*fill.*columns="),
        ("a,kind\n1,1\n2,\n", {}, ValueError, r"column 'kind' .* has 1 missing of 2"),
        ("a,kind\n1,1\ninf,2\n", {}, ValueError, r"a has 1 NaN or inf of 2 values"),
        ("a,kind\n1,1\n2\n", {}, ValueError, r"cannot be read \(.*check that line"),
        ("a,kind\n1,2020-01-01\n", {}, TypeError, r"target 'kind' has type date.*convert"),
        ("a,kind\n1,1\n", {"batch_size": 2}, ValueError, r"batch_size is 2, but t\.csv has only"),
    ]
    for text, options, kind, message in cases:
        with pytest.raises(kind, match=message):
            table(write(tmp_path, text), **{"target": "kind", "batch_size": 1, **options})
    with pytest.raises(FileNotFoundError, match=r"none\.csv', which is no file; expected a CSV"):
        table(tmp_path / "none.csv", target="kind", batch_size=1)
