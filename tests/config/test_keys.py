"""The keys that `estep keys` lists are those that a configuration takes."""

import re
from pathlib import Path
from typing import Any

import pytest

from estep.config.files import override, validate
from estep.config.keys import Key, all_keys, find_keys
from estep.errors import ConfigError

PAGE = Path(__file__).parents[2] / "docs/configuration.md"


def test_the_keys_are_those_of_the_page() -> None:
    of_page = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    described = {(name, kind, default, meaning.replace("\\|", "|")) for name, kind, default, meaning in of_page}
    listed = [key for key in all_keys() if key.path not in ("proposal.type", "engine.type", "extends", "arms")]
    assert {(key.path.rpartition(".")[2], key.kind, key.default, key.meaning) for key in listed} == described


def test_no_key_is_listed_twice() -> None:
    keys = all_keys()
    assert len(set(keys)) == len(keys)
    assert [key.default for key in keys if key.path == "proposal.budget"] == ["`1`", "`3`"]


REQUIRED = {
    "scripted": {"script": "texts.json"},
    "mixture": {"components": [{"weight": 1, "proposal": {"type": "pps"}}] * 2},
}


def refusal(content: dict[str, Any]) -> str:
    """Why a configuration is refused; empty if it is not."""
    try:
        validate(content)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("key", [key for key in all_keys() if key.variants and key.path.count(".") == 1], ids=repr)
def test_a_key_is_known_to_the_types_that_are_listed_and_to_no_other(key: Key) -> None:
    section = key.path.partition(".")[0]
    (of_type,) = [other for other in find_keys(f"{section}.type") if other.path == f"{section}.type"]
    for type_ in re.findall(r"`(\w+)`", of_type.kind):
        content = {"task": "t", "model": "m", section: {"type": type_, **REQUIRED.get(type_, {})}}
        override(content, f"{key.path}=no such value")
        known = any(type_ in other.variants for other in all_keys() if other.path == key.path)
        assert ("unknown key" not in refusal(content)) == known, type_


def test_keys_are_found_by_section_by_beginning_and_by_name() -> None:
    def found(words: str) -> list[str]:
        return [key.path for key in find_keys(words)]

    assert found("m_step.r") == ["m_step.replay"]
    assert found("temperature") == ["engine.temperature", "evaluation.temperature"]
    assert set(found("m_step")) == {key.path for key in all_keys() if key.path.startswith("m_step")}
    assert found("arms") == ["arms"]
    with pytest.raises(ConfigError, match="no key begins with 'bathc_size'; did you mean 'batch_size'"):
        find_keys("bathc_size")
