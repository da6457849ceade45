"""The command `estep serve`."""

import os
import shlex
from typing import Annotated

import typer

from estep.cli.app import ModelName, Overrides, app, say
from estep.cli.models import config_of
from estep.errors import ConfigError
from estep.progress import reporter


@app.command()
def serve(  # noqa: PLR0913 (typer reads the options from the signature)
    model: ModelName,
    overrides: Overrides = None,
    task: Annotated[str | None, typer.Option("--task", help="The task [default: the run's own].")] = None,
    host: Annotated[
        str, typer.Option("--host", help="Where to listen; 0.0.0.0 for requests from other machines.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 8000,
    name: Annotated[str | None, typer.Option("--name", help="The model's name [default: the run's].")] = None,
    key_env: Annotated[
        str | None,
        typer.Option("--api-key-env", help="The environment variable with the key that clients must send."),
    ] = None,
    vllm: Annotated[str, typer.Option("--vllm", help="Further arguments of vllm serve, in quotes.")] = "",
) -> None:
    """Serve a trained judge: POST /judge takes a row and returns its score, and /v1 is vLLM's OpenAI API."""
    from estep.data.prepare import announce, open_task
    from estep.inference import find_model, warn_of_other_prompt
    from estep.serving.server import Address, Server, served_name
    from estep.store.model import own_task
    from estep.tasks import load_task

    key, extra = _key(key_env), _split(vllm)
    news = reporter()
    # How likely each allowed answer is, unless the overrides say otherwise.
    task = task or own_task(model)
    listed = ["evaluation.probabilities=true"] if load_task(task).answers else []
    loaded, config = open_task(config_of(task, model, None, [*listed, *(overrides or ())]))
    announce(loaded, news.log)
    weights = find_model(model, news)
    server = Server(config, weights, name or served_name(model), Address(host, port), key, extra)
    warn_of_other_prompt(loaded, weights, news)
    server.run(say)


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(f"--api-key-env: the environment variable {variable} holds no key")
    return key


def _split(arguments: str) -> list[str]:
    try:
        return shlex.split(arguments)
    except ValueError as error:
        raise ConfigError(f"--vllm {arguments}: {error}") from None
