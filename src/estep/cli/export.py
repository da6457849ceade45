"""The commands that carry a trained model away: `export` and `push`."""

import tempfile
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from estep.cli.app import app, say
from estep.errors import ConfigError
from estep.progress import reporter

if TYPE_CHECKING:
    from estep.export.parity import Parity
    from estep.export.source import Trained


class Format(StrEnum):
    hf = "hf"
    gguf = "gguf"
    ollama = "ollama"


class WeightType(StrEnum):
    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


RunName = Annotated[
    str,
    typer.Argument(metavar="RUN", help="A run folder, that of a study's run, or RUN/iteration-K.", show_default=False),
]
Iteration = Annotated[
    int | None, typer.Option("--iteration", metavar="K", help="The iteration [default: the one that the run selects].")
]
Dtype = Annotated[
    WeightType | None,
    typer.Option("--dtype", help="The type of the weights [default: the one in which the run sampled]."),
]
Check = Annotated[
    int,
    typer.Option(
        "--check", metavar="N", min=0, help="Compare with the run's weights on N held-out questions; 0 to skip."
    ),
]


@app.command()
def export(  # noqa: PLR0913 (typer reads the options from the signature)
    run: RunName,
    to: Annotated[
        Format, typer.Option("--to", help="hf: transformers, vLLM. gguf: llama.cpp. ollama: with a Modelfile.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The output folder [default: exports/RUN-FORMAT].")
    ] = None,
    iteration: Iteration = None,
    dtype: Dtype = None,
    quantize: Annotated[
        str | None,
        typer.Option(
            "--quantize", metavar="TYPE", help="Weights of fewer bits, for gguf and ollama: q8_0, q4_k_m, ..."
        ),
    ] = None,
    check: Check = 8,
    llama_cpp: Annotated[
        Path | None,
        typer.Option("--llama-cpp", metavar="DIR", help="The folder of llama.cpp [default: $LLAMA_CPP, or the path]."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
) -> None:
    """Write a trained model for other tools: merged weights, tokenizer, chat template, model card; checked against the
    run."""
    from estep.export.folder import check_free
    from estep.export.gguf import LlamaCpp, Storage, export_gguf
    from estep.export.hf import export_hf
    from estep.export.ollama import export_ollama, ollama_name
    from estep.export.source import find_trained

    if to is Format.hf and llama_cpp is not None:
        raise ConfigError("--llama-cpp needs --to gguf or --to ollama")
    quantization = _quantization(to, quantize)
    trained = find_trained(run, iteration)
    kind = dtype.value if dtype is not None else trained.dtype
    folder = out or Path("exports") / f"{trained.name}-{to.value}"
    check_free(folder, force)
    if to is Format.hf:
        parity = export_hf(trained, folder, kind, check, reporter(), force)
    else:
        storage = Storage(LlamaCpp(llama_cpp, quantization), kind, quantization)
        write = export_gguf if to is Format.gguf else export_ollama
        parity = write(trained, folder, storage, check, reporter(), force)
    _say_parity(trained, parity, check)
    say(f"written: {folder}")
    if to is Format.ollama:
        say(f"next: cd {folder} && ollama create {ollama_name(trained)} -f Modelfile")


def _quantization(to: Format, quantize: str | None) -> str | None:
    from estep.errors import nearest
    from estep.export.gguf import QUANTIZATIONS

    if quantize is None:
        return None
    if to is Format.hf:
        raise ConfigError(f"--quantize {quantize} needs --to gguf or --to ollama")
    if quantize.lower() not in QUANTIZATIONS:
        raise ConfigError(f"--quantize: got '{quantize}'; {nearest(quantize.lower(), QUANTIZATIONS)}")
    return quantize.lower()


def _say_parity(trained: "Trained", parity: "Parity | None", asked: int) -> None:
    if parity is not None:
        say(f"compared with the run {parity.line}")
    elif asked:
        say(f"not checked: the run has no responses of iteration {trained.step.number} to held-out questions")
    else:
        say("not checked (--check 0)")


@app.command()
def push(  # noqa: PLR0913 (typer reads the options from the signature)
    run: RunName,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The repository: OWNER/NAME.", show_default=False)],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="BRANCH", help="The branch to upload to [default: main].")
    ] = None,
    iteration: Iteration = None,
    dtype: Dtype = None,
    check: Check = 8,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write the folder and list what would be uploaded, without network.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="With --dry-run, the folder [default: exports/RUN-hf].")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="With --dry-run, replace an earlier export.")] = False,
) -> None:
    """Upload a trained model to the hub, with a model card. The token is HF_TOKEN's, or that of `hf auth login`."""
    from estep.export.folder import check_free
    from estep.export.hf import export_hf
    from estep.export.hub import check_access, check_name, files_in
    from estep.export.hub import push as upload
    from estep.export.source import find_trained

    if not dry_run and (out is not None or force):
        raise ConfigError("-o and --force need --dry-run; an upload leaves no folder behind")
    trained = find_trained(run, iteration)
    kind = dtype.value if dtype is not None else trained.dtype
    if dry_run:
        check_name(name)
        folder = out or Path("exports") / f"{trained.name}-hf"
        check_free(folder, force)
        _say_parity(trained, export_hf(trained, folder, kind, check, reporter(), force), check)
        say(f"written: {folder}")
        say(f"would be uploaded to {name}{f', branch {revision}' if revision else ''}{', private' if private else ''}:")
        for file, size in files_in(folder):
            say(f"  {file}  {_bytes(size)}")
        return
    check_access(name)
    with tempfile.TemporaryDirectory(prefix="estep-push-") as temporary:
        folder = Path(temporary) / "model"
        _say_parity(trained, export_hf(trained, folder, kind, check, reporter()), check)
        say(f"uploaded: {upload(folder, name, private, revision)}")


def _bytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
