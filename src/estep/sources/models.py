"""Resolves the name of a model to what `from_pretrained` takes."""

from collections.abc import Callable
from pathlib import Path

from estep.errors import DataError, nearest
from estep.models.registry import HUB_MODELS
from estep.sources.archives import MODELS, fetch


def resolve_model(name: str, log: Callable[[str], None] = lambda _: None) -> str:
    """Resolve the name of a model to a cached folder, a local folder or a hub id, as `from_pretrained` takes them.

    Raises:
        DataError: the name looks like a folder that does not exist, or is neither a known name nor a hub id.
    """
    if name in MODELS:
        return str(fetch(name, log))
    if name in HUB_MODELS:
        return HUB_MODELS[name].hub_id
    path = Path(name).expanduser()
    if path.is_dir():
        if not any((path / marker).is_file() for marker in ("config.json", "adapter_config.json")):
            raise DataError(f"model folder {path} has no config.json")
        return str(path)
    inside_a_folder = name.startswith("runs/") or (path.parent != Path(".") and path.parent.is_dir())
    looks_local = path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1 or inside_a_folder
    if looks_local:
        raise DataError(
            f"model '{name}' is neither a folder, nor a known name, nor a hub id of the form owner/name; "
            + nearest(name, [*MODELS, *HUB_MODELS])
        )
    return name
