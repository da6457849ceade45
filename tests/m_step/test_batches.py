"""How the pairs of a gradient step are shared among ranks and split into forward passes."""

from hypothesis import given
from hypothesis import strategies as st

from estep.m_step.batches import Budget, Collator, batches_of_ranks, shares
from estep.m_step.job import Row

ALL = Budget(10**9, 10**9, 10**9)
PADDED, PACKED = Collator(packed=False, pad_id=0), Collator(packed=True, pad_id=0)


def row(length: int, completion: int = 1, first: int = 0) -> Row:
    """A row of `length` positions that begins with `first` and counts on."""
    return {"input_ids": [first, *range(100, 100 + length - 1)], "weights": [1.0] * completion}


def lengths(batches: list[list[Row]]) -> list[list[int]]:
    return [[len(row["input_ids"]) for row in batch] for batch in batches]


def test_what_fits_stays_together_and_in_order() -> None:
    rows = [row(5), row(3), row(9)]
    assert PACKED.split(rows, ALL) == [rows]
    assert PADDED.split([], ALL) == []


def test_a_padded_batch_counts_its_longest_row_for_every_row() -> None:
    # By length: 9, 5, 3, 2. Two rows of 9 are 18 positions, more than 15; three of 5 are 15.
    rows = [row(5), row(3), row(9), row(2)]
    assert lengths(PADDED.split(rows, Budget(15, 100, 100))) == [[9], [5, 3, 2]]


def test_a_packed_batch_counts_a_common_prefix_once() -> None:
    # All rows begin alike, so the shortest one's prompt but its last token is shared: 6 - 1 - 1 = 4 positions, and the
    # rests have 2, 3 and 4. All together 13; the two longest 4 + 4 + 3 = 11.
    rows = [row(6), row(7), row(8)]
    assert PACKED.prefix(rows) == 4
    assert lengths(PACKED.split(rows, Budget(13, 100, 100))) == [[6, 7, 8]]
    assert lengths(PACKED.split(rows, Budget(12, 100, 100))) == [[8, 7], [6]]
    apart = [row(6, first=1), row(7, first=2)]
    assert PACKED.prefix(apart) == 0
    assert lengths(PACKED.split(apart, Budget(12, 100, 100))) == [[7], [6]]


def test_predicted_tokens_and_pairs_are_limited_too() -> None:
    rows = [row(9, completion=4), row(8, completion=4), row(7, completion=1)]
    assert lengths(PADDED.split(rows, Budget(100, 5, 100))) == [[9], [8, 7]]
    assert lengths(PADDED.split(rows, Budget(100, 100, 2))) == [[9, 8], [7]]


def test_a_single_pair_is_always_taken() -> None:
    assert lengths(PADDED.split([row(50), row(40)], Budget(1, 1, 1))) == [[50], [40]]
    assert Budget(8, 5, 1).halved(3) == (1, 1, 1)  # 8 / 8, and never less than 1


def test_ranks_get_about_equally_many_tokens() -> None:
    # The longest first, each to the rank with the fewest tokens: 9 | 6, then 5 to the second (11), 4 to the first (13),
    # 2 to the second (13).
    parts = shares([row(4), row(9), row(5), row(6), row(2)], 2)
    assert lengths(parts) == [[4, 9], [5, 6, 2]]


def test_a_rank_without_rows_takes_part_without_weight() -> None:
    rows = [row(9, completion=3), row(4, completion=2)]
    ranks = batches_of_ranks(rows, 3, PADDED, ALL)
    assert [lengths(of_rank) for of_rank in ranks] == [[[9]], [[4]], [[4]]]
    assert ranks[2][0][0]["weights"] == [0.0, 0.0]


@given(
    st.lists(st.integers(2, 40), min_size=1, max_size=12),
    st.integers(1, 4),
    st.integers(1, 120),
    st.integers(1, 5),
    st.booleans(),
)
def test_every_pair_is_trained_on_once_and_ranks_stay_in_step(
    sizes: list[int], ranks: int, positions: int, pairs: int, packed: bool
) -> None:
    rows = [row(size, first=number % 3) for number, size in enumerate(sizes)]
    for number, one in enumerate(rows):
        one["weights"] = [number + 1.0]
    collator = PACKED if packed else PADDED
    parts = batches_of_ranks(rows, ranks, collator, Budget(positions, 10**9, pairs))
    assert len({len(of_rank) for of_rank in parts}) == 1
    weights = [one["weights"][0] for of_rank in parts for batch in of_rank for one in batch]
    assert sorted(weight for weight in weights if weight) == [number + 1.0 for number in range(len(rows))]
    for batch in (batch for of_rank in parts for batch in of_rank):
        assert len(batch) <= pairs
        if len(batch) > 1:
            assert collator(batch)["input_ids"].numel() <= positions
