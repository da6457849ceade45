"""The Modelfile: what Ollama reads from it, and that its template renders the prompts of the run."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from estep.errors import DataError
from estep.export.ollama import go_template, modelfile
from estep.export.source import Trained, find_trained
from estep.export.turns import read_turns
from estep.models.loading import load_chat
from estep.records import Messages

SYSTEM, USER, SAID = ({"role": role, "content": role[0]} for role in ("system", "user", "assistant"))
SHAPES: list[Messages] = [(SYSTEM, USER), (USER,), (SYSTEM, USER, SAID, USER), (USER, SAID, USER)]

PARTICULAR = (
    "{{ bos_token }}{% if messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nBe {{ '{{' }}kind}}.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>"
    "{% if m['role'] == 'assistant' %}\n\n{% else %}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A chat template with a system message of its own, and with other texts behind an assistant's message."""


def commands(text: str) -> list[tuple[str, str]]:
    """The commands of a Modelfile, read as Ollama reads them: a value in three quotation marks may have lines."""
    found, lines = [], iter(text.splitlines(keepends=True))
    for line in lines:
        name, _, value = line.partition(" ")
        if name in ("PARAMETER", "MESSAGE"):
            key, _, value = value.partition(" ")
            name = f"{name} {key}"
        while value.startswith('"""') and not (len(value.rstrip()) >= 6 and value.rstrip().endswith('"""')):
            value += next(lines)
        value = value.rstrip()
        quotes = 3 if value.startswith('"""') else 1 if value.startswith('"') else 0
        found.append((name, value[quotes : len(value) - quotes]))
    return found


def with_template(trained: Path, folder: Path, template: str) -> Trained:
    shutil.copytree(trained, folder)
    (folder / "iteration-02/weights/chat_template.jinja").write_text(template)
    return find_trained(str(folder))


def test_the_modelfile_asks_as_the_run_did(trained: Path) -> None:
    found = find_trained(str(trained))
    read = commands(modelfile(found))
    assert read == [
        ("FROM", "./model.gguf"),
        ("TEMPLATE", go_template(read_turns(load_chat(found.weights), SHAPES))),
        ("SYSTEM", "You judge texts."),
        ("PARAMETER stop", "<|im_end|>"),
        ("PARAMETER temperature", "0"),
        ("PARAMETER top_k", "0"),
        ("PARAMETER top_p", "1"),
        ("PARAMETER min_p", "0"),
        ("PARAMETER repeat_penalty", "1"),
        ("PARAMETER num_predict", "8"),
        ("PARAMETER num_ctx", "2048"),  # the model's context
    ]


def test_examples_that_the_policy_sees_are_messages(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    path = tmp_path / "run/task.yaml"
    task = yaml.safe_load(path.read_text())
    task |= {"few_shot": "both", "system": 'Answer as\n"Score: (score)"'}
    path.write_text(yaml.safe_dump(task, sort_keys=False))
    read = commands(modelfile(find_trained(str(tmp_path / "run"))))
    assert ("SYSTEM", 'Answer as\n"Score: (score)"') in read
    assert [one for one in read if one[0].startswith("MESSAGE")] == [
        ("MESSAGE user", "Text: A fine day."),
        ("MESSAGE assistant", "Evaluation: It praises the day in plain words. Score: 4"),
        ("MESSAGE user", "Text: A foul day."),
        ("MESSAGE assistant", "Evaluation: It blames the day in plain words. Score: 0"),
    ]


@pytest.mark.parametrize("template", [None, PARTICULAR], ids=["chatml", "particular"])
def test_the_turns_render_what_the_chat_template_renders(trained: Path, tmp_path: Path, template: str | None) -> None:
    found = find_trained(str(trained)) if template is None else with_template(trained, tmp_path / "run", template)
    chat = load_chat(found.weights)
    turns = read_turns(chat, SHAPES)
    for messages in SHAPES:
        assert chat.tokenizer(turns.render(messages), add_special_tokens=False)["input_ids"] == chat.prompt_ids(
            messages
        )


PROGRAM = """package main

import ("encoding/json"; "os"; "strings"; "text/template")

type Message struct{ Role, Content string }

func main() {
	var all [][]*Message
	if err := json.NewDecoder(os.Stdin).Decode(&all); err != nil { panic(err) }
	text, err := os.ReadFile(os.Args[1])
	if err != nil { panic(err) }
	t := template.Must(template.New("").Option("missingkey=zero").Parse(string(text)))
	var rendered []string
	for _, messages := range all {
		var system []string
		for _, m := range messages { if m.Role == "system" { system = append(system, m.Content) } }
		var b strings.Builder
		values := map[string]any{"System": strings.Join(system, "\\n\\n"), "Messages": messages, "Response": ""}
		if err := t.Execute(&b, values); err != nil { panic(err) }
		rendered = append(rendered, b.String())
	}
	json.NewEncoder(os.Stdout).Encode(rendered)
}
"""
"""Executes a template with the variables that Ollama gives it."""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("go") is None, reason="no Go, whose template engine Ollama uses")
@pytest.mark.parametrize("template", [None, PARTICULAR], ids=["chatml", "particular"])
def test_gos_template_engine_renders_the_prompts(trained: Path, tmp_path: Path, template: str | None) -> None:
    found = find_trained(str(trained)) if template is None else with_template(trained, tmp_path / "run", template)
    turns = read_turns(load_chat(found.weights), SHAPES)
    (tmp_path / "main.go").write_text(PROGRAM)
    (tmp_path / "template").write_text(dict(commands(modelfile(found)))["TEMPLATE"])
    asked = [[{"Role": one["role"], "Content": one["content"]} for one in messages] for messages in SHAPES]
    ran = subprocess.run(
        ["go", "run", "main.go", "template"], cwd=tmp_path, input=json.dumps(asked), capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == [turns.render(messages) for messages in SHAPES]


def test_the_template_in_gos_language(trained: Path) -> None:
    # Rendered by Go's own engine in the test above, where Go is installed.
    assert go_template(read_turns(load_chat(find_trained(str(trained)).weights), SHAPES)) == (
        "{{ if not .System }}{{ end }}"
        "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
        '{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}{{ if not $last }}<|im_end|>\n{{ end }}'
        '{{ end }}{{ if and $last (ne .Role "assistant") }}<|im_start|>assistant\n{{ end }}{{ end }}'
    )


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ loop.index }} {{ m['content'] }}<|im_end|>{% endfor %}",
        "{% for m in messages %}{{ m['role'] }} {{ m['content'] | upper }}<|im_end|>{% endfor %}",
        "{{ messages[-1]['role'] }} {{ messages[-1]['content'] }}<|im_end|>",
    ],
    ids=["numbered", "changed", "last"],
)
def test_a_template_that_does_more_is_refused(trained: Path, tmp_path: Path, template: str) -> None:
    with pytest.raises(DataError, match="does more than write fixed texts around the messages"):
        modelfile(with_template(trained, tmp_path / "run", template))


@pytest.mark.parametrize(
    ("text", "named"), [('a """ b', "three quotation marks"), ("a\u00a0b", r"the character '\\xa0'")]
)
def test_what_a_modelfile_cannot_hold_is_refused(trained: Path, tmp_path: Path, text: str, named: str) -> None:
    shutil.copytree(trained, tmp_path / "run")
    path = tmp_path / "run/task.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "system": text}, sort_keys=False))
    with pytest.raises(DataError, match=f"a Modelfile cannot hold {named}"):
        modelfile(find_trained(str(tmp_path / "run")))
