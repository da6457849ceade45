"""Write a copy of a task without the test questions of a seed, so that settings can be chosen on it honestly.

    python scripts/hold_out.py sentiment/movies --seed 257 --test-size 600 --out dev
    estep train demo task=dev/task.yaml seed=7 test_size=160 engine.temperature=0.5

What is tuned on `dev/task.yaml` has never seen a question that a run with this seed is tested on.
"""

import argparse
from pathlib import Path

import yaml

from estep.data import draw_split, load_pool
from estep.sources import read_rows, resolve_file
from estep.store import write_rows, write_whole
from estep.tasks import load_task


def main() -> None:
    """Copy the task and the rows that are not held out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", help="a task with one local or packaged source and ids of its own")
    parser.add_argument("--seed", type=int, default=257)
    parser.add_argument("--test-size", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path("dev"))
    options = parser.parse_args()
    task = load_task(options.task)
    path = resolve_file(task.file.data.source, task.path.parent if task.path else None)
    if path is None or task.file.data.id is None:
        parser.error(f"{options.task} needs a local source and data.id")
    held_out = {q.id for q in draw_split(task, load_pool(task), None, options.test_size, options.seed).test}
    rows = [row for _, row in read_rows(path) if str(row[task.file.data.id]) not in held_out]
    options.out.mkdir(parents=True, exist_ok=True)
    write_rows(options.out / "rows.jsonl", rows)
    content = task.file.model_dump(mode="json")
    content["data"]["source"] = "rows.jsonl"
    write_whole(options.out / "task.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    print(f"{len(rows)} rows, {len(held_out)} held out: {options.out / 'task.yaml'}")


if __name__ == "__main__":
    main()
