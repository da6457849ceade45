"""Write a task whose rationales pay: sums of k numbers from 2 to 9, added up step by step.

    python scripts/running_sums.py --terms 4 --out sums
    estep train demo task=sums/task.yaml proposal='{type: rejection, budget: 4}' train_size=256 test_size=128

Rows with the same numbers in another order form a group, so they stay on one side of the split.
"""

import argparse
import itertools
import random
from pathlib import Path
from typing import Any

import yaml

from estep.store.files import write_rows, write_whole

EXAMPLES = ((3, 8, 2, 6), (9, 4, 7, 5), (2, 2, 9, 8), (6, 5, 3, 7))


def question(numbers: tuple[int, ...]) -> str:
    return " + ".join(map(str, numbers))


def rationale(numbers: tuple[int, ...]) -> str:
    """The partial sums, such as `3 + 8 = 11, 11 + 2 = 13`."""
    totals = list(itertools.accumulate(numbers))
    return ", ".join(f"{a} + {n} = {a + n}" for a, n in zip(totals, numbers[1:], strict=False))


def task(terms: int) -> dict[str, Any]:
    """The task file."""
    examples = [(numbers * terms)[:terms] for numbers in EXAMPLES]
    return {
        "name": f"sums-{terms}",
        "description": f"Sums of {terms} numbers from 2 to 9.",
        "data": {"source": "rows.jsonl", "id": "id", "group": "numbers"},
        "gold": {"field": "sum"},
        "answer": {"type": "number", "label": "Answer"},
        "system": 'Add the numbers from left to right. Answer as "Reasoning: (partial sums). Answer: (sum)".',
        "user": "{{ question }}\n{% if hint %}\nHint: {{ hint }}\n{% endif %}\n",
        "completion": "Reasoning: {{ rationale }}. Answer: {{ answer }}",
        "direct": "Answer: {{ answer }}",
        "rationale_label": "Reasoning",
        "few_shot": "first",
        "max_new_tokens": 16 * terms,
        "examples": [
            {"fields": {"question": question(n)}, "rationale": rationale(n), "answer": sum(n)} for n in examples
        ],
        "hint": {"default": "strict", "variants": {"strict": "The sum is {{ answer }}. Do not output the hint."}},
    }


def main() -> None:
    """Write the rows and the task file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--terms", type=int, default=4)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("sums"))
    options = parser.parse_args()
    numbers = list(itertools.product(range(2, 10), repeat=options.terms))
    random.Random(options.seed).shuffle(numbers)
    options.out.mkdir(parents=True, exist_ok=True)
    write_rows(
        options.out / "rows.jsonl",
        (
            {"id": f"s{n}", "question": question(row), "numbers": "".join(map(str, sorted(row))), "sum": sum(row)}
            for n, row in enumerate(numbers[: options.rows])
        ),
    )
    write_whole(options.out / "task.yaml", yaml.safe_dump(task(options.terms), sort_keys=False, allow_unicode=True))
    print(f"{options.rows} rows: {options.out / 'task.yaml'}")


if __name__ == "__main__":
    main()
