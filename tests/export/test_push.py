"""`estep push`: the real client of the hub against a local server, and what the model card says."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from estep.export.card import base_model, card
from estep.export.source import find_trained
from export.conftest import Command
from export.hub import TOKEN, Hub, serving

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub that the client uses. The client reads the environment when it is imported, so its constants are set."""
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    # The client's protocol for large files, in native code, needs a storage server of its own.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serving() as running:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", running.endpoint)
        yield running


def test_the_hub_receives_what_a_dry_run_lists(
    judging: Path, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    arguments = ("push", judging, "me/judge", "--revision", "v1")
    with monkeypatch.context() as unplugged:
        unplugged.setattr("huggingface_hub.constants.ENDPOINT", NOWHERE)
        dry = command(*arguments, "--dry-run", "-o", tmp_path / "out")
    assert "would be uploaded to me/judge, branch v1:" in dry
    done = command(*arguments, "--private")
    assert f"uploaded: {hub.endpoint}/me/judge" in done
    assert hub.repositories["me/judge"]["visibility"] == "private"
    ((branch, files),) = hub.commits
    assert (branch, hub.branches) == ("v1", ["v1"])
    assert sorted(files) == re.findall(r"^  (\S+)  [\d.]+ [kMG]B$", dry, re.MULTILINE)
    assert files == {name: (tmp_path / "out" / name).read_bytes() for name in files}
    assert set(hub.cards) == {files["README.md"].decode()}  # asked whether it is valid before anything is sent
    assert not any(TOKEN.encode() in content for content in files.values())
    assert TOKEN not in dry + done


def test_an_upload_that_should_be_private_never_goes_to_a_public_repository(
    trained: Path, hub: Hub, command: Command
) -> None:
    arguments = ("push", trained, "me/judge", "--check", "0")
    command(*arguments)
    assert "visibility" not in hub.repositories["me/judge"], "the owner's settings decide"
    assert command.refused(*arguments, "--private") == (
        "me/judge exists and is public: make it private on the hub, or push without --private"
    )
    assert len(hub.commits) == 1


def test_what_goes_wrong_at_the_hub_is_one_line(
    trained: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    arguments = ("push", trained, "me/judge", "--check", "0")
    hub.read_only = True
    assert command.refused(*arguments) == "the token in HF_TOKEN may not write to me/judge (403)"
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert command.refused(*arguments) == "the hub refuses the token in HF_TOKEN (401)"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", NOWHERE)
    line = command.refused(*arguments)
    assert line.startswith(f"could not push to me/judge: {NOWHERE} cannot be reached (")
    assert "hf_wrong" not in line
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert (
        command.refused(*arguments) == "could not push to me/judge: HF_HUB_OFFLINE is set; --dry-run needs no network"
    )
    monkeypatch.delenv("HF_TOKEN")
    assert command.refused(*arguments).startswith("no token for the hub; set HF_TOKEN, or log in with 'hf auth login'")
    assert hub.commits == []


def test_options_of_a_dry_run_alone(trained: Path, command: Command) -> None:
    assert command.refused("push", trained, "me/judge", "--force") == (
        "-o and --force need --dry-run; an upload leaves no folder behind"
    )
    assert "is no name of a repository" in command.refused("push", trained, "me/a/b", "--dry-run")


# The model card


def rewrite(run: Path, iteration: int, golds: str, answers: str) -> None:
    """Give an evaluation of four questions these correct and these predicted answers; `-` is none."""
    folder = run / f"iteration-{iteration:02d}"
    rows = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    for row, gold, answer in zip(rows, golds, answers, strict=True):
        row |= {"gold": gold, "answer": None if answer == "-" else answer}
        row["status"] = "unparseable" if answer == "-" else "correct" if gold == answer else "wrong"
    (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    metrics = json.loads((folder / "metrics.json").read_text())
    right, read = sum(a == b for a, b in zip(golds, answers, strict=True)), sum(a != "-" for a in answers)
    metrics["evaluation"] |= {"accuracy": right / 4, "parse_rate": read / 4, "kappa": None, "mae": 0.25}
    (folder / "metrics.json").write_text(json.dumps(metrics))


def test_the_card_states_measures_with_intervals_beside_the_base_model(judging: Path) -> None:
    rewrite(judging, 0, "0134", "----")
    rewrite(judging, 2, "0134", "0133")
    made = card(find_trained(str(judging)))
    text = made.text
    # Wilson's interval of 3 in 4: (0.75 + 1.92/4 ± 1.96 √(0.1875/4 + 3.84/64)) / (1 + 3.84/4) is 0.301 to 0.954.
    assert "| accuracy | 0.0 % | 75.0 % | 30.1 to 95.4 % |" in text
    assert "| readable answers | 0.0 % | 100.0 % | 51.0 to 100.0 % |" in text
    # 3 wins and no loss: p = 2 / 2³.
    assert "+75.0 points of accuracy" in text
    assert "better on 3 questions, worse on 0 (exact sign test, p = 0.25)" in text
    by_type = {result.metric_type: result for result in made.data.eval_results}
    assert by_type["accuracy"].metric_value == 0.75
    assert by_type["accuracy"].metric_name == "accuracy (95 % interval 30.1 to 95.4 %)"
    # Distances 0, 0, 0, 1: a resample's mean is that of four draws from them.
    assert by_type["mae"].metric_name.startswith("mean absolute error, points (95 % interval 0.00 to 0.75)")
    # It can be read back, as the hub reads it.
    again = ModelCard(str(made))
    assert again.data.to_dict() == made.data.to_dict()


def test_the_card_says_how_to_ask_and_names_no_place_of_this_machine(judging: Path, tmp_path: Path) -> None:
    path = judging / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["proposal"]["model"] = {
        "model": "teacher",
        "base_url": "http://secret-host:1/v1",
        "api_key_env": "SECRET_KEY",
    }
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    text = str(card(find_trained(str(judging))))
    assert "```text\nYou judge texts.\n```" in text
    assert "Text: {{ text }}" in text
    assert "```text\nEvaluation: It praises the day in plain words. Score: 4\n```" in text
    assert "the author's own file `rows.jsonl`. License: not stated" in text
    assert "sampled from a served model, `teacher`" in text
    assert "m_step.learning_rate: [0.03, 0.03]" in text
    for private in ("secret-host", "SECRET_KEY", str(tmp_path), str(Path(config["model"]).parent), "text number"):
        assert private not in text


@pytest.mark.parametrize(
    ("name", "hub_id", "license"),
    [
        ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct", "Apache-2.0"),
        ("qwen2.5-3b", "Qwen/Qwen2.5-3B-Instruct", "Qwen Research"),
        ("meta-llama/Llama-3.2-3B-Instruct", "meta-llama/Llama-3.2-3B-Instruct", "Llama 3.2"),
        ("someone/model", "someone/model", None),
        ("/data/models/mine", None, None),
    ],
)
def test_the_base_model_and_its_license(name: str, hub_id: str | None, license: str | None) -> None:
    assert base_model(name)[1:] == (hub_id, license)
