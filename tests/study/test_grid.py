"""What a study's configuration means: axes, arms, cells and their folders."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import shipped
from estep.config import PPSProposal, RejectionProposal, RunConfig, hint_variant
from estep.config.files import LISTS, load_config, merge
from estep.config.names import arm_name
from estep.errors import ConfigError
from estep.report.published import published
from estep.shipped import CONFIGS
from estep.study.grid import Grid, find_axes, label, load_grid

BASE = {"task": "sentiment/movies", "model": "smollm2-135m"}


def grid_of(folder: Path, *overrides: str, **content: Any) -> Grid:
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump({**BASE, **content}, sort_keys=False))
    return load_grid(path, list(overrides))


def test_every_combination_is_a_cell(tmp_path: Path) -> None:
    grid = grid_of(tmp_path, seed=[257, 521], train_size=[10, 20], arms={"a": {}, "b": {"iterations": 2}})
    assert [(c.config.seed, c.arm, c.config.train_size, c.config.iterations) for c in grid.cells] == [
        (seed, arm, size, iterations)
        for seed in (257, 521)
        for arm, iterations in (("a", 5), ("b", 2))
        for size in (10, 20)
    ]
    assert grid.cells[0].axes == {"seed": "257", "train_size": "10"}
    assert grid.cells[0].name == "sentiment-movies-smollm2-135m-a-train_size10-s257"
    assert grid.cells[0].config.folder == Path("runs/study-grid/runs") / grid.cells[0].name


def test_cells_of_one_model_stand_together_then_those_of_a_seed(tmp_path: Path) -> None:
    grid = grid_of(tmp_path, model=["x", "y"], task=["sentiment/movies", "sentiment/tweets"], seed=[1, 2])
    assert [(c.config.model, c.config.seed, c.config.task[10:]) for c in grid.cells] == [
        (model, seed, task) for model in "xy" for seed in (1, 2) for task in ("movies", "tweets")
    ]


def test_a_list_by_nature_is_an_axis_only_as_a_list_of_lists(tmp_path: Path) -> None:
    rates = [[1e-4, 1e-5], [1e-5, 1e-6]]
    (only,) = grid_of(tmp_path, m_step={"learning_rate": rates[0]}).cells
    assert only.config.m_step.learning_rate == (1e-4, 1e-5)
    assert not only.axes
    two = grid_of(tmp_path, m_step={"learning_rate": rates}).cells
    assert [cell.config.m_step.learning_rate for cell in two] == [tuple(rate) for rate in rates]
    assert [cell.axes for cell in two] == [
        {"m_step.learning_rate": "0.0001-1e-05"},
        {"m_step.learning_rate": "1e-05-1e-06"},
    ]


def test_the_settings_that_are_lists_by_nature_are_the_schemas() -> None:
    found = set()

    def walk(schema: Any, name: str = "") -> None:
        if isinstance(schema, list):
            for inner in schema:
                walk(inner, name)
        elif isinstance(schema, dict):
            if schema.get("type") == "array":
                found.add(name)
            for key, inner in schema.items():
                if key in ("properties", "$defs"):
                    for field, value in inner.items():
                        walk(value, field)
                else:
                    walk(inner, name)

    walk(RunConfig.model_json_schema())
    assert found == set(LISTS)


def test_a_list_of_proposals_is_an_axis_and_names_its_arms(tmp_path: Path) -> None:
    grid = grid_of(tmp_path, proposal=[{"type": "rejection", "budget": 3}, {"type": "pps"}])
    assert [cell.config.proposal for cell in grid.cells] == [RejectionProposal(budget=3), PPSProposal()]
    assert [cell.arm for cell in grid.cells] == ["rejection-3", "pps"]
    assert len({cell.name for cell in grid.cells}) == 2


def test_an_arm_of_another_type_replaces_the_section() -> None:
    content = {"proposal": {"type": "pps", "hint": "strict"}, "m_step": {"epochs": 2, "batch_size": 4}}
    assert merge(content, {"proposal": {"type": "rejection"}})["proposal"] == {"type": "rejection"}
    assert merge(content, {"proposal": {"n": 2}})["proposal"] == {"type": "pps", "hint": "strict", "n": 2}
    assert merge(content, {"m_step": {"epochs": 1}})["m_step"] == {"epochs": 1, "batch_size": 4}
    assert content["m_step"] == {"epochs": 2, "batch_size": 4}


def test_overrides_change_axes_and_arms(tmp_path: Path) -> None:
    grid = grid_of(tmp_path, "seed=[1,2]", "arms.pps.iterations=3", "run_dir=elsewhere", arms={"pps": {}, "other": {}})
    assert [(cell.config.seed, cell.config.iterations) for cell in grid.cells] == [(1, 3), (1, 5), (2, 3), (2, 5)]
    assert grid.folder == Path("elsewhere")


def test_an_arm_is_removed_by_null_and_an_unknown_one_is_refused(tmp_path: Path) -> None:
    arms = {"pps": {}, "star": {"proposal": {"type": "star"}}}
    assert [cell.arm for cell in grid_of(tmp_path, "arms.pps=null", arms=arms).cells] == ["star"]
    with pytest.raises(ConfigError, match=r"unknown arm 'ppps'; did you mean 'pps'\?"):
        grid_of(tmp_path, "arms.ppps.m_step.batch_size=8", arms=arms)
    with pytest.raises(ConfigError, match=r"unknown arm 'ppps'"):
        grid_of(tmp_path, "arms.ppps=null", arms=arms)


def test_two_axes_of_one_last_word_have_their_whole_keys_in_names(tmp_path: Path) -> None:
    grid = grid_of(tmp_path, engine={"temperature": [0.5, 1.0]}, evaluation={"temperature": [0.0]})
    assert (
        grid.cells[0].name == "sentiment-movies-smollm2-135m-pps-engine.temperature0.5-evaluation.temperature0.0-s257"
    )


@pytest.mark.parametrize(
    ("content", "places"),
    [
        # An axis that all arms have is what they are compared on; one that an arm has alone tells arms apart.
        (
            {"train_size": [10, 20], "arms": {"a": {}, "b": {"proposal": {"hint": ["bare", "strict"]}}}},
            {
                ("a", "train_size 10"),
                ("a", "train_size 20"),
                ("b, hint bare", "train_size 10"),
                ("b, hint strict", "train_size 10"),
                ("b, hint bare", "train_size 20"),
                ("b, hint strict", "train_size 20"),
            },
        ),
        # Proposals name their arms where that tells them apart, and are told in full where it does not.
        ({"proposal": [{"type": "pps"}, {"type": "star"}]}, {("pps", ""), ("star", "")}),
        (
            {"proposal": [{"type": "pps", "hint": "bare"}, {"type": "pps"}]},
            {("pps, proposal pps-hintbare", ""), ("pps, proposal pps", "")},
        ),
        # With nothing else to compare, any axis is compared.
        ({"train_size": [10, 20]}, {("pps, train_size 10", ""), ("pps, train_size 20", "")}),
        # A last part that two keys share is written as the whole key, for all cells alike.
        (
            {"engine": {"temperature": [0.5]}, "arms": {"a": {}, "b": {"evaluation": {"temperature": [0.0, 1.0]}}}},
            {
                ("a", "engine.temperature 0.5"),
                ("b, evaluation.temperature 0.0", "engine.temperature 0.5"),
                ("b, evaluation.temperature 1.0", "engine.temperature 0.5"),
            },
        ),
    ],
)
def test_what_a_report_compares_and_on_what(
    tmp_path: Path, content: dict[str, Any], places: set[tuple[str, str]]
) -> None:
    assert {(cell.compared_as, cell.compared_on) for cell in grid_of(tmp_path, **content).cells} == places


def test_a_section_without_a_type_is_its_default(tmp_path: Path) -> None:
    (cell,) = grid_of(tmp_path, proposal={"n": 4}, arms={"a": {"proposal": {"type": "pps"}}}).cells
    assert cell.config.proposal == PPSProposal(n=4)


def test_a_long_name_is_cut_and_stays_its_own(tmp_path: Path) -> None:
    files = [f"{'long' * 60}{n}.jsonl" for n in range(2)]
    names = [cell.name for cell in grid_of(tmp_path, data={"train_file": files}).cells]
    assert len(set(names)) == 2
    assert max(map(len, names)) < 140


def test_an_extended_study_does_not_share_its_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: studies/cpu\ntrain_size: 16\n")
    grid = load_grid(tmp_path / "mine.yaml")
    assert (grid.name, grid.folder, len(grid.cells)) == ("mine", Path("runs/study-mine"), 42)


def test_a_run_with_a_list_is_a_study(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("task: a\nmodel: b\nseed: [1, 2]\n")
    with pytest.raises(ConfigError, match="seed: arms and lists of values need a study: estep study"):
        load_config(tmp_path / "run.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"seed": []}, "seed: a list is an axis and must not be empty"),
        ({"seed": [1, 1]}, "seed: 1 appears twice in [1, 1]"),
        ({"seed": [1, "x"]}, "cell seed=x: seed: "),
        ({"arms": []}, "arms: a mapping of names to settings"),
        (
            {"arms": {"a b": {}}},
            "an arm's name: letters, digits, '_' and '-', the first",
        ),
        ({"arms": {"a": {"porposal": {}}}}, "cell a: unknown key 'porposal'"),
        ({"arms": {"_a": {}}}, "the first a letter or a digit, got '_a'"),
        ({"arms": {"base": {}}}, "an arm cannot be called 'base'"),
        ({"arms": {"a": {"keep_weights": "all"}}}, "arms.a.keep_weights: this key is for the whole study"),
        ({"run_dir": 5}, "run_dir: a folder, got 5"),
        ({"arm": {}}, "unknown key 'arm'; did you mean 'arms'?"),
        ({"keep_weights": "some"}, "keep_weights: one of all, last, none, got 'some'"),
        ({"name": "a/b"}, "name: letters, digits"),
        ({"m_step": {"batch_size": [4, 0]}}, "cell m_step.batch_size=0: m_step.batch_size"),
        ({"task": ["a/b", "a-b"]}, "two cells would have the folder a-b-smollm2-135m-pps-s257"),
    ],
)
def test_a_wrong_study_is_refused(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        grid_of(tmp_path, **content)
    assert message in str(error.value)


def test_a_study_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="arms: arms and lists of values need a study: estep study studies/cpu"):
        load_config("studies/cpu")


def test_labels_can_be_folder_names() -> None:
    assert label({"type": "rejection", "budget": 3}) == "rejection-budget3"
    assert label([1e-6, 1e-7]) == "1e-06-1e-07"
    assert (label(None), label(True), label("x")) == ("null", "True", "x")


def test_axes_are_found_in_sections() -> None:
    assert list(find_axes({"a": {"b": [1, 2]}, "c": 3}, "here")) == [("a.b", [1, 2])]


@pytest.mark.parametrize("path", shipped(study=True), ids=lambda path: path.stem)
def test_every_shipped_study_loads_by_name_and_by_path(path: Path) -> None:
    name = str(path.relative_to(CONFIGS).with_suffix(""))
    assert load_grid(name) == load_grid(path)
    assert path.read_text().startswith("# ")


# The paper's tables


TABLES = {"table1": 225, "table2": 180, "table3_budget": 75, "table4_hints": 105, "table5_sizes": 135}


@pytest.mark.parametrize("name", TABLES)
def test_the_papers_tables_are_run_cell_by_cell(name: str) -> None:
    cells = load_grid(f"paper/{name}").cells
    assert len(cells) == TABLES[name]
    table = int(name.removeprefix("table")[0])
    wanted = {
        (one.model, one.task, one.arm, one.hint if one.arm in ("star", "pps") else None, one.train_size)
        for one in published()
        if one.table == table and one.arm != "base"
    }
    found = [
        (
            c.config.model,
            c.config.task,
            arm_name(c.config.proposal),
            hint_variant(c.config.proposal),
            c.config.train_size,
        )
        for c in cells
    ]
    assert set(found) == wanted
    assert {found.count(one) for one in found} == {3}
    assert {cell.config.seed for cell in cells} == {257, 521, 1031}


@pytest.mark.parametrize("name", TABLES)
def test_the_papers_tables_have_the_papers_settings(name: str) -> None:
    general = load_config("paper/summarize" if name == "table2" else "paper/helpsteer2")
    varied = {"task", "model", "seed", "train_size", "proposal", "name", "run_dir"}
    for cell in load_grid(f"paper/{name}").cells:
        assert cell.config.model_dump(exclude=varied) == general.model_dump(exclude=varied)


# Configurations below others


def test_a_config_lies_over_the_one_that_it_extends(tmp_path: Path) -> None:
    (tmp_path / "below.yaml").write_text("task: a\nmodel: b\nm_step: {epochs: 2, batch_size: 4}\n")
    (tmp_path / "over.yaml").write_text("extends: below.yaml\nmodel: c\nm_step: {epochs: 3}\n")
    config = load_config(tmp_path / "over.yaml", ["iterations=2"])
    assert (config.task, config.model, config.iterations) == ("a", "c", 2)
    assert (config.m_step.epochs, config.m_step.batch_size) == (3, 4)


def test_a_grid_adds_to_the_arms_of_the_one_that_it_extends(tmp_path: Path) -> None:
    arms = {"pps": {"proposal": {"type": "pps", "n": 2}, "iterations": 2}, "star": {"proposal": {"type": "star"}}}
    (tmp_path / "below.yaml").write_text(yaml.safe_dump({**BASE, "arms": arms}))
    (tmp_path / "over.yaml").write_text(
        "extends: below.yaml\narms: {star: null, pps: {proposal: {hint: bare}}, direct: {proposal: {type: direct}}}\n"
    )
    pps, direct = load_grid(tmp_path / "over.yaml").cells
    assert (pps.arm, pps.config.iterations) == ("pps", 2)
    assert pps.config.proposal == PPSProposal(n=2, hint="bare")
    assert direct.arm == "direct"


def test_a_config_that_extends_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("extends: two.yaml\n")
    (tmp_path / "two.yaml").write_text("extends: one.yaml\n")
    with pytest.raises(ConfigError, match=r"one.yaml: extends itself, through two.yaml"):
        load_config(tmp_path / "one.yaml")
    (tmp_path / "one.yaml").write_text("extends: [two.yaml]\n")
    with pytest.raises(ConfigError, match="extends: the path or the name of a configuration"):
        load_config(tmp_path / "one.yaml")
    (tmp_path / "one.yaml").write_text("extends: nowhere.yaml\n")
    with pytest.raises(ConfigError, match=r"could not read the config nowhere\.yaml"):
        load_config(tmp_path / "one.yaml")
