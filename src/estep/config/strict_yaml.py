"""The YAML that users write. A key that appears twice in one mapping is an error; PyYAML would keep the last one."""

from typing import Any

import yaml

from estep.errors import EstepError

_MERGE = "tag:yaml.org,2002:merge"


class _DuplicateKeyError(yaml.YAMLError):
    """A key that appears twice in one mapping."""


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader without duplicate keys."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Checked as written, before `<<` merges another mapping's keys into this one, which may repeat them.
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            name, line = (key.tag, key.value), key.start_mark.line + 1
            if name in lines:
                where = f"lines {lines[name]} and {line}" if line != lines[name] else f"line {line}"
                raise _DuplicateKeyError(f"'{key.value}' appears twice, on {where}")
            lines[name] = line
        return node


def read_yaml(text: str, source: str, error: type[EstepError]) -> Any:
    """The content of a YAML text.

    Args:
        source: names the text in messages, such as its file.
        error: the error to raise.

    Raises:
        EstepError: of the class `error`, if the text is not valid YAML or a key appears twice in one mapping.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except _DuplicateKeyError as problem:
        raise error(f"{source}: {problem}") from problem
    except (yaml.YAMLError, ValueError) as problem:  # a date such as 2001-99-99 is a ValueError
        raise error(f"{source}: not valid YAML: {' '.join(str(problem).split())}") from problem
