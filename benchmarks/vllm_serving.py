"""How does a vLLM server bear a load, unpruned and pruned?

    .venv-vllm/bin/python benchmarks/vllm_serving.py [--requests 500] [--clients 16] [--keeps 192 64]

One server after the other serves the bundled model and answers the same requests: images of several sizes, text alone
and broken images, as `zooprune bench serve` makes them. Its answers are compared with those of transformers with
zooprune, and its memory is read before and after. Made by `make test-vllm`, the environment has all it needs.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import torch
from PIL import Image
from rich.console import Console

from environment import write
from zooprune import load_bundled, prune
from zooprune.benching import serving
from zooprune.bundled import BUNDLED_FOLDER
from zooprune.integrations.vllm.checkpoint import write_for_vllm

#: Enough for two whole images, a question and its answer.
LONGEST = 1280
MAX_TOKENS = 16


class Server:
    """`vllm serve` on this machine, in a process of its own.

    Parameters
    ----------
    folder : Path
    keep : int or None
        None serves without the plug-in.
    port : int
    """

    def __init__(self, folder: Path, keep: int | None, port: int) -> None:
        line = [
            str(Path(sys.executable).with_name("vllm")), "serve", str(folder),
            "--host", "127.0.0.1", "--port", str(port),
            "--dtype", "float32", "--enforce-eager", "--max-model-len", str(LONGEST), "--block-size", "32",
            "--max-num-seqs", "16",
        ]  # fmt: skip
        if keep is not None:
            line += ["--additional-config", json.dumps({"zooprune": {"method": "zoo", "keep": keep}})]
        self.url = f"http://127.0.0.1:{port}"
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115, it is open as long as the server
        env = os.environ | {
            "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1",
            "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        self._process = subprocess.Popen(line, env=env, stdout=self._log, stderr=subprocess.STDOUT)

    def __enter__(self) -> Server:
        for _ in range(600):
            if self._process.poll() is not None:
                raise RuntimeError(self.log)
            try:
                urllib.request.urlopen(f"{self.url}/health").close()
                return self
            except OSError:
                time.sleep(0.5)
        raise RuntimeError("the server does not come up")

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(60)

    @property
    def log(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def used(self) -> tuple[int, float]:
        """Return the bytes that the server's processes hold, and the seconds of processor time they have taken."""
        root = psutil.Process(self._process.pid)
        processes = [root, *root.children(recursive=True)]
        times = [process.cpu_times() for process in processes]
        return sum(process.memory_info().rss for process in processes), sum(each.user + each.system for each in times)

    def open_requests(self) -> float:
        with urllib.request.urlopen(f"{self.url}/metrics") as answer:
            figures = answer.read().decode()
        return sum(
            float(value) for value in re.findall(r"^vllm:num_requests_(?:running|waiting)\{.*\} (\S+)$", figures, re.M)
        )


def expected(requests: list[serving.Request], keep: int | None) -> dict[int, str]:
    """Return what transformers with zooprune replies, by the number of the request."""
    model, processor = load_bundled()
    found = {}
    for number, request in enumerate(requests):
        if request.kind == "broken":
            continue
        images = [
            Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].partition(",")[2]))).convert("RGB")
            for part in request.content
            if part["type"] == "image_url"
        ]
        parts = [{"type": "image"} if part["type"] == "image_url" else part for part in request.content]
        text = processor.apply_chat_template(
            [{"role": "user", "content": parts}], add_generation_prompt=True, tokenize=False
        )
        inputs = processor(text=[text], images=images or None, return_tensors="pt", add_special_tokens=False)
        pruned = prune(model, "zoo", keep=keep) if keep is not None and images else nullcontext()
        with torch.no_grad(), pruned:
            output = model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)
        new = output[0, inputs["input_ids"].shape[1] :]
        found[number] = processor.decode(new, skip_special_tokens=True).strip()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--keeps", type=int, nargs="*", default=[192, 64])
    parser.add_argument(
        "--compared", type=int, help="how many of the requests transformers answers, too; all if left out"
    )
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    requests, rows = serving.make_requests(arguments.requests), []
    with tempfile.TemporaryDirectory() as folder:
        write_for_vllm(BUNDLED_FOLDER, Path(folder))
        for keep in (None, *arguments.keeps):
            answers = expected(requests[: arguments.compared], keep)
            ask: dict[str, Any] = {"model": None, "clients": arguments.clients, "max_tokens": MAX_TOKENS}
            with Server(Path(folder), keep, arguments.port) as server:
                # What is compiled or filled at first use is none of the load's business.
                serving.load(server.url, requests=20, distinct=None, **ask)
                memory, seconds = server.used()
                found = serving.load(server.url, requests=arguments.requests, distinct=None, **ask)
                # A client that is done may be ahead of the server's own books.
                time.sleep(1)
                (memory_after, seconds_after), still_open, log = server.used(), server.open_requests(), server.log
            compared = [one for one in found["outcomes"] if one["number"] in answers]
            wrong = [one["number"] for one in compared if one["text"].strip() != answers[one["number"]]]
            fits = re.search(r"KV cache size: .*", log)
            Console(width=100).print(serving.table(found))
            statuses = sorted({one["status"] for one in found["outcomes"] if one["kind"] == "broken"})
            row = {name: value for name, value in found.items() if name not in ("outcomes", "environment")} | {
                "keep": keep, "wrong": len(wrong), "broken_statuses": statuses, "still_open": still_open,
                "memory_before": memory, "memory_after": memory_after, "cpu_seconds": seconds_after - seconds,
                "compared": len(compared), "load_average": os.getloadavg(), "kv_cache": fits.group() if fits else None,
            }  # fmt: skip
            rows.append(row)
            right, grown = len(compared) - len(wrong), (memory_after - memory) / 2**20
            print(f"{keep or 'all'} tokens: {right} of {len(compared)} answers as with transformers,")
            print(f"  broken ones got {statuses}, {still_open:.0f} requests left open, memory grew by {grown:.0f} MiB,")
            print(f"  {row['cpu_seconds']:.1f} s of processor time; {row['kv_cache']}", flush=True)
    print(write("vllm_serving", {"rows": rows}))


if __name__ == "__main__":
    main()
