"""A trained model as a folder that transformers and vLLM load as it is: merged weights, tokenizer, chat template, and
the settings with which the run asked it."""

from pathlib import Path
from typing import Any

from estep.config import TransformersEngineConfig
from estep.errors import DataError
from estep.export.card import write_card
from estep.export.folder import finished_folder, write_record, write_task
from estep.export.parity import Parity, check, own_answers
from estep.export.source import Trained
from estep.export.weights import write_weights
from estep.models.loading import Chat, load_chat, silence_logs, tokenizer_path, with_fixed_date
from estep.progress import Reporter


def export_hf(
    trained: Trained, out: Path, dtype: str, questions: int, reporter: Reporter, force: bool = False
) -> Parity | None:
    """Write a model folder with its task file, its model card and `export.json`.

    Args:
        dtype: `float32`, `bfloat16` or `float16`.
        questions: on how many held-out questions to compare it with the run's own weights; 0 for no comparison.
        force: replace an earlier export.

    Returns:
        The comparison; None without one.

    Raises:
        StoreError: the folder is not empty, or cannot be written.
        DataError: the exported model differs from the run's.
    """
    with finished_folder(out, force) as folder:
        reporter.log(f"weights of iteration {trained.step.number} of {trained.store.folder} in {dtype}")
        write_model(trained, folder, dtype)
        parity = compare(trained, folder, dtype, questions, reporter)
        write_task(trained, folder)
        write_card(trained, folder, parity)
        write_record(trained, folder, format="hf", dtype=dtype, parity=parity and parity.as_json())
    return parity


def write_model(trained: Trained, folder: Path, dtype: str) -> None:
    """Write weights, tokenizer, chat template and generation settings to an existing folder.

    Raises:
        DataError: the chat template renders other prompts than those that the run trained on.
    """
    chat = load_chat(tokenizer_path(trained.weights))
    write_weights(trained.weights, folder, dtype)
    tokenizer = chat.tokenizer
    original = tokenizer.chat_template
    tokenizer.chat_template = with_fixed_date(original)
    try:
        with silence_logs():
            tokenizer.save_pretrained(folder)
            _generation(trained, chat).save_pretrained(folder)
    finally:
        tokenizer.chat_template = original
    _check_prompts(trained, chat, folder)


def _generation(trained: Trained, chat: Chat) -> Any:
    """How the run asked the model. A temperature of 0 is written as `top_k=1`, which is greedy as well and which
    transformers and vLLM both follow."""
    from transformers import GenerationConfig

    temperature = trained.config.evaluation.temperature
    return GenerationConfig(
        do_sample=True,
        temperature=temperature or 1.0,
        top_p=1.0,
        top_k=0 if temperature else 1,
        max_new_tokens=trained.config.max_new_tokens,
        eos_token_id=sorted(chat.stop_ids),
        bos_token_id=chat.tokenizer.bos_token_id,
        pad_token_id=chat.tokenizer.pad_token_id if chat.tokenizer.pad_token_id is not None else chat.end_id,
    )


def _check_prompts(trained: Trained, chat: Chat, folder: Path) -> None:
    """Check that the exported tokenizer, asked as its users will ask it, gives the tokens that the run trained on."""
    from transformers import AutoTokenizer

    with silence_logs():
        exported = AutoTokenizer.from_pretrained(folder)
    for question in trained.store.questions("test"):
        messages = trained.task.prompt(question)
        tokens = exported.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=False)
        if list(tokens) != chat.prompt_ids(messages):
            raise DataError(
                f"the exported chat template gives the prompt of question {question.id} other tokens than the run's"
            )


def compare(trained: Trained, folder: Path, dtype: str, questions: int, reporter: Reporter) -> Parity | None:
    """Compare an exported folder with the run's own weights on held-out questions; None if there are none to compare.

    Raises:
        DataError: they differ by more than rounding explains.
    """
    from estep.engines.transformers import TransformersEngine
    from estep.records import ModelRef

    own = own_answers(trained, questions, reporter)
    if own is None:
        return None
    engine = TransformersEngine(TransformersEngineConfig(dtype=trained.dtype))
    engine.load(ModelRef(str(folder)))
    return check(trained, own, engine, dtype, reporter)
