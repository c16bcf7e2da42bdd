"""`vllm serve` with the plug-in as users run it, and `zooprune bench serve` against it; run by `make test-vllm`."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from pathlib import Path

import pytest
import torch

from zooprune import prune
from zooprune.bundled import BUNDLED_FOLDER
from zooprune.bundled.benchmark import load_benchmark, scene_image
from zooprune.integrations.vllm.checkpoint import write_for_vllm
from zooprune.integrations.vllm.kept import reports
from zooprune.picture import draw_views

pytestmark = pytest.mark.vllm

BIN = Path(sys.executable).parent
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1",
    "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
}  # fmt: skip
OPTIONS = [
    "--host",
    "127.0.0.1",
    "--dtype",
    "float32",
    "--enforce-eager",
    "--max-model-len",
    "1280",
    "--block-size",
    "32",
]
KEEP, COUNT = 64, 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("bundled")
    write_for_vllm(BUNDLED_FOLDER, made)
    return made


def _start(folder, log, *arguments, **variables):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = [str(BIN / "vllm"), "serve", str(folder), "--port", str(port), *OPTIONS, *arguments]
    # Its command looks for its own helpers on the path.
    env = os.environ | ENVIRONMENT | variables | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    return subprocess.Popen(line, env=env, stdout=log, stderr=subprocess.STDOUT), f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    """Return where the pruned bundled model is served, and its log."""
    path = tmp_path_factory.mktemp("server") / "log"
    configuration = json.dumps({"zooprune": {"method": "zoo", "keep": KEEP}})
    with path.open("w") as log:
        process, url = _start(
            folder, log, "--additional-config", configuration, "--max-num-seqs", "8", "--trust-request-mm-kwargs",
            VLLM_PLUGINS="zooprune",
        )  # fmt: skip
        try:
            # Half a minute; much more on a busy machine.
            for _ in range(1200):
                assert process.poll() is None, path.read_text()[-3000:]
                try:
                    urllib.request.urlopen(f"{url}/health").close()
                    break
                except OSError:
                    time.sleep(0.5)
            else:
                pytest.fail("the server did not come up within ten minutes")
            yield url, path
        finally:
            process.terminate()
            process.wait(60)


def _conversation(item, images):
    return [{"role": "user", "content": [*images, {"type": "text", "text": item.question}]}]


def _url(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _by_transformers(bundled, item, keep):
    model, processor = bundled
    images = [scene_image(scene) for scene in item.scenes]
    text = processor.apply_chat_template(
        _conversation(item, [{"type": "image"}] * len(images)), add_generation_prompt=True, tokenize=False
    )
    # The chat route of vLLM adds no token in front of what the template gives.
    inputs = processor(text=[text], images=images, return_tensors="pt", add_special_tokens=False)
    with torch.no_grad(), prune(model, "zoo", keep=keep, positions="contiguous"):
        output = model.generate(**inputs, max_new_tokens=16, do_sample=False)
    return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def test_one_line_names_method_budget_and_model(server, folder):
    lines = [line for line in server[1].read_text().splitlines() if "zooprune prunes" in line]
    assert len(lines) == 1
    assert lines[0].endswith(f"zooprune prunes the images of {folder}: method zoo, {KEEP} tokens per image")


def test_answers_are_those_of_transformers(server, bundled):
    """Thirty questions of the bundled benchmark, pairs of images among them, and a smaller budget for some."""
    import openai

    client = openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0)
    model = client.models.list().data[0].id
    for number, item in enumerate(load_benchmark()[:COUNT]):
        keep = 24 if number % 3 == 0 else KEEP
        images = [{"type": "image_url", "image_url": {"url": _url(scene_image(scene))}} for scene in item.scenes]
        reply = client.chat.completions.create(
            model=model, messages=_conversation(item, images), max_tokens=16, temperature=0,
            extra_body={"mm_processor_kwargs": {"zooprune": {"keep": keep}}} if keep != KEEP else {},
        )  # fmt: skip
        assert reply.choices[0].message.content.strip() == _by_transformers(bundled, item, keep), item.id
        # The template's words beside the image are few.
        assert 0 < reply.usage.prompt_tokens - keep * len(item.scenes) < 20


def test_a_client_draws_what_was_kept(server, bundled, tmp_path):
    """As docs/serving.md has it; the server tells of the labels of requests, and of no others."""
    import openai

    model, processor = bundled
    image, label = scene_image(0), str(uuid.uuid4())
    client = openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0)
    content = [{"type": "image_url", "image_url": {"url": _url(image)}}, {"type": "text", "text": "Is there a dog?"}]
    client.chat.completions.create(
        model=client.models.list().data[0].id, messages=[{"role": "user", "content": content}], max_tokens=4,
        extra_body={"mm_processor_kwargs": {"zooprune": {"label": label}}},
    )  # fmt: skip
    answer = client.get(f"/zooprune/kept/{label}", cast_to=object)
    (report,) = reports(answer["images"])
    with torch.no_grad(), prune(model, "zoo", keep=KEEP) as session:
        inputs = processor(text="USER: <image>\nIs there a dog? ASSISTANT:", images=image, return_tensors="pt")
        model.generate(**inputs, max_new_tokens=1)
    (expected,) = session.reports[-1].images
    assert torch.equal(report.selection.index, expected.selection.index) and report.total == 576
    drawn, like = (draw_views(image, [each])["kept"] for each in (report, expected))
    assert drawn.tobytes() == like.tobytes() != image.resize(drawn.size).tobytes()
    with pytest.raises(openai.NotFoundError, match="no images are remembered under 'other'"):
        client.get("/zooprune/kept/other", cast_to=object)


@pytest.mark.parametrize(
    "asked", [{"keep": KEEP + 1}, {"keep": 0}, {"keep": "x"}, {"method": "random"}, {"label": "a/b"}, 3]
)
def test_wrong_budgets_are_refused(server, asked):
    import openai

    client = openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0)
    content = [{"type": "image_url", "image_url": {"url": _url(scene_image(0))}}, {"type": "text", "text": "Hello?"}]
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(
            model=client.models.list().data[0].id, messages=[{"role": "user", "content": content}], max_tokens=4,
            extra_body={"mm_processor_kwargs": {"zooprune": asked}},
        )  # fmt: skip
    assert caught.value.status_code == 400 and re.search("keep|label", str(caught.value))


def test_a_video_for_a_model_of_images_is_refused(server):
    import openai

    client = openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0)
    content = [{"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}, {"type": "text", "text": "?"}]
    with pytest.raises(openai.BadRequestError, match="video"):
        client.chat.completions.create(
            model=client.models.list().data[0].id, messages=[{"role": "user", "content": content}], max_tokens=4
        )


def test_a_load_is_borne(server, tmp_path):
    """Broken images get 4xx, all others are answered, the same question the same way; nothing is left open."""
    line = [str(BIN / "zooprune"), "bench", "serve", "--url", server[0], "--clients", "8", "--requests", "120"]
    line += ["--distinct", "40", "--plot", str(tmp_path / "load.html")]
    done = subprocess.run([*line, "--json"], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    rows = {row["kind"]: row for row in found["kinds"]}
    assert rows["image"]["requests"] + rows["text"]["requests"] == rows["all answered"]["requests"]
    assert sum(rows[kind]["requests"] for kind in ("image", "text", "broken")) == 120 == len(found["outcomes"])
    assert all(row["right"] == row["requests"] > 0 for row in rows.values()), found["errors"]
    assert found["errors"] == [] and found["varied"] == 0
    image = rows["image"]
    assert 0 < image["first_p50"] <= image["first_p90"] <= image["first_p99"] <= image["whole_p99"]
    assert image["first_p50"] <= image["whole_p50"] and found["requests_per_second"] > 0
    assert "first token" in (tmp_path / "load.html").read_text()
    time.sleep(1)
    with urllib.request.urlopen(f"{server[0]}/metrics") as answer:
        figures = answer.read().decode()
    assert re.findall(r"^vllm:num_requests_(?:running|waiting)\{.*\} (\S+)$", figures, re.M) == ["0.0", "0.0"]


def test_the_table_fits_a_terminal(server):
    line = [str(BIN / "zooprune"), "bench", "serve", "--url", server[0] + "/v1", "--clients", "2", "--requests", "10"]
    done = subprocess.run(line, capture_output=True, text=True, env=os.environ | {"COLUMNS": "80"}, check=True)
    assert "p99" in done.stdout and "broken" in done.stdout
    assert all(len(row.rstrip()) <= 80 for row in done.stdout.splitlines())


@pytest.mark.parametrize(
    ("configuration", "variable", "sentence"),
    [
        ({"zooprune": {"method": "zoo", "keep": 0}}, "", "zooprune: keep=0 leaves no visual token; give at least 1"),
        ({}, "{zoo}", 'zooprune: the configuration is not JSON; give {"method": "zoo", "keep": 64}'),
    ],
)
def test_a_wrong_configuration_stops_the_server(folder, tmp_path, configuration, variable, sentence):
    with (tmp_path / "log").open("w") as log:
        process, _ = _start(folder, log, "--additional-config", json.dumps(configuration), ZOOPRUNE_VLLM=variable)
        assert process.wait(600) != 0
    assert (tmp_path / "log").read_text().rstrip().endswith(sentence)


def test_a_server_that_is_not_there_is_one_line():
    line = [str(BIN / "zooprune"), "bench", "serve", "--url", "http://127.0.0.1:9", "--requests", "1"]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "no server answers at http://127.0.0.1:9" in done.stderr
