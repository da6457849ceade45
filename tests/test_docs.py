"""What the documents show works as they show it."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

import estep as estep_package
from commands import estep
from estep.config import FEMConfig
from estep.config.files import load_config
from estep.tasks import load_task, task_names

ROOT = Path(__file__).parent.parent


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_readmes_task_file_is_a_sound_task(tmp_path: Path) -> None:
    from estep.data.check import check_task
    from estep.data.split import load_pool

    (text,) = [block for block in blocks("yaml") if "reviews" in block]
    (tmp_path / "reviews.yaml").write_text(text)
    (tmp_path / "reviews.csv").write_text("text,score\n" + "".join(f"review {n},{n % 5}\n" for n in range(10)))
    task = load_task(str(tmp_path / "reviews.yaml"))
    assert check_task(task, load_pool(task)).problems == []
    assert len(yaml.safe_load(text)) == len([line for line in text.splitlines() if re.match(r"\w+:", line)])


def test_the_readme_shows_the_commands_that_init_names(tmp_path: Path) -> None:
    (shown,) = [block for block in blocks("sh") if "estep init" in block]
    first, *others = [line.split("  ")[0] for line in shown.splitlines()]
    (tmp_path / "reviews.csv").write_text("text,score\n" + "".join(f"review {n},{n % 5}\n" for n in range(20)))
    result = estep(*first.split()[1:], "--yes", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert [line.strip() for line in result.stdout.partition("next:\n")[2].splitlines()] == others


def test_the_tasks_page_shows_commands_of_init_that_work(tmp_path: Path) -> None:
    page = (ROOT / "docs/tasks.md").read_text()
    reviews, ratings = re.findall(r"^estep (init .*)$", page, re.MULTILINE)
    rows = [f"r{n},review number {n},{n % 5 + 1}\n" for n in range(20)]
    (tmp_path / "reviews.csv").write_text("review_id,review,stars\n" + "".join(rows))
    rows = [f"answer number {n},{n % 3},{n % 2},1\n" for n in range(20)]
    (tmp_path / "ratings.csv").write_text("answer,anna,ben,clara\n" + "".join(rows))
    for command in (f"{reviews} --yes", ratings):
        result = estep(*command.split(), cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    assert load_task(str(tmp_path / "reviews.yaml")).file.data.id == "review_id"
    assert load_task(str(tmp_path / "ratings.yaml")).file.gold.field == "mean_score"


def test_the_readmes_overrides_are_known() -> None:
    config = load_config("demo", ["task=reviews.yaml", "train_size=null", "test_size=null"])
    assert str(config.folder) == "runs/reviews-smollm2-135m-pps-s257"
    assert load_config("demo", ["proposal.type=direct"]).proposal.type == "direct"


def test_the_readmes_python_arguments_are_known() -> None:
    (text,) = blocks("python")
    (arguments,) = re.findall(r"FEMConfig\((.*?)\n\)", text, re.DOTALL)
    config = eval(f"FEMConfig({arguments})", {"FEMConfig": FEMConfig})
    assert config.proposal.type == "star"


def test_every_file_that_the_readme_links_exists() -> None:
    links = re.findall(r"\]\(([^)h][^)]*)\)", (ROOT / "README.md").read_text())
    assert links
    assert [link for link in links if not (ROOT / link.partition("#")[0]).exists()] == []


def test_the_tasks_page_names_every_task() -> None:
    page = (ROOT / "docs/tasks.md").read_text()
    assert [name for name in task_names() if name not in page] == []


def test_the_examples_for_clusters_are_well_formed() -> None:
    (job,) = yaml.safe_load_all((ROOT / "docs/examples/kuberay.yaml").read_text())
    commands = [job["spec"]["entrypoint"]]
    assert (
        f"ray[default,train]>={job['spec']['rayClusterSpec']['rayVersion'][:4]},"
        in (ROOT / "pyproject.toml").read_text()
    )
    script = ROOT / "docs/examples/slurm.sh"
    subprocess.run(["bash", "-n", script], check=True)
    commands += re.findall(r"^ +(estep train .*)$", script.read_text(), re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        _, _, name, *overrides = shlex.split(command)
        assert load_config(name, overrides).cluster == "auto"


def test_the_api_pages_example_of_a_task_works(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/api/tasks.md").read_text(), re.DOTALL)
    exec(code, {})
    assert capsys.readouterr().out.splitlines()[-1] == "correct"


def test_the_api_pages_name_what_estep_exports() -> None:
    page = (ROOT / "docs/api/index.md").read_text()
    assert [name for name in estep_package.__all__ if name != "__version__" and f"[`{name}`]" not in page] == []


def test_the_tasks_pages_own_sums_are_a_sound_task(tmp_path: Path) -> None:
    from estep.data.split import load_pool

    page = (ROOT / "docs/tasks.md").read_text()
    (text,) = [block for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "sums" in block]
    (tmp_path / "own.yaml").write_text(text)
    task = load_task(str(tmp_path / "own.yaml"))
    assert {question.fields["terms"] for question in load_pool(task).train.questions} == {3, 4, 5}
