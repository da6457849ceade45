"""A trained model for Ollama: a GGUF file, and a Modelfile that asks it as the run did.

The Modelfile holds the chat template in Go's template language, the task's system prompt, the run's few-shot examples
if the policy sees them, the tokens that end a response, the temperature and the length of a response. Ollama itself is
not needed to write it.
"""

from pathlib import Path

from estep.errors import DataError
from estep.export.card import write_card
from estep.export.folder import finished_folder, write_record, write_task
from estep.export.gguf import FILE, Storage, write_checked
from estep.export.parity import Parity
from estep.export.source import Trained
from estep.export.turns import Turns, read_turns
from estep.models.loading import context_length, load_chat, tokenizer_path
from estep.progress import Reporter

_CONTEXT = 4096
"""The smallest context in tokens, which is also Ollama's default."""


def export_ollama(
    trained: Trained, out: Path, storage: Storage, questions: int, reporter: Reporter, force: bool = False
) -> Parity | None:
    """Write a folder with `model.gguf` and `Modelfile`, the task file, the model card and `export.json`.

    The arguments, the result and the errors are those of `gguf.export_gguf`. A chat template that Ollama cannot
    reproduce is refused, too.
    """
    text = modelfile(trained)
    with finished_folder(out, force) as folder:
        parity = write_checked(trained, folder, storage, questions, reporter)
        (folder / "Modelfile").write_text(text, encoding="utf-8")
        write_task(trained, folder)
        usage = (
            f"With Ollama:\n\n```sh\nollama create {ollama_name(trained)} -f Modelfile\nollama run "
            f"{ollama_name(trained)}\n```\n\nThe Modelfile holds the chat template, the system message, the tokens "
            "that end a response, and the sampling settings of the run."
        )
        write_card(trained, folder, parity, usage)
        write_record(trained, folder, format="ollama", dtype=storage.kind, parity=parity and parity.as_json())
    return parity


def ollama_name(trained: Trained) -> str:
    """The name of the model in Ollama: that of the run in lower case."""
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in trained.name.lower())


def modelfile(trained: Trained) -> str:
    """The text of the Modelfile.

    Raises:
        DataError: the chat template cannot be reproduced, or a text contains what a Modelfile cannot hold: three
            quotation marks in a row, or a character that Ollama leaves out when it reads the file.
    """
    chat = load_chat(tokenizer_path(trained.weights))
    prompts = [trained.task.prompt(question) for question in trained.store.questions("test")]
    turns = read_turns(chat, prompts)
    first, *rest = prompts[0] if prompts else ({"role": "user", "content": ""},)
    system = first["content"] if first["role"] == "system" else None
    examples = [*([] if system is not None else [first]), *rest][:-1]
    lines = [f"FROM ./{FILE}", f"TEMPLATE {_quoted(go_template(turns))}"]
    if system is not None:
        lines.append(f"SYSTEM {_quoted(system)}")
    lines += [f"MESSAGE {one['role']} {_quoted(one['content'])}" for one in examples]
    stops = [str(chat.tokenizer.convert_ids_to_tokens(id)) for id in sorted(chat.stop_ids)]
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    longest = max((len(chat.prompt_ids(prompt)) for prompt in prompts), default=0)
    lines += [f"PARAMETER {name} {value}" for name, value in _parameters(trained, longest).items()]
    return "\n".join(lines) + "\n"


def _parameters(trained: Trained, longest: int) -> dict[str, str]:
    """How the run asked the model. Ollama cuts a prompt off at `num_ctx` without a word, and reserves memory for it, so
    it is twice what the longest held-out prompt needs, in thousands, within the model's context.

    Args:
        longest: the tokens of the longest held-out prompt.
    """
    needed = 2 * (longest + trained.config.max_new_tokens)
    context = max(_CONTEXT, -(-needed // 1024) * 1024)
    limit = context_length(trained.weights)
    parameters = {
        "temperature": f"{trained.config.evaluation.temperature:g}",
        "top_k": "0",
        "top_p": "1",
        "min_p": "0",
        "repeat_penalty": "1",
        "num_predict": str(trained.config.max_new_tokens),
    }
    return {**parameters, "num_ctx": str(context if limit is None else min(context, limit))}


def go_template(turns: Turns) -> str:
    """The turns in the language of Go's `text/template`, with the variables that Ollama gives a template."""
    before, after = ({role: _literal(text) for role, text in of.items()} for of in (turns.before, turns.after))
    return (
        f"{{{{ if not .System }}}}{_literal(turns.without_system)}{{{{ end }}}}"
        "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
        f'{{{{ if eq .Role "system" }}}}{before["system"]}{{{{ .Content }}}}{after["system"]}'
        f'{{{{ else if eq .Role "user" }}}}{before["user"]}{{{{ .Content }}}}{after["user"]}'
        f'{{{{ else if eq .Role "assistant" }}}}{before["assistant"]}{{{{ .Content }}}}'
        f"{{{{ if not $last }}}}{after['assistant']}{{{{ end }}}}{{{{ end }}}}"
        f'{{{{ if and $last (ne .Role "assistant") }}}}{_literal(turns.generation)}{{{{ end }}}}{{{{ end }}}}'
    )


def _literal(text: str) -> str:
    """A text in a Go template that is written as it is."""
    return text.replace("{{", '{{ "{{" }}')


def _quoted(text: str) -> str:
    """A text as a Modelfile quotes it, with line breaks."""
    unprintable = sorted({letter for letter in text if not letter.isprintable() and letter not in "\n\r\t"})
    if '"""' in text or unprintable:
        what = f"the character {unprintable[0]!r}" if unprintable else "three quotation marks in a row"
        raise DataError(f"a Modelfile cannot hold {what}; found in {text[:60]!r}")
    return f'"""{text}"""'
