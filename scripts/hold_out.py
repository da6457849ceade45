"""Copy a task without the test questions of some seeds, so that settings can be tuned without using test questions.

    python scripts/hold_out.py sentiment/movies --seed 257 521 1031 --test-size 600 --out dev
    estep train demo task=dev/task.yaml seed=8 test_size=160 engine.temperature=0.5

No run of the original task with one of these seeds and this test size is tested on a question of `dev/task.yaml`.
"""

import argparse
from pathlib import Path

import yaml

from estep.data.split import Sizes, draw_split, load_pool
from estep.sources.rows import read_rows, resolve_file
from estep.store.files import write_rows, write_whole
from estep.tasks import load_task


def main() -> None:
    """Copy the task and the rows that are not held out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", help="a task whose rows have ids and come from one local or packaged file")
    parser.add_argument("--seed", type=int, nargs="+", default=[257])
    parser.add_argument("--test-size", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path("dev"))
    options = parser.parse_args()
    task = load_task(options.task)
    path = resolve_file(task.file.data.source, task.path.parent if task.path else None)
    if path is None or task.file.data.id is None:
        parser.error(f"{options.task} needs a local source and data.id")
    pool = load_pool(task)
    sizes = Sizes(None, options.test_size)
    held_out = {q.id for seed in options.seed for q in draw_split(task, pool, sizes, seed).test}
    rows = [row for _, row in read_rows(path) if str(row[task.file.data.id]) not in held_out]
    options.out.mkdir(parents=True, exist_ok=True)
    write_rows(options.out / "rows.jsonl", rows)
    content = task.file.model_dump(mode="json")
    content["data"]["source"] = "rows.jsonl"
    write_whole(options.out / "task.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    print(f"{len(rows)} rows, {len(held_out)} held out: {options.out / 'task.yaml'}")


if __name__ == "__main__":
    main()
