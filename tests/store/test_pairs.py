"""`pairs.jsonl`: what a run trains on, as TRL's trainers and earlier versions know it."""

import json
from dataclasses import asdict
from pathlib import Path

from estep.models.loading import load_chat, load_model, silence_logs
from estep.records import Pair
from estep.store.run import RunStore

SYSTEM = {"role": "system", "content": "You judge texts."}
PAIRS = [
    Pair("a", "a#0.0", (SYSTEM, {"role": "user", "content": "Text: fine"}), "It is. Score: 4", 0.5, (14, 15)),
    Pair("b", "b#1.0", ({"role": "user", "content": "Text: “so so”\n"},), "Evaluation: meh –\n\nScore: 2", index=1),
    Pair(
        "c",
        "c#0.0",
        (
            SYSTEM,
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": "y"},
            {"role": "user", "content": "z"},
        ),
        "Score: 0",
    ),
]


def written(folder: Path) -> Path:
    with RunStore(folder).iteration(1) as step:
        step.write_pairs(PAIRS)
    return step.folder / "pairs.jsonl"


def test_trl_trains_on_the_file_as_it_is(tiny_model: str, tmp_path: Path) -> None:
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer

    with silence_logs():
        rows = load_dataset("json", data_files=str(written(tmp_path)), split="train", cache_dir=str(tmp_path / "cache"))
        args = SFTConfig(str(tmp_path / "trl"), max_length=None, bf16=False, use_cpu=True, report_to="none")
        chat, model = load_chat(tiny_model), load_model(tiny_model, "float32", "cpu")
        trainer = SFTTrainer(model, args=args, train_dataset=rows, processing_class=chat.tokenizer)
    newline = chat.tokenizer("\n")["input_ids"]
    for pair, row in zip(PAIRS, trainer.train_dataset, strict=True):
        prompt, completion = chat.prompt_ids(pair.prompt), chat.completion_ids(pair.completion)
        # estep ends a response with the end of turn. TRL trains also on what the chat template writes behind it.
        assert row["input_ids"] == prompt + completion + newline
        assert row["labels"] == [-100] * len(prompt) + completion + newline


def test_a_run_reads_its_pairs_and_those_of_earlier_versions(tmp_path: Path) -> None:
    path = written(tmp_path)
    step = RunStore(tmp_path).iteration(1)
    assert step.pairs() == PAIRS
    first = json.loads(path.read_text().splitlines()[0])
    assert first["completion"] == [{"role": "assistant", "content": "It is. Score: 4"}]
    path.write_text("".join(json.dumps(asdict(pair)) + "\n" for pair in PAIRS))  # the completion is the text itself
    assert step.pairs() == PAIRS
