"""What the run folder survives."""

import contextlib
import json
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import estep
from estep.config import RunConfig
from estep.errors import StoreError, writing
from estep.records import NO_HISTORY, Attempt, Pair, Status, Tally, Verdict
from estep.store.files import JsonlFile, write_rows, write_whole
from estep.store.run import RunStore

ROWS = [{"id": n, "text": f"line {n} é\u2028"} for n in range(4)]


def log_of(path: Path, rows: list[dict[str, object]] = ROWS) -> JsonlFile:
    log = JsonlFile(path)
    for row in rows:
        log.append(row)
    log.close()
    return log


def test_a_torn_last_line_is_cut_off_and_the_log_continues(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log_of(path)
    whole = path.read_bytes()
    for length in range(len(whole) - 1, whole.rfind(b"\n", 0, -1), -1):
        path.write_bytes(whole[:length])
        assert JsonlFile(path).read() == ROWS[:3]
        log_of(path, ROWS[3:])
        assert path.read_bytes() == whole


@given(st.lists(st.dictionaries(st.text(), st.text() | st.integers()), max_size=5), st.integers(0, 200))
def test_whatever_was_cut_only_whole_rows_are_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list, cut: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    log_of(path, rows)
    if path.exists():
        content = path.read_bytes()
        path.write_bytes(content[: max(0, len(content) - cut)])
    found = JsonlFile(path).read()
    assert found == rows[: len(found)]


def test_a_damaged_line_before_the_last_stops_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"id": 1}\n{"id": \n{"id": 3}\n')
    with pytest.raises(StoreError, match=r"log\.jsonl:2 is damaged"):
        JsonlFile(path).read()


def test_a_full_disk_is_reported_and_earlier_lines_stay(tmp_path: Path) -> None:
    # /dev/full refuses every write as a full disk does.
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    log = JsonlFile(tmp_path / "log.jsonl")
    with pytest.raises(StoreError, match=r"the disk is full: could not write .*log\.jsonl"):
        log.append({"id": 1})
    with contextlib.suppress(StoreError):  # a device cannot be synchronised
        log.close()


def test_a_whole_file_keeps_its_old_content_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_whole(path, "old")
    (tmp_path / "metrics.json.partial").symlink_to("/dev/full")
    with pytest.raises(StoreError, match="the disk is full"):
        write_whole(path, "new" * 10_000)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["metrics.json"]


def test_a_full_disk_reported_by_native_code_is_recognized(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="the disk is full"), writing(tmp_path):
        raise RuntimeError("I/O error: No space left on device (os error 28)")


def test_rows_are_one_json_object_a_line(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", ROWS)
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().split("\n")[:-1]] == ROWS


def test_a_session_records_the_revision_of_the_checkout_that_estep_runs_from(tmp_path: Path) -> None:
    source = Path(estep.__file__).parent
    tracked = subprocess.run(
        ["git", "-C", str(source), "ls-files", "--error-unmatch", "cli/app.py"], capture_output=True
    )
    if tracked.returncode:
        pytest.skip("estep is installed, not checked out")
    head = subprocess.run(["git", "-C", str(source), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    store = RunStore(tmp_path)
    store.open(RunConfig(model="m", task="t"), "name: t\n")
    assert store.latest_metadata("git_revision").rstrip("+") == head.stdout.strip()


def pair(question: str, index: int = 0, says: str = "x") -> Pair:
    return Pair(question, f"{question}#{index}.0", ({"role": "user", "content": "q"},), says, index=index)


def stored(folder: Path, *iterations: list[Pair]) -> RunStore:
    store = RunStore(folder)
    for k, pairs in enumerate(iterations, 1):
        with store.iteration(k) as step:
            step.write_pairs(pairs)
    return store


def test_replay_of_the_last_pair_keeps_an_attempts_pair_until_a_new_one_replaces_it(tmp_path: Path) -> None:
    first = [pair("a", says="1"), pair("b", says="1"), pair("b", 1, says="1")]
    second = [pair("b", says="2"), pair("c", says="2")]
    store = stored(tmp_path, first, second)
    new = [pair("c", says="3")]
    # a from iteration 1; of b, one attempt from each; c was accepted anew.
    assert [(p.question_id, p.index, p.completion) for p in store.replayed(3, "last", new)] == [
        ("a", 0, "1"),
        ("b", 1, "1"),
        ("b", 0, "2"),
    ]
    assert store.replayed(1, "last", new) == []


def test_replay_of_two_trains_on_the_pairs_of_the_former_iteration_too(tmp_path: Path) -> None:
    store = stored(tmp_path, [pair("a")], [pair("b")])
    assert [p.question_id for p in store.replayed(3, 2, [pair("c")])] == ["b"]
    assert store.replayed(3, 2, []) == []
    assert store.replayed(3, 1, []) == []


def test_the_history_counts_the_plain_draws_of_the_former_iteration_and_all_accepted_attempts(tmp_path: Path) -> None:
    store = stored(tmp_path, [pair("a", 1)], [pair("b")])

    def verdict(question: str, status: Status, *, hinted: bool = False, supplied: bool = False) -> Verdict:
        return Verdict("d", question, 0, 0, hinted, status, "1", "", False, supplied)

    with store.iteration(1) as step:
        step.write("verdicts", [verdict("z", "correct")])
    with store.iteration(2) as step:
        drawn = [verdict("a", "wrong"), verdict("a", "correct"), verdict("b", "unparseable")]
        step.write("verdicts", [*drawn, verdict("b", "correct", hinted=True), verdict("c", "correct", supplied=True)])
    history = store.history(3)
    assert history.accepted == {Attempt("a", 1), Attempt("b", 0)}
    assert history.plain == {"a": Tally(2, 1), "b": Tally(1, 0)}
    assert history.plain_rate == pytest.approx(1 / 3)
    assert store.history(1) == NO_HISTORY
