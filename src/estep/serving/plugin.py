"""The routes that estep adds to vLLM's server, as a plugin of vLLM's (its entry point is in pyproject.toml).

vLLM loads it only where `VLLM_PLUGINS` names it, which `estep serve` sees to. `vllm.plugins.endpoint_plugins.interface`
describes the methods.
"""

import asyncio
import json
import os
import uuid
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from vllm import SamplingParams, envs
from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware
from vllm.entrypoints.serve.utils.api_utils import with_cancellation
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind

from estep.config import RunConfig
from estep.data.prepare import open_task
from estep.engines.scoring import ScoredText
from estep.engines.vllm_scoring import scored, scoring_parameters
from estep.errors import DataError, EngineError
from estep.models.loading import load_chat, tokenizer_path
from estep.records import Draw, Score
from estep.serving.judge import Judge
from estep.serving.server import SETTINGS


class JudgePlugin:
    """Adds `/judge` and `/judge/prompt` to vLLM's server."""

    name = "estep-judge"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Add the routes, and the check of the key on all of them; called by vLLM."""
        keys = [key for key in (app.state.args.api_key or [envs.VLLM_API_KEY]) if key]
        if keys:
            app.add_middleware(KeyOnEveryPath, tokens=keys)
        app.get("/judge", summary="The judge's task: the fields of a row, and the answers")(_describe)
        app.post("/judge", summary="Judge a row")(_judge)
        app.post("/judge/prompt", summary="The chat messages for a row, for /v1/chat/completions")(_prompt)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Prepare the judge; called by vLLM when its engine runs."""
        settings = json.loads(os.environ[SETTINGS])
        task, config = open_task(RunConfig.model_validate(settings["config"]))
        chat = load_chat(tokenizer_path(settings["model"]))
        state.estep_judge = Judge(task, config, chat, _Model(engine_client, config, chat.stop_ids))


class KeyOnEveryPath(AuthenticationMiddleware):
    """Asks for the key on every path but `/health`. vLLM's own check leaves paths such as `/invocations`, behind which
    the same model answers, to a proxy."""

    def __call__(self, scope: Any, receive: Any, send: Any) -> Any:
        """Answer with 401 where a request lacks the key."""
        if scope["type"] not in ("http", "websocket") or scope.get("method") == "OPTIONS":
            return self.app(scope, receive, send)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path == "/health" or self.verify_token(Headers(scope=scope)):
            return self.app(scope, receive, send)
        return JSONResponse({"error": "Unauthorized"}, 401)(scope, receive, send)


class _Model:
    """vLLM's engine, as the judge asks it."""

    def __init__(self, client: Any, config: RunConfig, stop_ids: frozenset[int]):
        self._client = client
        self._config = config
        self._stop_ids = stop_ids

    @property
    def context(self) -> int:
        return int(self._client.model_config.max_model_len)

    async def sample(self, prompt: list[int], draws: Sequence[Draw]) -> list[list[int]]:
        seeded = not current_platform.is_cpu()  # a CPU has no seeds per request

        def parameters(draw: Draw) -> Any:
            return SamplingParams(
                temperature=self._config.evaluation.temperature,
                max_tokens=self._config.max_new_tokens,
                stop_token_ids=sorted(self._stop_ids),
                seed=draw.seed if seeded else None,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )

        outputs = await asyncio.gather(*(self._run(prompt, parameters(draw)) for draw in draws))
        return [_tokens(output) for output in outputs]

    async def score(self, text: ScoredText) -> Score:
        # A server's engine cannot be taught to read the prefix cache for this (`vllm_scoring.limit_cache_reads`).
        return scored(text, await self._run(text.prompt + text.completion, scoring_parameters(text, reads_cache=False)))

    async def _run(self, tokens: list[int], parameters: Any) -> Any:
        """The last output of a request. If this is cancelled, vLLM ends the request."""
        last = None
        async for output in self._client.generate({"prompt_token_ids": tokens}, parameters, f"judge-{uuid.uuid4()}"):
            last = output
        return last


def _tokens(output: Any) -> list[int]:
    (text,) = output.outputs
    if not text.token_ids:
        raise EngineError(f"vLLM gave up on the row: {text.finish_reason or 'no reason'}")
    return list(text.token_ids)


async def _describe(request: Request) -> JSONResponse:
    return JSONResponse(_judge_of(request).describe())


async def _judge(request: Request) -> JSONResponse:
    judge = _judge_of(request)
    row = await _row(request)

    @with_cancellation  # type: ignore[untyped-decorator]  # of the work for a caller who is gone
    async def answer(row: object, _: Request) -> JSONResponse:
        return JSONResponse(await judge(row))

    with _refusals():
        response: JSONResponse = await answer(row, request)
    return response


async def _prompt(request: Request) -> JSONResponse:
    row = await _row(request)
    with _refusals():
        return JSONResponse({"messages": list(_judge_of(request).messages(row))})


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn errors into answers with their reason."""
    try:
        yield
    except DataError as error:
        raise HTTPException(400, str(error)) from None
    except RecursionError:
        raise HTTPException(400, "the row is nested too deeply") from None
    except EngineError as error:
        raise HTTPException(500, str(error)) from None


def _judge_of(request: Request) -> Judge:
    judge: Judge = request.app.state.estep_judge
    return judge


async def _row(request: Request) -> object:
    body = await request.body()
    try:
        row = json.loads(body)
        json.dumps(row, ensure_ascii=False).encode()  # no model reads half of a surrogate pair
    except RecursionError:
        raise HTTPException(400, "the body is nested too deeply") from None
    except ValueError as error:
        raise HTTPException(400, f"the body is not JSON in UTF-8: {error}") from None
    return row
