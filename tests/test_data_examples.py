"""Questions from every kind of source, and one sentence about each that is bad."""

from __future__ import annotations

import io
import json
import pickle
import tracemalloc

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from zooprune.data.examples import bundled_examples, fingerprint, load_examples

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
        {"image": "images/blue.png", "question": "what colour?", "answers": "blue", "task": "colour"},
    ]
    path = folder / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    examples = load_examples(path)
    assert colours(examples) == [[RED], [RED, BLUE], [BLUE]]
    assert [example.answers for example in examples] == [("red",), ("no", "No."), ("blue",)]
    assert [example.id for example in examples] == ["1", "2", "3"]
    assert [example.task for example in examples] == ["questions", "questions", "colour"]
    assert len(load_examples(path, limit=2)) == 2


def write(folder, *rows):
    """Write rows of JSON Lines, each about the red image unless it says otherwise."""
    path = folder / "mine.jsonl"
    path.write_text("\n".join(json.dumps({"image": "images/red.png", "question": "?"} | row) for row in rows))
    return path


def test_ids_are_used_and_unique(folder):
    assert [one.id for one in load_examples(write(folder, {"id": "a"}, {"id": 7}))] == ["a", "7"]
    with pytest.raises(ValueError, match=r"row 3: the id 'a' is that of .*mine.jsonl, row 1 too"):
        load_examples(write(folder, {"id": "a"}, {"id": "b"}, {"id": "a"}))


def test_questions_about_the_same_image_are_of_one_scene(folder):
    path = write(folder, {}, {"image": "images/blue.png"}, {"image": "./images/red.png"})
    first, second, third = load_examples(path)
    assert first.scenes == third.scenes != second.scenes
    first, second = load_examples(write(folder, {"cluster": 1}, {"cluster": 1, "image": "images/blue.png"}))
    assert first.scenes == second.scenes
    table = pa.table({"image": [{"bytes": encoded(BLUE), "path": None}] * 2, "question": ["a?", "b?"]})
    pq.write_table(table, folder / "bytes.parquet")
    first, second = load_examples(folder / "bytes.parquet")
    assert first.scenes == second.scenes
    pair = next(one for one in bundled_examples(limit=9) if len(one.images) == 2)
    assert len(pair.scenes) == 2


@pytest.mark.parametrize("column", ["answers", "id", "cluster"])
def test_half_given_columns_are_refused(folder, column):
    for rows in ([{column: "a"}, {column: "b"}, {}], [{}, {}, {column: "a"}]):
        with pytest.raises(ValueError, match=f"row . has some; give {column} in all rows or in none") as error:
            load_examples(write(folder, *rows))
        assert f"row {3 if rows[0] else 1}: no {column}" in str(error.value)


@pytest.mark.parametrize("wrong, right", [("Answer", "answers"), ("Answers", "answers"), ("anwsers", "answers"),
                                          ("clusters", "cluster"), ("Task", "task")])  # fmt: skip
def test_misspelt_columns_are_refused(folder, wrong, right):
    with pytest.raises(ValueError, match=f"row 2: there is no column '{wrong}'; call it '{right}'"):
        load_examples(write(folder, {}, {wrong: "red"}))


@pytest.mark.parametrize("column", ["answers", "answer", "label"])
def test_answers_have_three_names(folder, column):
    first, second = load_examples(write(folder, {column: "red"}, {column: ["red", "Red"]}))
    assert first.answers == ("red",) and second.answers == ("red", "Red")
    with pytest.raises(ValueError, match=f"row 1: {column} must be text or a list of texts; put numbers in quotes"):
        load_examples(write(folder, {column: 3}))
    with pytest.raises(ValueError, match=r"row 2: no answers, but .* has some"):
        load_examples(write(folder, {column: "red"}, {}))


def test_a_second_column_of_answers_is_said_not_to_be_read(folder):
    with pytest.warns(UserWarning, match="not read: the column label"):
        (row,) = load_examples(write(folder, {"answers": "red", "label": 3}))
    assert row.answers == ("red",)


def test_a_byte_order_mark_is_skipped(folder):
    path = write(folder, {"answer": "red"})
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [one.answers for one in load_examples(path)] == [("red",)]


def test_strictly_a_column_that_is_not_read_is_an_error(folder):
    with pytest.raises(ValueError, match=r"row 1: not read: the column source; known are image, .*; take out"):
        load_examples(write(folder, {"source": "web"}), strict=True)


@pytest.mark.parametrize("address", ["https://example.org/red.png", "s3://bucket/red.png"])
def test_addresses_get_a_sentence_of_their_own(folder, address):
    with pytest.raises(ValueError, match=r"mine.jsonl, row 1: .*red.png is an address on the web, and only local"):
        load_examples(write(folder, {"image": address}))
    with pytest.raises(ValueError, match=r"^\S+red.png is an address on the web"):
        load_examples(address)


def test_a_folder_without_images(folder):
    with pytest.raises(ValueError, match="holds no image file"):
        load_examples(folder, question="what?")


def test_other_columns_are_said_once(folder):
    path = write(folder, {"source": "web", "idx": 3}, {"source": "book", "idx": 4})
    with pytest.warns(UserWarning, match="row 1: not read: the columns idx, source; known are image") as caught:
        assert [one.id for one in load_examples(path)] == ["1", "2"]
    assert len(caught) == 1


def test_an_image_that_changes_is_noticed(folder):
    path = write(folder, {})
    before = fingerprint(load_examples(path))
    assert fingerprint(load_examples(path)) == before
    Image.new("RGB", (21, 10), BLUE).save(folder / "images" / "red.png")
    assert fingerprint(load_examples(path)) != before
    found = set()
    for colour in (RED, BLUE, RED):
        table = pa.table({"image": [{"bytes": encoded(colour), "path": None}], "question": ["what colour?"]})
        pq.write_table(table, folder / "bytes.parquet")
        found.add(fingerprint(load_examples(folder / "bytes.parquet")))
    assert len(found) == 2


@pytest.mark.parametrize("group", [7, 400])
def test_encoded_images_stay_in_their_file(folder, group):
    """Rows of a Parquet file hold no image, and images come one by one in whatever order they are asked for."""
    count, size = 400, 40_000
    rng = np.random.default_rng(0)
    shades = [number % 256 for number in range(count)]
    # What follows the image's end makes it as large as a photograph.
    files = [encoded((shade, 0, 0)) + rng.bytes(size) for shade in shades]
    table = pa.table({"images": [[{"bytes": data, "path": None}] for data in files], "question": ["?"] * count})
    # A page is read as a whole, so pages must be small beside the file for the test to say something.
    pq.write_table(table, folder / "many.parquet", row_group_size=group, write_batch_size=16)
    del table, files
    tracemalloc.start()
    arrow = pa.total_allocated_bytes()
    examples = load_examples(folder / "many.parquet")
    order = [*range(count), *rng.permutation(count)[:10].tolist()]
    assert [examples[number].images[0]().getpixel((0, 0))[0] for number in order] == [shades[n] for n in order]
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    whole = count * size
    assert held < whole / 8 and peak < whole / 4
    assert pa.total_allocated_bytes() - arrow < whole / 3


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
    "empty": ("{}", "no question"),
    "an empty answer": ({"image": "images/red.png", "question": "?", "answers": [" "]}, "an answer is empty"),
    "an id of another kind": ({"image": "images/red.png", "question": "?", "id": [3]}, "id must be text or a whole"),
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


def test_an_empty_line_is_named(folder):
    path = folder / "mine.jsonl"
    good = json.dumps({"image": "images/red.png", "question": "what colour?"})
    path.write_text(f"{good}\n\n{good}\n")
    with pytest.raises(ValueError, match="row 2: the row is empty"):
        load_examples(path)


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


def test_images_that_are_missing_may_wait_for_their_turn(folder):
    rows = [
        {"image": "images/red.png", "question": "?"},
        {"image": "images/none.png", "question": "?"},
        {"question": "?"},
        {"images": ["images/blue.png", 7], "question": "?"},
    ]
    path = folder / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    examples = load_examples(path, check_images=False)
    assert [example.names for example in examples] == [
        ("images/red.png",), ("images/none.png",), (None,), ("images/blue.png", None),
    ]  # fmt: skip
    assert examples[0].images[0]().getpixel((0, 0)) == RED
    for number, message in ((1, "row 2: the image images/none.png does not exist"), (2, "row 3: an image must be")):
        with pytest.raises(ValueError, match=message):
            examples[number].images[0]()
    with pytest.raises(ValueError, match=r"row 2: the image images/none.png does not exist"):
        load_examples(path)
    rows = [{"image": "images/red.png", "images": ["images/red.png"], "question": "?"}]
    path.write_text(json.dumps(rows[0]))
    with pytest.raises(ValueError, match="give either image or images"):
        load_examples(path, check_images=False)


def test_examples_can_be_sent_to_another_process(folder):
    """A cluster's workers read the images themselves, whatever they are stored in."""
    pictures = [{"bytes": encoded(colour), "path": f"{number}.png"} for number, colour in enumerate((RED, BLUE))]
    pq.write_table(pa.table({"image": pictures, "question": ["?"] * 2}), folder / "mine.parquet")
    (folder / "set").mkdir()
    pq.write_table(pa.table({"image": pictures, "question": ["?"] * 2}), folder / "set" / "mine.parquet")
    for source in (folder / "mine.parquet", folder / "set", write(folder, {}, {"image": "images/blue.png"})):
        examples = load_examples(source)
        sent = pickle.loads(pickle.dumps(examples))
        assert colours(sent) == colours(examples) == [[RED], [BLUE]]
        assert [example.names for example in sent] == [example.names for example in examples]
    assert load_examples(folder / "mine.parquet")[1].names == ("1.png",)
