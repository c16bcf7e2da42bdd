"""A route of vLLM's server that tells which tokens were kept; served where ``VLLM_PLUGINS`` names zooprune."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from fastapi import FastAPI, HTTPException, Request

from zooprune.integrations.vllm.configuration import KEY
from zooprune.integrations.vllm.kept import METHOD


class KeptEndpoint:
    """``GET /v1/zooprune/kept/LABEL``; below ``/v1``, which the server's key protects."""

    name = "zooprune"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Add the route to vLLM's application."""
        app.add_api_route("/v1/zooprune/kept/{label}", _kept, methods=["GET"])

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Do nothing: the route finds the engine where vLLM keeps it."""


async def _kept(label: str, request: Request) -> dict[str, Any]:
    engine = request.app.state.engine_client
    if not hasattr(engine.model_config.hf_config, KEY):
        raise HTTPException(404, "this server prunes nothing; start it with a configuration of zooprune")
    if engine.vllm_config.parallel_config.data_parallel_size > 1:
        raise HTTPException(
            501, "kept tokens cannot be asked for with --data-parallel-size: only one engine answers; leave it out"
        )
    # All ranks choose alike, so the first one's answer holds.
    images, *_ = await engine.collective_rpc(METHOD, args=(label,))
    if not images:
        raise HTTPException(
            404,
            f"no images are remembered under {label!r}; give the label in mm_processor_kwargs "
            '{"zooprune": {"label": ...}} of a request, and ask soon after it',
        )
    return {"images": images}
