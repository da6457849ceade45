"""The M-step: supervised fine-tuning on the accepted pairs with TRL (Algorithm 1, lines 4-5).

Pairs are tokenized before they reach TRL, so that nothing is cut off and the loss covers exactly the completion and its
end of turn. A gradient step minimizes

    − Σᵢ wᵢ Σₜ aᵢₜ log π(token t of completion i) / D

over its pairs i: wᵢ is the pair's weight, aᵢₜ is `answer_weight` on the tokens of the answer and 1 elsewhere, and D
counts completion tokens (`loss_reduction: token`) or pairs (`sequence`).

Weights are trained in float32: at the paper's learning rates, bfloat16 would round most updates away.
"""

import contextlib
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from estep.config import (
    LoRAConfig,
    MStepConfig,
    RunConfig,
)
from estep.durable import publish, sync_tree
from estep.engines import Engine
from estep.errors import ConfigError, DataError, EstepError, writing
from estep.m_step.base import MStepInput, MStepResult, write_m_step
from estep.m_step.canary import Canary
from estep.models.loading import (
    Chat,
    cast_weights,
    context_length,
    load_chat,
    load_model,
    pick_device,
    rounded_weights,
    silence_logs,
    tokenizer_path,
)
from estep.models.memory import free_memory, keep_freed_memory
from estep.models.randomness import preserve_rng_state
from estep.records import Messages, ModelRef, Pair

if TYPE_CHECKING:  # imports much
    from estep.m_step.trl_trainer import Row


_CANARIES = 8
_ACCELERATES_MARKS = ("forward", "_original_forward", "_is_accelerate_prepared")
"""Attributes that accelerate leaves on a model: autocast around `forward`, and a mark that it is prepared."""


class SFTMStep:
    """Each call trains for one or more epochs with TRL's `SFTTrainer`. A call that starts from the weights of the last
    one does not read them again.

    Args:
        config: the run's `m_step` section.
        context: the model's context in tokens; None for no limit.
        on_overlength: what to do with a pair that exceeds it: `stop` raises, `skip` leaves the pair out and counts it.
        canary_dtype: the engine's dtype, in which the canary is scored.
    """

    def __init__(self, config: MStepConfig, context: int | None, on_overlength: str, canary_dtype: str):
        self.config = config
        self.context = context
        self.on_overlength = on_overlength
        self.canary_dtype = canary_dtype
        self.device = pick_device(config.device)
        self._written: tuple[str, Any] | None = None
        """The folder that was written last, and its model."""

    def __call__(self, inputs: MStepInput) -> MStepResult | None:
        """Train and write the weights.

        Raises:
            DataError: a pair exceeds the model's context and `on_overlength` is `stop`.
            StoreError: the weights cannot be written; no partial files remain.
        """
        chat = load_chat(tokenizer_path(inputs.start.path))
        tokenized = [(pair, self._tokenized(chat, pair)) for pair in inputs.pairs]
        fitting = [(pair, row) for pair, row in tokenized if row is not None]
        if left_out := len(tokenized) - len(fitting):
            inputs.log(f"  iteration {inputs.iteration}: left out {left_out} pairs that exceed the model's context")
        if not fitting:
            return None
        rows = [row for _, row in fitting]
        responses = self._canaries(fitting)
        before = sum(inputs.score_before(prompt, text) for prompt, text in responses)
        inputs.release()
        if self.device.type == "cpu":
            keep_freed_memory()
        with preserve_rng_state(inputs.seed), silence_logs():
            model = self._model(inputs.start.path)
            former = self._former_scores(model, chat, responses, inputs)
            losses = self._train(model, chat, rows, inputs)
            with self._finished_folder(inputs.folder) as partial:
                self._save(model, chat, partial)
                after = self._scores(model, chat, responses)
                trained = MStepResult(
                    model=ModelRef(str(inputs.folder), inputs.iteration),
                    pairs=len(rows),
                    steps=len(losses),
                    tokens=sum(len(row["input_ids"]) for row in rows) * self.config.epochs,
                    completion_tokens=sum(len(row["weights"]) for row in rows) * self.config.epochs,
                    losses=tuple(losses),
                    learning_rate=inputs.learning_rate,
                    left_out=len(inputs.pairs) - len(rows),
                    canary=Canary(
                        responses=responses,
                        logprob=sum(after),
                        before=before,
                        tokens=sum(len(chat.completion_ids(text)) for _, text in responses),
                        visible=former is not None and all(a != b for a, b in zip(after, former, strict=True)),
                    ),
                )
                write_m_step(trained, partial)
        if self.config.init == "previous" and self.config.lora is None:
            self._written = str(inputs.folder), model.to("cpu")  # the engine may need the device's memory
            free_memory(self.device)
        return trained

    def _tokenized(self, chat: Chat, pair: Pair) -> "Row | None":
        prompt, completion = chat.prompt_ids(pair.prompt), chat.completion_ids(pair.completion)
        length = len(prompt) + len(completion)
        if self.context is not None and length > self.context:
            if self.on_overlength == "stop":
                raise DataError(
                    f"question {pair.question_id}: a training pair of {length} tokens exceeds the model's context of "
                    f"{self.context}; on_overlength=skip leaves such pairs out"
                )
            return None
        weights = [pair.weight] * len(completion)
        if self.config.answer_weight != 1.0 and pair.answer_span is not None:
            for position in chat.tokens_of(pair.completion, *pair.answer_span):
                weights[position] *= self.config.answer_weight
        return {"input_ids": prompt + completion, "weights": weights}

    def _model(self, path: str) -> Any:
        """The model to train: all weights, or an adapter, which continues the one in `path` if there is one."""
        lora = self.config.lora
        written, self._written = self._written, None
        if written is not None and written[0] == path:
            cast_weights(written[1], "float32")
            return written[1].to(self.device)
        model = load_model(path, "float32", self.device, trainable=lora is not None)
        if lora is None:
            return model
        if not hasattr(model, "peft_config"):
            return _with_adapter(model, lora)
        held = model.peft_config["default"]
        if (held.r, held.lora_alpha) != (lora.r, lora.alpha):
            raise ConfigError(
                f"{path} holds an adapter with r={held.r} and alpha={held.lora_alpha}; the config asks for r={lora.r} "
                f"and alpha={lora.alpha}"
            )
        return model

    def _train(self, model: Any, chat: Chat, rows: list["Row"], inputs: MStepInput) -> list[float]:
        from datasets import Dataset
        from transformers.trainer_callback import PrinterCallback

        from estep.m_step.packing import use_packed_attention
        from estep.m_step.trl_trainer import Collator, CompletionTrainer, Watch

        plain = model.get_base_model() if hasattr(model, "peft_config") else model
        packed = use_packed_attention(plain)
        args = self._arguments(inputs, self._plan(plain, rows, inputs.log), packed)
        watch = Watch(lambda: inputs.advance(self.config.batch_size))
        try:
            trainer = CompletionTrainer(
                model,
                args=args,
                train_dataset=Dataset.from_list(rows),
                data_collator=Collator(packed, chat.end_id),
                processing_class=chat.tokenizer,
                callbacks=[watch],
                reduction=self.config.loss_reduction,
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        finally:
            shutil.rmtree(args.output_dir, ignore_errors=True)
        for mark in _ACCELERATES_MARKS:
            vars(model).pop(mark, None)
        plain.gradient_checkpointing_disable()  # the next iteration makes its own plan
        if not all(math.isfinite(loss) for loss in watch.losses):
            raise EstepError(
                f"training diverged: the losses of its gradient steps are {watch.losses}; lower m_step.learning_rate"
            )
        return watch.losses

    def _arguments(self, inputs: MStepInput, plan: tuple[int, bool], packed: bool) -> Any:
        """TRL's arguments."""
        from trl import SFTConfig

        micro_batch_size, checkpointing = plan
        args = SFTConfig(
            output_dir=str(inputs.folder.with_name(inputs.folder.name + ".trainer")),
            learning_rate=inputs.learning_rate,
            lr_scheduler_type="constant",
            num_train_epochs=self.config.epochs,
            per_device_train_batch_size=micro_batch_size,
            gradient_accumulation_steps=self.config.batch_size // micro_batch_size,
            max_grad_norm=self.config.max_grad_norm,
            gradient_checkpointing=checkpointing,
            bf16=self.config.precision == "bfloat16",
            use_cpu=self.device.type == "cpu",
            max_length=None,  # TRL's default of 1024 would cut off the answer, which comes last
            packing=False,  # TRL would concatenate pairs to a fixed length; the collator packs a batch instead
            dataset_kwargs={"skip_prepare_dataset": True},
            remove_unused_columns=False,
            train_sampling_strategy="random" if packed else "group_by_length",  # less padding
            seed=inputs.seed % 2**32,
            data_seed=inputs.seed % 2**32,
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=self.device.type == "cuda",
        )
        if args.n_gpu > 1:
            args._n_gpu = 1  # otherwise transformers multiplies the batch size by the number of GPUs
        return args

    def _plan(self, model: Any, rows: list["Row"], log: Callable[[str], None]) -> tuple[int, bool]:
        """Pairs per forward pass, and whether to use gradient checkpointing: as configured, otherwise as memory
        allows."""
        from estep.m_step.memory_plan import device_memory, plan
        from estep.models.shape import measured

        config = self.config
        lengths = [(len(row["input_ids"]), len(row["weights"])) for row in rows]
        chosen = plan(measured(model.config), lengths, config, device_memory(self.device))
        if config.micro_batch_size is not None:
            size = config.micro_batch_size
        else:
            fitting = min(chosen.positions // max(n for n, _ in lengths), chosen.targets // max(n for _, n in lengths))
            whole = fitting >= min(config.batch_size, len(rows))
            size = next(
                n for n in range(config.batch_size, 0, -1) if config.batch_size % n == 0 and (whole or n <= fitting)
            )
            if size < min(config.batch_size, len(rows)):
                log(f"  note: to save memory, each forward pass takes {size} pairs; gradient steps are unchanged")
        if chosen.checkpointing and config.gradient_checkpointing is None:
            log("  note: to save memory, gradient checkpointing is on")
        return size, chosen.checkpointing

    def _save(self, model: Any, chat: Chat, folder: Path) -> None:
        if self.config.save_dtype != "float32":
            cast_weights(model, self.config.save_dtype)
        model.save_pretrained(folder)
        chat.tokenizer.save_pretrained(folder)

    def _canaries(self, pairs: list[tuple[Pair, "Row"]]) -> tuple[tuple[Messages, str], ...]:
        """The pairs with the largest weights; among equals the last ones, because with replay the first were trained on
        before and change little.

        Pairs that fill the context are avoided: some engines must sample one more token when they score.
        """
        fit = [pair for pair, row in pairs if len(row["input_ids"]) != self.context] or [pair for pair, _ in pairs]
        chosen = sorted(range(len(fit)), key=lambda index: (-fit[index].weight, -index))[:_CANARIES]
        return tuple((fit[index].prompt, fit[index].completion) for index in chosen)

    def _former_scores(
        self, model: Any, chat: Chat, responses: tuple[tuple[Messages, str], ...], inputs: MStepInput
    ) -> list[float] | None:
        """The canary's scores before training; None where they are not those of the engine's present weights, or
        where scoring would merge the adapter that is about to be trained."""
        from estep.m_step.packing import use_packed_attention

        if self.config.lora is not None or (self.config.init == "base" and inputs.iteration > 1):
            return None
        use_packed_attention(model)  # as after training: other kernels round otherwise
        return self._scores(model, chat, responses)

    def _scores(self, model: Any, chat: Chat, responses: tuple[tuple[Messages, str], ...]) -> list[float]:
        """log π(text | prompt) of each response, with the weights rounded to the engine's dtype."""
        import torch

        from estep.models.tokens import sequence_logprob

        if self.config.lora is not None:
            model = model.merge_and_unload()  # as the engine will use it
        model.eval()
        with rounded_weights(model, self.canary_dtype), torch.inference_mode():
            return [sequence_logprob(model, chat, prompt, text) for prompt, text in responses]

    @contextlib.contextmanager
    def _finished_folder(self, folder: Path) -> Iterator[Path]:
        """A folder that takes its name once the block has ended without an error and all of it is on the disk.

        It vanishes otherwise.
        """
        partial = folder.with_name(folder.name + ".partial")
        with writing(folder):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            try:
                yield partial
                sync_tree(partial)
                publish(partial, folder)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise


def _with_adapter(model: Any, lora: LoRAConfig) -> Any:
    from peft import LoraConfig, get_peft_model

    modules = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    return get_peft_model(
        model,
        LoraConfig(
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=modules,
            task_type="CAUSAL_LM",
        ),
    )


def build_m_step(config: RunConfig, base: ModelRef, engine: Engine) -> SFTMStep:
    """The M-step of a resolved configuration."""
    dtype = getattr(config.engine, "dtype", "bfloat16")
    contexts = [context for context in (context_length(base.path), engine.context) if context is not None]
    return SFTMStep(config.m_step, min(contexts, default=None), config.on_overlength, dtype)
