"""Questions from every kind of source, and one sentence about each that is bad."""

from __future__ import annotations

import io
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from zooprune.data.examples import bundled_examples, load_examples

RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name, colour in (("red", RED), ("blue", BLUE)):
        Image.new("RGB", (20, 10), colour).save(tmp_path / "images" / f"{name}.png")
    (tmp_path / "images" / "notes.txt").write_text("no image")
    return tmp_path


def encoded(colour) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 10), colour).save(file, "PNG")
    return file.getvalue()


def colours(examples):
    return [[load().getpixel((0, 0)) for load in example.images] for example in examples]


def test_the_bundled_questions_go_through_the_tasks_in_turn():
    examples = bundled_examples(limit=7)
    assert [example.task for example in examples][:3] == ["existence", "place", "relation"]
    assert len({example.id for example in examples}) == 7
    assert all(example.images[0]().mode == "RGB" and example.question and example.answers for example in examples)
    chosen = load_examples("bundled", tasks=["count"], limit=2)
    assert [example.task for example in chosen] == ["count", "count"]


def test_json_lines(folder):
    rows = [
        {"image": "images/red.png", "question": "what colour?", "answers": "red"},
        {"images": ["images/red.png", "images/blue.png"], "question": "same?", "answers": ["no", "No."]},
        {"image": "images/blue.png", "question": "what colour?"},
    ]
    path = folder / "mine.jsonl"
    path.write_text("\n\n".join(map(json.dumps, rows)))
    examples = load_examples(path)
    assert colours(examples) == [[RED], [RED, BLUE], [BLUE]]
    assert [example.answers for example in examples] == [("red",), ("no", "No."), ()]
    assert [example.id for example in examples] == ["1", "3", "5"]
    assert {example.task for example in examples} == {"questions"}
    assert len(load_examples(path, limit=2)) == 2


def test_parquet_with_paths_and_with_bytes(folder):
    table = pa.table({"image": ["images/red.png"], "question": ["what colour?"], "answers": [["red"]]})
    pq.write_table(table, folder / "paths.parquet")
    table = pa.table({"image": [{"bytes": encoded(BLUE), "path": None}], "question": ["what colour?"]})
    pq.write_table(table, folder / "bytes.parquet")
    assert colours(load_examples(folder / "paths.parquet")) == [[RED]]
    assert load_examples(folder / "paths.parquet")[0].answers == ("red",)
    assert colours(load_examples(folder / "bytes.parquet")) == [[BLUE]]


def test_a_folder_of_images(folder):
    examples = load_examples(folder / "images", question="what colour?")
    assert [example.id for example in examples] == ["blue.png", "red.png"]
    assert colours(examples) == [[BLUE], [RED]]


def test_a_saved_dataset_with_splits(folder):
    rows = {"image": [Image.new("RGB", (20, 10), RED)], "question": ["what colour?"], "answers": [["red"]]}
    pairs = {"images": [[Image.new("RGB", (20, 10), one) for one in (RED, BLUE)]], "question": ["same?"]}
    features = datasets.Features({"images": datasets.List(datasets.Image()), "question": datasets.Value("string")})
    saved = {"one": datasets.Dataset.from_dict(rows), "two": datasets.Dataset.from_dict(pairs, features=features)}
    datasets.DatasetDict(saved).save_to_disk(folder / "saved")
    saved["one"].save_to_disk(folder / "alone")
    assert colours(load_examples(f"{folder}/saved:one")) == [[RED]]
    assert colours(load_examples(f"{folder}/saved:two")) == [[RED, BLUE]]
    assert colours(load_examples(folder / "alone")) == [[RED]]
    with pytest.raises(ValueError, match="has the splits one, two; give one as"):
        load_examples(folder / "saved")


def test_a_downloaded_dataset(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for split, colour in (("train", RED), ("test", BLUE)):
        table = pa.table({"image": [{"bytes": encoded(colour), "path": None}], "question": ["what colour?"]})
        (folder / "downloaded" / "data").mkdir(parents=True, exist_ok=True)
        pq.write_table(table, folder / "downloaded" / "data" / f"{split}-00000-of-00001.parquet")
    assert colours(load_examples(f"{folder}/downloaded:test")) == [[BLUE]]
    with pytest.raises(ValueError, match="has the splits train, test; give one as"):
        load_examples(folder / "downloaded")


def test_images_with_a_table_beside_them(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    row = {"file_name": "red.png", "question": "what colour?", "answers": ["red"]}
    (folder / "images" / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    (example,) = load_examples(folder / "images")
    assert colours([example]) == [[RED]] and example.answers == ("red",)


BAD_ROWS = {
    "not JSON": ("{", "not JSON"),
    "no object": ("[1]", "expected an object"),
    "no question": ({"image": "images/red.png"}, "no question"),
    "blank question": ({"image": "images/red.png", "question": " "}, "no question"),
    "no image": ({"question": "?"}, "either image or images"),
    "both": ({"image": "images/red.png", "images": ["images/red.png"], "question": "?"}, "either image or images"),
    "empty images": ({"images": [], "question": "?"}, "at least one image"),
    "images no list": ({"images": "images/red.png", "question": "?"}, "at least one image"),
    "image missing": ({"image": "images/green.png", "question": "?"}, "images/green.png does not exist"),
    "image a number": ({"image": 3, "question": "?"}, "a path or the bytes"),
    "answers a number": ({"image": "images/red.png", "question": "?", "answers": 3}, "put numbers in quotes"),
    "answers numbers": ({"image": "images/red.png", "question": "?", "answers": [3]}, "put numbers in quotes"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_a_bad_row_is_named(folder, kind):
    row, message = BAD_ROWS[kind]
    good = json.dumps({"image": "images/red.png", "question": "what colour?"})
    path = folder / "mine.jsonl"
    path.write_text(f"{good}\n{row if isinstance(row, str) else json.dumps(row)}\n")
    with pytest.raises(ValueError, match=message) as error:
        load_examples(path)
    assert f"{path}, row 2" in str(error.value) and "\n" not in str(error.value)


def test_an_image_that_cannot_be_read_is_named(folder):
    pq.write_table(pa.table({"image": [{"bytes": b"no image"}], "question": ["?"]}), folder / "bytes.parquet")
    (example,) = load_examples(folder / "bytes.parquet")
    with pytest.raises(ValueError, match=r"the image of .*bytes.parquet, row 1 is not an image Pillow can read"):
        example.images[0]()


BAD_SOURCES = {
    "missing": ("missing.jsonl", {}, "does not exist"),
    "csv": ("rows.csv", {}, "neither .jsonl nor .parquet"),
    "empty": ("empty.jsonl", {}, "holds no question"),
    "no parquet": ("broken.parquet", {}, "not a Parquet file"),
    "not UTF-8": ("latin.jsonl", {}, "not UTF-8"),
    "no question": ("images", {}, "--question"),
    "empty question": ("images", {"question": " "}, "the question is empty"),
    "a question too many": ("empty.jsonl", {"question": "what?"}, "leave out --question"),
    "limit": ("empty.jsonl", {"limit": 0}, "at least 1"),
}


@pytest.mark.parametrize("kind", BAD_SOURCES)
def test_a_bad_source(folder, kind):
    (folder / "rows.csv").write_text("image,question\n")
    (folder / "empty.jsonl").write_text("\n")
    (folder / "broken.parquet").write_bytes(b"PAR1")
    (folder / "latin.jsonl").write_bytes(b'{"question": "\xe9"}')
    name, options, message = BAD_SOURCES[kind]
    with pytest.raises(ValueError, match=message) as error:
        load_examples(folder / name, **options)
    assert "\n" not in str(error.value)


def test_unknown_names(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="no task 'counting'; choose among existence"):
        load_examples("bundled", tasks=["counting"])
    with pytest.raises(ValueError, match="cannot load the data set 'nobody/nothing'"):
        load_examples("nobody/nothing:test")
