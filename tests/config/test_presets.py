"""The shipped configurations of other members of the family: each does what its paper does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import shipped, write_task
from estep import FEMConfig, FEMTrainer
from estep.config import RunConfig
from estep.config.files import difference, load_config
from estep.engines.scripted import ScriptedEngine
from estep.errors import ConfigError
from estep.m_step.base import MStepInput
from estep.records import Draw
from estep.tasks import load_task
from runs import Scored, pretend

Texts = list[str] | Callable[[Draw, int], str]


def run_of(preset: str, folder: Path, texts: Texts) -> tuple[list[MStepInput], ScriptedEngine]:
    """A run of a preset on a small task, with an engine that answers each question's draws with these texts.

    Args:
        texts: in the order of the draws of a question, or a function of the draw and the correct score.
    """
    content = load_config(preset).model_dump(mode="json", exclude={"task", "model", "run_dir"})
    content |= {"iterations": 2, "train_size": 4, "test_size": 2, "run_dir": str(folder / "run")}
    seen: list[MStepInput] = []

    def m_step(work: MStepInput) -> Any:
        seen.append(work)
        return pretend(work)

    def answer(draw: Draw) -> str:
        gold = int(draw.question_id.removeprefix("r")) % 5
        if callable(texts):
            return texts(draw, gold)
        return texts[draw.index % len(texts)].replace("GOLD", str(gold)).replace("NEXT", str((gold + 1) % 5))

    base = folder / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    engine = Scored(answer)
    args = FEMConfig.model_validate(content)
    FEMTrainer(str(base), str(write_task(folder)), args, engine=engine, m_step=m_step).train()
    return seen, engine


RIGHT = "Evaluation: one two three four five six {}. Score: GOLD"


@pytest.mark.parametrize("path", shipped(study=False), ids=lambda path: path.stem)
def test_every_preset_is_a_valid_run_and_names_its_source(path: Path) -> None:
    assert isinstance(load_config(path), RunConfig)
    head = path.read_text().split("task:")[0].split("extends:")[0]
    assert head.startswith("# ")
    if not path.stem.startswith("demo"):
        assert "arXiv" in head


@pytest.mark.parametrize("name", ["paper/helpsteer2", "paper/summarize"])
def test_the_papers_presets_are_as_its_section_4_1_says(name: str) -> None:
    config = load_config(name)
    assert (config.iterations, config.train_size, config.test_size) == (5, 2000, 2000)
    assert (config.m_step.learning_rate, config.m_step.epochs, config.m_step.init) == ((1e-6, 1e-7), 1, "previous")
    assert config.m_step.max_grad_norm == 1.0  # the trainer's default, as AdamW's
    assert (config.proposal.type, config.seed, config.data.split_by_group) == ("pps", 257, False)
    kept = config.filters  # every sample with the right answer, and no other
    assert (kept.min_rationale_words, kept.drop_hint_mentions, kept.reward) == (0, False, "exact")
    assert load_task(config.task).file.hint.default == "strict"


def test_the_papers_two_presets_differ_in_the_task_alone() -> None:
    first, second = (load_config(f"paper/{name}").model_dump() for name in ("helpsteer2", "summarize"))
    assert difference(first, second) == ["task: 'helpsteer2/helpfulness' -> 'summarize/helpfulness'"]


def test_what_presets_extend_is_no_preset() -> None:
    with pytest.raises(ConfigError, match="name of a shipped one") as error:
        load_config("paper/_bas")
    assert "_base" not in str(error.value)


def test_no_two_presets_share_a_folder() -> None:
    folders = [load_config(path).folder for path in shipped(study=False)]
    assert len(set(folders)) == len(folders)


def test_rest_em_keeps_several_a_question_and_starts_from_the_base_each_time(tmp_path: Path) -> None:
    seen, engine = run_of("rest-em", tmp_path, [RIGHT.format(n) for n in range(8)])
    assert [work.start.iteration for work in seen] == [0, 0]
    assert all(len(work.pairs) == 4 * 4 for work in seen)  # four questions, four of eight right samples
    assert not any(draw.hinted for draw in engine.asked)


def test_raft_keeps_the_one_of_the_highest_reward(tmp_path: Path) -> None:
    miss = RIGHT.replace("GOLD", "NEXT").format("miss")
    seen, _ = run_of("raft", tmp_path, [miss, miss, RIGHT.format("best"), miss])
    for work in seen:
        assert len(work.pairs) == 4
        assert all("best" in pair.completion and pair.weight == 1.0 for pair in work.pairs)
    assert seen[1].start.iteration == 1


def test_gfpo_keeps_the_shortest_right_sample(tmp_path: Path) -> None:
    long, short = RIGHT.format("and many more words"), RIGHT.format("x")
    seen, _ = run_of("gfpo", tmp_path, [long, short, "Score: GOLD", long])
    for work in seen:
        assert len(work.pairs) == 4
        assert all("six x" in pair.completion for pair in work.pairs)


def test_reward_weighted_fine_tuning_weighs_near_misses(tmp_path: Path) -> None:
    near = RIGHT.replace("GOLD", "NEXT").format("near")
    seen, _ = run_of("reward-weighted", tmp_path, [RIGHT.format("a"), near])
    weights = {pair.weight for work in seen for pair in work.pairs}
    assert weights == {1.0, 0.75}  # from 4 to 0 is too far to be kept
    assert load_config("reward-weighted").m_step.loss_reduction == "sequence"


def test_chains_train_on_the_last_accepted_pair_of_every_question(tmp_path: Path) -> None:
    # Hinted draws, in iteration 1, are right; of the plain ones in iteration 2, those of questions with even numbers.
    def answer(draw: Draw, gold: int) -> str:
        right = draw.hinted or int(draw.question_id.removeprefix("r")) % 2 == 0
        words = "hinted" if draw.hinted else "plain"
        return f"Evaluation: {words} words that are enough here. Score: {gold if right else (gold + 1) % 5}"

    seen, engine = run_of("chains", tmp_path, answer)
    assert [draw.hinted for draw in engine.asked if draw.proposal == "chain"] == [True] * 4 + [False] * 4
    first, second = ({pair.question_id: pair.completion for pair in work.pairs} for work in seen)
    assert first.keys() == second.keys()
    assert len(first) == 4
    replaced = {id for id in first if "plain" in second[id]}
    assert replaced == {id for id in first if int(id.removeprefix("r")) % 2 == 0}
    assert all(first[id] == second[id] for id in first.keys() - replaced)


def test_an_adaptive_run_spends_no_plain_draws_on_hopeless_questions(tmp_path: Path) -> None:
    # No plain draw is right in iteration 1, so iteration 2 hints every question at once.
    def answer(draw: Draw, gold: int) -> str:
        return f"Evaluation: one two three four five six. Score: {gold if draw.hinted else (gold + 1) % 5}"

    _, engine = run_of("adaptive", tmp_path, answer)
    drawn = [draw.hinted for draw in engine.asked if draw.proposal == "adaptive"]
    assert drawn == [False] * 4 + [True] * 4 + [True] * 4


def test_the_step_check_trains_on_no_untrue_step(tmp_path: Path) -> None:
    # Three rounds of the same text for each question: an untrue step, no step, a true one.
    for name, steps, pairs in (("bent", "1 + 1 = 3", 0), ("none", "one and one", 0), ("true", "1 + 1 = 2", 4)):
        (tmp_path / name).mkdir()
        seen, engine = run_of("step-check", tmp_path / name, [RIGHT.format(steps)])
        assert sum(len(work.pairs) for work in seen) == 2 * pairs  # in two iterations
        assert any(draw.hinted for draw in engine.asked)


def test_the_demo_of_sums_is_the_demo_on_another_task() -> None:
    plain, sums = (load_config(name).model_dump() for name in ("demo", "demo-sums"))
    changed = {line.split(":")[0].split(".")[0] for line in difference(plain, sums)}
    assert changed == {"task", "proposal", "iterations", "train_size", "test_size"}
    assert (sums["proposal"]["budget"], sums["few_shot"], load_task("sums/4").file.few_shot) == (4, None, "first")
