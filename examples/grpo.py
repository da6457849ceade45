"""Online RL with hinted draws: TRL's `GRPOTrainer`, some of whose draws saw the answer, beside filtered EM.

    estep train demo-sums iterations=1 run_dir=runs/start         # the weights that all arms start from
    python examples/grpo.py runs/start --out plain.json           # plain GRPO
    python examples/grpo.py runs/start --hinted 0.5 --out half.json
    estep train demo-sums model=runs/start/iteration-01/weights run_dir=runs/rejection
    python examples/grpo_figure.py accuracy.png plain.json half.json runs/rejection

What is compared: all arms start from the weights of one run of `estep train`, and have its questions, prompts, verifier
(the reward is 1 for a correct answer, else 0), temperature and seed. One iteration of filtered EM comes first because
the base model answers in the right form only with few-shot examples in its prompt; without them, nearly every reward
would be 0. After it, `few_shot: first` leaves the examples out, so every arm samples from the prompt that it trains and
is tested with. If only GRPO's draws saw examples, all of them would need a correction.

The correction: a hinted draw comes from q(z, y | x, y*) and is trained under the plain prompt. It is weighted by
π(z, y | x) / q(z, y | x, y*), the importance weight of the whole text at the sampling temperature, or by 3 if that is
less. This is TRL's correction of vLLM's log-probabilities, in its mode `sequence_truncate` with its default limit: the
rollout returns log-probabilities under the hinted prompt. TRL 1.16 accepts them from any rollout, but corrects only if
`use_vllm` is set; `CorrectedGRPOTrainer` therefore sets it except while it samples. Plain draws come from the policy
itself, and their weight is exactly 1. Advantages are relative to the whole group, hinted draws included. `Guide` (Nath
et al., 2025, arXiv 2506.13923) is such a GRPO, with hints only where all plain draws failed.

Seconds are those of training: sampling, judging, log-probabilities and gradient steps, not evaluation. TRL samples with
transformers here, and filtered EM with the engine of its run; `engine.type=transformers` takes vLLM's speed out of the
comparison. Even then estep shares prefixes and packs its batches, and TRL does not.
"""

import argparse
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL reports each trainer

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback

from estep.config import RunConfig, hint_variant
from estep.engines import open_engine
from estep.errors import ConfigError
from estep.evaluate import Evaluator
from estep.inference import find_model
from estep.metrics import Evaluation
from estep.models.loading import Chat, load_chat, load_model, pick_device, silence_logs
from estep.models.precision import resolve_precision
from estep.progress import reporter
from estep.records import ModelRef, Question, derive_seed
from estep.store.files import write_whole
from estep.store.model import run_of
from estep.store.run import RunStore
from estep.tasks import Task, load_task

with silence_logs():  # TRL warns of versions of vLLM that it was not tested with
    from trl import GRPOConfig, GRPOTrainer
    from trl.trainer.utils import pad

MODES = ("sequence_truncate", "sequence_mask", "token_truncate", "token_mask", "none")
LOGGED = ("reward", "right_plain", "right_hinted", "sampling/importance_sampling_ratio/mean", "entropy")


class Start(NamedTuple):
    """Where all arms start: the weights of a run, with its settings and questions."""

    model: str
    config: RunConfig
    task: Task
    train: list[Question]
    test: list[Question]


def read_start(folder: str, hint: str | None = None) -> Start:
    """The weights of a run, for the task after training.

    Args:
        folder: a run folder, or the weights of one of its iterations.
        hint: the wording of the hint; None for the run's, or the task's default.

    Raises:
        ConfigError: no run trained these weights, or it samples with `top_p` below 1.
    """
    model = find_model(folder, reporter())
    run = run_of(model)
    if run is None:
        raise ConfigError(f"{folder} is not the folder of a run of estep train")
    store = RunStore(run)
    config = store.config()
    if config.engine.top_p < 1:
        raise ConfigError(f"the run in {run} has top_p={config.engine.top_p}: importance weights need top_p=1")
    task = load_task(config.task, hint or hint_variant(config.proposal), config.few_shot).after_training()
    return Start(model, config, task, store.questions("train"), store.questions("test"))


class HintedRollout:
    """TRL's `rollout_func`: the first draws of each group are sampled from the hinted prompt."""

    def __init__(self, start: Start, chat: Chat, group: int, hinted: int):
        self.task, self.chat, self.group, self.hinted = start.task, chat, group, hinted
        self.question = {json.dumps(start.task.prompt(question)): question for question in start.train}

    def __call__(self, prompts: list[Any], trainer: GRPOTrainer) -> dict[str, Any]:
        hinted = [number % self.group < self.hinted for number in range(len(prompts))]
        questions = [self.question[json.dumps(prompt)] for prompt in prompts]
        plain = [self.chat.prompt_ids(self.task.prompt(question)) for question in questions]
        drawn_from = [
            self.chat.prompt_ids(self.task.hinted_prompt(question)) if is_hinted else prompt
            for question, prompt, is_hinted in zip(questions, plain, hinted, strict=True)
        ]
        completions, _ = trainer._generate_single_turn(drawn_from, None, {}, self.group)
        texts = list(zip(drawn_from, completions, strict=True))
        scores = iter(sampling_logprobs(trainer, list(itertools.compress(texts, hinted))))
        # TRL takes None for a token that is as likely as the policy finds it, which is true of plain draws.
        logprobs = [
            next(scores) if is_hinted else [None] * len(completion)
            for is_hinted, completion in zip(hinted, completions, strict=True)
        ]
        return {"prompt_ids": plain, "completion_ids": completions, "logprobs": logprobs, "hinted": hinted}


@torch.no_grad()
def sampling_logprobs(trainer: GRPOTrainer, texts: list[tuple[list[int], list[int]]]) -> list[list[float]]:
    """The log-probabilities, at the sampling temperature, of the tokens of each completion after its prompt."""
    if not texts:
        return []
    sides, padding = (("left", 0), ("right", 1)), trainer.processing_class.pad_token_id
    ids = [pad([torch.tensor(text[part]) for text in texts], padding, side) for side, part in sides]
    mask = [pad([torch.ones(len(text[part]), dtype=torch.long) for text in texts], 0, side) for side, part in sides]
    inputs = [torch.cat(parts, 1).to(trainer.accelerator.device) for parts in (ids, mask)]
    batch = trainer.args.per_device_train_batch_size
    found, _, _ = trainer._get_per_token_logps_and_entropies(trainer.model, *inputs, ids[1].shape[1], batch)
    return [row[: len(completion)].tolist() for row, (_, completion) in zip(found, texts, strict=True)]


class CorrectedGRPOTrainer(GRPOTrainer):
    """Corrects for the log-probabilities that a rollout returns, without vLLM."""

    def _generate(self, prompts: list[Any]) -> Any:
        self.use_vllm = False  # the draws come from transformers
        try:
            return super()._generate(prompts)
        finally:
            self.use_vllm = True  # TRL corrects only what vLLM sampled


def build_trainer(start: Start, chat: Chat, options: argparse.Namespace, folder: str) -> GRPOTrainer:
    """TRL's trainer as it is for plain GRPO, and the corrected one with hinted rollouts otherwise."""
    config, by_id = start.config, {question.id: question for question in start.train}
    hinted = round(options.hinted * options.group)

    def reward(completion_ids: list[list[int]], id: list[str], log_metric: Any, **columns: Any) -> list[float]:
        judged = zip(id, completion_ids, strict=True)
        right = [float(start.task.judge(by_id[of], chat.text(ids)).status == "correct") for of, ids in judged]
        for value, is_hinted in zip(right, columns.get("hinted", [False] * len(right)), strict=True):
            log_metric("right_hinted" if is_hinted else "right_plain", value)
        return right

    args = GRPOConfig(
        folder,
        learning_rate=options.learning_rate,
        lr_scheduler_type="constant",
        max_steps=options.steps,
        max_grad_norm=config.m_step.max_grad_norm,
        num_generations=options.group,
        per_device_train_batch_size=options.batch,
        gradient_accumulation_steps=options.group * options.questions // options.batch,
        max_completion_length=config.max_new_tokens,
        temperature=config.engine.temperature,
        vllm_importance_sampling_correction=options.correction != "none",
        vllm_importance_sampling_mode=options.correction if options.correction != "none" else MODES[0],
        seed=derive_seed(config.seed, "grpo") % 2**32,
        bf16=resolve_precision(config.m_step, pick_device("auto").type).precision == "bfloat16",
        gradient_checkpointing=False,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    rows = [{"prompt": list(start.task.prompt(question)), "id": question.id} for question in start.train]
    trainer = (CorrectedGRPOTrainer if hinted else GRPOTrainer)(
        model=load_model(start.model, "float32", args.device),
        reward_funcs=reward,
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=chat.tokenizer,
        rollout_func=HintedRollout(start, chat, options.group, hinted) if hinted else None,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


class Clock(TrainerCallback):
    """Tests the policy every so many seconds of training, and ends the training in time. Tests stop the clock."""

    def __init__(self, test: Callable[[Any], Evaluation], seconds: float, every: float):
        self.test, self.seconds, self.every = test, seconds, every
        self.spent, self.due, self.since = 0.0, 0.0, 0.0
        self.points: list[dict[str, Any]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self._at(state, given["model"])
        self.since = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.spent += time.monotonic() - self.since
        if ends := self.spent >= self.seconds or state.global_step >= state.max_steps:
            control.should_training_stop = True
        if ends or self.spent >= self.due:
            self._at(state, given["model"])
        self.since = time.monotonic()

    def _at(self, state: Any, model: Any) -> None:
        measured = self.test(model)
        reporter().log(f"  {self.spent:.0f} s, {state.global_step} steps: accuracy {measured.accuracy:.1%}")
        when = {"seconds": round(self.spent, 1), "steps": state.global_step}
        self.points.append({**when, "accuracy": measured.accuracy, "parse_rate": measured.parse_rate})
        self.due += self.every


def run(start: Start, options: argparse.Namespace) -> dict[str, Any]:
    """Train for some seconds; returns the accuracies, the options, and figures of each gradient step."""
    config, chat = start.config, load_chat(start.model)
    engine = open_engine(config.engine, ModelRef(start.model), reporter().log)
    engine.release()  # until the first test
    evaluator = Evaluator(start.task, engine, config.evaluation, config.max_new_tokens, reporter())

    def test(model: Any) -> Evaluation:
        with tempfile.TemporaryDirectory() as weights:
            model.save_pretrained(weights)
            chat.tokenizer.save_pretrained(weights)
            engine.load(ModelRef(weights))
            measured = evaluator.measure(evaluator.run(start.test, config.seed))
        engine.release()
        return measured

    try:
        with tempfile.TemporaryDirectory() as folder, silence_logs():
            trainer = build_trainer(start, chat, options, folder)
            clock = Clock(test, options.seconds, options.every)
            trainer.add_callback(clock)
            trainer.train()
    finally:
        engine.close()
    logs = [{key: entry[key] for key in LOGGED if key in entry} for entry in trainer.state.log_history]
    kept = {"task": config.task, "seed": config.seed, "options": {**vars(options), "out": str(options.out)}}
    return {**kept, "points": clock.points, "steps": [entry for entry in logs if "reward" in entry]}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("start", help="the folder of a run of estep train")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--hinted", type=float, default=0.0, help="share of each group's draws that see the answer")
    parser.add_argument("--hint", help="the wording of the hint, for tasks with several")
    parser.add_argument("--correction", choices=MODES, default=MODES[0])
    parser.add_argument("--seconds", type=float, default=300, help="seconds of training")
    parser.add_argument("--every", type=float, default=60, help="seconds of training between evaluations")
    parser.add_argument("--learning-rate", type=float, default=3e-5)
    parser.add_argument("--group", type=int, default=8, help="draws per question")
    parser.add_argument("--questions", type=int, default=4, help="questions per gradient step")
    parser.add_argument("--batch", type=int, default=16, help="draws per forward pass")
    parser.add_argument("--steps", type=int, default=10**6, help="most gradient steps")
    options = parser.parse_args(arguments)
    hinted = options.hinted * options.group
    if not 0 <= hinted <= options.group or hinted != round(hinted):
        parser.error(f"--hinted {options.hinted} of {options.group} draws is no whole number from 0 to {options.group}")
    if not hinted and options.correction != MODES[0]:
        parser.error("--correction is for hinted draws: set --hinted")
    if (options.group * options.questions) % options.batch:
        parser.error(f"--batch {options.batch} does not divide {options.group * options.questions} draws per step")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Train one arm, and write its results."""
    options = parse(arguments)
    result = run(read_start(options.start, options.hint), options)
    write_whole(options.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
