"""Lines of progress."""

import io

from estep.progress import Plain


def test_work_that_starts_again_from_its_beginning_has_no_rate_yet() -> None:
    out = io.StringIO()
    with Plain(out, interval=0.0).phase("M-step", 8, "pairs") as advance:
        advance(4)
        advance(-4)  # training ran out of memory
        advance(4)
    lines = out.getvalue().splitlines()
    assert [line.split(",")[0].split(" in ")[0] for line in lines] == ["  M-step: 4/8 pairs"] * 3
