"""Algorithm 1 as a whole: what it keeps, and that a killed run ends as one that was never killed."""

import json
from pathlib import Path

import pytest

from conftest import JUDGE, Listen, write_task
from estep.engines.scripted import ScriptedEngine
from estep.errors import DataError, StaleWeightsError, StoreError
from estep.inference import find_model
from estep.m_step.base import MStepInput
from estep.progress import Silent
from estep.records import Draw
from estep.store.run import RunStore, locked
from estep.trainer import FEMTrainer
from runs import ANY_TEXT, KillAfter, Killed, Scored, contents, pretend, right_when_hinted, run, scripted_run, settings


@pytest.fixture(scope="module")
def uninterrupted(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    task = write_task(folder, **ANY_TEXT)
    result = run(tiny_model, task, settings(folder / "run"))
    assert result.last.m_step is not None
    assert result.last.m_step.pairs == 7
    return task, contents(folder / "run")


@pytest.fixture(scope="module")
def uninterrupted_first(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """The same with `few_shot: first`: iteration 2 draws with other prompts than iteration 1."""
    folder = tmp_path_factory.mktemp("uninterrupted-first")
    task = write_task(folder, **ANY_TEXT)
    run(tiny_model, task, settings(folder / "run", few_shot="first"))
    assert [prompts(folder, k)[0] for k in (1, 2)] == [{6}, {2}]
    return task, contents(folder / "run")


# Pieces of work of this run: 4 evaluation texts, then per iteration 7 draws, 2 gradient steps, 4 texts.
@pytest.mark.slow
@pytest.mark.parametrize("pieces", [0, 2, 4, 5, 9, 11, 12, 14, 17, 20, 24, 27, 29])
def test_resumed_equals_uninterrupted(
    pieces: int, tiny_model: str, tmp_path: Path, uninterrupted: tuple[Path, dict[str, object]]
) -> None:
    task, expected = uninterrupted
    with pytest.raises(Killed):
        run(tiny_model, task, settings(tmp_path / "run"), KillAfter(pieces))
    result = run(tiny_model, task, settings(tmp_path / "run"))
    assert contents(tmp_path / "run") == expected
    assert [metrics.iteration for metrics in result.iterations] == [0, 1, 2]


# In the E-step of iteration 2, which resumes with the prompts of a trained policy, and in the M-step after it.
@pytest.mark.slow
@pytest.mark.parametrize("pieces", [20, 24])
def test_resumed_equals_uninterrupted_when_the_prompts_change_after_training(
    pieces: int, tiny_model: str, tmp_path: Path, uninterrupted_first: tuple[Path, dict[str, object]]
) -> None:
    task, expected = uninterrupted_first
    with pytest.raises(Killed):
        run(tiny_model, task, settings(tmp_path / "run", few_shot="first"), KillAfter(pieces))
    run(tiny_model, task, settings(tmp_path / "run", few_shot="first"))
    assert contents(tmp_path / "run") == expected


WEIGHED = {
    "proposal": {"type": "pps", "n": 2},
    "filters": {"min_rationale_words": 0, "drop_truncated": False, "weight_by": "importance"},
    "diagnostics": "full",
    "validation_size": 2,
}


@pytest.fixture(scope="module")
def uninterrupted_weighed(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """The same with two draws per question, weighted by their scores, and with full diagnostics."""
    folder = tmp_path_factory.mktemp("uninterrupted-weighed")
    task = write_task(folder, 14, **ANY_TEXT)
    run(tiny_model, task, settings(folder / "run", **WEIGHED))
    return task, contents(folder / "run")


# The base model: 4 texts, 2 of validation, 8 probes. Iteration 1: 14 draws, 28 scores, 4 gradient steps, 14 texts.
@pytest.mark.slow
@pytest.mark.parametrize("pieces", [8, 33, 45, 72])
def test_resumed_equals_uninterrupted_in_scores_and_probes(
    pieces: int, tiny_model: str, tmp_path: Path, uninterrupted_weighed: tuple[Path, dict[str, object]]
) -> None:
    task, expected = uninterrupted_weighed
    with pytest.raises(Killed):
        run(tiny_model, task, settings(tmp_path / "run", **WEIGHED), KillAfter(pieces))
    run(tiny_model, task, settings(tmp_path / "run", **WEIGHED))
    assert contents(tmp_path / "run") == expected


@pytest.mark.slow
def test_a_run_killed_again_and_again_still_ends_the_same(
    tiny_model: str, tmp_path: Path, uninterrupted: tuple[Path, dict[str, object]]
) -> None:
    task, expected = uninterrupted
    kills = 0
    while True:
        try:
            run(tiny_model, task, settings(tmp_path / "run"), KillAfter(5))
            break
        except Killed:
            kills += 1
            assert kills < 20
    assert kills >= 4
    assert contents(tmp_path / "run") == expected


@pytest.mark.slow
def test_a_lora_run_in_bfloat16_resumes_and_its_canary_holds(tiny_model: str, tmp_path: Path) -> None:
    task = write_task(tmp_path, **ANY_TEXT)
    # `init: base` makes a new adapter in every iteration, whose random start must depend on the seed alone.
    m_step = {"learning_rate": [1e-2, 1e-3], "batch_size": 4, "device": "cpu", "init": "base", "lora": {"r": 4}}
    run(tiny_model, task, settings(tmp_path / "whole", m_step=m_step))
    with pytest.raises(Killed):
        run(tiny_model, task, settings(tmp_path / "killed", m_step=m_step), KillAfter(19))
    run(tiny_model, task, settings(tmp_path / "killed", m_step=m_step))
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    record = json.loads((tmp_path / "whole/iteration-02/iteration.json").read_text())
    assert record["canary"]["loaded"] == pytest.approx(record["canary"]["trained"], abs=1.3, rel=0.02)
    assert (tmp_path / "whole/iteration-02/weights/adapter_model.safetensors").exists()


@pytest.mark.slow
def test_another_adapter_shape_is_refused(tiny_model: str, tmp_path: Path) -> None:
    from estep.errors import ConfigError

    task = write_task(tmp_path, **ANY_TEXT)
    small = {"batch_size": 4, "device": "cpu", "lora": {"r": 4}}
    first = run(tiny_model, task, settings(tmp_path / "one", m_step=small, iterations=1))
    larger = {"batch_size": 4, "device": "cpu", "lora": {"r": 8}}
    with pytest.raises(ConfigError, match="holds an adapter with r=4 and alpha=32; the config asks for r=8"):
        run(first.model, task, settings(tmp_path / "two", m_step=larger, iterations=1))


@pytest.mark.slow
def test_a_diverged_training_stops_the_run(tiny_model: str, tmp_path: Path) -> None:
    from estep.errors import EstepError

    task = write_task(tmp_path, **ANY_TEXT)
    m_step = {"learning_rate": [1e30, 1e30], "batch_size": 2, "device": "cpu", "epochs": 3}
    with pytest.raises(EstepError, match=r"training diverged: .* lower m_step\.learning_rate"):
        run(tiny_model, task, settings(tmp_path / "run", m_step=m_step))
    assert not (tmp_path / "run/iteration-01/weights").exists()


@pytest.mark.slow
def test_a_finished_run_is_read_and_not_repeated(
    tiny_model: str, uninterrupted: tuple[Path, dict[str, object]]
) -> None:
    task, expected = uninterrupted
    result = run(tiny_model, task, settings(task.parent / "run"), KillAfter(0))
    assert contents(task.parent / "run") == expected
    assert Path(result.model) == task.parent / "run/iteration-02/weights"


@pytest.mark.slow
def test_another_configuration_on_a_run_folder_is_refused(
    tiny_model: str, uninterrupted: tuple[Path, dict[str, object]]
) -> None:
    task, expected = uninterrupted
    with pytest.raises(StoreError, match=r"another configuration \(iterations: 2 -> 3; seed: 257 -> 5\)"):
        run(tiny_model, task, settings(task.parent / "run", iterations=3, seed=5))
    assert contents(task.parent / "run") == expected


@pytest.mark.slow
def test_changed_rows_on_a_run_folder_are_refused(tiny_model: str, tmp_path: Path) -> None:
    task = write_task(tmp_path, **ANY_TEXT)
    with pytest.raises(Killed):
        run(tiny_model, task, settings(tmp_path / "run"), KillAfter(3))
    rows = (tmp_path / "rows.jsonl").read_text().replace("text 3", "text three").replace("text 4", "text four")
    (tmp_path / "rows.jsonl").write_text(rows)
    with pytest.raises(StoreError, match="questions changed since"):
        run(tiny_model, task, settings(tmp_path / "run"))


@pytest.mark.slow
def test_the_run_folder_reads_with_datasets(uninterrupted: tuple[Path, dict[str, object]]) -> None:
    import datasets

    task, _ = uninterrupted
    datasets.disable_progress_bars()
    folder = task.parent / "run/iteration-01"
    for name, count in {"draws": 7, "samples": 7, "verdicts": 7, "pairs": 7, "eval": 4}.items():
        rows = datasets.load_dataset(
            "json", data_files=str(folder / f"{name}.jsonl"), split="train", cache_dir=str(task.parent / "cache")
        )
        assert len(rows) == count


# With a scripted engine and an M-step of the test's own


def test_weights_flow_from_iteration_to_iteration(tmp_path: Path) -> None:
    seen: list[MStepInput] = []
    scripted_run(tmp_path, Scored(right_when_hinted), seen, iterations=3)
    assert [Path(work.start.path).parent.name for work in seen] == [tmp_path.name, "iteration-01", "iteration-02"]
    # 1e-3 to 1e-4 over three iterations.
    assert [work.learning_rate for work in seen] == pytest.approx([1e-3, 5.5e-4, 1e-4])


def test_replay_trains_on_the_pairs_of_earlier_iterations_too(tmp_path: Path) -> None:
    seen: list[MStepInput] = []
    scripted_run(tmp_path, Scored(right_when_hinted), seen, iterations=3, m_step={"replay": 2})
    own = [RunStore(tmp_path / "run").iteration(k).pairs() for k in (1, 2, 3)]
    assert all(own)
    assert [list(work.pairs) for work in seen] == [own[0], own[0] + own[1], own[1] + own[2]]
    assert own[0][0].answer_span == (len(own[0][0].completion) - 1, len(own[0][0].completion))


def test_replay_does_not_stand_in_for_an_iteration_that_accepts_nothing(tmp_path: Path) -> None:
    seen: list[MStepInput] = []
    told = Listen()
    calls: list[int] = []

    def answer(draw: Draw) -> str:
        if draw.proposal == "evaluation":
            return "I do not know"
        calls.append(1)
        return right_when_hinted(draw) if len(calls) <= 7 else "I do not know"

    result = scripted_run(tmp_path, Scored(answer), seen, told, m_step={"replay": 2})
    assert len(seen) == 1
    assert result.last.m_step is None
    assert any("iteration 2: no sample was accepted" in line for line in told.lines)


def test_chains_train_on_their_states_also_where_no_draw_is_accepted(tmp_path: Path) -> None:
    def right_at_first(draw: Draw) -> str:
        return right_when_hinted(draw) if draw.hinted else "I do not know"

    seen: list[MStepInput] = []
    chain = {"proposal": {"type": "chain"}, "m_step": {"replay": "last"}}
    result = scripted_run(tmp_path, Scored(right_at_first), seen, **chain)
    assert [work.iteration for work in seen] == [1, 2]
    assert list(seen[0].pairs) == list(seen[1].pairs) != []
    assert result.last.e_step is not None
    assert result.last.e_step.accepted == 0


def test_the_mix_of_answers_is_measured_and_can_be_restored(tmp_path: Path) -> None:
    def right_for_low_scores(draw: Draw) -> str:
        answer = int(draw.question_id.removeprefix("r")) % 5
        return right_when_hinted(draw) if answer < 2 else "I do not know"

    told = Listen()
    result = scripted_run(tmp_path, Scored(right_for_low_scores), reporter=told)
    e_step = result.last.e_step
    assert e_step is not None
    assert set(e_step.accepted_answers) == {"0", "1"} < set(e_step.data_answers)
    share = sum(e_step.data_answers[answer] for answer in "01") / e_step.attempts
    assert e_step.answer_shift >= 1 - share - 1e-9 > 0
    assert any("so does filters.balance" in line for line in told.lines)


def test_init_base_starts_every_iteration_from_the_base_model(tmp_path: Path) -> None:
    seen: list[MStepInput] = []
    scripted_run(tmp_path, Scored(right_when_hinted), seen, m_step={"init": "base"})
    assert [work.start.path for work in seen] == [str(tmp_path / "base")] * 2


def test_an_iteration_without_an_accepted_pair_trains_nothing_and_says_so(tmp_path: Path) -> None:
    reporter = Listen()
    write_task(tmp_path)
    engine = Scored(lambda draw: "I do not know")
    (tmp_path / "base").mkdir()
    (tmp_path / "base/config.json").write_text("{}")
    config = settings(tmp_path / "run", filters={})
    result = FEMTrainer(
        str(tmp_path / "base"), str(tmp_path / "judge.yaml"), config, engine=engine, m_step=pretend, reporter=reporter
    ).train()
    assert any("no sample was accepted" in line for line in reporter.lines)
    assert result.last.m_step is None
    assert result.last.e_step is not None
    assert result.last.e_step.data_utilization == 0.0
    assert result.last.evaluation.kappa != result.last.evaluation.kappa  # NaN: nothing was parsed
    assert result.model == str(tmp_path / "base")


def test_evaluation_asks_the_plain_policy_prompt(tmp_path: Path) -> None:
    engine = Scored(right_when_hinted)
    scripted_run(tmp_path, engine)
    evaluated = [draw for draw in engine.asked if draw.proposal == "evaluation"]
    assert len(evaluated) == 3 * 4
    assert not any(draw.hinted or "Hint" in str(draw.messages) for draw in evaluated)
    assert all(len(draw.messages) == 2 for draw in evaluated)  # system and question: no examples with `proposal`


def test_keep_weights_last_removes_the_earlier_ones(tmp_path: Path) -> None:
    result = scripted_run(tmp_path, Scored(right_when_hinted), iterations=3, keep_weights="last")
    kept = sorted(path.parent.name for path in (tmp_path / "run").glob("*/weights"))
    assert kept == ["iteration-03"]
    assert result.model == str(tmp_path / "run/iteration-03/weights")


def test_stale_weights_stop_the_run(tmp_path: Path) -> None:
    class Stale(ScriptedEngine):
        def score(self, messages: object, text: str) -> float:
            return -20.0  # what the former weights give

    with pytest.raises(StaleWeightsError, match=r"scores -20.000, the trained weights give -10.000"):
        scripted_run(tmp_path, Stale(right_when_hinted))


def test_a_second_process_on_a_run_folder_is_refused(tmp_path: Path) -> None:
    with locked(tmp_path / "run"), pytest.raises(StoreError, match="another process is running"):
        scripted_run(tmp_path, Scored(right_when_hinted))


def test_a_run_killed_while_it_wrote_its_configuration_starts_again(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/task.yaml").write_text("old")
    (tmp_path / "run/config.yaml.partial").write_text("tas")
    assert scripted_run(tmp_path, Scored(right_when_hinted)).last.iteration == 2


def test_a_run_that_resumes_with_another_engine_says_so(tmp_path: Path) -> None:
    class Another(Scored):
        @property
        def metadata(self) -> dict[str, str | int | float | bool]:
            return {"engine": "another"}

    told = []
    for engine in (Scored, Scored, Another):
        reporter = Listen()
        scripted_run(tmp_path, engine(right_when_hinted), reporter=reporter)
        told.append([line for line in reporter.lines if "resumes with" in line])
    assert told == [[], [], ["note: this run was started with the engine scripted and resumes with another"]]


def test_the_scripted_engine_cannot_train(tmp_path: Path) -> None:
    from estep.errors import ConfigError

    config = settings(tmp_path / "run", engine={"type": "scripted", "script": "x.json"})
    with pytest.raises(ConfigError, match="needs an M-step of your own"):
        FEMTrainer("base", str(write_task(tmp_path)), config)


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.txt").write_text("precious")
    with pytest.raises(StoreError, match=r"holds no run \(found thesis.txt\)"):
        scripted_run(tmp_path, Scored(right_when_hinted))
    assert [path.name for path in (tmp_path / "run").iterdir() if path.name != ".lock"] == ["thesis.txt"]


@pytest.mark.slow
def test_questions_that_exceed_the_context_stop_or_are_counted(tiny_model: str, tmp_path: Path) -> None:
    task = write_task(tmp_path, **ANY_TEXT)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    rows[3]["text"] = "word " * 600
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    everything = {"train_size": 8, "iterations": 1}
    with pytest.raises(DataError, match=r"1 of \d (train|test) questions do not fit the model's context of 2048"):
        run(tiny_model, task, settings(tmp_path / "run", **everything))
    assert not (tmp_path / "run").exists()
    run(tiny_model, task, settings(tmp_path / "run", on_overlength="skip", **everything))
    (session,) = json.loads((tmp_path / "run/run.json").read_text())["sessions"]
    assert sum(session["overlength"].values()) == 1


def prompts(folder: Path, k: int) -> tuple[set[int], set[int]]:
    """How many messages the draws and the pairs of an iteration have."""
    rows = [
        [json.loads(line) for line in (folder / f"run/iteration-{k:02d}/{name}.jsonl").read_text().splitlines()]
        for name in ("draws", "pairs")
    ]
    return {len(draw["messages"]) for draw in rows[0]}, {len(pair["prompt"]) for pair in rows[1]}


# The judge task's prompts have a system message, two examples of two messages each, and the question.
@pytest.mark.parametrize(
    ("few_shot", "drawn", "trained"), [("first", {2}, {2}), ("both", {6}, {6}), ("proposal", {6}, {2})]
)
def test_the_loop_is_closed_after_the_first_iteration(
    tmp_path: Path, few_shot: str, drawn: set[int], trained: set[int]
) -> None:
    scripted_run(tmp_path, Scored(right_when_hinted), few_shot=few_shot)
    assert prompts(tmp_path, 1) == ({6}, trained)
    assert prompts(tmp_path, 2) == (drawn, trained)


def test_the_examples_stay_until_something_was_accepted(tmp_path: Path) -> None:
    scripted_run(tmp_path, Scored(lambda draw: "no answer"), few_shot="first", iterations=3)
    assert [prompts(tmp_path, k) for k in (1, 2, 3)] == [({6}, set())] * 3


def test_the_judge_task_of_these_tests_is_what_it_says() -> None:
    assert JUDGE["few_shot"] == "proposal"


# Validation


def best_after(best: int, iterations: int) -> Scored:
    """An engine whose plain answers are all right after iteration `best` alone, and wrong otherwise."""
    engine = Scored(lambda draw: "")

    def answer(draw: Draw) -> str:
        gold = int(draw.question_id.removeprefix("r")) % 5
        right = draw.proposal != "evaluation" or engine.loaded[-1].iteration == best
        return f"Evaluation: one two three four five six. Score: {gold if right else (gold + 1) % 5}"

    engine.script = answer
    return engine


@pytest.mark.parametrize("keep", ["all", "last"])
def test_validation_selects_the_best_iteration_and_its_weights_stay(tmp_path: Path, keep: str) -> None:
    result = scripted_run(
        tmp_path,
        best_after(2, 4),
        iterations=4,
        train_size=5,
        select="validation",
        validation_size=3,
        keep_weights=keep,
    )
    assert [metrics.validation.accuracy for metrics in result.iterations if metrics.validation] == [0, 0, 1, 0, 0]
    assert result.selected.iteration == 2
    assert Path(result.model) == tmp_path / "run/iteration-02/weights"
    kept = [step for step in range(1, 5) if (tmp_path / f"run/iteration-{step:02d}/weights").is_dir()]
    assert kept == ([1, 2, 3, 4] if keep == "all" else [2, 4])
    listen = Listen()
    assert find_model(str(tmp_path / "run"), listen) == result.model
    assert listen.lines == [f"weights of iteration 2 of {tmp_path / 'run'}"]


def test_a_base_model_that_no_iteration_betters_is_selected(tmp_path: Path) -> None:
    result = scripted_run(tmp_path, best_after(0, 2), select="validation", train_size=5, validation_size=3)
    assert (result.selected.iteration, result.model) == (0, str(tmp_path / "base"))
    assert find_model(str(tmp_path / "run"), Silent()) == str(tmp_path / "base")


def test_validation_questions_are_asked_with_the_plain_prompt_alone(tmp_path: Path) -> None:
    engine = best_after(1, 2)
    scripted_run(tmp_path, engine, select="validation", train_size=5, validation_size=3)
    chosen = {json.loads(line)["id"] for line in (tmp_path / "run/validation.jsonl").read_text().splitlines()}
    assert len(chosen) == 3
    asked = [draw for draw in engine.asked if draw.question_id in chosen]
    assert len(asked) == 3 * 3  # the base model and two iterations
    assert not any(draw.hinted for draw in asked)


def test_weights_that_were_not_kept_are_named(tmp_path: Path) -> None:
    scripted_run(tmp_path, Scored(right_when_hinted))
    RunStore(tmp_path / "run").remove_weights(keep=())
    with pytest.raises(DataError, match=r"the weights of iteration 2 of .* were not kept"):
        find_model(str(tmp_path / "run"), Silent())


def test_the_weights_that_a_killed_run_resumes_from_are_not_removed(tmp_path: Path) -> None:
    settings = {"iterations": 4, "train_size": 5, "select": "validation", "validation_size": 3, "keep_weights": "last"}
    # 7 questions are asked before training, and 5 draws and 7 questions make an iteration: iteration 4 begins after 43.
    with pytest.raises(Killed):
        scripted_run(tmp_path, best_after(1, 4), reporter=KillAfter(45), **settings)
    kept = [step for step in range(1, 5) if (tmp_path / f"run/iteration-{step:02d}/weights").is_dir()]
    assert kept == [1, 3]  # the best so far, and the newest
    seen: list[MStepInput] = []
    engine = best_after(1, 4)
    result = scripted_run(tmp_path, engine, seen, **settings)
    assert [model.iteration for model in engine.loaded] == [0, 3, 4]
    assert [work.start.iteration for work in seen] == [3]
    assert result.selected.iteration == 1


def test_a_sample_that_is_missed_after_training_is_drawn_again(tmp_path: Path) -> None:
    # Killed in the evaluation after iteration 1: 4 questions before training, 7 draws, 1 question.
    with pytest.raises(Killed):
        scripted_run(tmp_path, Scored(right_when_hinted), reporter=KillAfter(12), iterations=1)
    path = tmp_path / "run/iteration-01/samples.jsonl"
    *kept, lost = path.read_text().splitlines(keepends=True)
    assert (path.parent / "weights").is_dir()
    path.write_text("".join(kept))
    engine = Scored(right_when_hinted)
    scripted_run(tmp_path, engine, iterations=1)
    drawn = [draw.id for draw in engine.asked if draw.proposal != "evaluation"]
    assert drawn == [json.loads(lost)["draw_id"]]
    assert sorted(path.read_text().splitlines(keepends=True)) == sorted([*kept, lost])
