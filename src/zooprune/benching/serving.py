"""Load a server that speaks OpenAI's protocol, and see what its users would: times, errors, and answers that vary."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table

from zooprune.bundled.benchmark import load_benchmark, scene_image
from zooprune.environment import describe

Kind = Literal["image", "text", "broken"]
#: Width and height of the images, in turn.
SIZES = ((336, 336), (640, 480), (480, 640), (1024, 768), (96, 128), (900, 300))
#: Of a hundred requests, so many have no image, and so many one that cannot be read.
TEXT_ONLY, BROKEN = 20, 10
_PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Request:
    """A question.

    Parameters
    ----------
    kind : {"image", "text", "broken"}
    content : list of dict
        Of the user's message.
    """

    kind: Kind
    content: list[dict[str, Any]]


@dataclass(frozen=True)
class Outcome:
    """What became of a request.

    Parameters
    ----------
    number : int
        Which of the different requests it was.
    kind : {"image", "text", "broken"}
    began : float
        Seconds since the load began.
    first, whole : float or None
        Seconds to the first token, and to the end of the reply.
    status : int or None
        Of HTTP; None where there was no response.
    text, error : str
    """

    number: int
    kind: Kind
    began: float
    first: float | None
    whole: float | None
    status: int | None
    text: str = ""
    error: str = ""

    @property
    def right(self) -> bool:
        """Whether it was answered, or refused as a broken request has to be."""
        if self.kind == "broken":
            return self.status is not None and 400 <= self.status < 500
        return self.status == 200


def make_requests(count: int) -> list[Request]:
    """Return different requests: images of several sizes, some with text alone, some with images that are broken."""
    items, found = itertools.cycle(load_benchmark()), list[Request]()
    broken = itertools.cycle(_broken_images())
    sizes = itertools.cycle(SIZES)
    for number in range(count):
        item = next(items)
        # Spread evenly: with a step that shares no factor with 100, every hundred has its parts.
        place = number * 37 % 100
        text = {"type": "text", "text": item.question}
        if place < TEXT_ONLY:
            found.append(Request("text", [text]))
        elif place < TEXT_ONLY + BROKEN:
            found.append(Request("broken", [_shown(next(broken)), text]))
        else:
            image = scene_image(item.scenes[0]).resize(next(sizes))
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            found.append(Request("image", [_shown(buffer.getvalue()), text]))
    return found


def _broken_images() -> list[bytes]:
    buffer = io.BytesIO()
    scene_image(0).save(buffer, "PNG")
    return [b"this is no image", buffer.getvalue()[:2000], b""]


def _shown(image: bytes) -> dict[str, Any]:
    url = "data:image/png;base64," + base64.b64encode(image).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def load(
    url: str, *, model: str | None, clients: int, requests: int, distinct: int | None, max_tokens: int
) -> dict[str, Any]:
    """Ask a server from several clients at once, each of which has one request open at a time.

    Parameters
    ----------
    url : str
        Such as ``http://127.0.0.1:8000``.
    model : str, optional
        The first one that the server names, when left out.
    clients, requests : int
    distinct : int, optional
        How many of the requests differ; they are asked in turn. All, when left out.
    max_tokens : int
        Length of a reply at most.

    Returns
    -------
    dict
        `kinds`, a row for each kind of request and one for all; `seconds`, `requests_per_second`, `tokens_per_second`
        (pieces of the replies as they were streamed), `errors`, `varied` (different requests that got more than one
        answer), `outcomes` and `environment`.

    Raises
    ------
    ImportError
        Without the package openai.
    ValueError
        If no server answers there.
    """
    try:
        import openai
    except ImportError:
        raise ImportError("openai is needed to load a server; run: pip install 'zooprune[report]'") from None
    base = url.rstrip("/").removesuffix("/v1") + "/v1"
    try:
        if model is None:
            model = openai.OpenAI(base_url=base, api_key=_key(), max_retries=0).models.list().data[0].id
    except (openai.APIError, IndexError) as error:
        raise ValueError(f"no server answers at {url} ({error}); start one with vllm serve, or give --url") from None
    prepared = make_requests(distinct or requests)
    outcomes, pieces, seconds = asyncio.run(_ask_all(openai, base, model, prepared, clients, requests, max_tokens))
    answers: dict[int, set[str]] = {}
    for one in outcomes:
        if one.kind != "broken" and one.right:
            answers.setdefault(one.number, set()).add(one.text)
    kinds = [kind for kind in ("image", "text", "broken") if any(one.kind == kind for one in outcomes)]
    rows = [_row(kind, [one for one in outcomes if one.kind == kind]) for kind in kinds]
    rows.append(_row("all answered", [one for one in outcomes if one.kind != "broken"]))
    return {
        "kinds": rows,
        "clients": clients,
        "seconds": seconds,
        "requests_per_second": len(outcomes) / seconds,
        "tokens_per_second": pieces / seconds,
        "errors": sorted({one.error for one in outcomes if not one.right}),
        "varied": sum(len(texts) > 1 for texts in answers.values()),
        "model": model,
        "outcomes": [asdict(one) for one in outcomes],
        "environment": describe(),
    }


def _key() -> str:
    """Return what the server wants to be shown, if anything."""
    return os.environ.get("OPENAI_API_KEY", "none")


async def _ask_all(
    openai: Any, base: str, model: str, prepared: Sequence[Request], clients: int, count: int, max_tokens: int
) -> tuple[list[Outcome], int, float]:
    client = openai.AsyncOpenAI(base_url=base, api_key=_key(), max_retries=0, timeout=600)
    numbers, outcomes, pieces = iter(range(count)), list[Outcome](), 0
    start = time.perf_counter()

    async def ask(number: int) -> Outcome:
        nonlocal pieces
        which = number % len(prepared)
        request, began, first, parts = prepared[which], time.perf_counter(), None, list[str]()
        status, error = None, ""
        try:
            stream = await client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": request.content}], max_tokens=max_tokens,
                temperature=0, stream=True,
            )  # fmt: skip
            async for event in stream:
                piece = event.choices[0].delta.content if event.choices else None
                if piece:
                    first = first or time.perf_counter() - began
                    parts.append(piece)
            status = 200
        except openai.APIStatusError as problem:
            status, error = problem.status_code, str(problem)
        except openai.APIError as problem:
            error = str(problem)
        pieces += len(parts)
        whole = time.perf_counter() - began
        return Outcome(which, request.kind, began - start, first, whole, status, "".join(parts), error)

    async def work() -> None:
        for number in numbers:
            outcomes.append(await ask(number))

    await asyncio.gather(*(work() for _ in range(clients)))
    await client.close()
    return outcomes, pieces, time.perf_counter() - start


def _row(kind: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "kind": kind, "requests": len(outcomes), "right": sum(one.right for one in outcomes),
    }  # fmt: skip
    for name in ("first", "whole"):
        values = sorted(value for one in outcomes if one.status == 200 and (value := getattr(one, name)) is not None)
        for percent in _PERCENTILES:
            row[f"{name}_p{percent}"] = _percentile(values, percent)
    return row


def _percentile(values: Sequence[float], percent: int) -> float | None:
    """Return the smallest value that so many percent of the sorted values do not exceed."""
    return values[max(0, -(-percent * len(values) // 100) - 1)] if values else None


def table(found: dict[str, Any]) -> Table:
    """Return what was found as a table that fits 80 columns."""
    title = (
        f"{found['clients']} clients, {found['requests_per_second']:.1f} requests/s, "
        f"{found['tokens_per_second']:.1f} tokens/s, {found['varied']} answers varied"
    )
    drawn = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    drawn.add_column("requests")
    for heading in ("number", "right"):
        drawn.add_column(heading, justify="right")
    for name in ("first token ms", "whole ms"):
        for percent in _PERCENTILES:
            drawn.add_column(f"{name}\np{percent}" if percent == 50 else f"\np{percent}", justify="right")
    for row in found["kinds"]:
        times = [row[f"{name}_p{percent}"] for name in ("first", "whole") for percent in _PERCENTILES]
        shown = ["" if value is None else f"{1e3 * value:,.0f}" for value in times]
        drawn.add_row(row["kind"], str(row["requests"]), str(row["right"]), *shown)
    return drawn


def plot(found: dict[str, Any], path: Path) -> None:
    """Write a page with the times of all requests as they began.

    Raises
    ------
    ImportError
        Without plotly.
    """
    try:
        from plotly import graph_objects
    except ImportError:
        raise ImportError("plotly is needed to draw; run: pip install 'zooprune[report]'") from None
    figure = graph_objects.Figure()
    for kind in ("image", "text"):
        for name, shown in (("first", "first token"), ("whole", "whole reply")):
            mine = [one for one in found["outcomes"] if one["kind"] == kind and one[name] is not None and one["text"]]
            figure.add_scatter(
                x=[one["began"] for one in mine],
                y=[1e3 * one[name] for one in mine],
                mode="markers",
                name=f"{kind}, {shown}",
            )
    figure.update_layout(
        xaxis_title="seconds since the load began", yaxis_title="milliseconds", template="plotly_white"
    )
    figure.write_html(path)
