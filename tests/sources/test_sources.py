"""Reading rows with their places, and a cache that never holds half an entry. Nothing here uses the network."""

import hashlib
import io
import json
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from estep.errors import DataError, SourceError
from estep.sources import archives
from estep.sources.archives import Archive, cache_dir, check_sha256, fetch
from estep.sources.models import resolve_model
from estep.sources.rows import read_rows, resolve_file

# Rows of local files


def test_jsonl_rows_carry_their_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n  \n{"a": "\u2028 two"}\n', encoding="utf-8")
    # Empty lines are no rows, and a line separator inside a string is no new line.
    assert read_rows(path) == [(f"{path}:1", {"a": 1}), (f"{path}:4", {"a": "\u2028 two"})]


def test_half_a_surrogate_pair_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": "whole \\ud83d\\ude00"}\n{"a": {"b": ["half \\ud83d"]}}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl:2: '\\ud83d' is half of a surrogate pair"):
        read_rows(path)
    path.write_text('{"a": "whole \\ud83d\\ude00"}\n')
    assert read_rows(path) == [(f"{path}:1", {"a": "whole \U0001f600"})]


def test_csv_rows_carry_their_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('id,text\nx,"a, b"\n\ny,"he said ""no"""\nz\n')
    assert read_rows(path) == [
        (f"{path}:2", {"id": "x", "text": "a, b"}),
        (f"{path}:4", {"id": "y", "text": 'he said "no"'}),
        (f"{path}:5", {"id": "z", "text": None}),  # a short row has no value, rather than an empty one
    ]


def test_a_csv_row_after_a_quoted_line_break_carries_its_own_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('id,text\nx,"a\nb"\ny,c\n')
    (_, first), (place, second) = read_rows(path)
    assert first["text"] == "a\nb"
    assert (place, second["text"]) == (f"{path}:4", "c")


def test_tsv_rows_are_split_at_tabs(tmp_path: Path) -> None:
    path = tmp_path / "rows.TSV"
    path.write_text("id\ttext\nx\ta, b\n")
    assert read_rows(path) == [(f"{path}:2", {"id": "x", "text": "a, b"})]


def test_parquet_rows_carry_their_number(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"text": ["a", None], "score": [1, 2]}), path)
    assert read_rows(path) == [
        (f"{path}: row 1", {"text": "a", "score": 1}),
        (f"{path}: row 2", {"text": None, "score": 2}),
    ]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_a_byte_order_mark_is_no_part_of_the_first_field(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    text = '{"id": "x"}\n' if name.endswith("jsonl") else "id,text\nx,y\n"
    path.write_text(text, encoding="utf-8-sig")
    assert read_rows(path)[0][1]["id"] == "x"


@pytest.mark.parametrize(
    ("name", "content", "place", "words"),
    [
        ("rows.jsonl", b'{"a": 1}\n\n{"a": 2\n', ":3", "not a JSON object on one line"),
        ("rows.jsonl", b'{"a": 1}\n[1, 2]\n', ":2", "a row is a JSON object, got list"),
        ("rows.jsonl", b'"text"\n', ":1", "a row is a JSON object, got str"),
        ("rows.json", b'[\n {"a": 1}\n]\n', ":1", "not a JSON object on one line"),
        ("rows.jsonl", b"[" * 100_000, ":1", ""),
        ("rows.csv", b"id,text\nx,a\ny,b,c\n", ":3", "more columns than the header's 2"),
        ("rows.csv", b"id,text,id\nx,a,y\n", ":1", "two columns are named 'id'"),
        ("rows.tsv", b"id\ttext\ttext\nx\ta\ty\n", ":1", "two columns are named 'text'"),
        ("rows.csv", b'id,text\nx,a\ny,"b"c\n', ":3", "not readable as CSV"),
        ("rows.csv", b'id,text\nx,a\ny,"b\n', ":3", "not readable as CSV"),
        ("rows.jsonl", b"", "", "has no rows"),
        ("rows.jsonl", b"\n \n", "", "has no rows"),
        ("rows.csv", b"", "", "has no rows"),
        ("rows.csv", b"id,text\n", "", "has no rows"),
        ("rows.jsonl", b'{"a": "caf\xe9"}\n', "", "not UTF-8"),
        ("rows.csv", b"id,text\nx,caf\xe9\n", "", "not UTF-8"),
        ("rows.parquet", b"not parquet", "", "could not read"),
        ("rows.txt", b"a\n", "", "allowed extensions are .jsonl, .json, .csv, .tsv, .parquet"),
        ("rows", b"a\n", "", "allowed extensions are"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_line(
    tmp_path: Path, name: str, content: bytes, place: str, words: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as refused:
        read_rows(path)
    assert f"{path}{place}" in str(refused.value)
    assert words in str(refused.value)


@pytest.mark.parametrize("name", ["none.jsonl", "none.csv", "none.parquet"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=f"no such data file: .*{name}"):
        read_rows(tmp_path / name)


def test_a_folder_with_a_files_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").mkdir()
    with pytest.raises(DataError, match=r"could not read .*rows\.jsonl"):
        read_rows(tmp_path / "rows.jsonl")


# Checksums


def test_a_file_with_the_pinned_checksum_passes_and_another_does_not(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    # The test vector of FIPS 180-2 for "abc".
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    check_sha256(path, expected, "it")
    path.write_bytes(b"abd")
    with pytest.raises(SourceError, match=f"checksum mismatch for it: expected sha256 {expected}, got [0-9a-f]{{64}}"):
        check_sha256(path, expected, "it")


# The cache


class Source:
    """A data set of ours, and what was done to get it."""

    def __init__(self) -> None:
        self.downloads = 0
        self.failures: list[BaseException] = []
        """Raised by the next conversions."""
        self.archive = Archive("stars==1.0", "sdist", "0123456789abcdef" * 4, "MIT", self.convert)

    def download(self, archive: Archive, into: Path) -> Path:
        assert archive is self.archive
        assert list(into.iterdir()) == []
        self.downloads += 1
        packed = into / "stars.tar"
        packed.write_text("packed")
        return packed

    def convert(self, packed: Path, folder: Path) -> None:
        assert packed.read_text() == "packed"
        (folder / "stars.jsonl").write_text('{"id": 1}\n')
        if self.failures:
            raise self.failures.pop(0)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("ESTEP_CACHE", str(folder))
    return folder


@pytest.fixture
def stars(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    source = Source()
    monkeypatch.setitem(archives.DATASETS, "stars", source.archive)
    monkeypatch.setattr(archives, "_download", source.download)
    return source


ENTRY = "stars-0123456789ab"
"""The name and the first twelve digits of the checksum."""


def entries(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/caches")
    monkeypatch.setenv("ESTEP_CACHE", "~/mine")
    assert cache_dir() == Path("/home/someone/mine")
    monkeypatch.delenv("ESTEP_CACHE")
    assert cache_dir() == Path("/var/caches/estep")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path("/home/someone/.cache/estep")


def test_a_data_set_is_fetched_once_and_says_so(stars: Source, cache: Path) -> None:
    said: list[str] = []
    folder = fetch("stars", said.append)
    assert folder == cache / ENTRY
    assert (folder / "stars.jsonl").read_text() == '{"id": 1}\n'
    assert json.loads((folder / "origin.json").read_text()) == {
        "requirement": "stars==1.0",
        "sha256": stars.archive.sha256,
        "license": "MIT",
    }
    assert said == ["fetching stars (stars==1.0, MIT) from the package index", "converting stars, once"]
    assert fetch("stars", said.append) == folder
    assert stars.downloads == 1
    assert len(said) == 2
    assert entries(cache) == [ENTRY]


@pytest.mark.parametrize("failure", [RuntimeError("half way"), KeyboardInterrupt(), SourceError("no")])
def test_a_conversion_that_fails_leaves_nothing_and_the_next_call_works(
    stars: Source, cache: Path, failure: BaseException
) -> None:
    stars.failures = [failure]
    with pytest.raises(type(failure)):
        fetch("stars")
    assert entries(cache) == []
    folder = fetch("stars")
    assert sorted(path.name for path in folder.iterdir()) == ["origin.json", "stars.jsonl"]
    assert stars.downloads == 2


def test_what_a_killed_fetch_left_is_removed(stars: Source, cache: Path) -> None:
    stale = cache / f"{ENTRY}.partial-dead" / "converted"
    stale.mkdir(parents=True)
    (stale / "stars.jsonl").write_text("half")
    other = cache / "moons-0123456789ab.partial-live"
    other.mkdir()
    folder = fetch("stars")
    # Another data set's partial folder may be in use.
    assert entries(cache) == [other.name, ENTRY]
    assert (folder / "stars.jsonl").read_text() == '{"id": 1}\n'


def test_a_finished_entry_is_not_fetched_again(stars: Source, cache: Path) -> None:
    (cache / ENTRY).mkdir(parents=True)
    assert fetch("stars") == cache / ENTRY
    assert stars.downloads == 0


def test_what_an_earlier_conversion_made_is_not_used(stars: Source, cache: Path) -> None:
    fetch("stars")
    archives.DATASETS["stars"] = stars.archive = replace(stars.archive, version=2)
    assert fetch("stars") == archives.cached("stars") == cache / f"{ENTRY}-v2"
    assert stars.downloads == 2


def test_several_at_once_fetch_once(stars: Source, cache: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        folders = [pool.submit(fetch, "stars") for _ in range(4)]
        assert {folder.result() for folder in folders} == {cache / ENTRY}
    assert stars.downloads == 1
    assert entries(cache) == [ENTRY]


def test_another_checksum_is_another_entry(stars: Source, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch("stars")
    stars.archive = Archive("stars==2.0", "sdist", "f" * 64, "MIT", stars.convert)
    monkeypatch.setitem(archives.DATASETS, "stars", stars.archive)
    assert fetch("stars") == cache / "stars-ffffffffffff"
    assert entries(cache) == [ENTRY, "stars-ffffffffffff"]


# pip, from a local folder in place of an index


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel in a folder that is all that pip may look at."""
    index = tmp_path / "index"
    index.mkdir()
    path = index / "estep_stars-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("stars.jsonl", '{"id": 1}\n')
        info = "estep_stars-1.0.dist-info"
        packed.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: estep-stars\nVersion: 1.0\n")
        packed.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        packed.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return path


def unpack(packed: Path, folder: Path) -> None:
    with zipfile.ZipFile(packed) as archive:
        archive.extract("stars.jsonl", folder)


def test_an_archive_with_the_pinned_checksum_is_fetched(
    wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setitem(archives.DATASETS, "stars", Archive("estep-stars==1.0", "wheel", sha256, "MIT", unpack))
    assert read_rows(fetch("stars") / "stars.jsonl")[0][1] == {"id": 1}


@pytest.mark.parametrize(
    ("requirement", "words"),
    [("estep-stars==1.0", "checksum mismatch for estep-stars==1.0"), ("estep-stars==2.0", "could not fetch")],
)
def test_another_archive_than_the_pinned_one_is_refused(
    wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, requirement: str, words: str
) -> None:
    monkeypatch.setitem(archives.DATASETS, "stars", Archive(requirement, "wheel", "0" * 64, "MIT", unpack))
    with pytest.raises(SourceError, match=words):
        fetch("stars")
    assert entries(cache) == []


# Conversion


def test_the_rated_sentences_become_one_file_a_domain(tmp_path: Path) -> None:
    stems = {
        "movies": "movieReviewSnippets",
        "tweets": "tweets",
        "products": "amazonReviewSnippets",
        "editorials": "nytEditorialSnippets",
    }

    def tar(members: dict[str, bytes], mode: Any) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=mode) as packed:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                packed.addfile(info, io.BytesIO(content))
        return buffer.getvalue()

    lines = "1\t-2.5\tNot &quot;fine&quot; &amp;\ttabbed \n1_2\t0\tcafé\n".encode()
    rated = "\ufeff1_2\t0\t1.4\t[-2, 0, 2]\n1\t-2.5\t0.5\t[-2, -3]\n".encode()
    members = {f"hutto_ICWSM_2014/{stem}_GroundTruth.txt": lines for stem in stems.values()}
    members |= {f"hutto_ICWSM_2014/{stem}_anonDataRatings.txt": rated for stem in stems.values()}
    inner = tar(members, "w:gz")
    sdist = tmp_path / "sdist.tar.gz"
    sdist.write_bytes(tar({"vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz": inner}, "w:gz"))
    folder = tmp_path / "out"
    folder.mkdir()
    archives.DATASETS["hutto-sentiment"].convert(sdist, folder)
    assert sorted(path.stem for path in folder.iterdir()) == sorted(stems)
    for domain in stems:
        assert [row for _, row in read_rows(folder / f"{domain}.jsonl")] == [
            {"id": f"{domain}-1", "rating": -2.5, "ratings": [-2, -3], "text": 'Not "fine" &\ttabbed'},
            {"id": f"{domain}-1_2", "rating": 0.0, "ratings": [-2, 0, 2], "text": "café"},
        ]


# Names


def test_a_file_of_a_packaged_data_set_is_found(stars: Source, cache: Path) -> None:
    assert resolve_file("stars/stars.jsonl", None) == cache / ENTRY / "stars.jsonl"


@pytest.mark.parametrize("reference", ["stars/star.jsonl", "stars/deep/star.jsonl", "stars"])
def test_an_unknown_file_of_a_data_set_lists_the_known_ones(stars: Source, reference: str) -> None:
    with pytest.raises(DataError, match=r"data set 'stars' has no file '.*'; .*known: stars\.jsonl"):
        resolve_file(reference, None)


def test_a_file_beside_the_task_comes_before_one_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, working = tmp_path / "base", tmp_path / "working"
    for folder in (base, working):
        folder.mkdir()
        (folder / "both.jsonl").write_text("{}")
    (working / "one.jsonl").write_text("{}")
    monkeypatch.chdir(working)
    assert resolve_file("both.jsonl", base) == base / "both.jsonl"
    found = resolve_file("one.jsonl", base)
    assert found is not None
    assert found.resolve() == working / "one.jsonl"
    assert resolve_file(str(working / "both.jsonl"), base) == working / "both.jsonl"


def test_what_is_no_file_is_asked_of_the_hub(tmp_path: Path) -> None:
    assert resolve_file("owner/data", tmp_path) is None
    with pytest.raises(DataError, match=r"no such data file: owner/data\.csv \(looked for .*owner/data\.csv"):
        resolve_file("owner/data.csv", tmp_path)


def test_a_model_by_its_short_name_is_its_cached_folder(cache: Path) -> None:
    folder = cache / f"smollm2-135m-{archives.MODELS['smollm2-135m'].sha256[:12]}"
    folder.mkdir(parents=True)
    assert resolve_model("smollm2-135m") == str(folder)


@pytest.mark.parametrize("marker", ["config.json", "adapter_config.json"])
def test_a_model_folder_is_itself(tmp_path: Path, marker: str) -> None:
    (tmp_path / marker).write_text("{}")
    assert resolve_model(str(tmp_path)) == str(tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"model folder {tmp_path} has no config.json"):
        resolve_model(str(tmp_path))


def test_a_file_of_another_kind_is_not_asked_of_the_hub(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such data file: reviews\.xlsx; allowed extensions are \.jsonl"):
        resolve_file("reviews.xlsx", tmp_path)


def test_a_run_folder_that_is_not_there_is_not_asked_of_the_hub() -> None:
    with pytest.raises(DataError, match="'runs/nosuch' is neither a folder"):
        resolve_model("runs/nosuch")


def test_a_hub_id_is_left_to_the_hub() -> None:
    assert resolve_model("owner/name-of-no-folder") == "owner/name-of-no-folder"


@pytest.mark.parametrize("name", ["smollm2", "a/b/c", "./models/none", "~/none/at-all", "/models/none", "../none"])
def test_an_unknown_model_is_refused_with_what_is_known(name: str) -> None:
    with pytest.raises(
        DataError, match=r"neither a folder, nor a known name, nor a hub id .*(known: .*|did you mean ')smollm2-135m"
    ) as no:
        resolve_model(name)
    assert f"'{name}'" in str(no.value)


def test_a_misspelled_model_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(DataError, match=r"did you mean 'smollm2-135m'\?"):
        resolve_model("smollm-135m")


def test_columns_may_be_separated_by_semicolons(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes('\ufefftext;score\r\nfine, if "late";4\r\n"so; so";2,5\r\n'.encode())
    assert [row for _, row in read_rows(path)] == [
        {"text": 'fine, if "late"', "score": "4"},
        {"text": "so; so", "score": "2,5"},
    ]
    path.write_text('"text; or not",score\nfine,4\n')
    assert [row for _, row in read_rows(path)] == [{"text; or not": "fine", "score": "4"}]
    path.write_text("text;score\nfine;4;5\n")
    with pytest.raises(DataError, match=r"rows\.csv:2: more columns than the header's 2"):
        read_rows(path)
