"""PPS against hint-conditioned self-distillation, as one more arm of a study.

    estep study studies/cpu
    python examples/sdft.py runs/study-cpu                    # as many questions as PPS: one pass per iteration
    python examples/sdft.py runs/study-cpu --equal seconds    # as much time as PPS: E-step and M-step of each iteration
    estep report runs/study-cpu

TRL's `SDFTTrainer` (Shenfeld et al., 2026, arXiv 2601.19897) samples from the policy with the plain prompt, and moves
the distribution of each token towards that of the same model with privileged context. Here this context is the hint:
the teacher reads the prompt that PPS samples from. PPS trains on what the hinted model writes and the verifier accepts;
SDFT trains on the student's own texts, right or wrong.

Each finished run of the reference arm (`--arm`) gets a twin with its task, model, seed, questions, few-shot rule,
temperature, learning rates, batch size, iterations and evaluation, so `estep report` compares the two question by
question. `KEY=VALUE` changes a setting of the twins, such as `m_step.batch_size=16`, and `--trl` one of TRL's, such as
`distillation_alpha=1.0`; give such runs a `--name` of their own. TRL's defaults are the Jensen-Shannon divergence over
the student's 100 most likely tokens, and a teacher that keeps its first weights: those that the iteration starts from,
as in the E-step. The default for the samples per question is 1, as in PPS.

What TRL does differently, or cannot do:

- It adds the privileged context to the student's last message. A hinted prompt may begin with examples, which are
  messages of their own, so `HintedTeacher` replaces TRL's teacher prompt. The loss is TRL's.
- It divides the logits of both models by the sampling temperature, also in the loss.
- It leaves out questions that do not fill a batch; the run says how many.
- It samples with transformers' `generate`, because its vLLM would be a second engine beside the study's. That is slow,
  so equal seconds favor PPS if the study used vLLM.

Training is full fine-tuning in float32; where there are instructions for it, studies multiply in bfloat16
(`m_step.precision`). The runs say `proposal: direct` because the loop needs pairs, but only the questions of the pairs
are used. The metrics have no E-step: TRL samples in the M-step, whose seconds include that. Its texts, graded, are in
`iteration-*/sdft.jsonl`.
"""

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import yaml
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl.experimental.sdft import SDFTConfig, SDFTTrainer
from trl.experimental.sdft.sdft_trainer import DemonstrationTeacherContextBuilder

from estep.config import RunConfig, hint_variant
from estep.config.files import override_all, validate
from estep.data.prepare import open_task
from estep.errors import ConfigError, EstepError
from estep.m_step.base import MStepInput, MStepResult, write_m_step
from estep.m_step.canary import Canary
from estep.metrics import metrics_to_json
from estep.models.loading import Chat, load_chat, pick_device, rounded_weights, silence_logs
from estep.models.memory import free_memory, keep_freed_memory
from estep.models.precision import resolve_dtype, resolve_precision
from estep.models.randomness import preserve_rng_state
from estep.models.tokens import sequence_logprob
from estep.progress import Reporter, reporter
from estep.records import Messages, ModelRef, Question
from estep.report.results import Run, read_results
from estep.store.files import JsonlFile, write_rows, write_whole
from estep.store.reuse import ReusableRuns
from estep.store.run import RunStore, locked
from estep.tasks import Task
from estep.trainer import FEMTrainer

CANARIES = 8
ENDLESS = 1000  # passes over the questions: more than any time limit allows


class HintedTeacher(DemonstrationTeacherContextBuilder):
    """Gives the teacher the task's hinted prompt, and keeps the student's texts with their verdicts.

    Args:
        questions: by id; the ids are the data set's privileged context.
    """

    def __init__(self, trainer: SDFTTrainer, task: Task, questions: dict[str, Question]):
        super().__init__(trainer)
        self.task = task
        self.questions = questions
        self.texts: list[dict[str, Any]] = []

    def _compose_teacher_prompt(self, prompt: Any, privileged_context: str) -> list[dict[str, str]]:
        return list(self.task.hinted_prompt(self.questions[privileged_context]))

    def build(self, prompts: Any, privileged_contexts: list[str], completion_ids: Any, completion_mask: Any) -> Any:
        """Called for each batch of the student's samples."""
        for id, ids, mask in zip(privileged_contexts, completion_ids, completion_mask, strict=True):
            text = self.trainer.processing_class.decode(ids[mask.bool()], skip_special_tokens=True)
            status = self.task.judge(self.questions[id], text).status
            self.texts.append({"question_id": id, "text": text, "status": status, "tokens": int(mask.sum())})
        return super().build(prompts, privileged_contexts, completion_ids, completion_mask)


class Watch(TrainerCallback):
    """Reports each gradient step, keeps its loss, and stops the training after the step that exceeds the time.

    Args:
        seconds: from now on.
    """

    def __init__(self, advance: Callable[[int], None], seconds: float):
        self.advance = advance
        self.deadline = time.perf_counter() + seconds
        self.losses: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.advance(args.per_device_train_batch_size)
        control.should_training_stop |= time.perf_counter() >= self.deadline

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        self.losses += [logs["loss"]] if "loss" in logs else []


class SDFTMStep:
    """An M-step that distills the hinted policy into the plain one with TRL's trainer.

    Args:
        task: as the first iteration uses it.
        seconds: by iteration, how long to train; None for `m_step.epochs` passes over the questions.
        trl: settings of `SDFTConfig` that differ from those in `_arguments`.
    """

    def __init__(self, config: RunConfig, task: Task, seconds: dict[str, float] | None, trl: dict[str, Any]):
        self.config = config
        self.task = task
        self.settings = {"seconds": seconds, "trl": trl}

    def __call__(self, inputs: MStepInput) -> MStepResult:
        """Train on the questions of the pairs, and write the weights."""
        seconds = self.settings["seconds"]
        watch = Watch(inputs.advance, math.inf if seconds is None else seconds[str(inputs.iteration)])
        RunStore(self.config.folder).add_metadata(sdft=self.settings)
        chat = load_chat(inputs.start.path)
        canary = tuple((pair.prompt, pair.completion) for pair in inputs.pairs[:CANARIES])
        before = sum(inputs.score_before(prompt, text) for prompt, text in canary)
        inputs.release()
        keep_freed_memory()
        shutil.rmtree(inputs.folder, ignore_errors=True)  # weights of a killed session
        texts, after = self._trained(inputs, chat, watch, canary)
        free_memory(pick_device(self.config.m_step.device))
        write_rows(inputs.folder.parent / "sdft.jsonl", texts)
        sampled = sum(text["tokens"] for text in texts)
        prompts = {pair.question_id: len(chat.prompt_ids(pair.prompt)) for pair in inputs.pairs}
        trained = MStepResult(
            model=ModelRef(str(inputs.folder), inputs.iteration),
            pairs=len(texts),
            steps=len(watch.losses),
            tokens=sampled + sum(prompts[text["question_id"]] for text in texts),
            completion_tokens=sampled,
            losses=tuple(watch.losses),
            learning_rate=inputs.learning_rate,
            left_out=0,
            canary=Canary(canary, after, before, sum(len(chat.completion_ids(text)) for _, text in canary)),
        )
        write_m_step(trained, inputs.folder)  # last: it marks the weights as complete
        return trained

    def _trained(
        self, inputs: MStepInput, chat: Chat, watch: Watch, canary: tuple[tuple[Messages, str], ...]
    ) -> tuple[list[dict[str, Any]], float]:
        """Train and save; the student's texts, and the canary's score under the new weights."""
        prompts = {pair.question_id: list(pair.prompt) for pair in inputs.pairs}
        if dropped := len(prompts) % self.config.m_step.batch_size:
            inputs.log(f"  note: TRL leaves out {dropped} of {len(prompts)} questions per pass: they fill no batch")
        # As in the loop, `few_shot: first` shows the examples until the policy has been trained once.
        task = self.task.after_training() if inputs.start.iteration > 0 else self.task
        asked = {question.id: question for question in RunStore(self.config.folder).questions("train")}
        with preserve_rng_state(), silence_logs(), tempfile.TemporaryDirectory() as scratch:
            trainer = SDFTTrainer(
                inputs.start.path,
                self._arguments(inputs, scratch),
                Dataset.from_list([{"prompt": prompt, "privileged_context": id} for id, prompt in prompts.items()]),
                processing_class=chat.tokenizer,
                callbacks=[watch],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.teacher_context_builder = HintedTeacher(trainer, task, asked)
            trainer.train()
            model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()
            model.save_pretrained(inputs.folder)
            chat.tokenizer.save_pretrained(inputs.folder)
            engine = self.config.engine
            sampled_in = resolve_dtype(
                getattr(engine, "dtype", "auto"), pick_device(getattr(engine, "device", "auto")).type
            )
            with rounded_weights(model, sampled_in), torch.inference_mode():
                after = sum(sequence_logprob(model, chat, prompt, text) for prompt, text in canary)
        return trainer.teacher_context_builder.texts, after

    def _arguments(self, inputs: MStepInput, scratch: str) -> SDFTConfig:
        settings = self.config.m_step
        content = {
            "learning_rate": inputs.learning_rate,
            "lr_scheduler_type": "constant",
            "max_grad_norm": settings.max_grad_norm,
            "per_device_train_batch_size": settings.batch_size,
            "num_train_epochs": settings.epochs if self.settings["seconds"] is None else ENDLESS,
            "num_generations": 1,
            "max_prompt_length": None,  # TRL's 512 would cut off the beginning of a prompt
            "max_completion_length": self.config.max_new_tokens,
            "temperature": self.config.engine.temperature,
            "top_p": self.config.engine.top_p,
            "bf16": resolve_precision(settings, pick_device(settings.device).type).precision == "bfloat16",
            "gradient_checkpointing": bool(settings.gradient_checkpointing),
            "model_init_kwargs": {"dtype": "float32"},
            "use_cpu": pick_device(settings.device).type == "cpu",
            "seed": inputs.seed % 2**32,
        }
        quiet = {"save_strategy": "no", "report_to": "none", "logging_steps": 1, "disable_tqdm": True}
        return SDFTConfig(output_dir=scratch, **{**quiet, **content, **self.settings["trl"]})


def run_twin(run: Run, name: str, options: argparse.Namespace, report: Reporter) -> str:
    """Train SDFT beside a run of the study, or resume it; returns the name of its folder."""
    head, _, tail = run.store.folder.name.rpartition(f"-{options.arm}-")
    folder = run.store.folder.with_name(f"{head}-{name}-{tail}")
    content = run.config.model_dump(mode="json")
    content |= {"proposal": {"type": "direct"}, "filters": {}, "keep_weights": "last"}
    content |= {"name": name, "run_dir": str(folder)}
    content["m_step"] |= {"precision": "float32", "replay": 1, "lora": None}
    override_all(content, options.overrides)
    task, config = open_task(validate(content, "options"))
    spent = {str(k.iteration): k.seconds.get("e_step", 0.0) + k.seconds.get("m_step", 0.0) for k in run.iterations[1:]}
    trl = {key: yaml.safe_load(value) for key, _, value in (pair.partition("=") for pair in options.trl)}
    hinted = replace(task, hint_variant=hint_variant(run.config.proposal))
    m_step = SDFTMStep(config, hinted, spent if options.equal == "seconds" else None, trl)
    store = RunStore(folder)
    if store.latest_metadata("sdft") not in (None, m_step.settings):
        raise ConfigError(f"{folder} was started with other settings of SDFT: give the new arm a --name")
    if not store.finished(config, task.text):
        trainer = FEMTrainer(config.model, config.task, config, reporter=report, m_step=m_step)
        trainer.train(ReusableRuns(base=[run.store], peers=[run.store]))
    without_e_step(store)
    if yaml.safe_load((options.study / "study.yaml").read_text(encoding="utf-8")).get("keep_weights") == "none":
        store.remove_weights(keep=())
    return folder.name


def without_e_step(store: RunStore) -> None:
    """Correct the metrics of a finished run: nothing was drawn in its E-steps, and TRL sampled in its M-steps."""
    for step in store.committed()[1:]:
        metrics = step.metrics()
        sampled = sum(row["tokens"] for row in JsonlFile(step.folder / "sdft.jsonl").read())
        corrected = replace(metrics, e_step=None, tokens={**metrics.tokens, "e_step_new": sampled})
        write_whole(step.folder / "metrics.json", json.dumps(metrics_to_json(corrected), indent=1) + "\n")


def add_cell(study: Path, beside: str, name: str, arm: str) -> None:
    """Record a finished run in the study. `estep study` keeps runs that its configuration does not have."""
    content = json.loads((study / "study.json").read_text(encoding="utf-8"))
    (cell,) = [cell for cell in content["cells"] if cell["name"] == beside]
    others = [cell for cell in content["cells"] if cell["name"] != name]
    added = {**cell, "name": name, "arm": arm, "compared_as": arm}
    write_whole(study / "study.json", json.dumps({**content, "cells": [*others, added]}, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("study", type=Path, help="the folder of a study")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings, such as m_step.batch_size=16")
    parser.add_argument("--equal", choices=("questions", "seconds"), default="questions", help="[questions]")
    parser.add_argument("--arm", default="pps", help="the arm whose runs get a twin [pps]")
    parser.add_argument("--task", help="only this task [all tasks]")
    parser.add_argument("--seed", type=int, help="only this seed [all seeds]")
    parser.add_argument("--trl", action="append", default=[], metavar="KEY=VALUE", help="a setting of SDFTConfig")
    parser.add_argument("--name", help="the new arm [sdft, or sdft-seconds]")
    options = parser.parse_intermixed_args(arguments)
    name = options.name or ("sdft" if options.equal == "questions" else "sdft-seconds")
    wanted = {"arm": options.arm, "task": options.task, "seed": options.seed}
    if not (options.study / "study.json").is_file():
        raise ConfigError(f"{options.study} holds no study (study.json)")
    with locked(options.study):
        runs = read_results(options.study).runs
        there = [(run, {"arm": run.arm, "task": run.config.task, "seed": run.config.seed}) for run in runs]
        chosen = [run for run, has in there if all(value in (None, has[key]) for key, value in wanted.items())]
        if not chosen:
            raise ConfigError(f"{options.study} has no finished run with {wanted}")
        for run in chosen:
            add_cell(options.study, run.name, run_twin(run, name, options, reporter()), name)


if __name__ == "__main__":
    try:
        main()
    except EstepError as error:
        sys.exit(f"error: {error}")
